"""Owns request bodies on their way from a connection to a handler: bounded, in pieces, with
trailers.

quart's own body (`quart.wrappers.request.Body`) gathers everything in one growing buffer, has no
backpressure, drops trailers, and cannot say that the peer ended early. This one stands in its place
as `request.body`; `connection.py` feeds it, a handler iterates it (it is a `ports.ResponseBody`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import trio

from runtimeapi.ports import BodyTruncated
from runtimeapi.room import SMALL, Place

HIGH_WATER = 256 * 1024
"""Bytes held for a handler that does not read; above it the connection is not read either."""
CHUNK_COST = 64
"""Bytes counted for a chunk besides its own: a body of one-byte chunks must not cost 100 times its
size."""

BLOCK = 16 * 1024
"""Bytes of chunks that are gathered in one piece."""


class BodyTooLarge(Exception):
    """A body went over the limit its reader set."""


class StreamedBody:
    """One request body. Exactly one task feeds it and at most one iterates it.

    Iterating gives the bytes as they arrived (not regrouped) and raises BodyTruncated when the
    peer ended early. `trailers` (lower-case names) is complete once the iteration has ended.
    """

    def __init__(
        self, expected_content_length: int | None = None, max_content_length: int | None = None
    ) -> None:
        """quart's signature; its own limit is off (`app.py`), readers set theirs (`read_all`)."""
        self.expected_bytes = expected_content_length
        self.trailers: dict[str, str] = {}
        self.place: Place | None = None
        """Its connection's, for a reader that gathers it; None: it is here already."""
        self.settled = trio.Event()
        """Given up, or its request is over: nobody will answer for it any more."""
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._complete = False
        self._broken = False
        self._discarding = False
        self._news = trio.Event()
        self._room = trio.Event()

    @classmethod
    def whole(cls, data: bytes) -> StreamedBody:
        """One that has been read, to be read again."""
        body = cls(len(data))
        if data:
            body._chunks.append(data)
            body._held = len(data) + CHUNK_COST
        body.finish()
        return body

    def __repr__(self) -> str:
        state = "complete" if self._complete else "broken" if self._broken else "arriving"
        return f"<StreamedBody {state}, {self._held} held{', discarding' * self._discarding}>"

    @property
    def awaited(self) -> bool:
        """Somebody still counts on the rest: not complete, not broken, not given up."""
        return not (self._complete or self._broken or self._discarding)

    @property
    def cut_short(self) -> bool:
        """It ended early, and a reader is to be told."""
        return self._broken and not self._discarding

    # -- the connection's side

    async def feed(self, data: bytes) -> None:
        """Hand on one piece; returns when there is room for the next."""
        if self._discarding or not data:
            return
        self._chunks.append(data)
        self._held += len(data) + CHUNK_COST
        self._news.set()
        while self._held > HIGH_WATER and not (self._discarding or self._broken):
            self._room = trio.Event()
            await self._room.wait()

    def finish(self, trailers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.trailers.update(
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in trailers
        )
        self._complete = True
        self._news.set()

    def break_off(self) -> None:
        """The peer ended before the body did."""
        self._broken = True
        self._news.set()
        self._room.set()

    # -- the handler's side

    def discard(self) -> None:
        """Nobody will read on: what is held and what still comes is dropped."""
        self._discarding = True
        self.settled.set()
        self._chunks.clear()
        self._held = 0
        self._news.set()
        self._room.set()

    def __aiter__(self) -> StreamedBody:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._broken:
                raise BodyTruncated("the peer ended the connection before the body was complete")
            if self._complete or self._discarding:
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()
        chunk = self._chunks.popleft()
        self._held -= len(chunk) + CHUNK_COST
        if self._held <= HIGH_WATER:
            self._room.set()
        return chunk


async def read_all(body: StreamedBody, limit: int, place: Place | None = None) -> bytes:
    """The whole body. Raises BodyTooLarge above `limit` bytes, by Content-Length if there is one.

    With a `place` a large one is not read before that is held; to leave it is the caller's.
    A body refused here is given up: its connection drops what still arrives
    (`connection.LINGER_BYTES`).
    """
    blocks: list[bytes | bytearray] = []

    def take(chunk: bytes) -> None:
        # A chunk of one byte is an object of 40; large ones would be copied again and again by a buffer that grows,
        # which leaves the heap full of holes.
        if len(chunk) >= BLOCK:
            blocks.append(chunk)
        elif blocks and isinstance(blocks[-1], bytearray) and len(blocks[-1]) < BLOCK:
            blocks[-1].extend(chunk)
        else:
            blocks.append(bytearray(chunk))

    await _read(body, limit, take, place)
    return b"".join(blocks)


async def read_off(body: StreamedBody, limit: int) -> None:
    """The same where nobody wants to know what it says."""
    await _read(body, limit, lambda chunk: None)


async def _read(
    body: StreamedBody,
    limit: int,
    take: Callable[[bytes], object],
    place: Place | None = None,
) -> None:
    if body.expected_bytes is not None and body.expected_bytes > limit:
        body.discard()
        raise BodyTooLarge(limit)
    if place is not None and (body.expected_bytes or 0) > SMALL:
        await place.wait()
    total = 0
    async for chunk in body:
        total += len(chunk)
        if total > limit:
            body.discard()
            raise BodyTooLarge(limit)
        if place is not None:
            place.received = total
            if total > SMALL:
                await place.wait()
        take(chunk)
