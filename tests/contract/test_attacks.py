"""What strangers do to both faces over real sockets, on both lanes, while a good client is answered.

Which bytes h11 and the gate take for a request, and that both lanes answer alike, is in `test_lanes.py` and
`tests/unit/test_gate.py`. Here: who holds something up, and what it gets.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from runtimeapi.pace import CREDIT, PAID_PER_S, REFUSAL
from runtimeapi.rapi import without_cause
from runtimeapi.room import LARGE_AT_ONCE, SMALL
from runtimeapi.server import ENVIRONMENT_CONNECTIONS, CallerLimits
from sandbox.lifecycle import Refused
from tests.contract.fakes import LANES, Callers, event
from tests.contract.wire import Wire, ask, chunked, connect, head

INVOKE = "/2015-03-31/functions/hello/invocations"
NEXT = "/2018-06-01/runtime/invocation/next"
ERROR = "/2018-06-01/runtime/invocation/x/error"
LIMITS = CallerLimits(
    max_connections=40,
    max_header_bytes=8192,
    header_timeout_s=0.3,
    body_timeout_s=0.3,
    keep_alive_s=30,
)
GOOD_S = 5.0
"""A good client's answer takes a millisecond; this is for a host that is busy with other things."""

lanes = pytest.mark.parametrize("lane", sorted(LANES))


@asynccontextmanager
async def callers(lane: str, limits: CallerLimits = LIMITS) -> AsyncIterator[Callers]:
    with trio.fail_after(40):
        async with LANES[lane][0](limits=limits) as served:
            yield served


@asynccontextmanager
async def good_client(served: Callers) -> AsyncIterator[list[int]]:
    """One that invokes as long as the block lasts; each answer must come within GOOD_S."""
    answered: list[int] = []

    async def invoke(*, task_status: trio.TaskStatus[None]) -> None:
        async with await connect(served.address) as wire:
            task_status.started()
            while True:
                with trio.fail_after(GOOD_S):
                    answered.append((await wire.ask("POST", INVOKE, b'"good"')).status)
                await trio.sleep(0.005)

    async with trio.open_nursery() as nursery:
        await nursery.start(invoke)
        yield answered
        nursery.cancel_scope.cancel()
    assert answered
    assert set(answered) == {200}


async def rest_of(wire: Wire) -> bytes:
    """Everything up to the end of the connection, which must come."""
    found = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await wire.stream.receive_some():
            found += data
    return found


async def dribble(wire: Wire, data: bytes, size: int = 1, pause_s: float = 0.02) -> float:
    """Send it slowly; how long it took until the other side had had enough."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await rest_of(wire)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for start in range(0, len(data), size):
                await wire.send(data[start : start + size])
                await trio.sleep(pause_s)
        await trio.sleep_forever()
    return trio.current_time() - began


# -- slow, silent and half-open peers


@lanes
@pytest.mark.trio
async def test_slow_heads_are_cut_however_often_a_byte_comes(lane: str) -> None:
    request = head("POST", INVOKE, {"Content-Length": "2"}) + b"{}"
    async with callers(lane) as served, good_client(served), trio.open_nursery() as nursery:
        took: list[float] = []

        async def attack() -> None:
            async with await connect(served.address) as wire:
                took.append(await dribble(wire, request * 50))

        for _ in range(30):
            nursery.start_soon(attack)
    assert len(took) == 30
    assert min(took) >= LIMITS.header_timeout_s * 0.9
    assert max(took) < GOOD_S
    assert all(one.payload == b'"good"' for one in served.invoker.invoked)


@lanes
@pytest.mark.trio
async def test_a_slow_head_behind_a_good_request_is_cut(lane: str) -> None:
    async with callers(lane) as served, await connect(served.address) as wire:
        assert (await wire.ask("POST", INVOKE, b"1")).status == 200
        assert await dribble(wire, head("POST", INVOKE, {"A": "b" * 1000})) < GOOD_S
    assert len(served.invoker.invoked) == 1


@lanes
@pytest.mark.trio
async def test_slow_bodies_are_cut_and_told(lane: str) -> None:
    """The fast lane gives each a second before hypercorn's clock runs."""
    async with callers(lane) as served, good_client(served):
        for pause_s in (0.02, 60):  # a byte now and then; silence
            async with await connect(served.address) as wire:
                await wire.send(head("POST", INVOKE, {"Content-Length": "5000"}))
                began = trio.current_time()
                async with trio.open_nursery() as nursery:

                    async def send(wire: Wire = wire, pause_s: float = pause_s) -> None:
                        with contextlib.suppress(trio.BrokenResourceError):
                            while True:
                                await wire.send(b"1")
                                await trio.sleep(pause_s)

                    nursery.start_soon(send)
                    answer = await wire.answer()
                    nursery.cancel_scope.cancel()
                assert answer.headers["x-amzn-errortype"] == "InvalidRequestContentException"
                assert trio.current_time() - began < GOOD_S
                await rest_of(wire)


