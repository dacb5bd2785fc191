"""Owns the platform's events: what happens to an environment, as plain frozen values.

Each is made once, where it happens. How it is told is decided later (`logstream.py`): as a line of text
(SPEC 4.1), as a JSON object in the log (SPEC 4.4), or to a subscriber of the Telemetry or Logs API (SPEC 6.4, 6.5).
Pure: no clock. Times are Unix seconds, durations milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from sandbox import logs

SLOWER = (
    "Some logs were dropped because the downstream consumer is slower than the logs production rate"
)
TRACE_HEADER = "X-Amzn-Trace-Id"


class PlatformEvent(Protocol):
    """One event. `record` is what stands under "record" in its JSON (SPEC 6.4)."""

    @property
    def kind(self) -> str:
        """AWS's name of it: `platform.start` ..."""

    @property
    def level(self) -> str:
        """DEBUG, INFO or WARN: from which SystemLogLevel on a JSON log has it (SPEC 4.4)."""

    def text(self) -> str | None:
        """Its line in a log of format Text; None: it has none."""

    def record(self) -> dict[str, Any]: ...


class Span(NamedTuple):
    """A part of an invocation's time."""

    name: str
    start: float
    duration_ms: float


class InitStart(NamedTuple):
    initialization_type: str
    phase: str
    """init, or invoke for a suppressed init."""
    runtime: str
    function_name: str
    function_version: str

    @property
    def kind(self) -> str:
        return "platform.initStart"

    @property
    def level(self) -> str:
        return "INFO"

    def text(self) -> str:
        return logs.init_start_line(self.runtime)

    def record(self) -> dict[str, Any]:
        return {
            "initializationType": self.initialization_type,
            "phase": self.phase,
            "runtimeVersion": self.runtime,
            "functionName": self.function_name,
            "functionVersion": self.function_version,
        }


class InitRuntimeDone(NamedTuple):
    initialization_type: str
    phase: str
    status: str
    error_type: str = ""

    @property
    def kind(self) -> str:
        return "platform.initRuntimeDone"

    @property
    def level(self) -> str:
        return "DEBUG" if self.status == "success" else "WARN"

    def text(self) -> None:
        return None

    def record(self) -> dict[str, Any]:
        record = {
            "initializationType": self.initialization_type,
            "phase": self.phase,
            "status": self.status,
        }
        return _with(record, errorType=self.error_type)


class InitReport(NamedTuple):
    initialization_type: str
    phase: str
    status: str
    duration_ms: float
    error_type: str = ""

    @property
    def kind(self) -> str:
        return "platform.initReport"

    @property
    def level(self) -> str:
        if self.status != "success":
            return "WARN"
        return "DEBUG" if self.initialization_type == "on-demand" else "INFO"

    def text(self) -> str | None:
        if self.level == "DEBUG":
            return None  # the first REPORT has it
        return logs.init_report_line(self.duration_ms, self.phase, self.status, self.error_type)

    def record(self) -> dict[str, Any]:
        record = {
            "initializationType": self.initialization_type,
            "phase": self.phase,
            "status": self.status,
            "metrics": {"durationMs": round(self.duration_ms, 3)},
        }
        return _with(record, errorType=self.error_type)


class Start(NamedTuple):
    request_id: str
    version: str
    function_arn: str = ""
    trace_id: str = ""

    @property
    def kind(self) -> str:
        return "platform.start"

    @property
    def level(self) -> str:
        return "INFO"

    def text(self) -> str:
        return logs.start_line(self.request_id, self.version)

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = {"requestId": self.request_id, "version": self.version}
        return _with(record, functionArn=self.function_arn, tracing=tracing(self.trace_id))


class RuntimeDone(NamedTuple):
    """The runtime asked for the next event, or never will."""

    request_id: str
    status: str
    duration_ms: float
    """From the event's delivery to now; the report's duration ends at the response."""
    produced_bytes: int
    spans: Sequence[Span] = ()
    error_type: str = ""
    trace_id: str = ""

    @property
    def kind(self) -> str:
        return "platform.runtimeDone"

    @property
    def level(self) -> str:
        return "DEBUG" if self.status == "success" else "WARN"

    def text(self) -> None:
        return None

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "requestId": self.request_id,
            "status": self.status,
            "metrics": {
                "durationMs": round(self.duration_ms, 3),
                "producedBytes": self.produced_bytes,
            },
        }
        return _with(
            record,
            spans=_shown(self.spans),
            tracing=tracing(self.trace_id),
            errorType=self.error_type,
        )


class End(NamedTuple):
    """Of text logs and of the Logs API: the Telemetry API has no such event."""

    request_id: str

    @property
    def kind(self) -> str:
        return "platform.end"

    @property
    def level(self) -> str:
        return ""

    def text(self) -> str:
        return logs.end_line(self.request_id)

    def record(self) -> dict[str, Any]:
        return {"requestId": self.request_id}


