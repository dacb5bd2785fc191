"""Two lanes, one behaviour: the same bytes get the same bytes, whoever answers; and what is the fast lane's own.

`test_invoke_api.py` and `test_runtime_api.py` run against both lanes for what the faces mean. Here the
answers are compared byte by byte, with what is random or the time of day taken out, and so is whether
the connection is still open afterwards.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import trio
import trio.testing

from runtimeapi import server, wire
from runtimeapi.connection import FaceConfig
from runtimeapi.lanes import caller_lane, runtime_lane
from runtimeapi.rapi import make_rapi_app
from runtimeapi.server import ServedApp, caller_config, environment_config, running_app
from sandbox.errors import PlatformFault, TooManyRequests
from sandbox.invocation import Invocation, Outcome
from sandbox.lifecycle import Refused
from tests.contract.fakes import (
    ACCOUNT,
    LANES,
    REGION,
    REQUEST_ID,
    Callers,
    Environments,
    FakeEnvironment,
    FakeFunctions,
    FakeInvoker,
    event,
    function,
    listening,
)
from tests.contract.wire import Wire, chunked, connect, head

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


SMUGGLED = f"POST {INVOKE} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n666"
SHAPES: dict[str, str] = {
    "plain": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}",
    "both lengths": "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    "0\r\n\r\n",
    "both lengths, other order": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 6"
    "\r\n\r\n0\r\n\r\nG",
    "chunked": "POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
    "chunked in odd case": "POST {path} HTTP/1.1\r\nHost: x\r\ntRANSFER-encoding: CHUNKED\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
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
    "bare carriage return": "POST {path} HTTP/1.1\r\nHost: x\r\nA: b\rContent-Length: 9\r\nContent-Length: 2\r\n\r\n{{}}",
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
"""Under `plain` paths of both faces: `{path}`, and `{{}}` for the body."""


def shape(name: str, path: str) -> bytes:
    return SHAPES[name].replace("{{}}", "{}").replace("{path}", path).encode("latin-1")


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


# -- the fast lane by itself


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was handed to hypercorn."""
    found: list[bytes] = []
    original = ServedApp.serve_connection

    async def serve(self: ServedApp, *args: Any, **how: Any) -> None:
        found.append(how.get("already_read", b""))
        await original(self, *args, **how)

    monkeypatch.setattr(server.ServedApp, "serve_connection", serve)
    return found


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    with trio.fail_after(30):
        async with LANES["fast"][0]() as served:
            yield served


@pytest.fixture
async def env() -> AsyncIterator[Environments]:
    with trio.fail_after(30):
        async with LANES["fast"][1]() as served:
            yield served


@pytest.mark.trio
async def test_requests_split_anywhere(callers: Callers, handed_over: list[bytes]) -> None:
    request = invoke(b'{"n": 1}')
    whole, _ = await exchange(callers.address, [request])
    for at in range(1, len(request)):
        found = await exchange(callers.address, [request[:at], request[at:]])
        assert found == (whole, False), at
    assert {one.payload for one in callers.invoker.invoked} == {b'{"n": 1}'}
    assert handed_over == []


@pytest.mark.trio
async def test_runtimes_split_anywhere(env: Environments, handed_over: list[bytes]) -> None:
    for request in (respond(b'{"n": 1}'), respond(b"{}", ERROR), head("GET", NEXT, {})):
        for at in range(1, len(request)):
            env.faces[0].put.kept[:] = [event()]
            answer, closed = await exchange(env.addresses[0], [request[:at], request[at:]])
            assert answer.endswith(event().payload if request[:3] == b"GET" else OK), at
            assert not closed
    assert handed_over == []


@pytest.mark.trio
async def test_byte_by_byte(callers: Callers, handed_over: list[bytes]) -> None:
    request = invoke(b'{"n": 1}')
    answer, _ = await exchange(callers.address, [bytes([byte]) for byte in request])
    assert answer.endswith(b'{"n": 1}')
    assert handed_over == []