@lanes
@pytest.mark.trio
async def test_a_long_upload_that_goes_on_is_not_cut(lane: str) -> None:
    body = b'"' + b"x" * 300_000 + b'"'
    async with callers(lane) as served, await connect(served.address) as wire:
        await wire.send(head("POST", INVOKE, {"Content-Length": str(len(body))}))
        for start in range(0, len(body), 10_000):
            await wire.send(body[start : start + 10_000])
            await trio.sleep(LIMITS.body_timeout_s / 6)
        assert (await wire.answer()).body == body


@lanes
@pytest.mark.trio
async def test_silent_and_half_open_connections_end(lane: str) -> None:
    limits = CallerLimits(keep_alive_s=0.3, header_timeout_s=0.2)
    async with callers(lane, limits) as served:
        silent = await connect(served.address)
        half = await connect(served.address)
        await half.stream.send_eof()
        began = await connect(served.address)
        await began.send(b"POST /2015")
        await began.stream.send_eof()
        for wire in (silent, half, began):
            async with wire:
                found = await rest_of(wire)
                assert found == b"" or found.startswith(b"HTTP/1.1 400 ")


@lanes
@pytest.mark.trio
async def test_peers_that_reset_leave_nothing(lane: str) -> None:
    async with callers(lane) as served:
        for sent in (b"", b"POST", head("POST", INVOKE, {"Content-Length": "9"}) + b"1"):
            for _ in range(20):
                sock = socket.create_connection(served.address)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                sock.sendall(sent)
                sock.close()
        # 60 of them: the cap would be reached if any were still counted.
        await trio.testing.wait_all_tasks_blocked(0.02)
        for _ in range(3):
            assert (await ask(served.address, "POST", INVOKE, b"1")).status == 200


# -- too many, too large


@lanes
@pytest.mark.trio
async def test_too_many_connections_are_told_and_closed(lane: str) -> None:
    limits = CallerLimits(max_connections=5)
    async with callers(lane, limits) as served, contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(await connect(served.address)) for _ in range(5)]
        for wire in held:
            assert (await wire.ask("POST", INVOKE, b"1")).status == 200
        for _ in range(3):
            async with await connect(served.address) as wire:
                await wire.send(head("POST", INVOKE, {"Content-Length": "2"}) + b"{}")
                answer = await wire.answer()
                assert (answer.status, answer.headers["connection"]) == (503, "close")
                assert answer.headers["x-amzn-errortype"] == "ServiceUnavailableException"
                assert json.loads(answer.body)["Type"] == "Server"
                assert await rest_of(wire) == b""
        # A flood: each is told or closed, nobody hangs, and who was there before is served.
        flood = [await stack.enter_async_context(await connect(served.address)) for _ in range(300)]
        for wire in held:
            assert (await wire.ask("POST", INVOKE, b"1")).status == 200
        for wire in flood:
            await wire.stream.send_eof()
            found = await rest_of(wire)
            assert found == b"" or found.startswith(b"HTTP/1.1 503 ")
        await held.pop().stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert (await ask(served.address, "POST", INVOKE, b"1")).status == 200


