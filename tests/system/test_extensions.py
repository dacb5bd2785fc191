"""Real extensions in real environments, made ahead and from scratch: init, invocations, hostility, their end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.system.conftest import Functions, Server, Start, serving
from tests.waiting import until

pytestmark = pytest.mark.system

CLIENT = """\
    import http.client, json, os, signal, sys, time

    def call(method, path, body=None, **headers):
        connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        headers = {f"Lambda-Extension-{key.replace('_', '-')}": value for key, value in headers.items()}
        connection.request(method, f"/2020-01-01/extension/{path}", body, headers)
        reply = connection.getresponse()
        text = reply.read()
        return reply.status, reply.getheader("Lambda-Extension-Identifier"), json.loads(text or "null")

    def register(name, *events):
        status, identifier, about = call("POST", "register", json.dumps({"events": events}), Name=name)
        assert status == 200, about
        return identifier

    def next_event(identifier):
        return call("GET", "event/next", Identifier=identifier)[2]

    def say(**what):
        print(json.dumps(what), flush=True)
"""
PYTHON = """\
    #!/usr/bin/env python3
    from client import *
    me = register("python", "INVOKE", "SHUTDOWN")
    about = os.stat("/proc/self")
    with open("/proc/self/status") as file:
        status = {key: value.strip() for key, _, value in (line.partition(":") for line in file)}
    fds = sorted(os.listdir("/proc/self/fd"))
    say(uid=os.getuid(), gid=os.getgid(), cwd=os.getcwd(), env=dict(os.environ), fds=fds,
        seccomp=status["Seccomp"], caps=status["CapBnd"], privs=status["NoNewPrivs"],
        session=os.getsid(0) == os.getpid())
    while True:
        event = next_event(me)
        say(python=event)
        if event["eventType"] == "SHUTDOWN":
            break
"""
SHELL = """\
    #!/bin/sh
    api=http://$AWS_LAMBDA_RUNTIME_API/2020-01-01/extension
    id=$(curl -sSi -H 'Lambda-Extension-Name: shell' -d '{"events":["INVOKE","SHUTDOWN"]}' "$api/register" |
      tr -d '\\r' | awk 'tolower($1) == "lambda-extension-identifier:" { print $2 }')
    while :; do
      event=$(curl -sS -H "Lambda-Extension-Identifier: $id" "$api/event/next")
      echo "{\\"shell\\": $event}"
      case $event in *SHUTDOWN*) exit 0;; esac
    done
"""
HANDLER = """\
    import os, urllib.request
    def handler(event, context):
        address = os.environ["AWS_LAMBDA_METADATA_API"]
        asked = urllib.request.Request(
            f"http://{address}/2026-01-15/metadata/execution-environment",
            headers={"Authorization": "Bearer " + os.environ["AWS_LAMBDA_METADATA_TOKEN"]},
        )
        return {"metadata": urllib.request.urlopen(asked).read().decode(), "id": context.aws_request_id}
