"""What a sandbox may use, what it has used, and standing still."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import trio

from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import MIB
from tests.system.confine_fixtures import Box, confined

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("making")]
EATING = """
    hoard = []
    while True:
        hoard.append(b"x" * (1 << 20))
"""
TICKING = """
    while True:
        say(1)
        time.sleep(0.005)
"""


async def test_more_memory_than_allowed_is_killed_and_counted() -> None:
    async with confined(memory_bytes=64 * MIB) as box:
        await box.python(EATING)
        end = await box.sandbox.wait()
        assert end.code is None
        assert end.oom_kills >= 1
        assert not end.killed
        assert end.describe() == "signal: killed"
        peak = box.sandbox.usage().memory_peak_bytes
        assert peak is None or 60 * MIB < peak <= 64 * MIB
        assert await box.sandbox.kill() == end


async def test_memory_of_children_counts() -> None:
    async with confined(memory_bytes=96 * MIB) as box:
        await box.python("""
            for _ in range(4):
                if os.fork() == 0:
                    hoard = b"x" * (40 << 20)
                    signal.pause()
            for _ in range(4):
                os.wait()
                break
            os._exit(9)
        """)
        await box.sandbox.wait()
        assert box.sandbox.oom_kills() >= 1


async def test_tmp_in_memory_counts_as_memory(making: str) -> None:
    async with confined(tmp_bytes=512 * MIB, memory_bytes=64 * MIB) as box:
        if box.sandbox.tmp == "disk":
            assert making == "forked"
            return  # tests/system/test_storage.py
        await box.python("""
            with open("/tmp/big", "wb") as file:
                while True:
                    file.write(b"x" * (1 << 20))
        """)
        end = await box.sandbox.wait()
        assert end.oom_kills >= 1


async def test_shared_and_locked_memory_counts() -> None:
    async with confined(memory_bytes=64 * MIB) as box:
        await box.python("""
            import mmap
            hoard = []
            while True:
                hoard.append(mmap.mmap(-1, 1 << 20))
                hoard[-1].write(b"x" * (1 << 20))
        """)
        assert (await box.sandbox.wait()).oom_kills >= 1


async def test_a_fork_bomb_is_bounded_and_the_host_goes_on() -> None:
    async with confined(pids=50, memory_bytes=256 * MIB) as box:
        await box.python("""
            made = 0
            while True:
                try:
                    if os.fork() == 0:
                        signal.pause()
                    made += 1
                except OSError as exc:
                    break
            say([made, exc.errno] if "exc" in dir() else made)
            signal.pause()
        """)
        made = await box.heard()
        assert 40 <= made < 50
        assert len(box.inside()) <= 50


async def test_use_is_counted_and_remembered() -> None:
    async with confined(memory_bytes=128 * MIB) as box:
        await box.python("""
            room = b"x" * (20 << 20)
            end = time.process_time() + 0.2
            while time.process_time() < end: pass
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            say(1)
            signal.sigwait([signal.SIGUSR1])  # or it may be gone when it is looked at
        """)
        await box.heard()
        used = box.sandbox.usage()
        os.kill(max(box.inside()), signal.SIGUSR1)
        assert used.memory_bytes is not None
        assert 16 * MIB < used.memory_bytes < 128 * MIB
        assert used.cpu_s is None or 0.2 <= used.cpu_s < 5
        end = await box.sandbox.wait()
        await box.sandbox.kill()
        assert end.cpu_s >= 0.2 or used.cpu_s is None
        peak = box.sandbox.usage().memory_peak_bytes
        assert peak is None or peak >= 20 * MIB


async def test_the_cpu_share_holds_once_settled() -> None:
    async with confined(cpu_cores=0.2) as box:
        await box.python("while True: pass")
        before = await _cores_used(box)
        box.sandbox.settle()
        after = await _cores_used(box)
        assert after < 0.35
        assert before > after


async def _cores_used(box: Box) -> float:
    await trio.sleep(0.2)
    first, began = box.sandbox.usage().cpu_s, time.monotonic()
    await trio.sleep(0.6)
    second, ended = box.sandbox.usage().cpu_s, time.monotonic()
    assert first is not None
    assert second is not None
    return (second - first) / (ended - began)


async def test_frozen_stands_still_and_thawed_goes_on() -> None:
    async with confined() as box:
        await box.python(TICKING)
        await box.heard()
        for _ in range(3):
            box.sandbox.freeze()
            await trio.sleep(0.05)
            _drain(box)
            await trio.sleep(0.15)
            assert _drain(box) == 0
            box.sandbox.thaw()
            await box.heard()


def _drain(box: Box) -> int:
    box._heard = b""
    try:
        return len(os.read(box.sandbox.stdout, 1 << 20))
    except BlockingIOError:
        return 0


async def test_freezing_is_for_the_living_only() -> None:
    async with confined() as box:
        await box.run("/bin/true")
        await box.sandbox.wait()
        box.sandbox.freeze()
        box.sandbox.thaw()
        box.sandbox.settle()
        await box.sandbox.kill()
        box.sandbox.freeze()
        box.sandbox.thaw()
        box.sandbox.settle()


async def test_a_group_removed_from_outside_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_launcher() as launcher, confined(launcher) as box:
        await box.run("/bin/true")
        await box.emptied()
        for procs in box.sandbox._cgroup.procs:
            Path(procs).parent.rmdir()
        box.sandbox.freeze()
        box.sandbox.thaw()
        box.sandbox.settle()
        assert "test" in caplog.text
        assert (await box.sandbox.wait()).code == 0
        await box.sandbox.kill()
        async with confined(launcher, name="next") as other:
            await other.ask("1")


async def test_what_sockets_hold_is_bounded() -> None:
    """tcp_mem is shared by all network namespaces: one sandbox could leave the host without TCP."""
    async with confined(memory_bytes=32 * MIB, nofile=1024) as box:
        await box.python("""
            server = socket.create_server(("127.0.0.1", 0), backlog=1000)
            kept, sent = [], 0
            for _ in range(200):
                a = socket.create_connection(server.getsockname())
                b, _ = server.accept()
                for s in (a, b):
                    s.setblocking(False)
                    for _ in range(2):
                        try:
                            sent += s.send(b"x" * (4 << 20))
                        except BlockingIOError:
                            break
                kept += [a, b]
            say(sent)
            signal.pause()
        """)
        # Sending is refused, or memory is over and the kernel kills: both are bounds.
        with contextlib.suppress(EOFError):
            assert await box.heard() < 64 * MIB


async def test_the_supervisors_protection_is_not_inherited() -> None:
    async with confined() as box:
        assert await box.ask("int(open('/proc/self/oom_score_adj').read())") >= 500


async def test_a_crash_leaves_no_core() -> None:
    async with confined() as box:
        assert await box.ask("max(__import__('resource').getrlimit(4))") in (0, 1)
    async with confined() as box:
        await box.python("os.chdir('/tmp'); os.abort()")
        assert (await box.sandbox.wait()).signal == 6
