"""The verbs as a person types them: what is printed where, and the exit code."""

from __future__ import annotations

import base64
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from click.testing import CliRunner, Result

from lambox import cli, config, doctor, running
from rootfs.runtimes import Runtime, Runtimes
from sandbox import functiontoml
from sandbox.confine.spec import IsolationUnavailable
from sandbox.errors import FunctionNotFound, PlatformFault, TooManyRequests
from sandbox.invocation import Outcome

HELLO = {
    "name": "hello",
    "state": "ready",
    "runtime": "python3.11",
    "handler": "handler.handler",
    "timeout_s": 15,
    "memory_mb": 128,
    "versions": [str(number) for number in range(1, 8)],
    "code": "/srv/functions/hello",
    "urls": ["http://0123.lambda-url.us-east-1.localhost:9000/"],
}
BROKEN = {"name": "broken", "state": "broken", "problem": "function.toml:1: [no] such key"}
ENVIRONMENT = {
    "id": "hello-1234",
    "function": "hello",
    "version": "$LATEST",
    "type": "provisioned",
    "state": "frozen",
    "age_s": 3.21,
    "invocations": 7,
    "memory_mb": 9,
    "memory_size_mb": 128,
    "tmp": "disk",
    "cpu_s": 0.123,
}


@dataclass
class FakeServer:
    """Answers like lambox's HTTP face; `invoked` has what was asked for."""

    url: str = ""
    invoked: list[tuple[str, bytes, str]] = field(default_factory=list)
    function_error: str = ""
    refusal: tuple[int, str, dict[str, str]] | None = None


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            pages: dict[str, Any] = {
                "/healthz": {"status": "ok", "version": "0"},
                "/_lambox/functions": [HELLO, BROKEN],
                "/_lambox/environments": [ENVIRONMENT],
            }
            if self.path in pages:
                self.answer(200, json.dumps(pages[self.path]).encode())
            elif self.path.startswith("/_lambox/logs/nope"):
                error = {"errorType": "ResourceNotFoundException", "errorMessage": "no nope here"}
                self.answer(404, json.dumps(error).encode())
            else:
                self.answer(200, f"START {self.path}\nEND\n".encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            tail = self.headers.get("X-Amz-Log-Type", "")
            fake.invoked.append((unquote(self.path), body, tail))
            if fake.refusal is not None:
                status, code, error = fake.refusal
                self.answer(status, json.dumps(error).encode(), {"x-amzn-ErrorType": code})
                return
            headers = {"X-Amz-Log-Result": base64.b64encode(b"a line of log\n").decode()}
            if fake.function_error:
                headers["X-Amz-Function-Error"] = fake.function_error
            self.answer(200, b'{"answer": 42}', headers)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        fake.url = f"http://127.0.0.1:{httpd.server_port}"
        yield fake
        httpd.shutdown()
        thread.join()


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """Runs verbs in an empty folder, where nothing of this host's settings holds."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LAMBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAMBOX_STATE", str(tmp_path / "state"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("LAMBOX_PORT", str(free.getsockname()[1]))
    return CliRunner()


def run(runner: CliRunner, *words: str, input: bytes | None = None) -> Result:  # noqa: A002
    result = runner.invoke(cli.main, words, input=input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def function(folder: Path, name: str = "hello", event: str | None = None) -> Path:
    """A Python function in `folder`/functions."""
    place = folder / "functions" / name
    place.mkdir(parents=True)
    (place / "handler.py").write_text("def handler(event):\n    return event\n")
    if event is not None:
        (place / "event.json").write_text(event)
    return place


# -- the command itself


def test_help_names_every_verb_and_is_quick(runner: CliRunner) -> None:
    text = run(runner, "--help").stdout
    for verb in ("serve", "invoke", "new", "list", "ps", "logs", "doctor"):
        assert f"  {verb} " in text
    # Heavy imports are inside verbs.
    heavy = "{'trio', 'quart', 'rich', 'hypercorn', 'psutil'}"
    program = f"import sys, lambox.cli; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_version(runner: CliRunner) -> None:
    assert run(runner, "--version").stdout.startswith("lambox ")


def test_serve_has_a_flag_for_every_setting(runner: CliRunner) -> None:
    text = run(runner, "serve", "--help").stdout
    assert [one.flag for one in config.SETTINGS if one.flag not in text] == []


# -- settings


@pytest.mark.parametrize("verb", ["serve", "list", "ps", "doctor"])
def test_wrong_settings_are_told_with_file_and_line(runner: CliRunner, verb: str) -> None:
    Path("lambox.toml").write_text("region = 'us-east-1'\nprot = 9000\n")
    result = run(runner, verb)
    assert result.exit_code == cli.USAGE
    assert "lambox.toml:2: prot = 9000: unknown setting; did you mean port?" in result.stderr
    assert result.stdout == ""


def test_a_wrong_flag_is_named(runner: CliRunner) -> None:
    result = run(runner, "serve", "--port", "70000")
    assert result.exit_code == cli.USAGE
    assert "--port = 70000: must be a whole number from 0 to 65535" in result.stderr


# -- serve


class FakeNode:
    isolation = "bubblewrap 0.8.0, cgroup v2"

    class functions:
        @staticmethod
        def all() -> list[str]:
            return ["one", "two"]


def serves(monkeypatch: pytest.MonkeyPatch, *, raising: BaseException | None = None) -> None:
    """`lambox serve` on a host that isolates, without a node."""

    def serve(_: object, ready: Any, on_line: Any) -> int:
        if raising is not None:
            raise raising
        ready(FakeNode, "http://127.0.0.1:9000")
        on_line("hello", "a line of log")
        return 0

    monkeypatch.setattr(doctor, "require_sandbox", lambda _: None)
    monkeypatch.setattr(running, "serve", serve)


def test_serve_says_one_line_when_ready(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function(tmp_path)
    serves(monkeypatch)
    result = run(runner, "serve")
    assert result.stdout == "lambox serving 2 functions at http://127.0.0.1:9000\n"
    assert result.exit_code == 0


def test_serve_without_a_folder_says_how_to_make_one(runner: CliRunner) -> None:
    result = run(runner, "serve", "--functions", "elsewhere")
    assert result.exit_code == cli.USAGE
    assert "lambox new hello --functions elsewhere" in result.stderr


@pytest.mark.parametrize(
    ("raising", "words"),
    [
        (OSError(errno.EADDRINUSE, "Address already in use"), "Hint: --port 0 takes a free one"),
        (OSError(errno.EACCES, "Permission denied", "/state"), "Permission denied (/state)"),
        (PlatformFault("the disk is full"), "the disk is full"),
        (IsolationUnavailable("no cgroups", "sudo it"), "no cgroups\nHint: sudo it"),
        (
            BaseExceptionGroup("", [BaseExceptionGroup("", [IsolationUnavailable("deep", "dig")])]),
            "deep\nHint: dig",
        ),
    ],
)
def test_serve_says_what_is_in_the_way(
    runner: CliRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raising: BaseException,
    words: str,
) -> None:
    function(tmp_path)
    serves(monkeypatch, raising=raising)
    result = run(runner, "serve")
    assert result.exit_code == cli.PLATFORM
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_serve_refuses_with_doctors_words(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function(tmp_path)

    def refuse(_: object) -> None:
        raise IsolationUnavailable("a sandbox: may not make one", "sysctl -w it=1")

    monkeypatch.setattr(doctor, "require_sandbox", refuse)
    result = run(runner, "serve")
    assert result.exit_code == cli.PLATFORM
    assert "a sandbox: may not make one\nHint: sysctl -w it=1" in result.stderr


# -- invoke


def test_invoke_on_a_server(runner: CliRunner, server: FakeServer) -> None:
    result = run(runner, "invoke", "hello", "--payload", '{"a": 1}', "--endpoint", server.url)
    path = "/2015-03-31/functions/hello/invocations"
    assert server.invoked == [(path, b'{"a": 1}', "Tail")]
    assert result.stdout == '{"answer": 42}\n'
    assert result.stderr == "a line of log\n"
    assert result.exit_code == 0


def test_a_function_error_is_exit_code_1(runner: CliRunner, server: FakeServer) -> None:
    server.function_error = "Unhandled"
    result = run(runner, "invoke", "hello", "--endpoint", server.url)
    assert (result.exit_code, result.stdout) == (cli.FUNCTION_ERROR, '{"answer": 42}\n')


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (404, "ResourceNotFoundException", cli.USAGE),
        (409, "ResourceConflictException", cli.FUNCTION_ERROR),
        (429, "TooManyRequestsException", cli.PLATFORM),
        (500, "ServiceException", cli.PLATFORM),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(
    runner: CliRunner, server: FakeServer, status: int, code: str, exit_code: int
) -> None:
    server.refusal = (status, code, {"Message": "what is the matter"})
    result = run(runner, "invoke", "hello", "--endpoint", server.url)
    assert result.exit_code == exit_code
    assert result.stderr == f"lambox: {code}: what is the matter\n"


def test_the_event_is_event_json_unless_given(
    runner: CliRunner, server: FakeServer, tmp_path: Path
) -> None:
    function(tmp_path, event='{"from": "event.json"}')
    Path("other.json").write_text('{"from": "other"}')
    at = ("--endpoint", server.url)
    run(runner, "invoke", "hello", *at)
    run(runner, "invoke", "hello", "--event", "other.json", *at)
    run(runner, "invoke", "hello", "-", *at, input=b'{"from": "stdin"}')
    run(runner, "invoke", "no-such-folder", *at)
    events = [json.loads(event) for _, event, _ in server.invoked]
    assert events == [{"from": "event.json"}, {"from": "other"}, {"from": "stdin"}, {}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--payload", "{no"), "--payload is not JSON"),
        (("--payload", "1", "-"), "give one of"),
        (("what",), "only -"),
        (("--event", "missing.json"), "does not exist"),
        (("--endpoint", "ftp://x"), "must be like http://127.0.0.1:9000"),
    ],
)
def test_wrong_use_of_invoke(runner: CliRunner, words: tuple[str, ...], message: str) -> None:
    result = run(runner, "invoke", "hello", *words)
    assert result.exit_code == cli.USAGE
    assert message in result.stderr


def test_an_endpoint_that_does_not_answer(runner: CliRunner) -> None:
    result = run(runner, "invoke", "hello", "--endpoint", "http://127.0.0.1:1")
    assert result.exit_code == cli.PLATFORM
    assert "no lambox answers at http://127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("outcome", "exit_code"),
    [
        (Outcome("success", b'"here"'), 0),
        (Outcome("error", b'"here"'), cli.FUNCTION_ERROR),
        (FunctionNotFound("hello"), cli.USAGE),
        (TooManyRequests("ReservedFunctionConcurrentInvocationLimitExceeded"), cli.PLATFORM),
        (IsolationUnavailable("no bwrap", "apt-get install bubblewrap"), cli.PLATFORM),
    ],
)
def test_invoke_without_a_server(
    runner: CliRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome | Exception,
    exit_code: int,
) -> None:
    def invoke_once(_: object, name: str, payload: bytes, on_line: Any) -> Outcome:
        assert (name, payload) == ("hello", b"{}")
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(doctor, "require_sandbox", lambda _: None)
    monkeypatch.setattr(running, "invoke_once", invoke_once)
    function(tmp_path)
    result = run(runner, "invoke", "hello")
    assert result.exit_code == exit_code
    assert result.stdout == ('"here"\n' if isinstance(outcome, Outcome) else "")
    assert "Traceback" not in result.stderr


def test_invoke_by_folder_does_not_take_another_folders_server(
    runner: CliRunner, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function(tmp_path)
    monkeypatch.setenv("LAMBOX_PORT", server.url.rpartition(":")[2])
    monkeypatch.setattr(doctor, "require_sandbox", lambda _: None)
    monkeypatch.setattr(running, "invoke_once", lambda *_: Outcome("success", b'"here"'))
    assert run(runner, "invoke", "hello").stdout == '{"answer": 42}\n'
    assert run(runner, "invoke", "hello", "--functions", "functions").stdout == '"here"\n'


# -- list, ps, logs


def test_list_of_a_server(runner: CliRunner, server: FakeServer) -> None:
    result = run(runner, "list", "--endpoint", server.url)
    lines = [line.split() for line in result.stdout.splitlines()]
    row = "hello python3.11 handler.handler 128 MB 15 s 3 4 5 6 7 ready"  # the newest five
    assert row.split() in lines
    assert "broken: function.toml:1: [no] such key" in result.stdout
    assert "hello is at http://0123.lambda-url.us-east-1.localhost:9000/" in result.stdout


def test_list_of_a_folder(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"python3.11": Runtime("python3.11", "python", "/usr/bin/python3.11", "/usr")}
    monkeypatch.setattr("rootfs.runtimes.discover", lambda: Runtimes(found, "python3.11"))
    function(tmp_path, "good")
    (function(tmp_path, "bad") / "function.toml").write_text("timeout = 'x'\n")
    result = run(runner, "list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["bad", "good"]
    assert "function.toml:1: timeout" in result.stdout


def test_list_of_an_empty_folder_says_how_to_begin(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rootfs.runtimes.discover", lambda: Runtimes({}, "python3.11"))
    Path("functions").mkdir()
    result = run(runner, "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "lambox new hello" in result.stderr


def test_ps(runner: CliRunner, server: FakeServer) -> None:
    result = run(runner, "ps", "--endpoint", server.url)
    expected = "hello-1234 hello $LATEST provisioned frozen 3.2 s 7 9 MB 128 MB disk 0.12 s"
    assert expected.split() in [line.split() for line in result.stdout.splitlines()]


def test_ps_shows_extensions_where_there_are_some(
    runner: CliRunner, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "extensions" not in run(runner, "ps", "--endpoint", server.url).stdout
    one = {"name": "agent", "type": "external", "state": "Ready", "events": ["INVOKE"]}
    monkeypatch.setitem(ENVIRONMENT, "extensions", [one])
    monkeypatch.setenv("COLUMNS", "200")
    lines = run(runner, "ps", "--endpoint", server.url).stdout.splitlines()
    assert lines[0].split()[-1] == "extensions"
    assert lines[2].endswith("agent (Ready)")


@pytest.mark.parametrize("verb", ["ps", "logs"])
def test_verbs_that_need_a_server_say_so(runner: CliRunner, verb: str) -> None:
    result = run(runner, verb)
    assert result.exit_code == cli.PLATFORM
    assert "Hint: start it with lambox serve" in result.stderr


def test_logs(runner: CliRunner, server: FakeServer) -> None:
    at = ("--endpoint", server.url)
    assert run(runner, "logs", *at).stdout == "START /_lambox/logs\nEND\n"
    assert run(runner, "logs", "hello", *at).stdout == "START /_lambox/logs/hello\nEND\n"
    followed = run(runner, "logs", "hello", "-f", *at)
    assert followed.stdout == "START /_lambox/logs/hello?follow=1\nEND\n"


def test_logs_of_an_unknown_function_are_told_in_words(
    runner: CliRunner, server: FakeServer
) -> None:
    result = run(runner, "logs", "nope", "--endpoint", server.url)
    assert result.exit_code == cli.USAGE
    assert result.stderr == "lambox: ResourceNotFoundException: no nope here\n"


# -- new


@pytest.mark.parametrize(
    ("runtime", "file", "written"),
    [
        ("python", "handler.py", None),
        ("python3.12", "handler.py", "python3.12"),
        ("nodejs", "index.mjs", None),
        ("nodejs22.x", "index.mjs", "nodejs22.x"),
        ("provided", "bootstrap", "provided.al2023"),
    ],
)
def test_new(
    runner: CliRunner, tmp_path: Path, runtime: str, file: str, written: str | None
) -> None:
    result = run(runner, "new", "mine", "--runtime", runtime)
    place = tmp_path / "functions" / "mine"
    assert result.exit_code == 0
    assert "Try it: lambox invoke mine" in result.stdout
    assert functiontoml.read(place / "function.toml").runtime == written
    assert json.loads((place / "event.json").read_text()) == {"name": "world"}
    assert os.access(place / file, os.X_OK) == (file == "bootstrap")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bad/name",), "letters, digits"),
        (("x", "--runtime", "cobol"), "must be python"),
        (("taken",), "exists already"),
    ],
)
def test_new_refuses(
    runner: CliRunner, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    before = function(tmp_path, "taken")
    result = run(runner, "new", *words)
    assert result.exit_code == cli.USAGE
    assert message in result.stderr
    assert list((tmp_path / "functions").iterdir()) == [before]


# -- doctor


@pytest.mark.parametrize(
    ("verdict", "exit_code", "last"),
    [
        ("ok", 0, "lambox can serve here."),
        ("note", 0, "lambox can serve here."),
        ("missing", 1, "lambox cannot serve here."),
    ],
)
def test_doctor(
    runner: CliRunner,
    monkeypatch: pytest.MonkeyPatch,
    verdict: doctor.Verdict,
    exit_code: int,
    last: str,
) -> None:
    results = [doctor.Result("thing", verdict, "as it is", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda _: results)
    result = run(runner, "doctor")
    assert result.exit_code == exit_code
    assert "as it is" in result.stdout
    assert "mend: mend it" in result.stdout
    assert result.stdout.splitlines()[-1] == last


# -- log lines on their way to standard error