@lanes
@pytest.mark.parametrize("size", [1, 1000, 100_000])
@pytest.mark.trio
async def test_heads_over_the_limit_are_refused(lane: str, size: int) -> None:
    """In one segment or in many; with an end or without."""
    small = head("POST", INVOKE, {"Content-Length": "2", "A": "b" * 7900}) + b"{}"
    assert len(small) < LIMITS.max_header_bytes
    too_large = head("POST", INVOKE, {"Content-Length": "2", "A": "b" * 8192}) + b"{}"
    endless = b"POST " + INVOKE.encode() + b" HTTP/1.1\r\nA: " + b"b" * 100_000
    long_line = b"POST /" + b"a" * 100_000
    limits = CallerLimits(max_header_bytes=8192)
    async with callers(lane, limits) as served, good_client(served):
        for request, status in ((small, 200), (too_large, 431), (endless, 431), (long_line, 431)):
            async with await connect(served.address) as wire:
                with contextlib.suppress(trio.BrokenResourceError):
                    for start in range(0, min(len(request), 200 * size), size):
                        await wire.send(request[start : start + size])
                    if len(request) > 200 * size:
                        await wire.send(request[200 * size :])
                assert (await wire.answer()).status == status


@lanes
@pytest.mark.parametrize("expects", [False, True])
@pytest.mark.trio
async def test_bodies_over_the_limit_are_refused(lane: str, expects: bool) -> None:
    headers = {"Expect": "100-continue"} if expects else {}
    async with callers(lane) as served, good_client(served):
        for length in (6_291_557, 10**12):
            async with await connect(served.address) as wire:
                await wire.send(head("POST", INVOKE, {**headers, "Content-Length": str(length)}))
                assert (await wire.answer()).status == 413
        async with await connect(served.address) as wire:
            await wire.send(head("POST", INVOKE, {**headers, "Transfer-Encoding": "chunked"}))
            piece = chunked(b"x" * 1_000_000)[:-5]
            with contextlib.suppress(trio.BrokenResourceError):
                for _ in range(8):
                    await wire.send(piece)
            assert (await wire.answer()).status == 413
    assert {one.payload for one in served.invoker.invoked} == {b'"good"'}


@lanes
@pytest.mark.trio
async def test_chunks_that_are_all_extension_are_cut(lane: str) -> None:
    start = head("POST", INVOKE, {"Transfer-Encoding": "chunked"})
    async with callers(lane) as served, good_client(served):
        for attack in (b"2;" + b"a" * 9000, b"0" * 9000, b"2\r\n{}\r\n0\r\n" + b"a: b\r\n" * 2000):
            async with await connect(served.address) as wire:
                with contextlib.suppress(trio.BrokenResourceError):
                    await wire.send(start + attack)
                found = await rest_of(wire)
            assert found.startswith(b"HTTP/1.1 4"), attack[:20]
    assert {one.payload for one in served.invoker.invoked} == {b'"good"'}


# -- bytes that are no request


