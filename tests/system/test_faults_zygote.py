"""Faults of the zygote: it stands still, or what sits at its end of the channel is no zygote any more."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio

from sandbox.confine import privilege
from sandbox.confine.launcher import READY_LIMIT_S, open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.spawner import Spawner
from sandbox.confine.spec import ConfineError
from sandbox.confine.strays import Strays
from sandbox.confine.zygote import ENDED, REPLY, Zygote
from tests.system.confine_fixtures import made_ahead, nothing_left
from tests.system.test_zygote import SPEC, ended, run, zygote_pids

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not privilege.may_mount(), reason="host: sandboxes made ahead need a namespace of our own"
    ),
]


async def test_a_stopped_zygote_is_waited_for_a_second_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cold starts go on with bubblewrap within a second, then with a fresh zygote; the stopped one is killed."""
    monkeypatch.setattr("sandbox.confine.zygote.ANSWER_LIMIT_S", 2.0)
    with nothing_left(), trio.fail_after(30):
        async with open_launcher(pool=PoolLimits(1, 1)) as launcher:
            await made_ahead(launcher, SPEC)
            (stopped,) = zygote_pids()
            os.kill(stopped, signal.SIGSTOP)
            await (await launcher.launch(SPEC)).kill()  # the one that stood ready
            began = trio.current_time()
            sandbox = await launcher.launch(SPEC)
            assert trio.current_time() - began < READY_LIMIT_S + 1
            assert sandbox._child is None
            await run(sandbox, "raise SystemExit(6)")
            assert (await ended(sandbox)).code == 6
            while psutil.pid_exists(stopped):  # noqa: ASYNC110
                await trio.sleep(0.01)
            await made_ahead(launcher, SPEC)
            fresh = await launcher.launch(SPEC)
            assert fresh._child is not None
            await run(fresh, "raise SystemExit(7)")
            assert (await ended(fresh)).code == 7
            assert stopped not in zygote_pids()


@asynccontextmanager
async def stand_in() -> AsyncIterator[tuple[Zygote, socket.socket]]:
    """A zygote as the supervisor sees it, whose end of the channel is the test's."""
    spawner = Spawner(stage=False)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        with trio.fail_after(10):
            started = await spawner.spawn(["sleep", "1000"], [], 1, 2)
            zygote = Zygote(started, ours, Strays())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(zygote.run)
                try:
                    yield zygote, theirs
                finally:
                    zygote.close()
        assert started.process.returncode is not None
    finally:
        theirs.close()
        spawner.close()


Lie = Callable[[int, int], list[bytes]]
"""(ticket, somebody else's pid) -> messages"""
LIES: dict[str, Lie] = {
    "a pid of somebody else's": lambda ticket, pid: [REPLY.pack(b"C", ticket, pid)],
    "the supervisor's pid": lambda ticket, pid: [REPLY.pack(b"C", ticket, os.getpid())],
    "pid 1": lambda ticket, pid: [REPLY.pack(b"C", ticket, 1)],
    "pid 0": lambda ticket, pid: [REPLY.pack(b"C", ticket, 0)],
    "a pid beyond all pids": lambda ticket, pid: [REPLY.pack(b"C", ticket, 0xFFFFFFFF)],
    "a ticket nobody has": lambda ticket, pid: [REPLY.pack(b"C", ticket + 7, pid)],
    "an end with no wait status": lambda ticket, pid: [ENDED.pack(b"X", ticket, 0xFFFFFFFF, 0, 0)],
    "a stopped process as its end": lambda ticket, pid: [ENDED.pack(b"X", ticket, 0x137F, 0, 0)],
    "an errno beyond all errnos": lambda ticket, pid: [REPLY.pack(b"E", ticket, 0xFFFFFFFF)],
    "an unknown word": lambda ticket, pid: [REPLY.pack(b"?", ticket, pid)],
    "a short message": lambda ticket, pid: [b"C"],
    "a long message": lambda ticket, pid: [struct.pack("=cII", b"C", ticket, pid) + b"x" * 60_000],
    "noise": lambda ticket, pid: [os.urandom(48)],
    "its end, midway": lambda ticket, pid: [],
}


@pytest.mark.parametrize("what", LIES)
async def test_a_zygote_that_answers_garbage_is_ended_and_nobody_else(what: str) -> None:
    """The fork fails at once (the launch goes on with bubblewrap), the zygote is ended, nobody else is touched."""
    victim = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        with nothing_left():
            async with stand_in() as (zygote, peer):

                async def answers() -> None:
                    while not zygote._children:
                        await trio.lowlevel.checkpoint()
                    with suppress(OSError):
                        peer.recv(64)
                        for message in LIES[what](zygote.forks, victim.pid):
                            peer.send(message)
                        if not LIES[what](0, 0):
                            peer.close()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(answers)
                    began = trio.current_time()
                    with pytest.raises(ConfineError):
                        await zygote.fork(os.getpid(), (), (), on_end=lambda: None)
                assert trio.current_time() - began < 1
                assert zygote.worn_out
        assert victim.poll() is None
    finally:
        victim.kill()
        assert victim.wait() == -signal.SIGKILL  # it was ours to wait for, and nobody else did


async def test_a_fork_called_ended_that_lives_ends_the_zygote() -> None:
    """Its word is checked against the process: a sandbox is not given up, nor its uid reused, on a lie."""
    async with open_launcher(pool=PoolLimits(1, 1)) as launcher:
        with trio.fail_after(20):
            await made_ahead(launcher, SPEC)
            sandbox = await launcher.launch(SPEC)
            await run(sandbox, "import time; time.sleep(60)")
            child, zygote = sandbox._child, sandbox._zygote
            assert child is not None
            assert zygote is not None
            assert "lives" in zygote._take(ENDED.pack(b"X", child.ticket, 0, 0, 0))
            assert "no fork of its" in zygote._take(REPLY.pack(b"C", child.ticket, child.pid))
            assert child.lives
            exit_ = await sandbox.kill()
            assert exit_.killed
            assert not child.lives


async def test_a_zygote_whose_bwrap_is_killed_is_reaped() -> None:
    """It dies with its bwrap and becomes ours; one zombie each time is what the soak found."""
    with nothing_left(), trio.fail_after(30):
        async with open_launcher(pool=PoolLimits(1, 1)) as launcher:
            await made_ahead(launcher, SPEC)
            (interpreter,) = zygote_pids()
            bwrap = psutil.Process(interpreter).ppid()
            os.kill(bwrap, signal.SIGKILL)
            while psutil.pid_exists(interpreter):  # noqa: ASYNC110  no event tells
                await trio.sleep(0.01)
            assert psutil.STATUS_ZOMBIE not in {one.status() for one in psutil.Process().children()}
            await (await launcher.launch(SPEC)).kill()
