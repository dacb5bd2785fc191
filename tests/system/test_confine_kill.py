"""Killing, freezing and dying: nothing a program does may keep it alive, or anything of it around."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from sandbox.confine import cgroup
from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import SandboxSpec
from tests.system.confine_fixtures import ROOT, Box, confined, holdings, nothing_left, proc

pytestmark = pytest.mark.system
KILL_LIMIT_S = 0.5
"""Measured: 1 to 5 ms; the machine that runs the tests may be busy with others."""

STUBBORN = {
    "double-forked into another session": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                say(1)
                signal.pause()
            os._exit(0)
        signal.pause()
    """,
    "deaf to every signal": """
        for n in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(n, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        say(1)
        while True: time.sleep(1000)
    """,
    "stopped": """
        if os.fork() == 0:
            signal.pause()
        say(1)
        os.kill(0, signal.SIGSTOP)
    """,
    "busy": """
        for _ in range(3):
            os.fork()
        say(1)
        while True: pass
    """,
    "a hundred threads": """
        import threading
        for _ in range(100):
            threading.Thread(target=time.sleep, args=(1000,)).start()
        say(1)
    """,
    "forking for ever": """
        say(1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                pass
    """,
    "full of memory": """
        room = bytearray(80 << 20)
        for at in range(0, len(room), 4096): room[at] = 1
        say(1)
        signal.pause()
    """,
}


@pytest.mark.parametrize("how", STUBBORN)
async def test_kill_takes_everything(how: str) -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher, pids=128) as box:
                await box.python(STUBBORN[how])
                await box.heard()
                begin = time.perf_counter()
                ended = await box.sandbox.kill()
                assert time.perf_counter() - begin < KILL_LIMIT_S
                assert ended.killed
                assert box.inside() == []


async def test_kill_before_anything_was_started() -> None:
    async with confined() as box:
        assert (await box.sandbox.kill()).killed
        assert (await box.sandbox.wait()).killed


async def test_a_sandbox_that_was_stopped_whole_from_outside_dies() -> None:
    async with confined() as box:
        await box.ask("1")
        for pid in box.inside():  # bwrap too
            os.kill(pid, signal.SIGSTOP)
        assert (await box.sandbox.kill()).killed


async def test_wait_wakes_when_bwrap_is_killed_by_somebody() -> None:
    async with confined() as box:
        await box.ask("1")
        os.kill(min(box.inside()), signal.SIGKILL)
        ended = await box.sandbox.wait()
        assert ended.code is None
    assert not [child for child in holdings()["children"] if "zombie" in child]


TICKS = """
    s = socket.create_connection(("127.0.0.1", 9001))
    say(1)
    while True:
        s.recv(1)
        s.sendall(b"!")
"""


async def test_a_frozen_sandbox_stands_still_and_goes_on_where_it_was() -> None:
    async with confined() as box:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(box.sandbox.listener.dup()))
        async with listener:
            await box.python(TICKS)
            async with await listener.accept() as stream:
                await box.heard()
                await stream.send_all(b"?")
                assert await stream.receive_some() == b"!"
                box.sandbox.freeze()
                await standing_still(box)
                await stream.send_all(b"?")
                with trio.move_on_after(0.2) as silence:  # the time in which nothing may happen
                    await stream.receive_some()
                assert silence.cancelled_caught
                box.sandbox.thaw()
                assert await stream.receive_some() == b"!"


async def standing_still(box: Box) -> None:
    """Freezing is asynchronous: until its CPU time no longer grows."""
    while True:
        before = box.sandbox.usage().cpu_s
        await trio.sleep(0.02)
        if box.sandbox.usage().cpu_s == before:
            return


