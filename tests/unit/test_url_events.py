"""runtimeapi.urls.event: any request becomes payload format 2.0, and can be told from it again (SPEC 9.2)."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimeapi.urls.event import UrlRequest, clf_time, is_text, make_event

ID = "0123456789abcdefghijklmnopqrstuv"
HOST = f"{ID}.lambda-url.us-east-1.localhost:9000"


def event(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "url_id": ID,
        "method": "POST",
        "path": b"/",
        "query": b"",
        "headers": [(b"Host", HOST.encode()), (b"User-Agent", b"test/echo")],
        "body": b"",
        "http_version": "1.1",
        "source_ip": "127.0.0.1",
        "port": 9000,
        "secure": False,
        "request_id": "8f9ecd4a-4e4d-4bb4-a0a3-1b1c2d3e4f50",
        "trace_id": "Root=1-00000000-000000000000000000000000",
        "at": 1583348638.390,
    }
    found: dict[str, Any] = json.loads(make_event(UrlRequest(**{**values, **changes})))
    return found


def test_a_request_as_aws_shows_it() -> None:
    """LocalStack's recording test_lambda_url_echo_http_fixture_default, and the developer guide's example."""
    found = event(
        path=b"/pa2%Fth/1",
        query=b"q=query&multiQuery=foo&multiQuery=%2Fbar",
        headers=[
            (b"Host", HOST.encode()),
            (b"User-Agent", b"test/echo"),
            (b"ExTrA-HeadErs", b"With WeiRd CapS"),
            (b"Connection", b"keep-alive"),
            (b"content-type", b"application/json"),
            (b"Cookie", b"c1=1; c2=2"),
            (b"Content-Length", b"14"),
        ],
        body=b'{"foo": "bar"}',
    )
    assert found == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/pa2%Fth/1",
        "rawQueryString": "q=query&multiQuery=foo&multiQuery=%2Fbar",
        "cookies": ["c1=1", "c2=2"],
        "headers": {
            "host": HOST,
            "user-agent": "test/echo",
            "extra-headers": "With WeiRd CapS",
            "content-type": "application/json",
            "content-length": "14",
            "x-amzn-trace-id": "Root=1-00000000-000000000000000000000000",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": "9000",
            "x-forwarded-proto": "http",
        },
        "queryStringParameters": {"q": "query", "multiQuery": "foo,/bar"},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": ID,
            "domainName": HOST,
            "domainPrefix": ID,
            "http": {
                "method": "POST",
                "path": "/pa2%Fth/1",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "test/echo",
            },
            "requestId": "8f9ecd4a-4e4d-4bb4-a0a3-1b1c2d3e4f50",
            "routeKey": "$default",
            "stage": "$default",
            "time": "04/Mar/2020:19:03:58 +0000",
            "timeEpoch": 1583348638390,
        },
        "body": '{"foo": "bar"}',
        "isBase64Encoded": False,
    }


def test_what_was_not_sent_is_not_there() -> None:
    found = event()
    assert not {"cookies", "queryStringParameters", "body"} & found.keys()
    assert found["rawQueryString"] == ""
    assert found["isBase64Encoded"] is False
    assert "authorizer" not in found["requestContext"]


def test_several_headers_of_a_name_are_joined_and_cookies_gathered() -> None:
    pairs = [(b"X-A", b"1"), (b"x-a", b"2, 3"), (b"cookie", b"a=1;b=2"), (b"Cookie", b" c=3 ;")]
    found = event(headers=pairs)
    assert found["headers"]["x-a"] == "1,2, 3"
    assert found["cookies"] == ["a=1", "b=2", "c=3"]
    assert "cookie" not in found["headers"]


def test_a_caller_does_not_say_where_it_comes_from() -> None:
    lies = [(b"X-Forwarded-For", b"10.0.0.1"), (b"x-forwarded-proto", b"https")]
    lies += [(b"x-amzn-tls-version", b"TLSv1.3"), (b"X-Forwarded-Port", b"443")]
    found = event(headers=lies)["headers"]
    assert (found["x-forwarded-for"], found["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert (found["x-forwarded-port"], "x-amzn-tls-version" in found) == ("9000", False)


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("text/plain", True),
        ("Text/HTML; charset=utf-8", True),
        ("application/json", True),
        ("application/vnd.api+json", True),
        ("application/xml", True),
        ("image/svg+xml", False),
        ("application/javascript", True),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=json", False),
        ("application/octet-stream", False),
        ("application/jsonish", False),
        ("", False),
    ],
)
def test_which_bodies_are_text(content_type: str, text: bool) -> None:
    assert is_text(content_type) is text
    found = event(headers=[(b"content-type", content_type.encode())], body=b"{}")
    assert (found["body"], found["isBase64Encoded"]) == (("{}", False) if text else ("e30=", True))


def test_text_that_is_no_utf8_is_base64() -> None:
    found = event(headers=[(b"content-type", b"text/plain")], body=b"\xff\xfe")
    assert (found["body"], found["isBase64Encoded"]) == ("//4=", True)


def test_a_body_that_came_in_chunks_has_a_length() -> None:
    found = event(headers=[(b"transfer-encoding", b"chunked")], body=b"123")
    assert found["headers"]["content-length"] == "3"
    assert "transfer-encoding" not in found["headers"]


def test_a_signer_is_told() -> None:
    found = event(account="123456789012", iam={"accessKey": "AKIA", "cognitoIdentity": None})
    assert found["requestContext"]["accountId"] == "123456789012"
    told = {"iam": {"accessKey": "AKIA", "cognitoIdentity": None}}
    assert found["requestContext"]["authorizer"] == told


def test_time_is_written_in_english_and_utc() -> None:
    assert clf_time(0) == "01/Jan/1970:00:00:00 +0000"
    assert clf_time(1_795_271_774.9) == "21/Nov/2026:14:36:14 +0000"


PATH = st.binary(max_size=30).map(
    lambda raw: (
        b"/" + b"".join(bytes([c]) if 33 <= c < 127 and c != 63 else b"%%%02X" % c for c in raw)
    )
)
NAME = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=8).map(lambda name: "x-" + name)
VALUE = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), max_size=20)


@given(
    path=PATH,
    query=st.lists(st.tuples(st.text(min_size=1, max_size=8), st.text(max_size=8)), max_size=5),
    headers=st.lists(st.tuples(NAME, VALUE), max_size=6),
    body=st.binary(max_size=60),
    content_type=st.sampled_from(["text/plain", "application/json", "image/png", ""]),
)
def test_nothing_of_a_request_is_lost(
    path: bytes,
    query: list[tuple[str, str]],
    headers: list[tuple[str, str]],
    body: bytes,
    content_type: str,
) -> None:
    from urllib.parse import urlencode

    sent = urlencode(query).encode()
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    found = event(
        path=path,
        query=sent,
        headers=[*pairs, (b"content-type", content_type.encode())],
        body=body,
    )
    assert found["rawPath"].encode() == path
    assert found["rawQueryString"].encode() == sent
    grouped: dict[str, list[str]] = {}
    for name, value in parse_qsl(sent.decode(), keep_blank_values=True):
        grouped.setdefault(name, []).append(value)
    joined = {name: ",".join(values) for name, values in grouped.items()}
    assert found.get("queryStringParameters", {}) == joined
    by_name: dict[str, list[str]] = {}
    for name, value in headers:
        by_name.setdefault(name, []).append(value)
    for name, values in by_name.items():
        if not name.startswith(("x-amzn-t", "x-forwarded-")):
            assert found["headers"][name] == ",".join(values)
    back = found.get("body", "")
    assert (base64.b64decode(back) if found["isBase64Encoded"] else back.encode()) == body
