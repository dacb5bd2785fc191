"""Real servers for the system tests: `lambox serve` as a child process, functions written per test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest

from sandbox.confine import privilege, userns
from tests.leftovers import leftovers
from tests.system.confine_fixtures import MAKING, MAKINGS
from tests.waiting import until

LAMBOX = Path(sys.executable).with_name("lambox")
OWN_UIDS = privilege.may_change_uid() or userns.subordinate()[0] is not None
"""Whether the environments of a server started by us have uids of their own."""


class Functions:
    """A folder of functions that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)

    def add(self, name: str, code: str, toml: str = "", file: str = "handler.py") -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "function.toml").write_text(textwrap.dedent(toml))
        path = folder / file
        path.write_text(textwrap.dedent(code))
        if file == "bootstrap":
            path.chmod(0o755)
        return path


@dataclass
class Server:
    url: str
    process: subprocess.Popen[str]
    functions: Functions
    log: Path

    def client(self, **config: Any) -> Any:
        return boto3.client(
            "lambda",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
            config=botocore.config.Config(
                retries={"max_attempts": 0}, max_pool_connections=64, read_timeout=60, **config
            ),
        )

    def invoke(self, name: str, event: Any = None, **how: Any) -> dict[str, Any]:
        """boto3's answer with the payload decoded."""
        answer = self.client().invoke(FunctionName=name, Payload=json.dumps(event).encode(), **how)
        raw = answer["Payload"].read()
        answer["Payload"] = json.loads(raw) if raw else None
        return dict(answer)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as reply:
            return json.load(reply)

    def environments(self, function: str | None = None) -> list[dict[str, Any]]:
        rows = self.get("/_lambox/environments")
        rows = rows if isinstance(rows, list) else rows["environments"]
        return [row for row in rows if function in (None, row["function"])]

    def wait_log(self, *texts: str) -> None:
        """Until all of them stand in the server's log, which is written in batches, by a thread."""
        until(lambda: all(text in self.log.read_text() for text in texts))

    def wait_prepared(self, count: int = 1) -> None:
        """Until `count` runtimes stand ready to be told their function."""
        until(
            lambda: any(
                row["program"] and row["ready"] >= count for row in self.get("/_lambox/prepared")
            )
        )

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(30)


Start = Callable[..., Server]


@contextlib.contextmanager
def serving(
    functions: Functions, state: Path, log: Path, *, prefix: Sequence[str] = (), **env: str
) -> Iterator[Server]:
    """`prefix`: a command that executes lambox in its place."""
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [*prefix, str(LAMBOX), "serve", "--functions", str(functions.folder), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "LAMBOX_STATE": str(state), **env},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "://" in line, f"no ready line; the log: {log.read_text()}"
        url = line.split(" at ")[1].strip()
        yield Server(url, process, functions, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(**LAMBOX_env) -> Server on `tmp_path/functions`; stopped at the end of the test."""
    tmp_path.chmod(0o755)
    with contextlib.ExitStack() as stack:

        def begin(*, prefix: Sequence[str] = (), **env: str) -> Server:
            functions = Functions(tmp_path / "functions")
            return stack.enter_context(
                serving(functions, tmp_path / "state", tmp_path / "log", prefix=prefix, **env)
            )

        yield begin


@pytest.fixture
def functions(tmp_path: Path) -> Functions:
    return Functions(tmp_path / "functions")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module that need nothing of their own."""
    folder = tmp_path_factory.mktemp("shared")
    folder.chmod(0o755)
    with serving(Functions(folder / "functions"), folder / "state", folder / "log") as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After all system tests: no process, cgroup, mount, loop device, netns or temp folder of ours."""
    before = leftovers()
    yield
    # A process that was killed a moment ago may still be on its way out.
    with contextlib.suppress(AssertionError):
        until(lambda: leftovers() <= before, 5)
    assert leftovers() <= before


@pytest.fixture(params=MAKINGS)
def making(request: pytest.FixtureRequest) -> Iterator[str]:
    """The ways in which a sandbox comes about: what confines it must not depend on that."""
    token = MAKING.set(request.param)
    yield request.param
    MAKING.reset(token)