@pytest.mark.trio
async def test_pipelined_invocations_are_answered_in_order(
    callers: Callers, handed_over: list[bytes]
) -> None:
    gates = {b"%d" % number: trio.Event() for number in range(5)}

    async def behave(invocation: Invocation) -> Outcome:
        await gates[invocation.payload].wait()
        return Outcome("success", invocation.payload)

    callers.invoker.behaviour = behave
    async with await connect(callers.address) as wire_:
        await wire_.send(b"".join(invoke(payload) for payload in gates))
        for payload in reversed(gates):
            gates[payload].set()
        assert [(await wire_.answer()).body for _ in gates] == list(gates)
    # One at a time: the second is not begun before the first is answered.
    assert [one.payload for one in callers.invoker.invoked] == list(gates)
    assert handed_over == []


@pytest.mark.trio
async def test_pipelined_runtime(env: Environments, handed_over: list[bytes]) -> None:
    face = env.faces[0]
    async with await connect(env.addresses[0]) as wire_:
        await wire_.send(respond(b"1") + head("GET", NEXT, {}) + respond(b"2") + respond(b"3"))
        assert (await wire_.answer()).body == OK
        await face.parked.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert [post.body for post in face.posted] == [b"1"]  # the rest waits for the event
        face.put.send_nowait(event(b'"e"'))
        assert (await wire_.answer("GET")).body == b'"e"'
        assert [(await wire_.answer()).body for _ in range(2)] == [OK, OK]
    assert [post.body for post in face.posted] == [b"1", b"2", b"3"]
    assert handed_over == []


@pytest.mark.trio
async def test_a_pipeline_that_turns_odd_is_handed_over_with_what_is_left(
    callers: Callers, handed_over: list[bytes]
) -> None:
    odd = head("POST", INVOKE, {"Transfer-Encoding": "chunked"}) + chunked(b'"odd"')
    async with await connect(callers.address) as wire_:
        await wire_.send(invoke(b"1") + odd + invoke(b"2"))
        assert [(await wire_.answer()).body for _ in range(3)] == [b"1", b'"odd"', b"2"]
        assert (await wire_.ask("POST", INVOKE, b"3")).body == b"3"
    assert handed_over == [odd + invoke(b"2")]


@pytest.mark.trio
async def test_expect_100_continue_in_the_middle_of_a_connection(
    callers: Callers, handed_over: list[bytes]
) -> None:
    async with await connect(callers.address) as wire_:
        assert (await wire_.ask("POST", INVOKE, b"1")).body == b"1"
        headers = {"Content-Length": "1", "Expect": "100-continue"}
        await wire_.send(head("POST", INVOKE, headers))
        assert await wire_.stream.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
        await wire_.send(b"2")
        assert (await wire_.answer()).body == b"2"
    assert handed_over == [head("POST", INVOKE, headers)]


@pytest.mark.trio
async def test_a_streaming_response_between_buffered_ones(
    env: Environments, handed_over: list[bytes]
) -> None:
    face = env.faces[0]
    mode = {"Lambda-Runtime-Function-Response-Mode": "streaming"}
    async with await connect(env.addresses[0]) as wire_:
        assert (await wire_.ask("POST", RESPONSE, b"1")).body == OK
        await wire_.send(head("POST", RESPONSE, {"Content-Length": "2", **mode}) + b"2")
        assert await face.chunks.receive() == b"2"  # passed on as it arrives
        await wire_.send(b"2")
        assert (await wire_.answer()).body == OK
        assert (await wire_.ask("POST", RESPONSE, b"3")).body == OK
    assert [post.body for post in face.posted] == [b"1", b"22", b"3"]
    assert len(handed_over) == 1


