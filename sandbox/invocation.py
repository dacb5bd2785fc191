"""Owns one invocation and how it ended: plain values, passed down and back up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from sandbox.function import FunctionVersion
from sandbox.ids import new_request_id

__all__ = [
    "MAX_ASYNC_PAYLOAD",
    "MAX_PAYLOAD",
    "MAX_STREAMED",
    "BodyTruncated",
    "ChunkSink",
    "Invocation",
    "Outcome",
    "ResponseBody",
    "new_request_id",
]

MAX_PAYLOAD = 6 * 1024 * 1024 + 100
"""Bytes; event and buffered response (SPEC 1.5: 6,291,556)."""
MAX_ASYNC_PAYLOAD = 1024 * 1024
"""Bytes of an Event invocation's payload (SPEC 3.3)."""
MAX_STREAMED = 200 * 1024 * 1024
"""Bytes of a streamed response (SPEC 2.2)."""


class ChunkSink(Protocol):
    """Where a streamed response's bytes go while they arrive. Waits when the caller is slow.

    Never raises because of the caller: bytes for a caller that is gone are dropped (SPEC 2.2).
    """

    def opened(self, content_type: str | None) -> None:
        """The response has begun. Called once, before the first `send`."""

    async def send(self, chunk: bytes) -> None: ...


class BodyTruncated(Exception):
    """The runtime ended the connection before the body of its response was complete."""


class ResponseBody(Protocol):
    """A response body as it arrives. Iterating raises BodyTruncated when it ends early."""

    @property
    def trailers(self) -> Mapping[str, str]:
        """Lower-case names; complete once the iteration has ended."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Invocation:
    """One event on its way to a function."""

    function: FunctionVersion
    payload: bytes
    invoked_arn: str
    """As the caller named it: unqualified if no qualifier was given (SPEC 1.3)."""
    request_id: str
    content_type: str = "application/json"
    client_context: str | None = None
    """Decoded JSON text of X-Amz-Client-Context."""
    cognito_identity: str | None = None
    trace_id: str = ""
    kind: Literal["RequestResponse", "Event"] = "RequestResponse"
    sink: ChunkSink | None = None
    """Set when the caller wants the response streamed."""
    wants_tail: bool = True
    """The answer carries the log tail; without, END and REPORT are written after the answer."""
    wants_memory: bool = True
    """The answer tells the peak of memory; it is measured after the answer otherwise."""

    @property
    def qualifier(self) -> str | None:
        """As invoked: a number, an alias, "$LATEST", or None where the caller gave none."""
        _, _, qualifier = self.invoked_arn.partition(":function:")[2].partition(":")
        return qualifier or None


class Outcome(NamedTuple):
    """How an invocation ended. Function errors are outcomes, with HTTP 200 on AWS's face."""

    status: Literal["success", "error", "timeout", "failure"]
    payload: bytes = b"null"
    content_type: str = "application/json"
    error_type: str = ""
    """For logs and X-Amz-Function-Error; empty on success."""
    streamed: bool = False
    """The payload went to the invocation's sink already (`payload` is then empty)."""
    stream_error: tuple[str, str] | None = None
    """(ErrorCode, ErrorDetails) of the final InvokeComplete event, for a stream that broke or a function error."""
    log_tail: bytes = b""
    """The last 4,096 bytes of the invocation's log (SPEC 4.6); empty unless asked for."""
    executed_version: str = "$LATEST"
    duration_ms: float = 0.0
    billed_ms: int = 0
    init_ms: float | None = None
    max_memory_mb: int | None = None
    cold: bool = False

    @property
    def function_error(self) -> str | None:
        """Value of X-Amz-Function-Error: `Unhandled` in every recording of AWS (SPEC 3.2)."""
        return None if self.status == "success" else "Unhandled"
