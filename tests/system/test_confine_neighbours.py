"""What one sandbox does to itself, another does not notice."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from sandbox.confine import identity
from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import MIB
from tests.system.confine_fixtures import confined, nothing_left

pytestmark = pytest.mark.system


async def test_an_out_of_memory_kill_next_door() -> None:
    async with (
        open_launcher() as launcher,
        confined(launcher, name="greedy", memory_bytes=64 * MIB) as greedy,
        confined(launcher, name="modest", memory_bytes=64 * MIB) as modest,
    ):
        assert await modest.ask("1") == 1
        before = modest.inside()
        await greedy.python("room = []\nwhile True: room.append(b'x' * (1 << 20))")
        ended = await greedy.sandbox.wait()
        assert ended.oom_kills >= 1
        assert modest.sandbox.oom_kills() == 0
        assert modest.inside() == before


async def test_out_of_memory_in_many_processes_at_once_leaves_nothing() -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher, memory_bytes=64 * MIB) as box:
                await box.python("""
                    for _ in range(4): os.fork()
                    room = []
                    while True: room.append(b"x" * (1 << 20))
                """)
                await box.sandbox.wait()
                await box.sandbox.kill()
                # Known after the group has gone, too.
                assert box.sandbox.oom_kills() >= 1


async def test_pids_run_out_for_one_only() -> None:
    """Threads count as processes; bwrap, pid 1 and the program are three of them."""
    async with (
        open_launcher() as launcher,
        confined(launcher, name="many", pids=32) as many,
        confined(launcher, name="few", pids=32) as few,
    ):
        await many.python("""
            import threading
            made = 0
            try:
                while made < 100:
                    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
                    made += 1
            except RuntimeError:
                pass
            say(made)
            signal.pause()
        """)
        assert await many.heard() == 32 - 3
        assert await few.ask("subprocess.run(['true']).returncode") == 0


async def test_the_same_tmp_path_is_not_the_same_file() -> None:
    async with open_launcher() as launcher, confined(launcher, name="a") as a:
        assert await a.ask("open('/tmp/mine', 'x').write('secret')") == 6
        async with confined(launcher, name="b") as b:
            assert await b.ask("os.listdir('/tmp')") == []


async def test_the_runtime_api_of_one_is_not_reached_from_another() -> None:
    """Both have 127.0.0.1:9001; each connects to itself alone."""
    async with (
        open_launcher() as launcher,
        confined(launcher, name="a") as a,
        confined(launcher, name="b") as b,
    ):
        await b.ask("1")
        assert await a.ask("attempt(socket.create_connection, ('127.0.0.1', 9001), 5)") == "done"
        a.sandbox.listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            b.sandbox.listener.accept()


async def test_killing_one_spares_the_other() -> None:
    async with (
        open_launcher() as launcher,
        confined(launcher, name="a") as a,
        confined(launcher, name="b") as b,
    ):
        await a.ask("1")
        await b.python("say(1)\nsignal.sigwait([signal.SIGUSR1])")
        await b.heard()
        await a.sandbox.kill()
        b_pid = max(b.inside())
        os.kill(b_pid, signal.SIGTERM)
        assert (await b.sandbox.wait()).signal == signal.SIGTERM


CONNECT = """
    listener = {address!r}
    ours = socket.create_connection(listener)
    java = socket.socket(socket.AF_INET6)
    java.connect(("::ffff:" + listener[0], listener[1]))
    say([ours.getsockname()[1], java.getsockname()[1]])
    signal.pause()
"""


@pytest.mark.parametrize(
    "uids",
    [
        pytest.param(
            "own",
            marks=pytest.mark.skipif(
                identity.choose() is None, reason="host: needs uids for sandboxes to have"
            ),
        ),
        pytest.param(
            "shared",
            marks=[
                pytest.mark.optional,
                pytest.mark.skipif(
                    " cgroup2 " not in Path("/proc/self/mounts").read_text(),
                    reason="host: no cgroup v2, which alone would tell them",
                ),
            ],
        ),
    ],
)
async def test_on_the_hosts_network_a_runtime_api_admits_its_own_sandbox_alone(
    uids: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a neighbour nor anybody on the host, whether or not sandboxes differ in their uid."""
    if uids == "shared":
        monkeypatch.setattr(identity, "choose", lambda *_: None)
    async with (
        open_launcher() as launcher,
        confined(launcher, name="own", network="host") as own,
        confined(launcher, name="other", network="host") as other,
    ):
        address = own.sandbox.listener.getsockname()
        admitted = []
        for box in (own, other):
            await box.python(CONNECT.format(address=address))
            ports = await box.heard()
            admitted += [own.sandbox.admits(("127.0.0.1", port)) for port in ports]
        with socket.create_connection(address) as stranger:
            admitted.append(own.sandbox.admits(stranger.getsockname()))
    assert admitted == [True, True, False, False, False]