GARBAGE = {
    "TLS": b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03" + b"\x8f" * 300,
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "zeros": b"\x00" * 5000,
    "line ends": b"\r\n" * 5000,
    "random": bytes((i * 89 + i // 7) % 256 for i in range(5000)),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "SOCKS": b"\x05\x01\x00",
    "CONNECT": b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n",
    "UTF-16": "POST / HTTP/1.1\r\n\r\n".encode("utf-16"),
}


@lanes
@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.trio
async def test_garbage_is_answered_or_cut(lane: str, name: str) -> None:
    async with callers(lane) as served:
        async with await connect(served.address) as wire:
            with contextlib.suppress(trio.BrokenResourceError):
                await wire.send(GARBAGE[name])
            with contextlib.suppress(trio.BrokenResourceError, OSError):
                await wire.stream.send_eof()
            found = await rest_of(wire)
            assert found == b"" or found.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
        assert (await ask(served.address, "POST", INVOKE, b"1")).status == 200
    assert len(served.invoker.invoked) == 1


# -- requests within requests

SMUGGLED = head("POST", "/invoke/hello", {"Content-Length": "3"}) + b"666"
AMBIGUOUS = {
    "length and chunks": "Content-Length: {n}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{s}",
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n0\r\n\r\n{s}",
    "two lengths": "Content-Length: 0\r\nContent-Length: {n}\r\n\r\n{s}",
    "two lengths, other order": "Content-Length: {n}\r\nContent-Length: 0\r\n\r\n{s}",
    "list of lengths": "Content-Length: 0, {n}\r\n\r\n{s}",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{s}",
    "chunked, identity": "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{s}",
    "identity": "Content-Length: {n}\r\nTransfer-Encoding: identity\r\n\r\n{s}",
    "x-chunked": "Content-Length: {n}\r\nTransfer-Encoding: xchunked\r\n\r\n{s}",
    "chunked after a tab": "Content-Length: {n}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{s}",
    "space before colon": "Content-Length: {n}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{s}",
    "folded": "Content-Length: {n}\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{s}",
    "NUL in the name": "Content-Length: {n}\r\nTransfer-\x00Encoding: chunked\r\n\r\n0\r\n\r\n{s}",
    "bare CR": "A: b\rTransfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n0\r\n\r\n{s}",
    "bare LF": "Content-Length: {n}\nTransfer-Encoding: chunked\n\n0\r\n\r\n{s}",
    "sign": "Content-Length: +{n}\r\n\r\n{s}",
    "underscore": "Content-Length: 1_0\r\n\r\n{s}",
    "chunk of hex and more": "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{s}",
    "chunk with LF": "Transfer-Encoding: chunked\r\n\r\n2\n{{}}\n0\n\n{s}",
    "chunk that goes on": "Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}XX0\r\n\r\n{s}",
    "chunk of a huge size": "Transfer-Encoding: chunked\r\n\r\n" + "F" * 30 + "\r\n{s}",
}


@lanes
@pytest.mark.parametrize("name", AMBIGUOUS)
@pytest.mark.trio
async def test_nothing_is_smuggled(lane: str, name: str) -> None:
    """Each is refused, or its framing is beyond doubt; the hidden request is answered in neither case."""
    smuggled = SMUGGLED.decode()
    tail = AMBIGUOUS[name].replace("{n}", str(len(smuggled) + 5)).replace("{s}", smuggled)
    start = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\n"
    async with callers(lane) as served, await connect(served.address) as wire:
        with contextlib.suppress(trio.BrokenResourceError):
            await wire.send((start + tail.replace("{{}}", "{}")).encode("latin-1"))
            await wire.stream.send_eof()
        found = await rest_of(wire)
    assert found.count(b"HTTP/1.1 ") <= 1
    assert [one for one in served.invoker.invoked if one.payload == b"666"] == []


# -- pages in browsers

NAMES = ("evil.example", "evil.example:9000", "localhost.evil.example", "10.0.0.1")
FOREIGN = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Origin": "http://evil.example", "Content-Type": "text/plain"},
)


def from_page(method: str, path: str, headers: dict[str, str], host: str = "localhost") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    body = b"{}" if method == "POST" else b""
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@lanes
@pytest.mark.parametrize("path", [INVOKE, "/invoke/hello", "/_lambox/functions", "/nowhere"])
@pytest.mark.trio
async def test_pages_of_others_are_refused(lane: str, path: str) -> None:
    method = "GET" if "_lambox" in path else "POST"
    requests = [from_page(method, path, {}, host) for host in NAMES]
    requests += [from_page(method, path, headers) for headers in FOREIGN]
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    requests.append(from_page("OPTIONS", path, preflight))
    async with callers(lane) as served, await connect(served.address) as wire:
        for request in requests:
            await wire.send(request)
            answer = await wire.answer()
            assert answer.status == 403, request
            code = answer.headers.get("x-amzn-errortype") or answer.json["errorType"]
            assert code == "AccessDeniedException"
            assert not any(name.startswith("access-control") for name in answer.headers)
        assert (await ask(served.address, "GET", "/healthz")).status == 200
        own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
        await wire.send(from_page("POST", INVOKE, own))
        assert (await wire.answer()).status == 200
    assert len(served.invoker.invoked) == 1


# -- runtimes


@lanes
@pytest.mark.trio
async def test_an_environment_with_too_many_connections_waits_and_others_do_not(lane: str) -> None:
    with trio.fail_after(40):
        async with LANES[lane][1](2) as served, contextlib.AsyncExitStack() as stack:

            async def opened() -> Wire:
                return await stack.enter_async_context(await connect(served.addresses[0]))

            held = [await opened() for _ in range(ENVIRONMENT_CONNECTIONS)]
            for wire in held:
                assert (await wire.ask("GET", "/2018-06-01/ping")).status == 200
            over = [await opened() for _ in range(30)]
            for wire in over:
                await wire.send(head("GET", "/2018-06-01/ping", {}))
            with trio.move_on_after(0.1) as waited:
                await over[0].answer("GET")
            assert waited.cancelled_caught
            served.faces[1].put.send_nowait(event())
            with trio.fail_after(GOOD_S):
                assert (await ask(served.addresses[1], "GET", NEXT)).status == 200
            for wire in held[:30]:
                await wire.stream.aclose()
            for wire in over[1:]:
                assert (await wire.answer("GET")).status == 200


@lanes
@pytest.mark.trio
async def test_large_errors_with_causes_cost_their_environment_time(lane: str) -> None:
    """6 MB of the smallest JSON values took the event loop half a second, as often as they were sent."""
    kind = {"Content-Type": "application/vnd.aws.lambda.error.cause+json"}
    with trio.fail_after(40):
        async with LANES[lane][1](1) as served, await connect(served.addresses[0]) as wire:
            served.faces[0].refusal = Refused(403, "InvalidStateTransition", "no")
            large = b'{"errorMessage":"' + b"x" * 2_000_000 + b'"}'
            assert (await wire.ask("POST", ERROR, large, kind)).status == 403
            began = trio.current_time()
            assert (await wire.ask("POST", ERROR, b"{}")).status == 403
            assert trio.current_time() - began > 0.5


@lanes
@pytest.mark.trio
async def test_large_errors_that_do_not_end_are_gathered_two_at_a_time(lane: str) -> None:
    size = SMALL + 100_000
    most = head("POST", ERROR, {"Content-Length": str(size)}) + b"x" * (size - 1)
    answered: list[str] = []

    async def post(name: str, wire: Wire, rest: bytes) -> None:
        await wire.send(rest)
        assert (await wire.answer()).status == 202
        answered.append(name)

    with trio.fail_after(40):
        async with LANES[lane][1](2) as served, contextlib.AsyncExitStack() as stack:
            first, second, third, fourth = [
                await stack.enter_async_context(await connect(address))
                for address in [served.addresses[0]] * (LARGE_AT_ONCE + 1) + [served.addresses[1]]
            ]
            for wire in (first, second):
                await wire.send(most)
                for _ in range(20):
                    assert (await ask(served.addresses[0], "GET", "/2018-06-01/ping")).status == 200
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, "third", third, most + b"x")
                # What is small, and another environment's, does not wait for those two.
                for address in served.addresses * 20:
                    assert (await ask(address, "POST", ERROR, b"{}")).status == 202
                await post("another's", fourth, most + b"x")
                # A peer that goes away gives its place back, as one that is served does.
                await second.stream.aclose()
            assert answered == ["another's", "third"]
            await post("first", first, b"x")
            await post("first again", first, most + b"x")


