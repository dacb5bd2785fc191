"""Outcomes and errors as callers see them."""

from __future__ import annotations

import base64
import json

import pytest

from runtimeapi import replies
from sandbox.errors import (
    CallerError,
    FunctionFailed,
    FunctionNotFound,
    InvalidRequest,
    InvalidRuntime,
    PlatformFault,
    TooManyRequests,
)
from sandbox.invocation import Outcome


def test_success() -> None:
    reply = replies.aws_success(Outcome("success", b"null", log_tail=b"log"), tail=False)
    assert reply == replies.Reply(
        200, {"Content-Type": "application/json", "X-Amz-Executed-Version": "$LATEST"}, b"null"
    )


def test_tail() -> None:
    reply = replies.aws_success(Outcome("success", log_tail=b"log\n"), tail=True)
    assert base64.b64decode(reply.headers["X-Amz-Log-Result"]) == b"log\n"


@pytest.mark.parametrize("status", ["error", "timeout", "failure"])
def test_function_errors_are_unhandled_and_200(status: str) -> None:
    outcome = Outcome(status, b"{}", executed_version="3")  # type: ignore[arg-type]
    reply = replies.aws_success(outcome, tail=False)
    assert reply.status == 200
    assert reply.headers["X-Amz-Function-Error"] == "Unhandled"
    assert reply.headers["X-Amz-Executed-Version"] == "3"


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (FunctionNotFound("gone"), 404, b'{"Type":"User","Message":"gone"}'),
        (FunctionFailed("broken"), 409, b'{"Type":"User","message":"broken"}'),
        (InvalidRuntime("no java"), 502, b'{"Type":"User","Message":"no java"}'),
        (CallerError("bad"), 400, b'{"Type":"User","message":"bad"}'),
        (
            TooManyRequests("CallerRateLimitExceeded"),
            429,
            b'{"Reason":"CallerRateLimitExceeded","Type":"User","message":"Rate Exceeded."}',
        ),
        (InvalidRequest("x", code="ValidationException"), 400, b'{"message":"x"}'),
        (InvalidRequest("", code="AccessDeniedException", status=403), 403, b'{"Message":null}'),
        (
            InvalidRequest("big", code="RequestTooLargeException", status=413),
            413,
            b'{"Type":"User","message":"big"}',
        ),
    ],
)
def test_aws_errors(error: CallerError, status: int, body: bytes) -> None:
    reply = replies.aws_error(error)
    assert (reply.status, reply.body) == (status, body)
    assert reply.headers == {"Content-Type": "application/json", "x-amzn-ErrorType": error.code}


def test_a_platform_fault_says_nothing_about_the_host() -> None:
    fault = PlatformFault("cgroup /sys/fs/cgroup/lambox: EBUSY")
    for reply in (replies.aws_error(fault), replies.friendly_error(fault, "id")):
        assert reply.status == 500
        assert b"cgroup" not in reply.body
    assert replies.aws_error(fault).headers["x-amzn-ErrorType"] == "ServiceException"


@pytest.mark.parametrize(
    ("outcome", "end"),
    [
        (Outcome("success"), None),
        (Outcome("success", b"", streamed=True), None),
        (Outcome("error", b'{"a":"\xff"}'), ("Unhandled", '{"a":"\ufffd"}')),
        (
            Outcome("timeout", b"{}", stream_error=("Sandbox.Timedout", "late")),
            ("Sandbox.Timedout", "late"),
        ),
    ],
)
def test_end_of_a_stream(outcome: Outcome, end: tuple[str, str] | None) -> None:
    assert replies.stream_end(outcome) == end


def test_end_of_a_stream_by_a_fault() -> None:
    assert replies.fault_end(PlatformFault("/secret"))[0] == "ServiceException"
    assert replies.fault_end(CallerError("m")) == ("InvalidParameterValueException", "m")


def test_friendly_headers() -> None:
    outcome = Outcome(
        "success",
        b'"x"',
        duration_ms=1.234,
        billed_ms=12,
        init_ms=10.0,
        max_memory_mb=40,
        cold=True,
    )
    reply = replies.friendly_success(outcome, "id-1")
    assert reply.status == 200
    assert reply.headers == {
        "Content-Type": "application/json",
        "X-Lambox-Request-Id": "id-1",
        "X-Lambox-Duration-Ms": "1.23",
        "X-Lambox-Billed-Ms": "12",
        "X-Lambox-Cold": "true",
        "X-Lambox-Version": "$LATEST",
        "X-Lambox-Init-Ms": "10.00",
        "X-Lambox-Max-Memory-Mb": "40",
    }


def test_friendly_throttle() -> None:
    reply = replies.friendly_error(TooManyRequests("ConcurrentInvocationLimitExceeded"), "id-1")
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
    assert json.loads(reply.body) == {
        "errorType": "TooManyRequestsException",
        "errorMessage": "Rate Exceeded.",
        "requestId": "id-1",
        "reason": "ConcurrentInvocationLimitExceeded",
    }


def test_lone_surrogates_do_not_break_an_error() -> None:
    assert replies.aws_error(CallerError("a\udc80")).body == b'{"Type":"User","message":"a?"}'
