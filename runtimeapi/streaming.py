"""Owns responses while they are being produced, and InvokeWithResponseStream's (SPEC 2.2, 2.3).

The invocation runs in the app's nursery, not in the request's: a caller that goes away does not
stop it. Between the two is a channel without a buffer, so a slow caller slows the function down,
and a caller that is gone is noticed at the next chunk, which is dropped, as all after it are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import trio

from runtimeapi.eventstream import invoke_complete, payload_chunks
from runtimeapi.ports import Invoker
from runtimeapi.replies import fault_end, stream_end
from sandbox.errors import CallerError, PlatformFault
from sandbox.invocation import Invocation, Outcome

log = logging.getLogger("lambox.invoke")


class Streaming:
    """The sink of one invocation that runs to its end, whoever listens; the caller's side takes the pieces."""

    def __init__(self) -> None:
        self._producer, self._consumer = trio.open_memory_channel[bytes](0)
        self._end: Outcome | CallerError | PlatformFault | None = None
        self._content_type: str | None = None

    # -- the function's side

    def opened(self, content_type: str | None) -> None:
        """A ChunkSink's."""
        self._content_type = content_type

    async def send(self, chunk: bytes) -> None:
        """A ChunkSink's. Waits for the caller; drops when there is none any more."""
        if not chunk:
            return
        try:
            await self._producer.send(chunk)
        except trio.BrokenResourceError:
            await trio.lowlevel.checkpoint()

    async def run(self, invoker: Invoker, invocation: Invocation) -> None:
        """Invoke to the end, whoever listens. Raises no Exception: how it ended is told by the
        response."""
        with self._producer:
            try:
                outcome = await invoker.invoke(invocation)
            except (CallerError, PlatformFault) as exc:
                self._end = exc
            except Exception as exc:
                self._end = PlatformFault(f"invoking {invocation.function.name} failed")
                self._end.__cause__ = exc
            else:
                if not outcome.streamed and outcome.function_error is None:
                    self._content_type = outcome.content_type
                    await self.send(outcome.payload)
                self._end = outcome

    # -- the caller's side

    async def receive(self) -> bytes:
        """The next piece. Raises trio.EndOfChannel: `_end` says how."""
        return await self._consumer.receive()

    def caller_gone(self) -> None:
        self._consumer.close()


class StreamedInvocation(Streaming):
    """The event-stream frames made of an invocation: iterate it for the response body."""

    def __init__(self, *, tail: bool) -> None:
        super().__init__()
        self._tail = tail
        self._frames: Iterator[bytes] = iter(())
        self._completed = False

    async def begin(self) -> None:
        """Returns at the first chunk or at the end. Raises what the invocation was refused with, if
        it was before any chunk: then the response can still be a plain error."""
        try:
            self._frames = payload_chunks(await self.receive())
        except trio.EndOfChannel:
            pass
        else:
            return
        if isinstance(self._end, CallerError | PlatformFault):
            raise self._end

    def __aiter__(self) -> StreamedInvocation:
        return self

    async def __anext__(self) -> bytes:
        while True:
            for frame in self._frames:
                return frame
            if self._completed:
                raise StopAsyncIteration
            try:
                self._frames = payload_chunks(await self.receive())
            except trio.EndOfChannel:
                self._completed = True
                self._frames = iter((self._last_frame(),))

    def _last_frame(self) -> bytes:
        end = self._end
        if isinstance(end, Outcome):
            return invoke_complete(stream_end(end), end.log_tail if self._tail else None)
        if isinstance(end, PlatformFault):
            log.error("a streamed invocation failed midway", exc_info=end)
        # None: cancelled from above, by a node that is shutting down.
        return invoke_complete(fault_end(end or PlatformFault("lambox is shutting down")))
