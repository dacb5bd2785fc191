"""runtimeapi.urls.answer and prelude: what a handler returns becomes a response, or a 502 (SPEC 2.4, 9.3)."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimeapi.urls.answer import BadResponse, UrlAnswer, from_outcome, from_prelude
from runtimeapi.urls.prelude import (
    CONTENT_TYPE,
    DELIMITER,
    MAX_PRELUDE,
    BadPrelude,
    PreludeReader,
    split,
)
from sandbox.invocation import Outcome

JSON = ("content-type", "application/json")


def answer(payload: bytes | object, content_type: str = "application/json") -> UrlAnswer:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return from_outcome(Outcome("success", raw, content_type))


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (b'{"hello": "world"}', b'{"hello":"world"}'),
        (b'["hello", 3, true]', b'["hello",3,true]'),
        (b'"hello"', b"hello"),
        (b"3", b"3"),
        (b"3.1", b"3.1"),
        (b"true", b"true"),
        (b"null", b"null"),
        (b'{"a b": " \\" , ", "n": 1e400}', b'{"a b":" \\" , ","n":1e400}'),
        (b"12345678901234567890.5", b"12345678901234567890.5"),
        (b"[" + b"1, " * 100_000 + b"1]", b"[" + b"1, " * 100_000 + b"1]"),
        (b' {"a": "\\ud800", "b": [1 , 2]}', b'{"a":"?","b":[1,2]}'),
        ('"h\u00e9 \\u00e9"'.encode(), "h\u00e9 \u00e9".encode()),
    ],
)
def test_without_a_status_code_the_result_is_the_body(payload: bytes, body: bytes) -> None:
    """LocalStack's recordings test_lambda_url_invocation[...]."""
    assert answer(payload) == UrlAnswer(200, [JSON], body)


def test_with_a_status_code_it_describes_the_response() -> None:
    found = answer(
        {
            "statusCode": 201,
            "headers": {"Content-Type": "text/plain", "My-Header": "Value", "X-N": 3, "X-B": True},
            "cookies": ["a=1; Path=/", "b=2"],
            "body": "aGVsbG8=",
            "isBase64Encoded": True,
        }
    )
    assert (found.status, found.body) == (201, b"hello")
    assert found.headers == [
        ("content-type", "text/plain"),
        ("my-header", "Value"),
        ("x-n", "3"),
        ("x-b", "true"),
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2"),
    ]


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        ({"statusCode": "418", "body": "tea"}, 418, b"tea"),
        ({"statusCode": 200.0}, 200, b""),
        ({"statusCode": 204, "body": None}, 204, b""),
        ({"statusCode": 200, "body": {"a": [1, 2.5, None]}}, 200, b'{"a":[1,2.5,null]}'),
        ({"statusCode": 200, "body": 7}, 200, b"7"),
        ({"statusCode": 200, "body": "e30=", "isBase64Encoded": "true"}, 200, b"e30="),
        ({"statusCode": 200, "body": "a\ud800"}, 200, b"a?"),
    ],
)
def test_status_codes_and_bodies(result: object, status: int, body: bytes) -> None:
    assert answer(result) == UrlAnswer(status, [JSON], body)


@pytest.mark.parametrize(
    "result",
    [
        {"statusCode": None},
        {"statusCode": True},
        {"statusCode": 99},
        {"statusCode": 101},
        {"statusCode": 600},
        {"statusCode": "ok"},
        {"statusCode": "200\n"},
        {"statusCode": 200.5},
        {"statusCode": 200, "headers": ["a"]},
        {"statusCode": 200, "headers": {"a": ["b"]}},
        {"statusCode": 200, "headers": {"a b": "c"}},
        {"statusCode": 200, "headers": {"a:": "c"}},
        {"statusCode": 200, "headers": {"": "c"}},
        {"statusCode": 200, "headers": {"a\r\nb": "c"}},
        {"statusCode": 200, "headers": {"a": "b\r\nset-cookie: x=1"}},
        {"statusCode": 200, "headers": {"a": "b\0"}},
        {"statusCode": 200, "headers": {"a": "x" * 70_000}},
        {"statusCode": 200, "headers": {f"a{n}": "x" for n in range(300)}},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "cookies": ["a=1\nb"]},
        {"statusCode": 200, "cookies": [{}]},
        {"statusCode": 200, "body": "***", "isBase64Encoded": True},
        b"not JSON",
        b"\xff",
        b"[" * 100_000,
        b'{"statusCode":200,"body":' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"statusCode":200} x',
        b'{"statusCode":200,"headers":{"a":NaN}}',
    ],
    ids=lambda result: str(result)[:40],
)
def test_what_cannot_be_a_response_is_refused(result: object) -> None:
    with pytest.raises(BadResponse):
        answer(result)


