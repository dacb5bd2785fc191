"""`lambox serve` on a host with and without a way out: what functions get, and what is said."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.confine.network import links
from tests.leftovers import leftovers
from tests.system.conftest import LAMBOX, Functions, Server, serving
from tests.system.internet import ANSWER, INTERNET, NAME_SERVER, World, world
from tests.system.nat_fixtures import BUILT
from tests.waiting import until

pytestmark = BUILT
REACHING = f"""
import os, socket

def reach(place):
    try:
        with socket.create_connection(place, 2) as s:
            return s.recv(100).decode()
    except OSError as exc:
        return type(exc).__name__

def handler(event, context):
    return [os.environ["AWS_LAMBDA_RUNTIME_API"], reach(("{INTERNET}", 80)), reach(("169.254.169.254", 80))]
"""

ASKING = """

def ask(event, context):
    return socket.gethostbyname("api.example")
"""


@pytest.fixture
def earth(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """What is started by this thread is on a host of this test's own, and chooses networks itself."""
    monkeypatch.delenv("LAMBOX_DEFAULT_NETWORK", raising=False)
    with world() as made, made.entered():
        yield made


@contextlib.contextmanager
def served(tmp_path: Path, **env: str) -> Iterator[Server]:
    tmp_path.chmod(0o755)
    functions = Functions(tmp_path / "functions")
    with serving(functions, tmp_path / "state", tmp_path / "log", **env) as server:
        yield server


def call(server: Server, name: str) -> tuple[int, Any]:
    port = int(server.url.rsplit(":", 1)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", f"/invoke/{name}", b"{}")
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def left() -> list[str]:
    """Of what the host's network got."""
    return [line for line in leftovers() if line.startswith(("table", "interface"))]


def test_functions_get_out_without_being_told_to(earth: World, tmp_path: Path) -> None:
    """Made ahead, each kind of its own; nothing of it is left when the server stops."""
    functions = Functions(tmp_path / "functions")
    functions.add("out", REACHING)
    functions.add("shut", REACHING, 'network = "none"')
    functions.add("open", REACHING, 'network = "host"')
    with served(tmp_path, LAMBOX_POOL_MIN="1", LAMBOX_POOL_MAX="1") as server:

        def ready() -> bool:
            rows = server.get("/_lambox/prepared")
            return [row["ready"] for row in rows if row["program"]] == [1, 1]

        until(ready)
        assert call(server, "out") == (200, ["127.0.0.1:9001", ANSWER.decode(), "OSError"])
        assert call(server, "shut") == (200, ["127.0.0.1:9001", "OSError", "OSError"])
        assert "from scratch" not in server.log.read_text()
        networks = {row["name"]: row["network"] for row in server.get("/_lambox/functions")}
        assert networks == {"out": "nat", "shut": "none", "open": "host"}
        server.wait_log(
            "nat by lambox0 from 10.219.0.0/20",
            "net.ipv4.conf.eth0.forwarding = 1",
            'WARNING lambox: function open has network = "host"',
        )
        assert server.stop() == 0
    assert [place for _, place in earth.seen] == [INTERNET]
    assert left() == []


def test_after_a_sigkill_the_kernel_and_the_next_start_clean_up(
    earth: World, tmp_path: Path
) -> None:
    """What keeps the host from having become a router stays until then."""
    Functions(tmp_path / "functions").add("out", REACHING)
    with served(tmp_path, LAMBOX_ZYGOTE="false") as server:
        assert call(server, "out") == (200, ["127.0.0.1:9001", ANSWER.decode(), "OSError"])
        server.stop(signal.SIGKILL)
        until(lambda: [line[-5:] for line in left()] == ["guard"])
    with served(tmp_path, LAMBOX_ZYGOTE="false"):
        pass
    assert left() == []


def test_without_a_way_out_functions_have_none_and_the_log_says_why(
    earth: World, tmp_path: Path
) -> None:
    earth.host.do(lambda: subprocess.run(["ip", "route", "del", "default"], check=True))
    functions = Functions(tmp_path / "functions")
    functions.add("silent", REACHING)
    functions.add("asks", REACHING, 'network = "nat"')
    with served(tmp_path) as server:
        server.wait_log('functions have network = "none": this host has no default route')
        assert call(server, "silent") == (200, ["127.0.0.1:9001", "OSError", "OSError"])
        status, said = call(server, "asks")
    assert status == 409
    assert 'function.toml: network = "nat": cannot be had on this host' in json.dumps(said).replace(
        '\\"', '"'
    )
    assert "ip route add default" in json.dumps(said)
    doctor = subprocess.run(
        [str(LAMBOX), "doctor"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'no default route: functions have network = "none"' in doctor.stdout


def test_who_wants_none_touches_nothing_of_the_host(earth: World, tmp_path: Path) -> None:
    functions = Functions(tmp_path / "functions")
    functions.add("shut", REACHING)
    with served(tmp_path, LAMBOX_DEFAULT_NETWORK="none") as server:
        assert call(server, "shut")[1][1:] == ["OSError", "OSError"]
        there = earth.host.do(lambda: links.interfaces(earth.host.route))
        assert [one.name for one in there] == ["lo", "eth0"]
        functions.add("late", REACHING, 'network = "nat"')
        until(lambda: call(server, "late")[0] == 409)
        assert "restart it" in json.dumps(call(server, "late")[1])


def test_one_that_asks_gets_out_where_the_default_is_none(earth: World, tmp_path: Path) -> None:
    """Names, too: by the resolv.conf that the server sees, through to the handler."""
    names = tmp_path / "resolv.conf"
    names.write_text(f"nameserver {NAME_SERVER}\n")
    functions = Functions(tmp_path / "functions")
    functions.add("out", REACHING + ASKING, 'network = "nat"\nhandler = "handler.ask"')
    functions.add("shut", REACHING)
    tmp_path.chmod(0o755)
    script = f'mount --bind {names} /etc/resolv.conf && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(LAMBOX), "serve", "--port", "0"]
    with (tmp_path / "log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--functions", str(functions.folder)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={
                **os.environ,
                "LAMBOX_STATE": str(tmp_path / "state"),
                "LAMBOX_DEFAULT_NETWORK": "none",
            },
        )
    try:
        assert process.stdout is not None
        url = "http://" + process.stdout.readline().split("http://")[1].split()[0]
        server = Server(url, process, functions, tmp_path / "log")
        assert call(server, "out") == (200, "198.51.100.7")
        assert call(server, "shut")[1][1] == "OSError"
    finally:
        process.terminate()
        process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
    assert earth.asked == ["api.example"]
