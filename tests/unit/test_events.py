"""The platform's events: their shapes are AWS's (SPEC 6.4), their lines what a text log always had (SPEC 4.1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox import events
from sandbox.events import PlatformEvent

TRACE = "Root=1-62e900b2-710d76f009d6e7785905449a;Parent=0efbd19962d95b05;Sampled=1"

STRING, NUMBER, INTEGER = (str,), (float, int), (int,)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # type -> (attributes that must be there, those that may be): AWS's telemetry-schema-reference.
    "platform.initStart": (
        {"initializationType": STRING, "phase": STRING},
        {
            "runtimeVersion": STRING,
            "runtimeVersionArn": STRING,
            "functionName": STRING,
            "functionVersion": STRING,
        },
    ),
    "platform.initRuntimeDone": (
        {"initializationType": STRING, "phase": STRING, "status": STRING},
        {"errorType": STRING},
    ),
    "platform.initReport": (
        {"initializationType": STRING, "phase": STRING, "metrics": {"durationMs": NUMBER}},
        {"status": STRING, "errorType": STRING},
    ),
    "platform.start": (
        {"requestId": STRING},
        {"version": STRING, "functionArn": STRING, "tracing": {"type": STRING, "value": STRING}},
    ),
    "platform.runtimeDone": (
        {"requestId": STRING, "status": STRING},
        {
            "metrics": {"durationMs": NUMBER, "producedBytes": INTEGER},
            "spans": [{"name": STRING, "start": STRING, "durationMs": NUMBER}],
            "tracing": {"type": STRING, "value": STRING},
            "errorType": STRING,
        },
    ),
    "platform.report": (
        {"requestId": STRING, "status": STRING, "metrics": dict},
        {
            "spans": [{"name": STRING, "start": STRING, "durationMs": NUMBER}],
            "tracing": {"type": STRING, "value": STRING},
            "errorType": STRING,
        },
    ),
    "platform.extension": (
        {"name": STRING, "state": STRING, "events": [STRING]},
        {"errorType": STRING},
    ),
    "platform.telemetrySubscription": ({"name": STRING, "state": STRING, "types": [STRING]}, {}),
    "platform.logsDropped": (
        {"droppedBytes": INTEGER, "droppedRecords": INTEGER, "reason": STRING},
        {},
    ),
}


def fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return set(value) == set(shape) and all(fits(value[key], shape[key]) for key in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    return isinstance(value, shape) and not isinstance(value, bool)


def check(event: dict[str, Any]) -> None:
    """One event as it is delivered."""
    assert set(event) == {"time", "type", "record"}
    assert len(event["time"]) == len("2022-10-12T00:00:00.000Z")
    needed, optional = SHAPES[event["type"]]
    record = event["record"]
    assert set(needed) <= set(record) <= set(needed) | set(optional), event
    for key, value in record.items():
        assert fits(value, {**needed, **optional}[key]), (event["type"], key, value)


def report(**changes: Any) -> events.Report:
    values: dict[str, Any] = {
        "request_id": "id",
        "status": "success",
        "duration_ms": 3.014,
        "billed_ms": 114,
        "memory_size_mb": 128,
        "max_memory_mb": 36,
        "init_ms": 110.1,
    }
    return events.Report(**{**values, **changes})


@pytest.mark.parametrize(
    ("event", "line", "level"),
    [
        (
            events.InitStart("on-demand", "init", "python3.11", "f", "$LATEST"),
            "INIT_START Runtime Version: python3.11",
            "INFO",
        ),
        (events.InitRuntimeDone("on-demand", "init", "success"), None, "DEBUG"),
        (events.InitRuntimeDone("on-demand", "init", "error", "Runtime.ExitError"), None, "WARN"),
        (events.InitReport("on-demand", "init", "success", 1.5), None, "DEBUG"),
        (
            events.InitReport("provisioned-concurrency", "init", "success", 1.5),
            "INIT_REPORT Init Duration: 1.50 ms\tPhase: init\tStatus: success",
            "INFO",
        ),
        (
            events.InitReport("on-demand", "invoke", "error", 2, "Runtime.ExitError"),
            "INIT_REPORT Init Duration: 2.00 ms\tPhase: invoke\tStatus: error\t"
            "Error Type: Runtime.ExitError",
            "WARN",
        ),
        (events.Start("id", "7", "arn", TRACE), "START RequestId: id Version: 7", "INFO"),
        (events.RuntimeDone("id", "success", 1, 2), None, "DEBUG"),
        (events.RuntimeDone("id", "timeout", 1, 0, (), "Sandbox.Timedout"), None, "WARN"),
        (
            report(),
            "REPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\t"
            "Memory Size: 128 MB\tMax Memory Used: 36 MB\tInit Duration: 110.10 ms\t",
            "INFO",
        ),
        (
            report(status="error", error_type="Runtime.ExitError", init_ms=None),
            "REPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\t"
            "Memory Size: 128 MB\tMax Memory Used: 36 MB\tStatus: error\t"
            "Error Type: Runtime.ExitError",
            "WARN",
        ),
        (
            report(
                status="timeout", error_type="Sandbox.Timedout", init_ms=None, max_memory_mb=None
            ),
            "REPORT RequestId: id\tDuration: 3.01 ms\tBilled Duration: 114 ms\t"
            "Memory Size: 128 MB\tStatus: timeout",
            "WARN",
        ),
        (
            events.Extension("agent", "Ready", ("INVOKE", "SHUTDOWN")),
            "EXTENSION\tName: agent\tState: Ready\tEvents: [INVOKE, SHUTDOWN]",
            "INFO",
        ),
        (
            events.TelemetrySubscription("agent", ("platform", "function")),
            "TELEMETRY\tName: agent\tState: Subscribed\tTypes: [Platform, Function]",
            "INFO",
        ),
        (events.LogsDropped(12, 3), None, "INFO"),
    ],
)
def test_an_event_has_awss_shape_its_line_and_its_level(
    event: PlatformEvent, line: str | None, level: str
) -> None:
    check(json.loads(events.as_json(event, 1_665_532_815.064)))
    assert (event.text(), event.level) == (line, level)


def test_what_text_logs_and_the_logs_api_alone_have() -> None:
    assert events.End("id").text() == "END RequestId: id"
    fault = events.Fault("id", "error", "Runtime.ExitError")
    assert fault.line() == "RequestId: id Status: error\tErrorType: Runtime.ExitError"
    assert fault.text() is None
    # A runtime that never asked again after its answer: the one line there is.
    assert events.Fault("id", "timeout", unanswered=False).text() == "RequestId: id Status: timeout"


def test_a_time_is_utc_in_milliseconds() -> None:
    assert events.iso(1_665_532_815.0649) == "2022-10-12T00:00:15.064Z"
    assert events.iso(1_665_532_815) == "2022-10-12T00:00:15.000Z"


def test_a_trace_that_is_not_sampled_is_not_told() -> None:
    assert "tracing" not in events.Start("id", "1", "", TRACE[:-1] + "0").record()
    assert events.Start("id", "1", "", TRACE).record()["tracing"] == {
        "type": "X-Amzn-Trace-Id",
        "value": TRACE,
    }
