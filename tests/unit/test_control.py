"""The supervisor's end of the socket to pid 1, with nobody at the other: what becomes of what is broken off."""

from __future__ import annotations

import os
import socket
import struct

import pytest
import trio
import trio.testing

from sandbox.confine.control import Control
from sandbox.confine.spec import ConfineError, Program

LARGE = Program(["/bin/true"], {f"K{number}": "x" * 4096 for number in range(500)}, "/")


@pytest.fixture
async def control() -> Control:
    made = Control()
    made.theirs.setblocking(False)
    return made


async def test_after_half_a_message_nothing_more_is_said(control: Control) -> None:
    """Pid 1 would take the next one for the rest of it."""
    with trio.move_on_after(0.05) as patience:
        await control.start(LARGE, 64)
    assert patience.cancelled_caught
    with pytest.raises(ConfineError, match="broken off"):
        await control.signal(0, 15)
    control.close()


async def test_what_comes_for_others_is_kept_for_them(control: Control) -> None:
    control.companions = 2
    for kind, value in ((b"Y", 2 << 16 | 256), (b"X", 9), (b"Y", 1 << 16)):
        control.theirs.send(struct.pack("=cI", kind, value))
    assert await control.exit_status(1) == 0
    assert await control.exit_status() == 9
    assert await control.exit_status(2) == 256
    control.close()


async def test_who_reads_for_all_may_be_cancelled(control: Control) -> None:
    control.companions = 2
    found: list[int | None] = []

    async def wait(number: int) -> None:
        found.append(await control.exit_status(number))

    first = trio.CancelScope()

    async def reads_for_all() -> None:
        with first:
            await control.exit_status(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reads_for_all)
        await trio.testing.wait_all_tasks_blocked()
        for number in (1, 2):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        control.theirs.send(struct.pack("=cI", b"Y", 2 << 16 | 15))
        control.theirs.send(struct.pack("=cI", b"Y", 1 << 16 | 9))
    assert sorted(found, key=str) == [15, 9]
    control.close()


@pytest.mark.parametrize(
    "frames",
    [
        b"",
        struct.pack("=cI", b"S", 1 << 20),
        struct.pack("=cI", b"Y", 7 << 16),
        struct.pack("=cI", b"?", 0) + b"X",
    ],
)
async def test_nonsense_is_no_start_and_no_status(control: Control, frames: bytes) -> None:
    control.theirs.send(frames)
    control.theirs.shutdown(1)
    with pytest.raises(ConfineError, match="ended before"):
        await control.start(Program(["/bin/true"], {}, "/"), 64)
    assert await control.exit_status() is None
    control.close()


async def test_a_companions_pipe_goes_along(control: Control) -> None:
    read, write = os.pipe()
    control.theirs.send(struct.pack("=cI", b"S", 0))
    assert await control.start_companion(Program(["/bin/true"], {}, "/"), 64, write) == 1
    os.close(write)
    data, fds, _, _ = socket.recv_fds(control.theirs, 4, 1)
    assert struct.unpack("=I", data)[0] >> 24 == 1
    os.write(fds[0], b"x")
    assert os.read(read, 1) == b"x"
    for fd in (read, *fds):
        os.close(fd)
    control.close()
