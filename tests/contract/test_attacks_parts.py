"""What strangers send to both faces in very many parts, or ask for very many times (`test_attacks.py` has the rest)."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
import trio

from runtimeapi.connection import PIECES
from runtimeapi.heads import MOST_LINES
from runtimeapi.pace import CREDIT, PAID_PER_S, PIECE, REFUSAL
from runtimeapi.room import LARGE_AT_ONCE, SMALL_HEAD
from tests.contract.fakes import LANES, event
from tests.contract.test_attacks import ERROR, GOOD_S, INVOKE, NEXT, callers, lanes
from tests.contract.wire import Wire, ask, connect, head


class Steps(trio.abc.Instrument):
    """How often tasks were given a turn."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@lanes
@pytest.mark.trio
async def test_bodies_in_tiny_chunks_let_others_go_on(lane: str) -> None:
    """Whoever reads them or not: of one read 11,000 chunks kept the event loop for 50 ms."""
    count = 20_000
    async with callers(lane) as served, await connect(served.address) as wire:
        steps = Steps()
        await wire.send(head("POST", "/nowhere", {"Transfer-Encoding": "chunked"}))
        assert (await wire.answer()).status == 404
        trio.lowlevel.add_instrument(steps)
        try:
            await wire.send(b"1\r\nx\r\n" * count + b"0\r\n\r\n")
            assert (await wire.ask("GET", "/healthz")).status == 200
        finally:
            trio.lowlevel.remove_instrument(steps)
        assert steps.count > count / PIECES


@lanes
@pytest.mark.trio
async def test_heads_and_trailers_of_very_many_lines_are_refused(lane: str) -> None:
    """h11 took half a second for 200,000 of them, and 50 MB."""
    allowed, beyond = (b"a: b\r\n" * (MOST_LINES - room) for room in (10, -1))
    async with callers(lane) as served:
        for path, lines, status in ((INVOKE, allowed, 200), (INVOKE, beyond, 431)):
            async with await connect(served.address) as wire:
                await wire.send(head("POST", path, {"Content-Length": "2"})[:-2] + lines)
                await wire.send(b"\r\n{}")
                assert (await wire.answer()).status == status
                # Those of a body are not counted, nor what comes after it.
                if status == 200:
                    assert (await wire.ask("POST", INVOKE, b"\n" * 4000 + b"1")).status == 200
    async with LANES[lane][1](1) as environments:
        async with await connect(environments.addresses[0]) as wire:
            await wire.send(head("GET", NEXT, {})[:-2] + beyond + b"\r\n")
            assert (await wire.answer()).status == 431
        async with await connect(environments.addresses[0]) as wire:
            await wire.send(head("POST", ERROR, {"Transfer-Encoding": "chunked"}))
            await wire.send(b"0\r\n" + beyond + b"\r\n")
            assert (await wire.answer()).status == 400
        assert not environments.faces[0].posted


@lanes
@pytest.mark.trio
async def test_tiny_chunks_cost_their_environment_time(lane: str) -> None:
    over = 2.0
    count = int((CREDIT + over * PAID_PER_S) / PIECE)
    with trio.fail_after(40):
        async with LANES[lane][1](2) as served, await connect(served.addresses[0]) as wire:
            began = trio.current_time()
            async with trio.open_nursery() as nursery:

                async def post() -> None:
                    await wire.send(head("POST", ERROR, {"Transfer-Encoding": "chunked"}))
                    await wire.send(b"1\r\nx\r\n" * count + b"0\r\n\r\n")

                nursery.start_soon(post)
                for _ in range(20):
                    served.faces[1].put.send_nowait(event())
                    with trio.fail_after(GOOD_S):
                        assert (await ask(served.addresses[1], "GET", NEXT)).status == 200
                assert (await wire.answer()).status == 202
            assert served.faces[0].posted[0].body == b"x" * count
            assert trio.current_time() - began >= over * 0.9


@lanes
@pytest.mark.trio
async def test_large_heads_that_do_not_end_are_read_two_at_a_time(lane: str) -> None:
    """A head may have a megabyte; 62 of them without their end had the server keep 94 MB."""
    cause = {"Lambda-Runtime-Function-XRay-Error-Cause": "x" * (SMALL_HEAD + 150_000)}
    most, rest = head("POST", ERROR, {"Content-Length": "2", **cause})[:-2], b"\r\n{}"
    with trio.fail_after(40):
        async with LANES[lane][1](2) as served, contextlib.AsyncExitStack() as stack:
            wires = [
                await stack.enter_async_context(await connect(served.addresses[0]))
                for _ in range(LARGE_AT_ONCE + 1)
            ]
            for wire in wires[:LARGE_AT_ONCE]:
                await wire.send(most)
                for _ in range(20):
                    served.faces[0].put.send_nowait(event())
                    assert (await ask(served.addresses[0], "GET", NEXT)).status == 200
            answered: list[str] = []

            async def post(name: str, wire: Wire, data: bytes) -> None:
                await wire.send(data)
                assert (await wire.answer()).status == 202
                answered.append(name)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(post, "third", wires[-1], most + rest)
                for address in served.addresses * 20:
                    assert (await ask(address, "POST", ERROR, b"{}")).status == 202
                await post("first", wires[0], rest)
            assert answered == ["first", "third"]


@pytest.mark.trio
async def test_one_event_is_kept_once_however_many_ask_for_it_and_do_not_read() -> None:
    """60 connections that asked for 6 MB again and again had the server keep 366 MB."""
    given, count = event(b"x" * 3_000_000), 20
    with trio.fail_after(40):
        async with LANES["fast"][1](1) as served, contextlib.AsyncExitStack() as stack:
            tracemalloc.start()
            try:
                for _ in range(count):
                    served.faces[0].put.send_nowait(given)
                    wire = await stack.enter_async_context(await connect(served.addresses[0]))
                    await wire.send(head("GET", NEXT, {}))
                    assert await wire.stream.receive_some(1)
                assert tracemalloc.get_traced_memory()[1] < 2 * len(given.payload)
            finally:
                tracemalloc.stop()


@lanes
@pytest.mark.trio
async def test_an_event_that_is_asked_for_again_and_again_is_given_at_a_pace(lane: str) -> None:
    """Events of 6 MB, of which 60 connections were sent 1.7 GB per second."""
    with trio.fail_after(40):
        async with LANES[lane][1](1) as served, await connect(served.addresses[0]) as wire:
            served.faces[0].event_is_out = True
            began = trio.current_time()
            for _ in range(int(CREDIT / REFUSAL) + 100):
                served.faces[0].put.send_nowait(event())
                assert (await wire.ask("GET", NEXT)).status == 200
            assert trio.current_time() - began > 0.9
