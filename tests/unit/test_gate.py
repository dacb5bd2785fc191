"""The fast lane's gate: what it lets in, and that h11 reads all of it in the same way."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtimeapi.gate import Head, caller_head, hopeless, runtime_head

INVOKE = b"POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\n"
QUALIFIED = INVOKE.replace(b" HTTP", b"?Qualifier=blue HTTP")
ENCODED = (
    b"POST /2015-03-31/functions/hello%3A%24LATEST/invocations?Qualifier=%24LATEST HTTP/1.1\r\n"
)
FRIENDLY = b"POST /invoke/hello HTTP/1.1\r\n"
NEXT = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n"
ID = "8f9ecd4a-4e4d-4bb4-a0a3-1b1c2d3e4f50"
RESPONSE = f"POST /2018-06-01/runtime/invocation/{ID}/response HTTP/1.1\r\n".encode()
ERROR = f"POST /2018-06-01/runtime/invocation/{ID}/error HTTP/1.1\r\n".encode()
HOST = b"Host: 127.0.0.1:9001\r\n"
LENGTH = b"Content-Length: 2\r\n"
NONCE = f"lambda-runtime-invocation-id: {ID}\r\n".encode()


def test_what_boto3_sends_is_let_in() -> None:
    head = (
        INVOKE + b"Host: 127.0.0.1:9000\r\nAccept-Encoding: identity\r\n"
        b"User-Agent: Boto3/1.40 md/Botocore#1.40 ua/2.1 os/linux#6.1 md/arch#x86_64 lang/python#3.11\r\n"
        b"X-Amz-Date: 20261121T080000Z\r\nX-Amz-Log-Type: Tail\r\n"
        b"Authorization: AWS4-HMAC-SHA256 Credential=any/20261121/us-east-1/lambda/aws4_request, "
        b"SignedHeaders=host;x-amz-date, Signature=00\r\n"
        b"amz-sdk-request: attempt=1\r\nContent-Length: 7\r\n"
    )
    fields = {"host": "127.0.0.1:9000", "x-amz-log-type": "Tail", "content-length": "7"}
    assert caller_head(head) == Head("invoke", "hello", 7, fields)


def test_what_awslambdaric_sends_is_let_in() -> None:
    agent = b"Accept: */*\r\nUser-Agent: aws-lambda-python/3.11.7-4.2.2\r\n"
    assert runtime_head(NEXT + HOST + agent) == Head("next", "", 0, {"host": "127.0.0.1:9001"})
    head = runtime_head(
        RESPONSE + HOST + b"content-type: application/json\r\n" + agent + NONCE + LENGTH
    )
    assert head is not None
    assert (head.kind, head.name, head.length) == ("response", ID, 2)
    assert head.fields["lambda-runtime-invocation-id"] == ID
    assert head.fields["content-type"] == "application/json"


def test_one_invocations_nonce_is_not_anothers() -> None:
    other = ID.replace("8f", "00")
    for nonce in (ID, other, ID):
        line = f"lambda-runtime-invocation-id: {nonce}\r\n".encode()
        for block in (HOST + line + LENGTH, HOST + LENGTH + line):
            head = runtime_head(RESPONSE + block)
            assert head is not None
            assert head.fields["lambda-runtime-invocation-id"] == nonce
    head = runtime_head(RESPONSE + HOST + LENGTH)
    assert head is not None
    assert "lambda-runtime-invocation-id" not in head.fields


@pytest.mark.parametrize(
    ("path", "name", "qualifier"),
    [
        (b"functions/hello/invocations?Qualifier=1", "hello", "1"),
        (b"functions/hello/invocations?Qualifier=blue_Green-2", "hello", "blue_Green-2"),
        (b"functions/hello/invocations?Qualifier=%24LATEST", "hello", "$LATEST"),
        (b"functions/hello/invocations?Qualifier=$LATEST", "hello", "$LATEST"),
        (b"functions/hello%3A7/invocations", "hello:7", None),
        (b"functions/hello:7/invocations", "hello:7", None),
        (b"functions/hello%3A%24LATEST/invocations", "hello:$LATEST", None),
        (b"functions/hello:7/invocations?Qualifier=8", "hello:7", "8"),
    ],
)
def test_qualifiers_as_boto3_writes_them_are_let_in(
    path: bytes, name: str, qualifier: str | None
) -> None:
    head = caller_head(b"POST /2015-03-31/" + path + b" HTTP/1.1\r\n" + HOST + LENGTH)
    assert head is not None
    assert (head.kind, head.name, head.qualifier) == ("invoke", name, qualifier)
    friendly = path.replace(b"functions/", b"invoke/").replace(b"/invocations", b"")
    head = caller_head(b"POST /" + friendly + b" HTTP/1.1\r\n" + HOST + LENGTH)
    assert head is not None
    assert (head.kind, head.name, head.qualifier) == ("friendly", name, qualifier)


ODD_BLOCKS = {
    "no host": LENGTH,
    "two hosts": HOST + HOST + LENGTH,
    "a host that is none": b"Host: a..b\r\n" + LENGTH,
    "no length": HOST,
    "two lengths": HOST + LENGTH + LENGTH,
    "two lengths in other letters": HOST + LENGTH + b"CONTENT-length: 2\r\n",
    "list of lengths": HOST + b"Content-Length: 2, 2\r\n",
    "signed length": HOST + b"Content-Length: +2\r\n",
    "negative length": HOST + b"Content-Length: -2\r\n",
    "hexadecimal length": HOST + b"Content-Length: 0x2\r\n",
    "length with zeros before": HOST + b"Content-Length: 02\r\n",
    "length with underscore": HOST + b"Content-Length: 1_0\r\n",
    "empty length": HOST + b"Content-Length: \r\n",
    "length of eleven digits": HOST + b"Content-Length: 10000000000\r\n",
    "chunked": HOST + b"Transfer-Encoding: chunked\r\n",
    "chunked in odd case": HOST + b"transfer-ENCODING: cHuNkEd\r\n",
    "both": HOST + LENGTH + b"Transfer-Encoding: chunked\r\n",
    "expect": HOST + LENGTH + b"Expect: 100-continue\r\n",
    "upgrade": HOST + LENGTH + b"Upgrade: h2c\r\n",
    "close": HOST + LENGTH + b"Connection: close\r\n",
    "connection lists": HOST + LENGTH + b"Connection: keep-alive, X-Y\r\n",
    "two connections": HOST + LENGTH + b"Connection: keep-alive\r\nConnection: close\r\n",
    "space before colon": HOST + b"Content-Length : 2\r\n",
    "folded": HOST + LENGTH + b"A: b\r\n c\r\n",
    "folded length": HOST + b"Content-Length:\r\n 2\r\n",
    "bare line feed": HOST + LENGTH + b"A: b\nC: d\r\n",
    "bare carriage return": HOST + LENGTH + b"A: b\rC: d\r\n",
    "NUL": HOST + LENGTH + b"A: b\x00\r\n",
    "tab": HOST + LENGTH + b"A:\tb\r\n",
    "two spaces": HOST + LENGTH + b"A:  b\r\n",
    "space at the end": HOST + LENGTH + b"A: b \r\n",
    "beyond ASCII": HOST + LENGTH + b"A: \xe4\r\n",
    "underscore": HOST + LENGTH + b"Content_Length: 3\r\n",
    "no name": HOST + LENGTH + b": b\r\n",
    "no colon": HOST + LENGTH + b"A\r\n",
    "two of what counts": HOST + LENGTH + b"Content-Type: a\r\nContent-Type: b\r\n",
}


@pytest.mark.parametrize("block", ODD_BLOCKS.values(), ids=ODD_BLOCKS)
def test_odd_headers_are_left_to_hypercorn(block: bytes) -> None:
    assert caller_head(INVOKE + block) is None
    assert runtime_head(RESPONSE + block) is None


@pytest.mark.parametrize(
    "line",
    [
        b"POST /2015-03-31/functions/hello/invocations HTTP/1.0\r\n",
        b"POST /2015-03-31/functions/hello/invocations HTTP/1.10\r\n",
        b"POST  /2015-03-31/functions/hello/invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations? HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier= HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?qualifier=1 HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=1&Qualifier=2 HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=1;a HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=1#a HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=a+b HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=%31 HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=%2524LATEST HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=$OLDEST HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations?Qualifier=" + b"a" * 129 + b" HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello?Qualifier=1/invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello%3a1/invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello:/invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello:1:2/invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hell%6f/invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/../invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions//invocations HTTP/1.1\r\n",
        b"POST /2015-03-31/functions/hello/invocations/ HTTP/1.1\r\n",
        b"POST http://x/invoke/hello HTTP/1.1\r\n",
        b"post /invoke/hello HTTP/1.1\r\n",
        b"HEAD /invoke/hello HTTP/1.1\r\n",
        b"\r\nPOST /invoke/hello HTTP/1.1\r\n",
        b"POST /invoke/" + b"a" * 65 + b" HTTP/1.1\r\n",
        b"POST /invoke/hello HTTP/1.1\n",
    ],
)
def test_odd_request_lines_are_left_to_hypercorn(line: bytes) -> None:
    assert caller_head(line + HOST + LENGTH) is None


@pytest.mark.parametrize(
    "head",
    [
        NEXT.replace(b"GET", b"HEAD") + HOST,
        NEXT.replace(b"next", b"next?") + HOST,
        NEXT + HOST + b"Content-Length: 0\r\n",
        RESPONSE.replace(b"/response", b"/response/") + HOST + LENGTH,
        RESPONSE.replace(b"8f", b"%38") + HOST + LENGTH,
        RESPONSE + HOST + LENGTH + b"Lambda-Runtime-Function-Response-Mode: streaming\r\n",
        RESPONSE + HOST + LENGTH + NONCE + NONCE,
        RESPONSE + HOST + LENGTH + NONCE + b"Lambda-Runtime-Invocation-Id: x\r\n",
    ],
)
def test_odd_runtimes_are_left_to_hypercorn(head: bytes) -> None:
    assert runtime_head(head) is None


@pytest.mark.parametrize("kind", ["Event", "DryRun", "event", "x"])
def test_other_invocation_types_are_left_to_hypercorn(kind: str) -> None:
    line = f"X-Amz-Invocation-Type: {kind}\r\n".encode()
    assert caller_head(INVOKE + HOST + LENGTH + line) is None


def test_beginnings_that_lead_nowhere() -> None:
    good = INVOKE + HOST + LENGTH
    assert not any(hopeless(good[:length]) for length in range(1, len(good)))
    for bad in (b"\x16\x03\x01", b"PUT", b"\r\n", b" POST /", b"POST /x HTTP/1.1\n", b"GET  /"):
        assert hopeless(bad)
    assert hopeless(b"POST /" + b"x" * 100_000)


LINES = st.sampled_from(
    [
        HOST, LENGTH, NONCE, b"A: b\r\n", b"A:\r\n", b"Connection: keep-alive\r\n",
        b"Content-Type: application/json\r\n", b"X-Amz-Log-Type: Tail\r\n", b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Lambda-Runtime-Invocation-Id: n\r\n",
    ]
)  # fmt: skip
SEEDS = st.builds(
    lambda line, fields: line + b"".join(fields),
    st.sampled_from([INVOKE, QUALIFIED, ENCODED, FRIENDLY, NEXT, RESPONSE, ERROR]),
    st.lists(LINES, max_size=6),
)
PIECES = (
    b"", b" ", b"\t", b"\r", b"\n", b"\r\n", b"\x00", b":", b"%", b"0", b"\xff",
    b"%3A", b"%24", b"?", b"&", b"=", b"$", b"#", b"/", b"+",
)  # fmt: skip
EDIT = st.tuples(
    st.integers(0, 400), st.sampled_from(PIECES) | st.binary(max_size=2), st.integers(0, 2)
)


def _edited(seed: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for at, new, gone in edits:
        place = at % (len(seed) + 1)
        seed = seed[:place] + new + seed[place + gone :]
    return seed


@settings(max_examples=500, deadline=None)
@given(SEEDS, st.lists(EDIT, max_size=3))
@example(INVOKE + HOST + LENGTH, [])
@example(NEXT + HOST, [])
def test_h11_reads_what_the_gate_lets_in_in_the_same_way(
    seed: bytes, edits: list[tuple[int, bytes, int]]
) -> None:
    # As the connection does: up to the first empty line.
    data = _edited(seed, edits) + b"\r\n"
    end = data.find(b"\r\n\r\n")
    for gate in (caller_head, runtime_head):
        if end < 0 or (head := gate(data[: end + 2])) is None:
            continue
        judge = h11.Connection(h11.SERVER)
        judge.receive_data(data[: end + 4] + b"x" * head.length)
        request = judge.next_event()
        assert isinstance(request, h11.Request)
        _same(head, request)
        read = b""
        while isinstance(event := judge.next_event(), h11.Data):
            read += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert len(read) == head.length
        assert judge.their_state is h11.DONE  # h11 would keep the connection too
        assert judge.trailing_data[0] == b""


def _same(head: Head, request: h11.Request) -> None:
    target = {
        "invoke": f"/2015-03-31/functions/{head.name}/invocations",
        "friendly": f"/invoke/{head.name}",
        "next": "/2018-06-01/runtime/invocation/next",
        "response": f"/2018-06-01/runtime/invocation/{head.name}/response",
        "error": f"/2018-06-01/runtime/invocation/{head.name}/error",
    }[head.kind]
    # As hypercorn and quart take it apart.
    path, _, query = request.target.decode().partition("?")
    assert unquote(path) == target
    asked = [("Qualifier", head.qualifier)] if head.qualifier else []
    assert parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)) == asked
    assert bool(query) == ("?" in request.target.decode())
    assert request.method == (b"GET" if head.kind == "next" else b"POST")
    assert request.http_version == b"1.1"
    for name, value in head.fields.items():
        found = [text for key, text in request.headers if key == name.encode()]
        assert found == [value.encode()]
