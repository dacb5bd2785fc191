"""sandbox.confine.network.relay on loopback, where every sandbox is an address of 127.0.0.0/8."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address

import pytest
import trio

from sandbox.confine.network import relay
from sandbox.confine.network.relay import Doors


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Doors]:
    """A name server that never answers by itself."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    port = listener.getsockname()[1]
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", port))
    for one in (listener, datagrams):
        one.setblocking(False)
    monkeypatch.setattr(relay, "PORT", port)
    doors = Doors(datagrams, listener)
    yield doors
    doors.close()


@pytest.fixture
async def door(server: Doors) -> AsyncIterator[Doors]:
    listener = socket.create_server(("127.0.0.9", 0), backlog=256)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(listener.getsockname())
    for one in (listener, datagrams):
        one.setblocking(False)
    doors = Doors(datagrams, listener)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.relay, [doors], lambda: [IPv4Address("127.0.0.1")])
            yield doors
            nursery.cancel_scope.cancel()
    doors.close()


@pytest.mark.trio
async def test_questions_without_answers_keep_no_other_from_asking(
    server: Doors, door: Doors
) -> None:
    greedy, modest = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with greedy, modest:
        greedy.bind(("127.0.0.2", 0))
        modest.bind(("127.0.0.3", 0))
        asked = trio.socket.from_stdlib_socket(server.datagrams)
        for number in range(2 * relay.MOST_QUESTIONS):
            greedy.sendto(b"%04d greedy" % number, door.datagrams.getsockname())
            await trio.lowlevel.checkpoint()
        modest.sendto(b"0000 modest", door.datagrams.getsockname())
        seen = []
        while b"0000 modest" not in seen:
            seen.append((await asked.recvfrom(100))[0])
        assert len(seen) <= relay.EACH_QUESTIONS + 1


@pytest.mark.trio
async def test_connections_that_are_held_keep_no_other_from_talking(
    server: Doors, door: Doors
) -> None:
    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(server.listener))
    held = [
        socket.create_connection(door.listener.getsockname(), 5, ("127.0.0.2", 0))
        for _ in range(relay.MOST_TALKS + 8)
    ]
    held.append(socket.create_connection(door.listener.getsockname(), 5, ("127.0.0.3", 0)))
    held[-1].sendall(b"modest")
    async with trio.open_nursery() as nursery:

        async def read(stream: trio.SocketStream) -> None:
            async with stream:
                if await stream.receive_some(10) == b"modest":
                    nursery.cancel_scope.cancel()

        while True:
            nursery.start_soon(read, await accepting.accept())
    for one in held:
        one.close()
