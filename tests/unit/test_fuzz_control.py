"""Whatever comes from the other side of a control socket: the answer, or the error that is meant.

The programs there are ours, and still not believed: a message may be cut, doubled, too long or made up.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.confine.control import Control
from sandbox.confine.parked import Parked
from sandbox.confine.spawner import Started
from sandbox.confine.spec import ConfineError, Program
from sandbox.confine.strays import Strays
from sandbox.confine.zygote import Child, Zygote
from tests.machines import effort

PROGRAM = Program(["/bin/true"], {"A": "b"}, "/")
FRAMES = st.builds(
    lambda kind, value: struct.pack("=cI", kind, value),
    st.sampled_from([b"S", b"X", b"G", b"P", b"E", b"\0", b"?"]),
    st.sampled_from([0, 2, 13, 255, 256, 0x7F, 0xFF7F, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1),
)
SAID = st.lists(FRAMES | st.binary(max_size=12) | st.sampled_from([b"P", b"L\x29\x23"]), max_size=5)


async def hear(
    make: Callable[[], Any], ask: Callable[[Any], Awaitable[object]], said: list[bytes]
) -> object:
    """What `ask` makes of a peer that says this and goes. ConfineError and OSError are answers too."""
    end = make()
    peer = end.theirs.dup()
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_say, peer, said)
                try:
                    return await ask(end)
                except (ConfineError, OSError) as exc:
                    assert str(exc)
                    return exc
                finally:
                    nursery.cancel_scope.cancel()
    finally:
        peer.close()
        end.close()


async def _say(peer: socket.socket, said: list[bytes]) -> None:
    for piece in said:
        peer.sendall(piece)
        await trio.lowlevel.checkpoint()
    peer.shutdown(socket.SHUT_WR)
    peer.setblocking(False)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@effort(100)
@given(SAID)
@example([b"L\x29\x23"])
@example([b"L"])
def test_a_listener_that_is_none(said: list[bytes]) -> None:
    found = trio.run(hear, Control, lambda control: control.listener(), said)
    assert found is None or isinstance(found, Exception)


@effort(100)
@given(SAID)
@example([struct.pack("=cI", b"S", 0xFFFFFFFF)])
@example([struct.pack("=cI", b"S", 0) + struct.pack("=cI", b"X", 0xFFFFFFFF)])
def test_pid_1_says_anything_to_a_start(said: list[bytes]) -> None:
    async def ask(control: Control) -> object:
        control.theirs.close()
        await control.start(PROGRAM, 100)
        status = await control.exit_status()
        # As `process.py` looks at it.
        return status is None or os.WIFSIGNALED(status) or os.WEXITSTATUS(status)

    trio.run(hear, Control, ask, said)


@effort(100)
@given(SAID)
@example([b"P", struct.pack("=cI", b"S", 0xFFFFFFFF)])
def test_a_parked_runtime_says_anything(said: list[bytes]) -> None:
    async def ask(parked: Parked) -> None:
        await parked.ready()
        await parked.start(PROGRAM, 100)

    trio.run(hear, Parked, ask, said)


# --- a zygote

MESSAGES = st.lists(
    st.binary(max_size=30)
    | st.just(b"R")
    | st.builds(
        lambda kind, ticket, value: struct.pack("=cII", kind, ticket, value),
        st.sampled_from([b"C", b"E", b"X", b"?"]),
        st.integers(0, 3),
        st.sampled_from([0, 1, 11, os.getpid(), os.getppid(), 1 << 22, 0xFFFFFFFF]),
    )
    | st.builds(
        lambda kind, ticket, value, used: struct.pack("=cIIQQ", kind, ticket, value, used, used),
        st.sampled_from([b"X", b"C", b"E"]),
        st.integers(0, 3),
        st.integers(0, 70_000),
        st.sampled_from([0, 1000, 2**64 - 1]),
    ),
    max_size=6,
)


@pytest.fixture(scope="module")
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """In bwrap's place: a process of ours that has no children."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as process:
        yield process


@effort(150)
@given(MESSAGES)
def test_a_zygote_says_anything(sleeper: subprocess.Popen[bytes], messages: list[bytes]) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        strays, ended = Strays(), []
        with ours, theirs:
            ours.setblocking(False)
            fd = os.pidfd_open(sleeper.pid)
            zygote = Zygote(Started(sleeper, fd), ours.dup(), strays)
            children = {
                ticket: Child(strays, ticket, lambda ticket=ticket: ended.append(ticket))
                for ticket in (1, 2)
            }
            zygote._children.update(children)
            try:
                for message in messages:
                    waited_for, open_ = set(strays.waited_for), dict(zygote._children)
                    if zygote._take(message):
                        # It will be killed: nothing was believed.
                        assert strays.waited_for == waited_for
                        assert zygote._children == open_
                        break
                # Nobody is waited for, or killed later, who is no fork of this zygote's.
                assert not strays.waited_for & {1, os.getpid(), os.getppid(), sleeper.pid}
                assert sorted(ended) == sorted(set(ended))
                assert set(ended).isdisjoint(zygote._children)
            finally:
                for child in children.values():
                    child.release()
                zygote._channel.close()
                os.close(fd)

    trio.run(main)
    assert sleeper.poll() is None
