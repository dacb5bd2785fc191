"""Owns one invocation's turn in an environment: when it began, its log, its report, its outcome.

How an invocation ended is computed once (`end`); END and REPORT are written out of it before the answer
where the answer carries them, else after it (`conversation.py`). That the runtime is done with it is known when it
asks for the next event, or never will (`done`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from sandbox import logs
from sandbox.events import End, Fault, Report, RuntimeDone, Span
from sandbox.function import FunctionVersion
from sandbox.invocation import Outcome
from sandbox.ticket import Ticket

Status = Literal["success", "error", "timeout", "failure"]
MIB = 1024 * 1024


class Ending(NamedTuple):
    """What the runtime, or the platform in its place, said at the end."""

    status: Status
    payload: bytes
    content_type: str = "application/json"
    error_type: str = ""
    logged_type: str = ""
    """As REPORT prints it, where that differs."""
    streamed: bool = False
    stream_error: tuple[str, str] | None = None
    streamed_bytes: int = 0

    @property
    def produced_bytes(self) -> int:
        return self.streamed_bytes if self.streamed else len(self.payload)


class Turn:
    """One invocation that is out, from dispatch to the last line of its log."""

    __slots__ = (
        "_billed_ms",
        "_cold",
        "_duration_ms",
        "_ending",
        "_function",
        "_init_ms",
        "_responded_at",
        "_responding_at",
        "began_at",
        "memory_mb",
        "tail",
        "ticket",
    )

    def __init__(
        self,
        ticket: Ticket,
        function: FunctionVersion,
        *,
        began_at: float,
        cold: bool,
        init_ms: float | None,
    ) -> None:
        """`init_ms` is set for the first invocation after an init that counts."""
        self.ticket = ticket
        self.began_at = began_at
        self.tail = logs.Tail() if ticket.invocation.wants_tail else None
        self.memory_mb: int | None = None
        self._function = function
        self._cold = cold
        self._init_ms = init_ms
        self._duration_ms = 0.0
        self._billed_ms = 0
        self._ending: Ending | None = None
        self._responding_at: float | None = None
        self._responded_at = began_at

    @property
    def request_id(self) -> str:
        return self.ticket.invocation.request_id

    def responding(self, now: float) -> None:
        """The response, or an error in its place, begins to come in."""
        self._responding_at = now

    def end(self, ending: Ending, *, now: float) -> None:
        self._ending = ending
        self._responded_at = now
        self._duration_ms = (now - self.began_at) * 1000
        self._billed_ms = max(1, math.ceil(self._duration_ms + (self._init_ms or 0.0)))

    def measured(self, peak_bytes: int | None) -> None:
        self.memory_mb = None if peak_bytes is None else math.ceil(peak_bytes / MIB)

    def outcome(self) -> Outcome:
        ending = self._ending
        assert ending is not None
        return Outcome(
            status=ending.status,
            payload=ending.payload,
            content_type=ending.content_type,
            error_type=ending.error_type,
            streamed=ending.streamed,
            stream_error=ending.stream_error,
            log_tail=self.tail.read() if self.tail is not None else b"",
            executed_version=self._function.version,
            duration_ms=self._duration_ms,
            billed_ms=self._billed_ms,
            init_ms=self._init_ms,
            max_memory_mb=self.memory_mb,
            cold=self._cold,
        )

    def last_events(self) -> tuple[End, Report]:
        """END and REPORT."""
        ending = self._ending
        assert ending is not None
        invocation = self.ticket.invocation
        return End(invocation.request_id), Report(
            invocation.request_id,
            ending.status,
            self._duration_ms,
            self._billed_ms,
            self._function.memory_mb,
            self.memory_mb,
            self._init_ms,
            ending.logged_type or ending.error_type,
            invocation.trace_id,
        )

    def done(
        self, *, now: float, wall: float, status: str = "", error_type: str = ""
    ) -> tuple[RuntimeDone, Fault | None]:
        """`now` and `wall`: the moment, on the loop's clock and as Unix time.

        `status` is given where the runtime failed after it had answered.
        """
        ending = self._ending
        assert ending is not None
        if not status:
            status, error_type = ending.status, ending.logged_type or ending.error_type
        spans: list[Span] = []
        if self._responding_at is not None:
            latency, taken = self._responding_at, self._responded_at
            since = wall - now
            spans = [
                Span("responseLatency", since + self.began_at, (latency - self.began_at) * 1000),
                Span("responseDuration", since + latency, (taken - latency) * 1000),
            ]
            if status == "success":
                spans.append(Span("runtimeOverhead", since + taken, (now - taken) * 1000))
        done = RuntimeDone(
            self.request_id,
            status,
            (now - self.began_at) * 1000,
            ending.produced_bytes if self._responding_at is not None else 0,
            spans,
            error_type,
            self.ticket.invocation.trace_id,
        )
        fault = None if status == "success" else Fault(self.request_id, status, error_type)
        return done, fault
