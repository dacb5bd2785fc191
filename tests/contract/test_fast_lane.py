"""The fast lane by itself: splits, pipelines, hand-over, early ends, limits, and that nothing is left behind.

`test_lanes.py` compares it with hypercorn's; `handed_over` tells here which requests it left to that.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from runtimeapi import server, wire
from runtimeapi.connection import FaceConfig
from runtimeapi.lanes import caller_lane, runtime_lane
from runtimeapi.rapi import make_rapi_app
from runtimeapi.server import ServedApp, caller_config, environment_config, running_app
from sandbox.invocation import Invocation, Outcome
from tests.contract.fakes import (
    ACCOUNT,
    LANES,
    REGION,
    Callers,
    Environments,
    FakeEnvironment,
    FakeFunctions,
    FakeInvoker,
    event,
    function,
    listening,
)
from tests.contract.test_lanes import (
    ERROR,
    INVOKE,
    NEXT,
    OK,
    RESPONSE,
    at_callers,
    exchange,
    invoke,
    respond,
)
from tests.contract.wire import chunked, connect, head


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was handed to hypercorn."""
    found: list[bytes] = []
    original = ServedApp.serve_connection

    async def serve(self: ServedApp, *args: Any, **how: Any) -> None:
        found.append(b"".join(how.get("already_read") or ()))
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
@pytest.mark.parametrize(
    "path", ["hello/invocations?Qualifier=blue", "hello%3A1/invocations", "hello:1/invocations"]
)
async def test_qualifiers_stay_here(callers: Callers, handed_over: list[bytes], path: str) -> None:
    wire = await connect(callers.address)
    async with wire:
        for _ in range(2):
            await wire.send(invoke(path=f"/2015-03-31/functions/{path}"))
            assert (await wire.answer()).status == 200
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


@pytest.mark.trio
async def test_a_mistake_in_an_answer_is_its_connections_alone(
    env: Environments, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An event is delivered in the middle of the dispatching task's work: nothing may be raised there."""
    face = env.faces[0]
    async with await connect(env.addresses[0]) as wire_:
        await wire_.send(head("GET", NEXT, {}))
        await face.parked.wait()
        monkeypatch.setattr("runtimeapi.lanes.next_reply", None)
        face.put.send_nowait(event())
        assert await wire_.stream.receive_some() == b""
    assert [record.name for record in caplog.records if record.exc_info] == ["lambox.http"]


@pytest.mark.trio
async def test_the_functions_are_looked_at_once_for_all_that_came_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And again for what came later, on whichever connection."""
    functions, sock, invoker = FakeFunctions(function()), listening(), FakeInvoker()
    lane = caller_lane(functions, invoker, region=REGION, account=ACCOUNT)
    async with (
        running_app(make_rapi_app(), caller_config(), lane) as served,
        trio.open_nursery() as nursery,
    ):
        invoker.nursery = nursery
        await nursery.start(served.serve, sock, {})
        wires = [await connect(sock.getsockname()) for _ in range(5)]
        await trio.testing.wait_all_tasks_blocked(0.02)
        for wire_ in wires:
            # Straight to the socket: without a turn of the loop they are all there when the hub wakes.
            wire_.stream.socket._sock.send(invoke())
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert functions.refreshed == 1
        await wires[0].send(invoke())
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert functions.refreshed == 2
        await wires[0].send(
            invoke() * 3
        )  # the later ones may have been sent later, for all we know
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert functions.refreshed == 5
        for wire_ in wires:
            await wire_.stream.aclose()
        nursery.cancel_scope.cancel()
