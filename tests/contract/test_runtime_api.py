"""The Runtime API on the wire: SPEC 1.2 to 1.5, and what identifies an environment."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sandbox.lifecycle import Refused
from tests.contract.fakes import LANES, REQUEST_ID, Environments, event
from tests.contract.wire import Wire, ask, chunked, connect, head

PREFIX = "/2018-06-01/runtime"
RESPONSE = f"{PREFIX}/invocation/{REQUEST_ID}/response"
ERROR = f"{PREFIX}/invocation/{REQUEST_ID}/error"
OK = b'{"status":"OK"}\n'
MIB = 1024 * 1024


@pytest.fixture(params=sorted(LANES))
async def env(request: pytest.FixtureRequest) -> AsyncIterator[Environments]:
    with trio.fail_after(20):
        async with LANES[request.param][1](2) as served:
            yield served


@pytest.mark.trio
async def test_ping(env: Environments) -> None:
    answer = await ask(env.addresses[0], "GET", "/2018-06-01/ping")
    assert (answer.status, answer.body) == (200, b"pong")


@pytest.mark.trio
async def test_next_carries_the_event_and_its_headers(env: Environments) -> None:
    sent = event(b'{"a": "\xc3\xa4"}', client_context='{\n "client": "\u00e4"\n}')
    env.faces[0].put.send_nowait(sent)
    answer = await ask(env.addresses[0], "GET", f"{PREFIX}/invocation/next")
    assert (answer.status, answer.body) == (200, sent.payload)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["lambda-runtime-aws-request-id"] == REQUEST_ID
    assert answer.headers["lambda-runtime-invocation-id"] == "nonce-1"
    assert answer.headers["lambda-runtime-deadline-ms"] == "1900000000000"
    assert answer.headers["lambda-runtime-invoked-function-arn"] == sent.invoked_arn
    assert answer.headers["lambda-runtime-trace-id"] == sent.trace_id
    assert json.loads(answer.headers["lambda-runtime-client-context"]) == {"client": "ä"}
    assert "lambda-runtime-cognito-identity" not in answer.headers
    assert "server" not in answer.headers


@pytest.mark.trio
async def test_the_socket_identifies_the_environment(env: Environments) -> None:
    env.faces[1].put.send_nowait(event(b'"second"'))
    env.faces[0].put.send_nowait(event(b'"first"'))
    # Whatever a request claims, the Host header included, it is the socket that counts.
    claims = {"X-Environment": "0", "Environment": "0"}
    second = await ask(env.addresses[1], "GET", f"{PREFIX}/invocation/next", headers=claims)
    first = await ask(env.addresses[0], "GET", f"{PREFIX}/invocation/next")
    assert (first.body, second.body) == (b'"first"', b'"second"')


@pytest.mark.trio
async def test_two_connections_of_one_environment(env: Environments) -> None:
    async with await connect(env.addresses[0]) as parked, trio.open_nursery() as nursery:
        await parked.send(head("GET", f"{PREFIX}/invocation/next", {}))
        await env.faces[0].parked.wait()
        nursery.start_soon(ask, env.addresses[0], "POST", RESPONSE, b"1")
        env.faces[0].put.send_nowait(event())
        assert (await parked.answer("GET")).status == 200


@pytest.mark.trio
async def test_one_connection_serves_many_requests(env: Environments) -> None:
    async with await connect(env.addresses[0]) as wire:
        for number in range(20):
            env.faces[0].put.send_nowait(event(b"%d" % number))
            assert (await wire.ask("GET", f"{PREFIX}/invocation/next")).body == b"%d" % number
            assert (await wire.ask("POST", RESPONSE, b"%d" % number)).status == 202
    assert [post.body for post in env.faces[0].posted] == [b"%d" % n for n in range(20)]


@pytest.mark.trio
async def test_pipelined_requests_are_answered_in_order(env: Environments) -> None:
    async with await connect(env.addresses[0]) as wire:
        one = head("POST", RESPONSE, {"Content-Length": "1"}) + b"1"
        await wire.send(one + one + head("GET", "/2018-06-01/ping", {}))
        assert [(await wire.answer()).status for _ in range(2)] == [202, 202]
        assert (await wire.answer("GET")).body == b"pong"


@pytest.mark.trio
async def test_a_peer_that_goes_away_gives_up_its_next(env: Environments) -> None:
    async with await connect(env.addresses[0]) as wire:
        await wire.send(head("GET", f"{PREFIX}/invocation/next", {}))
        await env.faces[0].parked.wait()
    await env.faces[0].abandoned.wait()


@pytest.mark.trio
async def test_head_of_next_swallows_no_event(env: Environments) -> None:
    env.faces[0].put.send_nowait(event())
    path = f"{PREFIX}/invocation/next"
    assert (await ask(env.addresses[0], "HEAD", path)).status == 405
    assert (await ask(env.addresses[0], "GET", path)).status == 200


@pytest.mark.trio
async def test_response_with_content_length(env: Environments) -> None:
    headers = {
        "Content-Type": "application/json",
        "Lambda-Runtime-Invocation-Id": "nonce-1",
        "Lambda-Runtime-Function-Response-Mode": "",
    }
    answer = await ask(env.addresses[0], "POST", RESPONSE, b'"ok"', headers)
    assert (answer.status, answer.body) == (202, OK)
    assert answer.headers["content-type"] == "application/json"
    (post,) = env.faces[0].posted
    assert (post.request_id, post.body, post.trailers) == (REQUEST_ID, b'"ok"', {})
    assert post.details == {
        "invocation_id": "nonce-1",
        "response_mode": None,
        "content_type": "application/json",
    }


@pytest.mark.trio
async def test_large_response_passes_unlimited_by_the_face(env: Environments) -> None:
    body = b"x" * (40 * MIB)  # far above quart's 16 MB default
    answer = await ask(env.addresses[0], "POST", RESPONSE, body)
    assert answer.status == 202
    assert env.faces[0].posted[0].body == body


@pytest.mark.trio
async def test_chunks_reach_the_face_before_the_body_ends(env: Environments) -> None:
    headers = {
        "Transfer-Encoding": "chunked",
        "Lambda-Runtime-Function-Response-Mode": "streaming",
        "Trailer": "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body",
    }
    async with await connect(env.addresses[0]) as wire:
        await wire.send(head("POST", RESPONSE, headers))
        for piece in (b"one", b"two"):
            await wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            assert await env.faces[0].chunks.receive() == piece  # the body is still open
        trailers = {
            "Lambda-Runtime-Function-Error-Type": "Function.Broke",
            "Lambda-Runtime-Function-Error-Body": "e30=",
        }
        await wire.send(chunked(trailers=trailers))
        assert (await wire.answer()).status == 202
    (post,) = env.faces[0].posted
    assert post.body == b"onetwo"
    assert post.trailers == {name.lower(): value for name, value in trailers.items()}
    assert post.details["response_mode"] == "streaming"


@pytest.mark.trio
async def test_a_slow_reader_stops_the_writer(env: Environments) -> None:
    face = env.faces[0]
    face.may_read = trio.Event()
    size = 64 * MIB
    sent = 0

    async def write(wire: Wire) -> None:
        nonlocal sent
        while sent < size:
            await wire.send(b"x" * MIB)
            sent += MIB

    async with await connect(env.addresses[0]) as wire, trio.open_nursery() as nursery:
        await wire.send(head("POST", RESPONSE, {"Content-Length": str(size)}))
        nursery.start_soon(write, wire)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < size // 2  # the kernel's buffers are full, and lambox does not read on
        face.may_read.set()
        assert (await wire.answer()).status == 202
    assert len(face.posted[0].body) == size


@pytest.mark.trio
@pytest.mark.parametrize(
    "request_bytes",
    [
        head("POST", RESPONSE, {"Content-Length": "10"}) + b"short",
        head("POST", RESPONSE, {"Transfer-Encoding": "chunked"}) + b"5\r\nhel",
        head("POST", RESPONSE, {"Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n",
    ],
    ids=["content-length", "inside a chunk", "between chunks"],
)
async def test_truncated_body_is_answered_on_half_close(
    env: Environments, request_bytes: bytes
) -> None:
    async with await connect(env.addresses[0]) as wire:
        await wire.send(request_bytes)
        await wire.stream.send_eof()
        answer = await wire.answer()
    assert answer.status == 400
    assert answer.json == {
        "errorMessage": "HTTP request detected as truncated",
        "errorType": "TruncatedHTTPRequest",
    }
    assert env.faces[0].posted[0].truncated


@pytest.mark.trio
async def test_broken_chunking_is_truncation(env: Environments) -> None:
    async with await connect(env.addresses[0]) as wire:
        await wire.send(head("POST", RESPONSE, {"Transfer-Encoding": "chunked"}) + b"zz\r\n")
        assert (await wire.answer()).json["errorType"] == "TruncatedHTTPRequest"


@pytest.mark.trio
async def test_a_reset_mid_body_is_told_to_the_face(env: Environments) -> None:
    async with await connect(env.addresses[0]) as wire:
        await wire.send(head("POST", RESPONSE, {"Content-Length": "10"}) + b"short")
        await env.faces[0].chunks.receive()
        linger = b"\1\0\0\0\0\0\0\0"  # struct linger {1, 0}: close() sends RST
        wire.stream.setsockopt(1, 13, linger)  # SOL_SOCKET, SO_LINGER (asm-generic/socket.h)
    while not env.faces[0].posted[0].truncated:
        await trio.lowlevel.checkpoint()
    # and the listener is as good as before
    assert (await ask(env.addresses[0], "GET", "/2018-06-01/ping")).status == 200


@pytest.mark.trio
async def test_refused_before_the_body_is_read_and_the_connection_lives_on(
    env: Environments,
) -> None:
    env.faces[0].refusal = Refused(400, "InvalidRequestID", "Invalid request ID")
    async with await connect(env.addresses[0]) as wire:
        answer = await wire.ask("POST", RESPONSE, b"x" * (8 * MIB))
        assert answer.status == 400
        assert answer.body == (
            b'{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}\n'
        )
        assert (await wire.ask("GET", "/2018-06-01/ping")).body == b"pong"


@pytest.mark.trio
async def test_refused_midway_through_the_body(env: Environments) -> None:
    env.faces[0].limit = 1000
    async with await connect(env.addresses[0]) as wire:
        answer = await wire.ask("POST", RESPONSE, b"x" * (20 * MIB))
        assert answer.status == 413
        # Go's encoder escapes angle brackets
        assert b"Exceeded \\u003cthe\\u003e limit" in answer.body
        assert (await wire.ask("GET", "/2018-06-01/ping")).body == b"pong"


@pytest.mark.trio
async def test_endless_refused_body_is_cut(env: Environments) -> None:
    env.faces[0].limit = 1000
    async with await connect(env.addresses[0]) as wire:
        await wire.send(head("POST", RESPONSE, {"Transfer-Encoding": "chunked"}))
        piece = b"100000\r\n" + b"x" * MIB + b"\r\n"

        async def send_without_end() -> None:
            while True:
                await wire.send(piece)

        with pytest.raises(trio.BrokenResourceError):
            await send_without_end()


@pytest.mark.trio
async def test_error(env: Environments) -> None:
    headers = {
        "Content-Type": "application/json",
        "Lambda-Runtime-Function-Error-Type": "Function.Oops",
    }
    body = b"not even json <&>"
    answer = await ask(env.addresses[0], "POST", ERROR, body, headers)
    assert (answer.status, answer.body) == (202, OK)
    (post,) = env.faces[0].posted
    assert (post.call, post.body) == ("error", body)
    assert post.details == {
        "invocation_id": None,
        "error_type": "Function.Oops",
        "content_type": "application/json",
    }


@pytest.mark.trio
@pytest.mark.parametrize(
    ("body", "content_type", "passed_on"),
    [
        (
            {"errorMessage": "m<", "errorType": "t", "stackTrace": ["a"], "errorCause": {"x": 1}},
            "application/json",
            b'{"errorMessage":"m\\u003c","errorType":"t","stackTrace":["a"]}',
        ),
        (["no object"], "application/octet-stream", b'"Invalid error body"'),
    ],
)
async def test_error_cause_is_taken_out(
    env: Environments, body: object, content_type: str, passed_on: bytes
) -> None:
    headers = {"Content-Type": "application/vnd.aws.lambda.error.cause+json"}
    await ask(env.addresses[0], "POST", ERROR, json.dumps(body).encode(), headers)
    (post,) = env.faces[0].posted
    assert (post.body, post.details["content_type"]) == (passed_on, content_type)


@pytest.mark.trio
async def test_header_line_of_one_mebibyte(env: Environments) -> None:
    headers = {"Lambda-Runtime-Function-XRay-Error-Cause": "x" * MIB}
    assert (await ask(env.addresses[0], "POST", ERROR, b"{}", headers)).status == 202


@pytest.mark.trio
async def test_header_lines_beyond_the_limit(env: Environments) -> None:
    async with await connect(env.addresses[0]) as wire:
        await wire.send(head("POST", ERROR, {"X": "x" * (2 * MIB)})[: MIB + 100_000])
        assert (await wire.answer()).status == 431


@pytest.mark.trio
async def test_init_error(env: Environments) -> None:
    headers = {"Lambda-Runtime-Function-Error-Type": "Runtime.ImportModuleError"}
    answer = await ask(env.addresses[0], "POST", f"{PREFIX}/init/error", b'{"e":1}', headers)
    assert (answer.status, answer.body) == (202, OK)
    (post,) = env.faces[0].posted
    assert (post.call, post.body) == ("init_error", b'{"e":1}')
    assert post.details == {"error_type": "Runtime.ImportModuleError"}


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{PREFIX}/invocation/next"),
        ("POST", RESPONSE),
        ("POST", ERROR),
        ("POST", f"{PREFIX}/init/error"),
    ],
)
async def test_refusals_are_rendered(env: Environments, method: str, path: str) -> None:
    env.faces[0].refusal = Refused(403, "InvalidStateTransition", "State & transition")
    answer = await ask(env.addresses[0], method, path)
    assert answer.status == 403
    assert answer.body == (
        b'{"errorMessage":"State \\u0026 transition","errorType":"InvalidStateTransition"}\n'
    )


@pytest.mark.trio
async def test_a_bug_behind_the_face_is_a_500_and_one_traceback(
    env: Environments, caplog: pytest.LogCaptureFixture
) -> None:
    env.faces[0].refusal = RuntimeError("secret")
    answer = await ask(env.addresses[0], "POST", RESPONSE, b"1")
    assert answer.status == 500
    assert answer.body == (
        b'{"errorMessage":"Internal Server Error","errorType":"InternalServerError"}\n'
    )
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/2018-06-01/nothing", 404),
        ("GET", "/2018-06-01/runtime/restore/next", 404),
        ("GET", "/2020-01-01/extension/register", 405),
        ("POST", f"{PREFIX}/invocation/next", 405),
        ("GET", RESPONSE, 405),
        ("OPTIONS", f"{PREFIX}/invocation/next", 405),
        ("GET", "/2022-07-01/telemetry", 405),
        ("POST", "/2020-08-15/logs", 405),
    ],
)
async def test_other_routes(env: Environments, method: str, path: str, status: int) -> None:
    answer = await ask(env.addresses[0], method, path)
    assert answer.status == status
    assert b"<" not in answer.body


@pytest.mark.trio
async def test_next_with_a_body_that_never_comes_is_given_up_too(env: Environments) -> None:
    """Its end comes before the handler has run, and is no truncation that anybody would answer."""
    async with await connect(env.addresses[0]) as wire:
        request = head("GET", f"{PREFIX}/invocation/next", {"Content-Length": "10"}) + b"short"
        await wire.send(request)
        await wire.stream.send_eof()
        assert await wire.stream.receive_some() == b""
