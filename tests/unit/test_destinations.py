"""sandbox.destinations: records and dead letters byte by byte (SPEC 8.2, 8.3)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.destinations import Message, is_json, large, render
from sandbox.eventconfig import parse_target
from sandbox.function import LATEST
from sandbox.queued import Accepted, Condition, Drop, Ended, Response, Role
from tests.fakes import make_function, make_invocation
from tests.machines import effort

KEY = "0123456789abcdef0123456789abcdef"
ID = "e5f1b1d2-0000-4000-8000-000000000001"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:f"
QUEUE = "arn:aws:sqs:us-east-1:123456789012:q"
AT = 1764109100.1234


def message(
    response: Response | None,
    condition: Condition = "RetriesExhausted",
    *,
    role: Role = "destination",
    target: str = QUEUE,
    payload: bytes = b'{"a": 1.10}',
    attempts: int = 3,
    slim: bool = False,
    **changes: Any,
) -> Message:
    drop = Drop(role, parse_target(target))
    invocation = make_invocation(make_function(), payload, request_id=ID, **changes)
    accepted = Accepted(
        invocation,
        AT,
        0.0,
        attempts=attempts,
        response=response,
        ended=Ended(condition, AT, 0.0, 60.0, (drop,)),
    )
    return render(KEY, accepted, drop, slim=slim)


def test_a_record_of_a_success_as_aws_writes_it() -> None:
    found = message(Response(200, b'{"ok":true}', LATEST, False), "Success", attempts=1)
    assert found.body == (
        b'{"version":"1.0","timestamp":"2025-11-25T22:18:20.123Z","requestContext":{"requestId":"'
        + ID.encode()
        + b'","functionArn":"'
        + ARN.encode()
        + b':$LATEST","condition":"Success","approximateInvokeCount":1},"requestPayload":{"a": 1.10},'
        b'"responseContext":{"statusCode":200,"executedVersion":"$LATEST"},"responsePayload":{"ok":true}}'
    )
    assert found.succeeded
    assert found.function_arn == f"{ARN}:$LATEST"


def test_a_record_of_a_failure_names_the_error() -> None:
    found = message(Response(200, b'{"errorMessage":"no"}', "7"), invoked_arn=f"{ARN}:live")
    record = json.loads(found.body)
    assert list(record) == [
        "version",
        "timestamp",
        "requestContext",
        "requestPayload",
        "responseContext",
        "responsePayload",
    ]
    assert record["requestContext"]["functionArn"] == f"{ARN}:live"
    assert record["requestContext"]["approximateInvokeCount"] == 3
    assert record["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "7",
        "functionError": "Unhandled",
    }
    assert not found.succeeded


@pytest.mark.parametrize("response", [None, Response(429, b"Rate Exceeded.")])
def test_without_an_answer_of_the_function_there_is_no_response_in_it(
    response: Response | None,
) -> None:
    record = json.loads(message(response, "ZeroReservedConcurrency", attempts=0).body)
    assert list(record) == ["version", "timestamp", "requestContext", "requestPayload"]
    assert record["requestContext"]["approximateInvokeCount"] == 0


@pytest.mark.parametrize(
    ("payload", "as_json"),
    [
        (b"plain text", '"plain text"'),
        (b"", "null"),
        (b"\xff\xfe", '"\\ufffd\\ufffd"'),
        (b"NaN", '"NaN"'),
        (b"[NaN]", '"[NaN]"'),
        (b"1" * 5000, "1" * 5000),
        (b" [1] ", "[1]"),
        (b'"' + b"x" * 70_000 + b'"', '"' + "x" * 70_000 + '"'),
        (b'"\0' + b"x" * 70_000 + b'"', '"\\"\\u0000' + "x" * 70_000 + '\\""'),
        (b"[" * 100_000, '"' + "[" * 100_000 + '"'),
    ],
)
def test_what_is_no_json_is_a_string(payload: bytes, as_json: str) -> None:
    body = message(Response(200, payload, LATEST)).body.decode()
    response = body.partition('"responsePayload":')[2].removesuffix("}")
    if len(payload) < 5000:
        assert json.loads(response) == json.loads(as_json)
    else:
        assert response == as_json or json.loads(response) == json.loads(as_json)


def test_a_slim_record_has_no_payloads() -> None:
    record = json.loads(message(Response(200, b"{}", LATEST), slim=True).body)
    assert list(record) == ["version", "timestamp", "requestContext", "responseContext"]


def test_the_key_in_a_bucket_is_the_same_at_each_try() -> None:
    found = message(None, target="arn:aws:s3:::b")
    assert found.s3_key == (
        "aws/lambda/async/f/2025/11/25/2025-11-25T22.18.20-01234567-89ab-cdef-0123-456789abcdef"
    )


@pytest.mark.parametrize(
    ("response", "code", "text"),
    [
        (Response(200, b'{"errorMessage":"no such row"}'), "200", "no such row"),
        (Response(200, b'{"errorMessage":"' + b"\xc3\xa4" * 600 + b'"}'), "200", "ä" * 512),
        (Response(200, b"a\x00b\x1b"), "200", "a�b�"),
        (Response(200, b'{"errorMessage":5}'), "200", '{"errorMessage":5}'),
        (Response(200, b""), "200", "-"),
        (Response(429, b"Rate Exceeded."), "429", "Rate Exceeded."),
        (None, "429", "-"),
    ],
)
def test_a_dead_letter_is_the_event_and_says_why(
    response: Response | None, code: str, text: str
) -> None:
    found = message(response, role="dead letter")
    assert found.body == b'{"a": 1.10}'
    assert dict(found.attributes) == {
        "RequestID": ("String", ID),
        "ErrorCode": ("Number", code),
        "ErrorMessage": ("String", text),
    }


DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@effort(60)
@given(DOCUMENTS, st.binary(max_size=200) | DOCUMENTS.map(lambda one: json.dumps(one).encode()))
def test_whatever_came_and_went_a_record_is_json_that_holds_it(event: Any, answer: bytes) -> None:
    payload = json.dumps(event, ensure_ascii=False).encode("utf-8", "replace")
    record = json.loads(message(Response(200, answer, LATEST), payload=payload).body)
    assert record["requestPayload"] == json.loads(payload)
    if is_json(answer):
        assert record["responsePayload"] == json.loads(answer)
    else:
        text = answer.decode("utf-8", "replace") if answer else None
        assert record["responsePayload"] == text


@effort(60)
@given(st.binary(max_size=2000), st.integers(100, 599))
def test_whatever_went_wrong_a_dead_letters_attributes_are_what_sqs_takes(
    answer: bytes, status: int
) -> None:
    found = message(Response(status, answer), role="dead letter")
    (_, text), (_, code) = found.attributes["ErrorMessage"], found.attributes["ErrorCode"]
    assert 0 < len(text.encode()) <= 1024
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", text)
    assert code == str(status)


def test_only_large_ones_are_worth_a_thread() -> None:
    accepted = Accepted(make_invocation(make_function(), b"{}"), 0.0, 0.0)
    assert not large(accepted)
    accepted = Accepted(accepted.invocation, 0.0, 0.0, response=Response(200, bytes(70_000)))
    assert large(accepted)


def test_deep_json_is_json_or_not_but_never_an_error() -> None:
    assert is_json(b"[" * 500 + b"]" * 500)
    assert not is_json(b"[" * 60_000)
