"""Owns the response of a RESPONSE_STREAM URL while it is being produced (SPEC 9.4).

Until its first byte is known a response can still become a 502. After it there is one way left to say that
the function failed: the connection ends without the chunk that ends a body, and no client takes it for whole.
"""

from __future__ import annotations

import trio

from runtimeapi.app import Unfinished
from runtimeapi.replies import stream_end
from runtimeapi.streaming import Streaming
from runtimeapi.urls.answer import BadResponse, UrlAnswer, from_prelude
from runtimeapi.urls.prelude import CONTENT_TYPE, BadPrelude, PreludeReader
from sandbox.errors import CallerError, PlatformFault
from sandbox.invocation import Outcome


class UrlStream(Streaming):
    """The sink of one invocation; after `begin`, iterate it for the body."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self._function = function
        self._first = b""

    async def begin(self) -> UrlAnswer | None:
        """Status and headers, once they are known; None: the function failed before.

        Raises BadResponse, and what the invocation was refused with.
        """
        try:
            first = await self.receive()
        except trio.EndOfChannel:
            return self._empty()
        if self._content_type != CONTENT_TYPE:
            self._first = first
            kind = self._content_type or "application/octet-stream"
            return UrlAnswer(200, [("content-type", kind)], b"")
        answer = await self._read_prelude(first)
        self._first = answer.body
        return UrlAnswer(answer.status, answer.headers, b"")

    def _empty(self) -> UrlAnswer | None:
        """It ended without a byte."""
        end = self._end
        if isinstance(end, CallerError | PlatformFault):
            raise end
        if not isinstance(end, Outcome):
            raise PlatformFault("lambox is shutting down")
        if stream_end(end) is not None:
            return None
        if self._content_type == CONTENT_TYPE:
            raise BadResponse("it ended before its prelude did")
        return UrlAnswer(200, [("content-type", self._content_type or "application/json")], b"")

    async def _read_prelude(self, first: bytes) -> UrlAnswer:
        reader = PreludeReader()
        try:
            found = reader.feed(first)
            while found is None:
                found = reader.feed(await self.receive())
        except BadPrelude as exc:
            raise BadResponse(str(exc)) from exc
        except trio.EndOfChannel as exc:
            raise BadResponse("it ended before its prelude did") from exc
        return from_prelude(*found)

    def __aiter__(self) -> UrlStream:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        try:
            return await self.receive()
        except trio.EndOfChannel:
            error = self._error()
        if error is None:
            raise StopAsyncIteration
        raise Unfinished(f"function {self._function}: its streamed response broke off: {error!a}")

    def _error(self) -> str | None:
        end = self._end
        if isinstance(end, Outcome):
            told = stream_end(end)
            return None if told is None else told[0]
        return "lambox is shutting down" if end is None else type(end).__name__
