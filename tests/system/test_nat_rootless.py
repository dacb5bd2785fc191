"""The way out of an ordinary user's functions: pasta or slirp4netns speaks for them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.conftest import Functions, Server
from tests.system.internet import ANSWER, HOST, INTERNET, METADATA, NAME_SERVER, World, world
from tests.system.nat_fixtures import BUILT
from tests.system.test_nat_server import call
from tests.system.test_rootless import server_process, those
from tests.waiting import until

pytestmark = BUILT
ROOT = Path(__file__).resolve().parents[2]
PLACES = [
    (INTERNET, 80),
    (HOST, 8080),
    ("127.0.0.1", 8080),
    ("10.219.0.9", 8080),  # a neighbour
    ("198.18.219.2", 8080),  # the process that speaks, from the router
    *((address, 80) for address in METADATA),
]
REACHING = f"""
import socket

def reach(place):
    try:
        with socket.create_connection(place, 3) as s:
            return s.recv(100).decode()
    except OSError as exc:
        return type(exc).__name__

def handler(event, context):
    return [reach(place) for place in {PLACES}] + [socket.gethostbyname("user.example")]
"""
FOUND = [ANSWER.decode(), "OSError", "ConnectionRefusedError", *["OSError"] * 7, "198.51.100.7"]
PREPARE = """
    mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 &&
    mount --bind "$0" /etc/resolv.conf && exec "$@"
"""
"""As a host has it: /dev/net/tun is everybody's (udev's rules), here perhaps not."""


@pytest.fixture
def earth(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.delenv("LAMBOX_DEFAULT_NETWORK", raising=False)
    with world() as made, made.entered():
        made.serve(made.host, "0.0.0.0", 8080)
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that an ordinary user can walk to."""
    with tempfile.TemporaryDirectory(prefix="nat-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def tools(folder: Path, *without: str) -> str:
    """A PATH of all that is there but some."""
    folder.mkdir()
    for top in ("/usr/sbin", "/usr/bin"):
        for entry in os.scandir(top):
            if not entry.name.startswith(without or ("\0",)):
                with contextlib.suppress(FileExistsError):
                    (folder / entry.name).symlink_to(entry.path)
    return str(folder)


@contextlib.contextmanager
def users(place: Path, *without: str) -> Iterator[Server]:
    """An ordinary user's server. `without`: programs the host has not got."""
    names, state, log = place / "names", place / "state", place / "log"
    names.write_text(f"nameserver {NAME_SERVER}\n")
    state.mkdir()
    state.chmod(0o777)
    functions = Functions(place / "functions")
    functions.add("out", REACHING)
    command = ["unshare", "-m", "sh", "-c", PREPARE, str(names), str(ROOT / "tools/as-user"), "--"]
    command += [sys.executable, "-m", "lambox", "serve", "--functions", str(functions.folder)]
    path = tools(place / "bin", *without)
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [*command, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env={**os.environ, "LAMBOX_STATE": str(state), "PATH": path, "PYTHONPATH": str(ROOT)},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "http://" in line, log.read_text()
        yield Server("http://" + line.split("http://")[1].split()[0], process, functions, log)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def speakers(server: Server) -> list[psutil.Process]:
    """What pasta and slirp4netns have running for it."""
    return those(
        psutil.Process(server.process.pid).children(recursive=True),
        lambda one: one.name().startswith(("pasta", "passt", "slirp4netns")),
    )


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.skipif(shutil.which("pasta") is None, reason="host: no pasta (apt: passt)")
def test_pasta_speaks_for_all_of_a_users_functions(earth: World, place: Path) -> None:
    """Started anew when it ends, gone with the server even after a SIGKILL."""
    with users(place) as server:
        server.wait_log("nat through pasta")
        assert call(server, "out") == (200, FOUND)
        assert [place for _, place in earth.seen] == [INTERNET]
        assert earth.asked == ["user.example"]
        (speaker,) = speakers(server)
        speaker.kill()
        until(lambda: speaker.pid not in [one.pid for one in speakers(server)] != [])
        until(lambda: call(server, "out") == (200, FOUND))
        (speaker,) = speakers(server)
        server_process(server.process).send_signal(signal.SIGKILL)
        until(lambda: not those([speaker], lives))


@pytest.mark.skipif(shutil.which("slirp4netns") is None, reason="host: no slirp4netns")
def test_an_address_the_host_gets_later_is_refused_too(earth: World, place: Path) -> None:
    """By ordinary sockets the user reaches it, so the router has to know of it."""
    late = "203.0.113.77"
    with users(place, "pasta") as server:
        server.wait_log("nat through slirp4netns")
        assert call(server, "out") == (200, FOUND)
        server.functions.add("late", REACHING.replace(f"{PLACES}", f"[('{late}', 8080)]"))
        earth.host.do(
            lambda: subprocess.run(["ip", "addr", "add", f"{late}/32", "dev", "eth0"], check=True)
        )
        until(lambda: call(server, "late") == (200, ["OSError", "198.51.100.7"]))