async def test_a_frozen_busy_sandbox_uses_no_cpu() -> None:
    async with confined() as box:
        await box.python("say(1)\nwhile True: pass")
        await box.heard()
        box.sandbox.freeze()
        await standing_still(box)
        before = box.sandbox.usage().cpu_s
        await trio.sleep(0.2)
        assert box.sandbox.usage().cpu_s == before
        box.sandbox.thaw()
        while box.sandbox.usage().cpu_s == before:  # noqa: ASYNC110  the kernel tells nobody
            await trio.sleep(0.001)


async def test_a_frozen_sandbox_can_be_killed() -> None:
    async with confined() as box:
        await box.python("say(1)\nwhile True: pass")
        await box.heard()
        box.sandbox.freeze()
        await standing_still(box)
        begin = time.perf_counter()
        assert (await box.sandbox.kill()).killed
        assert time.perf_counter() - begin < KILL_LIMIT_S
        box.sandbox.freeze()  # late calls are harmless
        box.sandbox.thaw()
        box.sandbox.settle()


async def test_kill_is_not_cut_short_by_cancellation() -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher) as box:
                await box.ask("1")
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await box.sandbox.kill()
                assert box.inside() == []


@pytest.mark.parametrize("waiter", ["start", "wait"])
async def test_kill_wakes_whoever_waits(waiter: str) -> None:
    async with confined() as box:
        if waiter == "wait":
            await box.ask("1")
        woken = trio.Event()

        async def waits() -> None:
            if waiter == "wait":
                assert (await box.sandbox.wait()).killed
            else:
                # Either side may come first: what counts is that it ends.
                with suppress(Exception):
                    await box.run("/bin/sleep", "1000")
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            if waiter == "wait":
                await trio.testing.wait_all_tasks_blocked()
            else:
                await trio.lowlevel.checkpoint()
            await box.sandbox.kill()
            await woken.wait()


async def test_leaving_the_launcher_kills_what_is_left() -> None:
    with trio.fail_after(30):
        async with open_launcher() as launcher:
            boxes = [
                Box(launcher, await launcher.launch(SandboxSpec(f"left-{n}", ROOT)))
                for n in range(3)
            ]
            for box in boxes:
                await box.ask("1")
            pids = [pid for box in boxes for pid in box.inside()]
        assert [pid for pid in pids if proc(pid, "stat")] == []
        assert holdings()["cgroups"] == []


SUPERVISOR = f"""
import sys, trio
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import SandboxSpec
from tests.system.confine_fixtures import ROOT, Box

async def main():
    async with open_launcher() as launcher:
        for number in range(2):
            box = Box(launcher, await launcher.launch(SandboxSpec(f"doomed-{{number}}", ROOT)))
            if number:
                await box.python("say(os.getpid())\\nwhile True: pass")
                await box.heard()
                box.sandbox.freeze()
            print(*box.inside(), flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def begin_supervisor() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE)


async def test_sandboxes_die_with_a_supervisor_that_is_killed() -> None:
    """... and its cgroups are swept at the next start."""
    supervisor = begin_supervisor()
    try:
        assert supervisor.stdout is not None
        with trio.fail_after(30):
            lines = [await trio.to_thread.run_sync(supervisor.stdout.readline) for _ in range(2)]
        pids = [int(pid) for line in lines for pid in line.split()]
        assert len(pids) >= 4
        fds = [os.pidfd_open(pid) for pid in pids]
        name = f"lambox-{supervisor.pid}-{cgroup.start_time(supervisor.pid)}-"
    finally:
        supervisor.kill()
        supervisor.wait()
        assert supervisor.stdout is not None
        supervisor.stdout.close()
    with trio.fail_after(10):
        for fd in fds:
            await trio.lowlevel.wait_readable(fd)
            with suppress(ChildProcessError):  # orphans of a container come to its pid 1: us
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222  it has ended
            os.close(fd)
    async with open_launcher():
        left = [
            str(Path(top, folder))
            for top, folders, _ in os.walk("/sys/fs/cgroup")
            for folder in folders
            if folder.startswith(name)
        ]
    assert left == []