@pytest.mark.trio
@pytest.mark.parametrize("at", range(0, len(invoke(b'{"n": 1}')), 7))
async def test_a_caller_that_ends_early(at: int) -> None:
    """At every stage of a request, with FIN and with RST: nothing is invoked, nothing is left."""
    with trio.fail_after(20):
        request = invoke(b'{"n": 1}')[:at]
        quart, fast = [await at_callers(lane, [request], "half") for lane in ("quart", "fast")]
        assert fast == quart
        assert fast[2] == []
        async with LANES["fast"][0]() as served:
            tasks = trio.lowlevel.current_statistics().tasks_living
            sock = socket.create_connection(served.address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.send(request)
            await trio.testing.wait_all_tasks_blocked(0.005)
            sock.close()
            await trio.testing.wait_all_tasks_blocked(0.005)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            assert served.invoker.invoked == []


@pytest.mark.trio
@pytest.mark.parametrize("reset", [False, True])
async def test_a_caller_that_leaves_withdraws_what_it_asked(callers: Callers, reset: bool) -> None:
    gone = trio.Event()

    async def wait(_: Invocation) -> Outcome:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()
        raise AssertionError

    callers.invoker.behaviour = wait
    wire_ = await connect(callers.address)
    await wire_.send(invoke())
    await trio.testing.wait_all_tasks_blocked(0.005)
    if reset:
        linger = b"\1\0\0\0\0\0\0\0"
        wire_.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    wire_.stream.socket.close()
    await gone.wait()


@pytest.mark.trio
async def test_an_answer_for_a_caller_that_left_goes_to_nobody(callers: Callers) -> None:
    """Its descriptor's number belongs to the next connection by then."""
    may_end = trio.Event()

    async def behave(invocation: Invocation) -> Outcome:
        if invocation.payload == b'"first"':
            with trio.CancelScope(shield=True):
                await may_end.wait()  # begun: it runs to its end whoever listens
        return Outcome("success", invocation.payload)

    callers.invoker.behaviour = behave
    async with await connect(callers.address) as wire_:
        await wire_.send(invoke(b'"first"'))
        await trio.testing.wait_all_tasks_blocked(0.005)
    await trio.testing.wait_all_tasks_blocked(0.005)
    async with await connect(callers.address) as wire_:
        assert (await wire_.ask("POST", INVOKE, b'"second"')).body == b'"second"'
        may_end.set()
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert (await wire_.ask("POST", INVOKE, b'"third"')).body == b'"third"'


@pytest.mark.trio
async def test_an_event_for_a_runtime_that_left_waits_for_the_next(env: Environments) -> None:
    face = env.faces[0]
    async with await connect(env.addresses[0]) as wire_:
        await wire_.send(head("GET", NEXT, {}))
        await face.parked.wait()
    await face.abandoned.wait()
    face.put.send_nowait(event(b'"kept"'))
    async with await connect(env.addresses[0]) as wire_:
        await wire_.send(head("GET", NEXT, {}))
        assert (await wire_.answer("GET")).body == b'"kept"'


@pytest.mark.trio
@pytest.mark.parametrize("size", [70_000, 6_000_000])
async def test_large_payloads_both_ways(
    callers: Callers, handed_over: list[bytes], size: int
) -> None:
    """Larger than what a socket takes at once, and checked to be JSON in a thread."""
    payload = b'"' + b"x" * size + b'"'
    async with await connect(callers.address) as wire_:
        for _ in range(2):
            assert (await wire_.ask("POST", INVOKE, payload)).body == payload
        bad = await wire_.ask("POST", INVOKE, payload[:-1])
        assert bad.headers["x-amzn-errortype"] == "InvalidRequestContentException"
        assert (await wire_.ask("POST", INVOKE, b"1")).body == b"1"
    assert handed_over == []


@pytest.mark.trio
async def test_large_events_and_responses(env: Environments, handed_over: list[bytes]) -> None:
    payload = b"x" * 6_000_000
    async with await connect(env.addresses[0]) as wire_:
        for parked in (False, True):
            if not parked:
                env.faces[0].put.send_nowait(event(payload))
            await wire_.send(head("GET", NEXT, {}))
            await trio.testing.wait_all_tasks_blocked(0.01)
            if parked:
                env.faces[0].put.send_nowait(event(payload))
            assert (await wire_.answer("GET")).body == payload
            assert (await wire_.ask("POST", RESPONSE, payload)).body == OK
    assert [post.body for post in env.faces[0].posted] == [payload, payload]
    assert handed_over == []


@pytest.mark.trio
async def test_a_busy_connection_does_not_starve_another(env: Environments) -> None:
    """Hundreds of requests that are answered at once, in one segment."""
    face = env.faces[0]
    async with await connect(env.addresses[0]) as busy, await connect(env.addresses[0]) as other:
        await busy.send(respond(b"1") * 300)
        await other.send(respond(b"2"))
        await trio.testing.wait_all_tasks_blocked(0.02)
    bodies = [post.body for post in face.posted]
    assert bodies.count(b"1") == 300
    assert bodies.index(b"2") < 290


# -- limits


async def _pair() -> tuple[Wire, trio.SocketStream, socket.socket]:
    sock = listening()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with listener:
        wire_ = await connect(sock.getsockname())
        return wire_, await listener.accept(), sock


async def _serve_callers(config: FaceConfig, requests: list[bytes], invoker: FakeInvoker) -> bytes:
    """What one caller gets under these limits; returns when the server has closed."""
    functions, sock = FakeFunctions(function()), listening()
    lane = caller_lane(functions, invoker, region=REGION, account=ACCOUNT)
    answer = b""
    with trio.fail_after(20):
        async with (
            running_app(make_rapi_app(), config, lane) as served,
            trio.open_nursery() as nursery,
        ):
            invoker.nursery = nursery
            await nursery.start(served.serve, sock, {})
            async with await connect(sock.getsockname()) as wire_:
                for request in requests:
                    await wire_.send(request)
                    await trio.testing.wait_all_tasks_blocked(0.005)
                while data := await wire_.stream.receive_some():
                    answer += data
            nursery.cancel_scope.cancel()
    return answer


@pytest.mark.trio
@pytest.mark.parametrize("requests", [[], [b"POST /inv"], [invoke()], [invoke(), b"POST "]])
async def test_silence_between_requests_has_a_limit(requests: list[bytes]) -> None:
    config = caller_config()
    config.keep_alive_timeout = 0.05
    answer = await _serve_callers(config, requests, FakeInvoker())
    assert answer.count(b"HTTP/1.1 ") == (invoke() in requests)


@pytest.mark.trio
async def test_the_limit_on_silence_does_not_run_while_a_function_does() -> None:
    config = caller_config()
    config.keep_alive_timeout = 0.05
    invoker = FakeInvoker()

    async def slow(_: Invocation) -> Outcome:
        await trio.sleep(0.2)
        return Outcome("success", b'"slow"')

    invoker.behaviour = slow
    assert (await _serve_callers(config, [invoke()], invoker)).endswith(b'"slow"')


@pytest.mark.trio
async def test_a_slow_body_is_hypercorns(
    handed_over: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PATIENCE_S", 0.02)
    config = caller_config()
    config.body_timeout_s = 0.05
    part = invoke(b'"late"')[:-3]
    await _serve_callers(config, [part], FakeInvoker())
    assert handed_over == [part]


@pytest.mark.trio
async def test_a_caller_that_does_not_read_its_answer_is_cut() -> None:
    config = caller_config()
    config.send_timeout_s = 0.05
    invoker, functions, sock = FakeInvoker(), FakeFunctions(function()), listening()

    async def much(_: Invocation) -> Outcome:
        await trio.lowlevel.checkpoint()
        return Outcome("success", b"x" * 50_000_000)

    invoker.behaviour = much
    lane = caller_lane(functions, invoker, region=REGION, account=ACCOUNT)
    ended = trio.Event()

    def count(change: int) -> None:
        if change < 0:
            ended.set()

    with trio.fail_after(20):
        async with (
            running_app(make_rapi_app(), config, lane) as served,
            trio.open_nursery() as nursery,
        ):
            invoker.nursery = nursery

            async def serve(*, task_status: trio.TaskStatus[None]) -> None:
                await served.serve(sock, {}, on_connection=count, task_status=task_status)

            await nursery.start(serve)
            async with await connect(sock.getsockname()) as wire_:
                await wire_.send(invoke())
                await ended.wait()
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_nothing_is_left_behind_by_any_connection() -> None:
    sock, face = listening(), FakeEnvironment()
    async with running_app(make_rapi_app(), environment_config(), runtime_lane) as served:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(served.serve, sock, {"environment": face})
                await trio.testing.wait_all_tasks_blocked(0.01)
                before = trio.lowlevel.current_statistics().tasks_living
                for request in (respond(), head("GET", NEXT, {}), respond()[:-1], b"odd\r\n\r\n"):
                    async with await connect(sock.getsockname()) as wire_:
                        await wire_.send(request)
                        await trio.testing.wait_all_tasks_blocked(0.005)
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert trio.lowlevel.current_statistics().tasks_living == before
                assert face.put.asking == []
                nursery.cancel_scope.cancel()