class Report(NamedTuple):
    request_id: str
    status: str
    duration_ms: float
    billed_ms: int
    memory_size_mb: int
    max_memory_mb: int | None
    init_ms: float | None
    error_type: str = ""
    trace_id: str = ""
    spans: Sequence[Span] = ()

    @property
    def kind(self) -> str:
        return "platform.report"

    @property
    def level(self) -> str:
        return "INFO" if self.status == "success" else "WARN"

    def text(self) -> str:
        return logs.report_line(*self[:8])

    def record(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            "durationMs": round(self.duration_ms, 2),
            "billedDurationMs": self.billed_ms,
            "memorySizeMB": self.memory_size_mb,
        }
        if self.max_memory_mb is not None:
            metrics["maxMemoryUsedMB"] = self.max_memory_mb
        if self.init_ms is not None:
            metrics["initDurationMs"] = round(self.init_ms, 2)
        record = {"requestId": self.request_id, "status": self.status, "metrics": metrics}
        return _with(
            record,
            spans=_shown(self.spans),
            tracing=tracing(self.trace_id),
            errorType=self.error_type,
        )


class Fault(NamedTuple):
    """Of the Logs API, whose record is a line of text; the Telemetry API says it in runtimeDone and report."""

    request_id: str
    status: str
    error_type: str = ""
    unanswered: bool = True
    """False: the caller had its answer, and the log has nothing else about it."""

    @property
    def kind(self) -> str:
        return "platform.fault"

    @property
    def level(self) -> str:
        return ""

    def text(self) -> str | None:
        return None if self.unanswered else self.line()

    def line(self) -> str:
        line = f"RequestId: {self.request_id} Status: {self.status}"
        if self.error_type and self.status != "timeout":
            line += f"\tErrorType: {self.error_type}"
        return line

    def record(self) -> dict[str, Any]:
        raise TypeError("a fault's record is its line")


class Extension(NamedTuple):
    """An extension's state at the end of init: Ready, or what kept it from that."""

    name: str
    state: str
    events: Sequence[str]
    """INVOKE, SHUTDOWN: what it asked for."""
    error_type: str = ""

    @property
    def kind(self) -> str:
        return "platform.extension"

    @property
    def level(self) -> str:
        return "INFO"

    def text(self) -> str:
        return (
            f"EXTENSION\tName: {self.name}\tState: {self.state}\tEvents: [{', '.join(self.events)}]"
        )

    def record(self) -> dict[str, Any]:
        record = {"name": self.name, "state": self.state, "events": list(self.events)}
        return _with(record, errorType=self.error_type)


class TelemetrySubscription(NamedTuple):
    """An extension subscribed; `api` is telemetry or logs."""

    name: str
    types: Sequence[str]
    api: str = "telemetry"

    @property
    def kind(self) -> str:
        return f"platform.{self.api}Subscription"

    @property
    def level(self) -> str:
        return "INFO"

    def text(self) -> str:
        types = ", ".join(one.capitalize() for one in self.types)
        return f"{self.api.upper()}\tName: {self.name}\tState: Subscribed\tTypes: [{types}]"

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "state": "Subscribed", "types": list(self.types)}


class LogsDropped(NamedTuple):
    """Told to the subscriber that missed them."""

    dropped_bytes: int
    dropped_records: int
    reason: str = SLOWER

    @property
    def kind(self) -> str:
        return "platform.logsDropped"

    @property
    def level(self) -> str:
        return "INFO"

    def text(self) -> None:
        return None

    def record(self) -> dict[str, Any]:
        return {
            "droppedBytes": self.dropped_bytes,
            "droppedRecords": self.dropped_records,
            "reason": self.reason,
        }


def _shown(spans: Sequence[Span]) -> list[dict[str, Any]]:
    return [
        {"name": name, "start": iso(start), "durationMs": round(duration_ms, 3)}
        for name, start, duration_ms in spans
    ]


def _with(record: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """`record` and those of `optional` that have a value."""
    record.update((key, value) for key, value in optional.items() if value)
    return record


def tracing(trace_id: str) -> dict[str, str] | None:
    """Only of a trace that is sampled (SPEC 6.4)."""
    if "Sampled=1" not in trace_id:
        return None
    return {"type": TRACE_HEADER, "value": trace_id}


def iso(at: float) -> str:
    """Unix seconds as AWS writes a time: `2022-10-12T00:00:00.000Z`."""
    return (
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        + f"{int(at * 1000) % 1000:03d}Z"
    )


def envelope(kind: str, record: str, at: float) -> str:
    """One event as JSON on one line; `record` is JSON already."""
    return f'{{"time":"{iso(at)}","type":"{kind}","record":{record}}}'


def to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def as_json(event: PlatformEvent, at: float) -> str:
    return envelope(event.kind, to_json(event.record()), at)
