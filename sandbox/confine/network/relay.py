"""Owns lambox's relay of name service: questions of sandboxes, asked again from the host.

Only where packets cannot be led to the host's servers (`resolvers`). It looks into nothing but the length of
a message. What hostile sandboxes can make of it is bounded: questions under way, connections, time, bytes;
how often each may ask, the router's filter says. No sandbox has more than its share of them: one whose
questions nobody answers (it may have chosen them so) keeps no other from asking.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from sandbox.confine.network.resolvers import Server

log = logging.getLogger(__name__)
PORT = 53
ANSWER_LIMIT_S = 5.0
"""glibc's own patience (resolv.conf(5), `timeout`)."""
TALK_LIMIT_S = 30.0
MOST_QUESTIONS, EACH_QUESTIONS = 256, 32
MOST_TALKS, EACH_TALKS = 64, 8
"""Under way, of all sandboxes and of each."""
LARGEST = 65535


@dataclass(frozen=True, slots=True)
class Doors:
    """Non-blocking sockets of the router's namespace, bound to one gateway: UDP, and TCP listening."""

    datagrams: socket.socket
    listener: socket.socket

    def close(self) -> None:
        self.datagrams.close()
        self.listener.close()


class Shares:
    """How much is taken of something: by all together, and by each."""

    def __init__(self, most: int, each: int) -> None:
        self._most = most
        self._each = each
        self._taken: Counter[str] = Counter()

    def take(self, who: str) -> bool:
        """Whether there is some left for it; then `give_back` is due."""
        if self._taken.total() >= self._most or self._taken[who] >= self._each:
            return False
        self._taken[who] += 1
        return True

    def give_back(self, who: str) -> None:
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]


async def relay(doors: Sequence[Doors], servers: Callable[[], Sequence[Server]]) -> None:
    """Serve for ever. Of the servers of the moment, each gateway stands for the one of its number."""
    questions = Shares(MOST_QUESTIONS, EACH_QUESTIONS)
    talks = Shares(MOST_TALKS, EACH_TALKS)
    async with trio.open_nursery() as nursery:
        for number, door in enumerate(doors):

            def server(number: int = number) -> Server | None:
                known = servers()
                return known[number % len(known)] if known else None

            nursery.start_soon(_datagrams, door.datagrams, server, questions)
            nursery.start_soon(_connections, door.listener, server, talks)


async def _datagrams(
    door: socket.socket, server: Callable[[], Server | None], shares: Shares
) -> None:
    ours = trio.socket.from_stdlib_socket(door)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                question, who = await ours.recvfrom(LARGEST)
            except OSError:
                continue  # an ICMP error about an earlier answer
            to = server()
            # Not taken: asked again by whoever still wants to know.
            if to is not None and shares.take(who[0]):
                nursery.start_soon(_answer, ours, question, who, to, shares)


async def _answer(
    ours: trio.socket.SocketType,
    question: bytes,
    who: tuple[str, int],
    server: Server,
    shares: Shares,
) -> None:
    try:
        with (
            trio.move_on_after(ANSWER_LIMIT_S),
            trio.socket.socket(_family(server), socket.SOCK_DGRAM) as theirs,
        ):
            # Connected: nobody else's answer arrives.
            await theirs.connect((str(server), PORT))
            await theirs.send(question)
            while True:
                answer = await theirs.recv(LARGEST)
                if answer[:2] == question[:2]:
                    await ours.sendto(answer, who)
                    return
    except OSError:
        return  # as if it had been lost
    finally:
        shares.give_back(who[0])


async def _connections(
    door: socket.socket, server: Callable[[], Server | None], shares: Shares
) -> None:
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(door))
    async with trio.open_nursery() as nursery:
        while True:
            try:
                ours = await listener.accept()
            except OSError:
                await trio.sleep(0.1)  # no descriptor is free
                continue
            try:
                who = ours.socket.getpeername()[0]
            except OSError:  # it has gone again
                await trio.aclose_forcefully(ours)
                continue
            to = server()
            if to is None or not shares.take(who):
                await trio.aclose_forcefully(ours)
                continue
            nursery.start_soon(_talk, ours, who, to, shares)


async def _talk(ours: trio.SocketStream, who: str, server: Server, shares: Shares) -> None:
    try:
        with trio.move_on_after(TALK_LIMIT_S):
            async with ours:
                try:
                    theirs = trio.SocketStream(
                        trio.socket.socket(_family(server), socket.SOCK_STREAM)
                    )
                    async with theirs:
                        await theirs.socket.connect((str(server), PORT))
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(_pump, ours, theirs)
                            await _pump(theirs, ours)
                            nursery.cancel_scope.cancel()
                except (OSError, trio.BrokenResourceError):
                    return
    finally:
        shares.give_back(who)


async def _pump(one: trio.SocketStream, other: trio.SocketStream) -> None:
    try:
        async for data in one:
            await other.send_all(data)
        await other.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def _family(server: Server) -> socket.AddressFamily:
    return socket.AF_INET if server.version == 4 else socket.AF_INET6
