"""Owns how telemetry reaches a subscriber: by HTTP as a JSON array, by TCP as one JSON object per line.

The other end is the function's own code, so nothing it says is believed and nothing of it is kept: of an HTTP
answer the status counts, a TCP peer is not read at all. Time limits are the caller's (`sandbox/telemetry.py`),
sizes are bounded here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence

import h11
import trio

from sandbox.confine.spec import ConfineError
from sandbox.telemetry import Courier, Destination, Undelivered

MOST_HEAD = 16 * 1024
"""Bytes of an answer's head."""
MOST_ANSWER = 128 * 1024
"""Bytes of an answer altogether; what comes after them is not waited for."""
PART_COST = 128
"""Bytes counted for each part of an answer (a chunk, a 1xx) besides its own: it may have 21,000, which take 0.1 s."""
READ = 16 * 1024
SEND_BUFFER = 256 * 1024
"""Bytes that the kernel holds for a peer that does not read."""

Connect = Callable[[int], Awaitable[trio.SocketStream]]
"""To a port of 127.0.0.1 as the environment has it. Raises OSError, ConfineError."""


def courier(destination: Destination, connect: Connect) -> Courier:
    made = HttpCourier if destination.protocol == "HTTP" else TcpCourier
    return made(destination, connect)


async def _connected(connect: Connect, port: int) -> trio.SocketStream:
    try:
        stream = await connect(port)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    except ConfineError as exc:
        raise Undelivered(str(exc)) from exc
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise Undelivered(f"cannot connect to port {port}: {reason}") from exc
    return stream


class HttpCourier:
    """One request per delivery, on a connection of its own: a subscriber may be restarted any time."""

    def __init__(self, destination: Destination, connect: Connect) -> None:
        self._to = destination
        self._connect = connect

    async def deliver(self, items: Sequence[bytes]) -> None:
        stream = await _connected(self._connect, self._to.port)
        async with stream:
            try:
                status = await self._exchange(stream, b"[" + b",".join(items) + b"]")
            except trio.BrokenResourceError as exc:
                raise Undelivered("the connection broke") from exc
            except h11.RemoteProtocolError as exc:
                raise Undelivered("its answer is no HTTP") from exc
        if not 200 <= status < 300:
            raise Undelivered(f"it answered HTTP status {status}")

    async def _exchange(self, stream: trio.SocketStream, body: bytes) -> int:
        peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)
        asked = h11.Request(
            method=self._to.method,
            target=self._to.path,
            headers=[
                ("Host", f"{self._to.host}:{self._to.port}"),
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ],
        )
        await stream.send_all(peer.send(asked) or b"")
        await stream.send_all(body)
        peer.send(h11.Data(data=body))
        peer.send(h11.EndOfMessage())
        left = MOST_ANSWER
        status = 0
        while left > 0:
            event = peer.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(READ)
                left -= max(len(data), 1)
                peer.receive_data(data)
                continue
            left -= PART_COST
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed) or event is h11.PAUSED:
                break
        if not status:
            raise Undelivered("it gave no answer")
        return status

    def close(self) -> None:
        """Nothing is held between two deliveries."""


class TcpCourier:
    """One connection for all deliveries. What a peer has not read when it goes is lost: TCP does not tell."""

    def __init__(self, destination: Destination, connect: Connect) -> None:
        self._to = destination
        self._connect = connect
        self._stream: trio.SocketStream | None = None

    async def deliver(self, items: Sequence[bytes]) -> None:
        if self._stream is None:
            self._stream = await _connected(self._connect, self._to.port)
        try:
            await self._stream.send_all(b"\n".join(items) + b"\n")
        except BaseException as exc:
            # Cut off in the middle of an event: on this connection nothing can follow.
            self.close()
            # Closed: it has subscribed anew, to another place, in the middle of this.
            if isinstance(exc, trio.BrokenResourceError | trio.ClosedResourceError):
                raise Undelivered("the connection broke") from exc
            raise

    def close(self) -> None:
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None
