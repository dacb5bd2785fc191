"""Two lanes, one behaviour: the same bytes get the same bytes, whoever answers; and what is the fast lane's own.

`test_invoke_api.py` and `test_runtime_api.py` run against both lanes for what the faces mean. Here the
answers are compared byte by byte, with what is random or the time of day taken out, and so is whether
the connection is still open afterwards.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.errors import PlatformFault, TooManyRequests
from sandbox.invocation import Invocation, Outcome
from sandbox.lifecycle import Refused
from tests.contract.fakes import (
    LANES,
    REQUEST_ID,
    event,
)
from tests.contract.wire import head

INVOKE = "/2015-03-31/functions/hello/invocations"
PREFIX = "/2018-06-01/runtime/invocation"
NEXT = f"{PREFIX}/next"
RESPONSE = f"{PREFIX}/{REQUEST_ID}/response"
ERROR = f"{PREFIX}/{REQUEST_ID}/error"
OK = b'{"status":"OK"}\n'
QUIET_S = 0.004
"""Loopback delivers within the call that sends: when all tasks wait, nothing is under way."""
RANDOM = [
    (re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"), b"<uuid>"),
    (re.compile(rb"Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16}"), b"<trace>"),
    (re.compile(rb"date: [^\r]+"), b"date: <now>"),
]


def invoke(body: bytes = b"{}", path: str = INVOKE, **headers: str) -> bytes:
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    return head("POST", path, {"Content-Length": str(len(body)), **lines}) + body


def respond(body: bytes = b"{}", path: str = RESPONSE, **headers: str) -> bytes:
    return invoke(body, path, **headers)


async def exchange(
    address: tuple[str, int], pieces: Iterable[bytes], *, then: str = "wait"
) -> tuple[bytes, bool]:
    """(everything answered, whether the connection is closed), after the pieces were sent one by one.

    `then`: what the peer does at last: `wait`, or `half` for the end of what it sends.
    """
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        answer, closed = b"", False
        for piece in pieces:
            try:
                sock.send(piece)
            except OSError as exc:
                assert exc.errno in {errno.EPIPE, errno.ECONNRESET}  # noqa: PT017
            await trio.testing.wait_all_tasks_blocked()
        if then == "half":
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as exc:
                assert exc.errno == errno.ENOTCONN  # noqa: PT017
        await trio.testing.wait_all_tasks_blocked(QUIET_S)
        while not closed:
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            answer += data
            closed = not data
            await trio.testing.wait_all_tasks_blocked()
    for pattern, instead in RANDOM:
        answer = pattern.sub(instead, answer)
    return answer, closed


async def at_callers(lane: str, pieces: list[bytes], then: str = "wait") -> tuple[bytes, bool, Any]:
    async with LANES[lane][0]() as served:
        answer, closed = await exchange(served.address, pieces, then=then)
        return answer, closed, [(one.payload, one.function.name) for one in served.invoker.invoked]


async def at_environment(
    lane: str, pieces: list[bytes], then: str = "wait"
) -> tuple[bytes, bool, Any]:
    async with LANES[lane][1]() as served:
        face = served.faces[0]
        face.put.send_nowait(event())
        face.put.send_nowait(event(b'"second"'))
        answer, closed = await exchange(served.addresses[0], pieces, then=then)
        posted = [(one.call, one.request_id, one.body, one.truncated) for one in face.posted]
        return answer, closed, (posted, len(face.put.kept))


SMUGGLED = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n666"
SHAPES: dict[str, str] = {
    "plain": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "both lengths": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    "0\r\n\r\n",
    "both lengths, other order": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 6"
    "\r\n\r\n0\r\n\r\nG",
    "chunked": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
    "chunked in odd case": "POST {path} HTTP/1.1\r\nHost: x\r\n"
    "tRANSFER-encoding: CHUNKED\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
    "chunked and more": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, tabbed": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\tchunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
    "chunk with a sign": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\n{{}}\r\n0\r\n\r\n",
    "two lengths": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}",
    "one length twice": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}",
    "list of lengths": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\n{{}}",
    "signed length": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\n{{}}",
    "negative length": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n{{}}",
    "hexadecimal length": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0x2\r\n\r\n{{}}",
    "zeros before": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 002\r\n\r\n{{}}",
    "no length": "POST {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "empty length": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n",
    "space before colon": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length : 2\r\n\r\n{{}}",
    "folded": "POST {path} HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\n{{}}",
    "folded length": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n 2\r\n\r\n{{}}",
    "bare line feeds": "POST {path} HTTP/1.1\nHost: x\nContent-Length: 2\n\n{{}}",
    "one bare line feed": "POST {path} HTTP/1.1\r\nHost: x\nContent-Length: 2\r\n\r\n{{}}",
    "bare carriage return": "POST {path} HTTP/1.1\r\nHost: x\r\n"
    "A: b\rContent-Length: 9\r\nContent-Length: 2\r\n\r\n{{}}",
    "NUL": "POST {path} HTTP/1.1\r\nHost: x\r\nA: b\x00\r\nContent-Length: 2\r\n\r\n{{}}",
    "control character": "POST {path} HTTP/1.1\r\nHost: x\r\nA: b\x01\r\nContent-Length: 2\r\n\r\n{{}}",
    "absolute form": "POST http://x{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "query": "POST {path}?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "fragment": "POST {path}#a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "no host": "POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}",
    "two hosts": "POST {path} HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: 2\r\n\r\n{{}}",
    "host that is none": "POST {path} HTTP/1.1\r\nHost: a b\r\nContent-Length: 2\r\n\r\n{{}}",
    "HTTP/1.0": "POST {path} HTTP/1.0\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": "POST {path}\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00",
    "close": "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}",
    "keep-alive": "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n{{}}",
    "upgrade": "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\n{{}}",
    "expect, body follows": "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{{}}",
    "expect something else": "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\nContent-Length: 2\r\n\r\n{{}}",
    "empty line first": "\r\nPOST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "garbage after": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}garbage\r\n\r\n",
    "longer than its length": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n12"
    + SMUGGLED,
    "no name": "POST {path} HTTP/1.1\r\nHost: x\r\n: b\r\nContent-Length: 2\r\n\r\n{{}}",
    "space in the line": "POST  {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "small letters": "post {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "HEAD": "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET": "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "OPTIONS": "OPTIONS {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "percent": "POST {path}%2f HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "too large": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 6291557\r\n\r\n{{}}",
    "far too large": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n{{}}",
    "unended head": "POST {path} HTTP/1.1\r\nHost: x\r\nA: ",
    "unended body": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{{}}",
}
"""Under `plain` paths of both faces: `{path}`, and `{{}}` for the body; host `x` is sent as localhost."""


def shape(name: str, path: str) -> bytes:
    text = SHAPES[name].replace("{{}}", "{}").replace("{path}", path)
    return re.sub(r"^Host: x(?=[\r\n])", "Host: localhost", text, flags=re.M).encode("latin-1")


@pytest.mark.trio
@pytest.mark.parametrize("name", SHAPES)
async def test_callers_of_any_shape_are_answered_alike(name: str) -> None:
    pieces = [shape(name, INVOKE), invoke(b'"then"')]
    with trio.fail_after(20):
        for then in ("wait", "half"):
            quart = await at_callers("quart", pieces, then)
            assert await at_callers("fast", pieces, then) == quart
            assert quart[0] or quart[1] or name.startswith("unended")


@pytest.mark.trio
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("path", [RESPONSE, NEXT])
async def test_runtimes_of_any_shape_are_answered_alike(path: str, name: str) -> None:
    pieces = [shape(name, path), head("GET", NEXT, {})]
    with trio.fail_after(20):
        for then in ("wait", "half"):
            quart = await at_environment("quart", pieces, then)
            assert await at_environment("fast", pieces, then) == quart


@pytest.mark.trio
@pytest.mark.parametrize(
    "request_",
    [
        invoke(),
        invoke(b""),
        invoke(b"[1, 2"),
        invoke(b"\xff"),
        invoke(b"null", X_Amz_Log_Type="Tail"),
        invoke(b"null", X_Amz_Log_Type="tail"),
        invoke(b"null", X_Amz_Log_Type=""),
        invoke(X_Amz_Invocation_Type="RequestResponse"),
        invoke(X_Amz_Invocation_Type="Event"),
        invoke(X_Amz_Invocation_Type="DryRun"),
        invoke(X_Amz_Invocation_Type="odd"),
        invoke(x_amzn_requestid=REQUEST_ID),
        invoke(x_amzn_requestid="odd"),
        invoke(X_Amzn_Trace_Id="Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419"),
        invoke(X_Amzn_Trace_Id="Self=odd"),
        invoke(X_Amz_Client_Context="e30="),
        invoke(X_Amz_Client_Context="odd"),
        invoke(path="/2015-03-31/functions/nope/invocations"),
        invoke(path="/2015-03-31/functions/broken/invocations"),
        invoke(path="/2015-03-31/functions/hello:$LATEST/invocations"),
        invoke(path="/2015-03-31/functions/hello/invocations?Qualifier=7"),
        invoke(path="/2015-03-31/functions/hello/invocations?Qualifier=blue"),
        invoke(path="/2015-03-31/functions/hello/invocations?Qualifier=%24LATEST"),
        invoke(path="/2015-03-31/functions/hello%3A1/invocations?Qualifier=2"),
        invoke(path="/2015-03-31/functions/hello%3Ablue/invocations"),
        invoke(path="/2015-03-31/functions/hello%3A7/invocations?Qualifier=7"),
        invoke(path="/invoke/hello:blue"),
        invoke(path="/invoke/hello:7"),
        invoke(path="/2015-03-31/functions/dotted.name/invocations"),
        invoke(path="/invoke/hello"),
        invoke(b"{", path="/invoke/hello"),
        invoke(path="/invoke/nope"),
        invoke(path="/invoke/hello", X_Amz_Invocation_Type="Event"),
        invoke(path="/invoke/hello", X_Amz_Log_Type="Tail"),
    ],
)
async def test_good_and_bad_invocations_are_answered_alike(request_: bytes) -> None:
    with trio.fail_after(20):
        pieces = [request_, invoke(b'"then"')]
        assert await at_callers("fast", pieces) == await at_callers("quart", pieces)


OUTCOMES = {
    "success": Outcome("success", b'{"a":1}', "text/plain", log_tail=b"x" * 4096, duration_ms=1),
    "empty": Outcome("success", b"", max_memory_mb=40, init_ms=3.25, cold=True, billed_ms=4),
    "error": Outcome("error", b"{}", error_type="Runtime.\xe4"),
    "timeout": Outcome("timeout", b"{}", error_type="Sandbox.Timedout"),
    "failure": Outcome("failure", b"{}", error_type="Sandbox.Failure"),
    "odd content type": Outcome("success", b"{}", "text/pl\xe4in"),
}
REFUSALS = {
    "throttled": TooManyRequests("ConcurrentInvocationLimitExceeded"),
    "fault": PlatformFault("a secret"),
    "bug": RuntimeError("a secret"),
}


@pytest.mark.trio
@pytest.mark.parametrize("path", [INVOKE, "/invoke/hello"])
@pytest.mark.parametrize("name", [*OUTCOMES, *REFUSALS])
async def test_every_end_is_told_alike(name: str, path: str) -> None:
    async def behave(_: Invocation) -> Outcome:
        await trio.lowlevel.checkpoint()
        if name in REFUSALS:
            raise REFUSALS[name]
        return OUTCOMES[name]

    found = []
    with trio.fail_after(20):
        for lane in LANES:
            async with LANES[lane][0]() as served:
                served.invoker.behaviour = behave
                pieces = [invoke(path=path), invoke(path=path, X_Amz_Log_Type="Tail")]
                found.append(await exchange(served.address, pieces))
    assert found[0] == found[1]
    assert found[0][0].count(b"HTTP/1.1 ") == 2
    assert b"secret" not in found[0][0]


@pytest.mark.trio
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"client_context": '{\n "a": "\u00e4"}', "cognito_identity": "{}", "trace_id": ""},
        {"client_context": '{"a": "\x7f"}', "content_type": ""},
        {"client_context": ' {"a":\t1} '},
        {"payload": b""},
    ],
)
async def test_every_event_is_told_alike(changes: dict[str, Any]) -> None:
    found = []
    with trio.fail_after(20):
        for lane in LANES:
            async with LANES[lane][1]() as served:
                served.faces[0].put.send_nowait(event(**changes))
                found.append(await exchange(served.addresses[0], [head("GET", NEXT, {})]))
    assert found[0] == found[1]


@pytest.mark.trio
@pytest.mark.parametrize("request_", [head("GET", NEXT, {}), respond(), respond(path=ERROR)])
@pytest.mark.parametrize(
    "refusal", [Refused(403, "InvalidStateTransition", "<no>"), RuntimeError("a secret")]
)
async def test_every_refusal_is_told_alike(request_: bytes, refusal: Exception) -> None:
    found = []
    with trio.fail_after(20):
        for lane in LANES:
            async with LANES[lane][1]() as served:
                served.faces[0].refusal = refusal
                found.append(await exchange(served.addresses[0], [request_, request_]))
    assert found[0] == found[1]
    assert found[0][0].count(b"HTTP/1.1 ") == 2
