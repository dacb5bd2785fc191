"""Owns what stands between a listening socket and its connections: how many there may be, and TLS.

Each open connection costs a descriptor and some 10 KB. Callers above the limit are told so and closed. From an
environment nothing more is accepted then: its further connections wait in the kernel's backlog, in its own
network namespace, at no cost to anybody else.
"""

from __future__ import annotations

import ssl

import trio

from runtimeapi.connection import FaceConfig
from runtimeapi.pace import CONNECTION, Pace

MOST_REFUSALS = 64
"""Connections that are told at a time; more are closed without a word."""
REFUSAL_S = 1.0
"""How long a peer may take to hear it. Closed at once, what it has sent would turn into a reset that takes the
answer with it."""
BUSY_BODY = b'{"Type":"Server","message":"Too many connections. Hint: max_connections."}'
BUSY = (
    b"HTTP/1.1 503 \r\ncontent-type: application/json\r\nx-amzn-errortype: ServiceUnavailableException"
    b"\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
) % (len(BUSY_BODY), BUSY_BODY)

Accepted = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Doorway(trio.abc.Listener[trio.SocketStream]):
    """A listener that counts. Whoever gets a stream calls `left` once its connection has ended."""

    def __init__(
        self, listener: trio.SocketListener, config: FaceConfig, pace: Pace | None = None
    ) -> None:
        self._listener = listener
        self._limit = config.max_connections
        self._holds_back = config.holds_back
        self._pace = pace
        self._refusing = 0
        self._freed = trio.Event()
        self.inside = 0

    async def accept(self) -> trio.SocketStream:
        while self._holds_back and self.inside >= self._limit:
            self._freed = trio.Event()
            await self._freed.wait()
        if self._pace is not None:
            await self._pace.rest()
        stream = await self._listener.accept()
        self.inside += 1
        if self._pace is not None:
            self._pace.charge(CONNECTION)
        return stream

    async def aclose(self) -> None:
        await self._listener.aclose()

    def left(self) -> None:
        self.inside -= 1
        self._freed.set()

    @property
    def is_full(self) -> bool:
        """One is inside that should not be."""
        return self.inside - self._refusing > self._limit

    async def turn_away(self, stream: trio.SocketStream, *, secure: bool) -> None:
        """Closes it. Nothing is said before a TLS handshake, which takes longer than the answer is worth."""
        if secure or self._refusing >= MOST_REFUSALS:
            await trio.aclose_forcefully(stream)
            return
        self._refusing += 1
        try:
            with trio.move_on_after(REFUSAL_S):
                await stream.send_all(BUSY)
                await stream.send_eof()
                while await stream.receive_some():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._refusing -= 1
            await trio.aclose_forcefully(stream)


async def shake_hands(
    stream: trio.SocketStream, context: ssl.SSLContext, limit_s: float
) -> Accepted | None:
    """The TLS stream over `stream`; None, and it is closed, when the peer speaks no TLS in time."""
    secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    try:
        with trio.fail_after(limit_s):
            await secured.do_handshake()
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        await trio.aclose_forcefully(stream)
        return None
    return secured