"""
ECHO = "def handler(event, context):\n    return event\n"


class Extended(Functions):
    """Functions with layers that have extensions."""

    def extend(self, name: str, /, code: str = ECHO, toml: str = "", **extensions: str) -> None:
        layer = self.folder.parent / "layers" / name
        (layer / "extensions").mkdir(parents=True)
        client = layer / "python" / "client.py"
        client.parent.mkdir()
        client.write_text(textwrap.dedent(CLIENT))
        for file, text in extensions.items():
            path = layer / "extensions" / file.replace("_", "-")
            # The layer's libraries are the function's; extensions have to look for them.
            text = textwrap.dedent(text).replace(
                "from client", "import sys; sys.path.append('/opt/python')\nfrom client"
            )
            path.write_text(text)
            path.chmod(0o755)
        for folder in (layer.parent, layer, layer / "extensions", layer / "python"):
            folder.chmod(0o755)
        self.add(name, code, f'layers = ["{layer}"]\n{textwrap.dedent(toml)}')


@pytest.fixture(scope="module", params=["made ahead", "from scratch"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("extended")
    folder.chmod(0o755)
    how = {} if request.param == "made ahead" else {"LAMBOX_ZYGOTE": "false"}
    functions = Extended(folder / "functions")
    with serving(functions, folder / "state", folder / "log", **how) as server:
        yield server


ONCE = pytest.mark.parametrize("server", ["made ahead"], indirect=True)
"""For what does not depend on how a sandbox comes about."""


def functions_of(server: Server) -> Extended:
    assert isinstance(server.functions, Extended)
    return server.functions


def printed(server: Server, name: str) -> list[dict[str, Any]]:
    """The JSON lines in a function's log."""
    with urllib.request.urlopen(f"{server.url}/_lambox/logs/{name}", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return [json.loads(line) for line in lines if line[:1] == "{"]


def twice(server: Server, name: str) -> list[Any]:
    """The payloads of two invocations of one environment: it is free once its extensions are done too."""
    payloads = []
    for _ in range(2):
        payloads.append(server.invoke(name)["Payload"])
        until(lambda: {row["state"] for row in server.environments(name)} == {"idle"})
    return payloads


def test_a_life_with_two_extensions(server: Server) -> None:
    functions_of(server).extend("both", HANDLER, "idle_timeout = 2", python=PYTHON, shell=SHELL)
    answers = twice(server, "both")
    assert json.loads(answers[0]["metadata"]) == {"AvailabilityZoneID": "use1-az1"}
    (row,) = server.environments("both")
    assert [one["name"] for one in row["extensions"]] == ["python", "shell"]
    until(lambda: server.environments("both") == [])
    said = printed(server, "both")
    (about,) = (line for line in said if "uid" in line)
    assert (about["uid"], about["gid"], about["cwd"], about["session"]) == (993, 990, "/", True)
    assert (about["seccomp"], about["caps"], about["privs"]) == ("2", "0" * 16, "1")
    assert about["fds"][:3] == ["0", "1", "2"]
    assert len(about["fds"]) == 4  # and the folder that is listed
    assert about["env"]["AWS_LAMBDA_FUNCTION_NAME"] == "both"
    assert about["env"]["AWS_LAMBDA_METADATA_TOKEN"]
    assert not {"_HANDLER", "LAMBDA_TASK_ROOT", "AWS_EXECUTION_ENV"} & set(about["env"])
    for name in ("python", "shell"):
        events = [line[name] for line in said if name in line]
        assert [event["eventType"] for event in events] == ["INVOKE", "INVOKE", "SHUTDOWN"]
        assert [event["requestId"] for event in events[:2]] == [each["id"] for each in answers]
        assert events[2]["shutdownReason"] == "spindown"


def test_an_internal_extension(server: Server) -> None:
    functions_of(server).extend(
        "internal",
        """\
        from client import *
        import threading
        told = []
        def run(me):
            while True:
                told.append(next_event(me))
        me = register("mine", "INVOKE")
        threading.Thread(target=run, args=(me,), daemon=True).start()
        def handler(event, context):
            return [each["requestId"] for each in told], context.aws_request_id
        """,
    )
    first, second = twice(server, "internal")
    assert first[1] in second[0]
    (row,) = server.environments("internal")
    (one,) = row["extensions"]
    assert (one["name"], one["type"], one["events"]) == ("mine", "internal", ["INVOKE"])


BAD = {
    "leaves": (
        'from client import *\nregister("leaves", "INVOKE")\nsys.exit(7)',
        "Extension.Crash",
        "exit status 7",
    ),
    "sad": (
        'from client import *\nme = register("sad")\n'
        'call("POST", "init/error", Identifier=me, Function_Error_Type="Extension.Sad")\nsys.exit(1)',
        "Extension.InitError",
        "exit status 1",
    ),
}


@ONCE
@pytest.mark.parametrize("name", BAD)
def test_an_extension_that_fails_init(server: Server, name: str) -> None:
    code, error_type, reason = BAD[name]
    functions_of(server).extend(name, **{name: f"#!/usr/bin/env python3\n{code}\n"})
    answer = server.invoke(name)
    assert answer["FunctionError"] == "Unhandled"
    assert answer["Payload"]["errorType"] == error_type
    assert answer["Payload"]["errorMessage"].endswith(f"Error: {reason}")
    until(lambda: server.environments(name) == [])


@ONCE
def test_a_file_that_cannot_be_executed(server: Server) -> None:
    functions_of(server).extend("text", plain="no program")
    path = functions_of(server).folder.parent / "layers" / "text" / "extensions" / "plain"
    path.chmod(path.stat().st_mode & ~(stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH))
    answer = server.invoke("text")
    assert answer["Payload"]["errorType"] == "Extension.LaunchError"
    assert "fork/exec /opt/extensions/plain: permission denied" in answer["Payload"]["errorMessage"]


@ONCE
def test_the_marker_turns_them_off(server: Server) -> None:
    functions_of(server).extend("off", bad="#!/bin/false\n")
    (functions_of(server).folder.parent / "layers" / "off" / "disable-extensions-jwigqn8j").touch()
    assert server.invoke("off", 1)["Payload"] == 1
    assert server.environments("off")[0]["extensions"] == []


@ONCE
def test_a_crash_during_an_invocation(server: Server) -> None:
    functions_of(server).extend(
        "crash",
        "import time\ndef handler(event, context):\n    time.sleep(event)\n",
        crash="""\
        #!/usr/bin/env python3
        from client import *
        me = register("crash", "INVOKE")
        next_event(me)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    answer = server.invoke("crash", 2)
    assert answer["Payload"]["errorType"] == "Extension.Crash"
    assert answer["Payload"]["errorMessage"].endswith("Error: signal: killed")


STUBBORN = """\
    #!/usr/bin/env python3
    from client import *
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What outlives its parent, its session and its pipes is still in the sandbox.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    me = register("stubborn", "SHUTDOWN")
    while next_event(me)["eventType"] != "SHUTDOWN":
        pass
    say(told=True)
    time.sleep(1000)
"""


def test_node_is_started_after_the_extensions_too(server: Server) -> None:
    functions_of(server).extend("node", "", python=PYTHON)
    folder = functions_of(server).folder / "node"
    (folder / "handler.py").unlink()
    (folder / "index.mjs").write_text("export const handler = async (event) => event + 1;")
    assert server.invoke("node", 1)["Payload"] == 2
    until(lambda: any("python" in line for line in printed(server, "node")))


def test_an_extension_and_a_runtime_of_its_own(server: Server) -> None:
    functions_of(server).extend("bash", "", 'runtime = "provided.al2023"', python=PYTHON)
    folder = functions_of(server).folder / "bash"
    source = Path(__file__).parents[2] / "functions" / "bash-bootstrap" / "bootstrap"
    (folder / "handler.py").unlink()
    (folder / "bootstrap").write_text(source.read_text())
    (folder / "bootstrap").chmod(0o755)
    assert server.invoke("bash", {"n": 1})["Payload"]["echo"] == {"n": 1}
    until(lambda: any("python" in line for line in printed(server, "bash")))


SILENT = """\
    #!/usr/bin/env python3
    from client import *
    register("another", "INVOKE")
    time.sleep(1000)
"""
DEAF = """\
    #!/usr/bin/env python3
    from client import *
    me = register("deaf", "INVOKE", "SHUTDOWN")
    next_event(me)
    os.fork()
    time.sleep(1000)
"""
STAYS = """\
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    def handler(event, context):
        return event
"""


@pytest.mark.slow
def test_hostile_ones_are_killed_and_accounted_for(start: Start, tmp_path: Path) -> None:
    """Each takes seconds, so all at once: one that never says its name, one that never calls `next` again, one
    that ignores its end, as its runtime does, and has left its session."""
    functions = Extended(tmp_path / "functions")
    functions.extend("silent", ECHO, "timeout = 1", silent=SILENT)
    functions.extend("deaf", ECHO, "timeout = 1", deaf=DEAF)
    functions.extend("stubborn", STAYS, "idle_timeout = 0.3", stubborn=STUBBORN)
    server = start(LAMBOX_INIT_TIMEOUT_S="1")
    took = {}

    def run(name: str) -> Any:
        began = time.monotonic()
        answer = server.invoke(name, 1)["Payload"]
        until(lambda: server.environments(name) == [], 15)
        took[name] = time.monotonic() - began
        return answer

    with ThreadPoolExecutor() as pool:
        silent, deaf, stubborn = pool.map(run, ("silent", "deaf", "stubborn"))
    assert (deaf, stubborn) == (1, 1)
    assert silent["errorType"] == "Sandbox.Timedout"
    assert silent["errorMessage"].endswith("Task timed out after 1.00 seconds")
    server.wait_log(
        "EXTENSION\tName: silent\tState: Started\tEvents: []",
        "Status: timeout",
        '[stubborn] {"told": true}',
    )
    # The timeout, or the idle time, and the two seconds of a Shutdown phase.
    assert 2.9 < took["deaf"] < 12
    assert 2.2 < took["stubborn"] < 12
    assert not [each for each in inside(server) if "/opt/extensions" in each]


def inside(server: Server) -> list[str]:
    """Command lines of all processes of the server's."""
    found = []
    for each in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(each.cmdline()))
    return found


def test_the_end_of_the_server_is_told_and_leaves_nothing(start: Start, tmp_path: Path) -> None:
    functions = Extended(tmp_path / "functions")
    # A shell takes seconds on the share of 128 MB of a slow machine, and has two.
    functions.extend("both", ECHO, "memory_size = 1769", python=PYTHON, shell=SHELL)
    functions.extend("stubborn", stubborn=STUBBORN)
    server = start(prefix=["setsid"], LAMBOX_GRACE_S="1")
    for name in ("both", "stubborn"):
        server.invoke(name)
    pids = [each.pid for each in psutil.Process(server.process.pid).children(recursive=True)]
    began = time.monotonic()
    # As Ctrl-C does it: every process of the group is told.
    os.killpg(server.process.pid, signal.SIGTERM)
    assert server.process.wait(30) == 0
    # One of them uses all the time there is.
    assert 0.9 < time.monotonic() - began < 8
    text = server.log.read_text()
    assert (
        text.count('"shutdownReason": "spindown"') + text.count('"shutdownReason":"spindown"') == 2
    )
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
