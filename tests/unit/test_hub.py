"""runtimeapi.hub: who is told that a socket is readable, and who no more."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

from runtimeapi.hub import Hub


@asynccontextmanager
async def running() -> AsyncIterator[Hub]:
    hub = Hub()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        yield hub
        nursery.cancel_scope.cancel()
    hub.close()


async def test_told_as_long_as_there_is_something_to_read() -> None:
    ours, theirs = socket.socketpair()
    read: list[bytes] = []
    with ours, theirs:
        async with running() as hub:
            hub.watch(ours.fileno(), lambda: read.append(ours.recv(1)))
            theirs.send(b"abc")
            await wait_all_tasks_blocked()
            assert read == [b"a", b"b", b"c"]
            hub.forget(ours.fileno())
            theirs.send(b"d")
            await wait_all_tasks_blocked()
            assert read == [b"a", b"b", b"c"]


async def test_the_end_of_a_peer_is_readable() -> None:
    ours, theirs = socket.socketpair()
    read: list[bytes] = []
    with ours:
        async with running() as hub:

            def on_readable() -> None:
                read.append(ours.recv(1))
                hub.forget(ours.fileno())

            hub.watch(ours.fileno(), on_readable)
            theirs.close()
            await wait_all_tasks_blocked()
        assert read == [b""]


async def test_one_forgotten_in_the_same_turn_is_not_called() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []
    async with running() as hub:

        def on_readable(number: int) -> None:
            called.append(number)
            for ours, _ in pairs:
                hub.forget(ours.fileno())

        for number, (ours, theirs) in enumerate(pairs):
            hub.watch(ours.fileno(), lambda number=number: on_readable(number))  # type: ignore[misc]
            theirs.send(b"x")
        await wait_all_tasks_blocked()
    assert len(called) == 1
    for ours, theirs in pairs:
        ours.close()
        theirs.close()


async def test_others_have_their_turn_between_two_rounds() -> None:
    """A socket that is always readable does not keep the process to itself."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running() as hub:
            hub.watch(ours.fileno(), lambda: None)
            theirs.send(b"x")
            with trio.fail_after(5):
                for _ in range(100):
                    await trio.lowlevel.checkpoint()
            hub.forget(ours.fileno())