def test_what_is_the_connections_is_not_the_functions() -> None:
    theirs = {"Connection": "close", "Transfer-Encoding": "chunked", "Content-Length": "1"}
    theirs |= {"Upgrade": "h2c", "X-Amzn-RequestId": "1", "Date": "now"}
    assert answer({"statusCode": 200, "headers": theirs, "body": "abc"}).headers == [JSON]


def test_a_function_that_streams_is_collected() -> None:
    head = b'{"statusCode":202,"headers":{"x":"y"},"cookies":["a=1"]}'
    found = answer(head + DELIMITER + b"\0body", CONTENT_TYPE)
    assert (found.status, found.body) == (202, b"\0body")
    assert ("set-cookie", "a=1") in found.headers
    assert answer(b"\xffraw", "application/octet-stream") == UrlAnswer(
        200, [("content-type", "application/octet-stream")], b"\xffraw"
    )
    for bad in (head, b"no" + DELIMITER, b"[]" + DELIMITER):
        with pytest.raises(BadResponse):
            answer(bad, CONTENT_TYPE)


def test_a_prelude_needs_nothing_in_it() -> None:
    kind = ("content-type", "application/octet-stream")
    assert from_prelude(b"{}", b"b") == UrlAnswer(200, [kind], b"b")


@given(
    head=st.binary(max_size=40).filter(lambda head: b"\0" not in head),
    body=st.binary(max_size=40),
    cuts=st.lists(st.integers(0, 100), max_size=8),
)
def test_a_prelude_may_be_cut_at_any_byte(head: bytes, body: bytes, cuts: list[int]) -> None:
    whole = head + DELIMITER + body
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    reader = PreludeReader()
    while (found := reader.feed(pieces.pop(0))) is None:
        pass
    assert found[0] == head
    assert found[1] + b"".join(pieces) == body


def test_a_prelude_has_a_limit() -> None:
    longest = b" " * MAX_PRELUDE
    assert split(longest + DELIMITER + b"x") == (longest, b"x")
    reader = PreludeReader()
    for _ in range(MAX_PRELUDE // 1000):
        assert reader.feed(b" " * 1000) is None
    with pytest.raises(BadPrelude):
        reader.feed(b" " * 1000)
    with pytest.raises(BadPrelude, match="no end"):
        split(b"{}\0\0\0\0\0\0\0")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(
    st.fixed_dictionaries(
        {"statusCode": st.integers(100, 700) | ANYTHING},
        optional={
            "headers": st.dictionaries(st.text(max_size=8), st.text(max_size=12) | ANYTHING)
            | ANYTHING,
            "cookies": st.lists(st.text(max_size=12), max_size=3) | ANYTHING,
            "body": ANYTHING,
            "isBase64Encoded": ANYTHING,
        },
    )
)
def test_whatever_it_describes_h11_writes_it_or_it_is_refused(result: dict[str, Any]) -> None:
    try:
        found = answer(result)
    except BadResponse:
        return
    headers = [(name.encode(), value.encode()) for name, value in found.headers]
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    connection.next_event()
    written = connection.send(h11.Response(status_code=found.status, headers=headers)) or b""
    lines = written.split(b"\r\n\r\n")[0].split(b"\r\n")
    assert len(lines) - 1 - lines.count(b"Transfer-Encoding: chunked") == len(headers)