def test_an_error_of_very_many_values_is_not_read() -> None:
    began = time.process_time()
    assert without_cause(b"[" + b"[]," * 2_000_000 + b"[]]")[1] == b'"Invalid error body"'
    assert time.process_time() - began < 0.2


@lanes
@pytest.mark.trio
async def test_pings_are_answered_and_paced(lane: str) -> None:
    """A healthy runtime sends none; 60 connections that did took 95 % of the event loop."""
    with trio.fail_after(40):
        async with LANES[lane][1](1) as served, await connect(served.addresses[0]) as wire:
            began = trio.current_time()
            for _ in range(int(CREDIT / REFUSAL) + 30):
                assert (await wire.ask("GET", "/2018-06-01/ping")).body == b"pong"
            assert trio.current_time() - began > 0.2


@lanes
@pytest.mark.trio
async def test_useless_requests_of_an_environment_are_paced(lane: str) -> None:
    with trio.fail_after(40):
        async with LANES[lane][1](2) as served:
            served.faces[0].refusal = Refused(403, "InvalidStateTransition", "no")
            count = int(CREDIT / REFUSAL) + 30

            async def hammer(method: str, path: str) -> float:
                began = trio.current_time()
                async with await connect(served.addresses[0]) as wire:
                    for _ in range(count):
                        assert (
                            await wire.ask(method, path, b"{}" if method == "POST" else b"")
                        ).status in (403, 404)
                        if path == NEXT:
                            await trio.lowlevel.checkpoint()
                return trio.current_time() - began

            took = await hammer("POST", ERROR)
            assert took > 0.2
            # Still in debt: the first is answered late already, whatever lane it came by.
            took += await hammer("GET", "/nowhere")
            assert took > (2 * count * REFUSAL - CREDIT) / PAID_PER_S - 0.1
            served.faces[1].put.send_nowait(event())
            with trio.fail_after(GOOD_S):
                assert (await ask(served.addresses[1], "GET", NEXT)).status == 200
