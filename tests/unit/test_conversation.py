"""An environment's conversation with its runtime in plain calls, as the fast lane has it; on fakes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.environment import Environment
from sandbox.lifecycle import Refused
from sandbox.ticket import Ticket
from tests.fakes import FakeSandbox, World, make_invocation
from tests.held import Clock, Held, held


async def parked(it: Held) -> list[Any]:
    """What the runtime of a world without one is given, having asked once."""
    given: list[Any] = []
    assert it.environment.ask_next(given.append) is None
    await trio.lowlevel.checkpoint()
    return given


async def no_runtime(environment: Environment, sandbox: FakeSandbox) -> None:
    await trio.sleep_forever()


def take(it: Held, request_id: str, body: bytes = b"1") -> None:
    it.environment.take_response(request_id, invocation_id=None, content_type=None, body=body)


async def test_a_dispatch_answers_a_parked_next_at_once(autojump_clock: Clock) -> None:
    async with held(World(no_runtime)) as it:
        await trio.testing.wait_all_tasks_blocked()
        given = await parked(it)
        ended: list[bytes] = []
        ticket = Ticket(
            make_invocation(it.environment.function, request_id="id-1"),
            lambda: ended.append(ticket.result().payload),
        )
        it.environment.dispatch(ticket)
        assert [event.request_id for event in given] == ["id-1"]
        take(it, "id-1")
        assert ended == [b"1"]
        with pytest.raises(Refused, match="Invalid request ID"):
            take(it, "id-2")


async def test_whoever_went_away_is_not_given_the_event(autojump_clock: Clock) -> None:
    async with held(World(no_runtime)) as it:
        await trio.testing.wait_all_tasks_blocked()
        gone: list[Any] = []
        assert it.environment.ask_next(gone.append) is None
        it.environment.forget_next(gone.append)
        it.environment.dispatch(Ticket(make_invocation(it.environment.function)))
        given: list[Any] = []
        assert it.environment.ask_next(given.append) is not None  # it waits for who asks again
        assert gone == given == []


async def test_the_log_is_written_after_the_answer_that_does_not_carry_it(
    autojump_clock: Clock,
) -> None:
    world = World(no_runtime)
    async with held(world) as it:
        await trio.testing.wait_all_tasks_blocked()
        await parked(it)
        for number in (1, 2):
            how = {"wants_tail": False, "wants_memory": False, "request_id": f"id-{number}"}
            ticket = Ticket(make_invocation(it.environment.function, **how))
            it.environment.dispatch(ticket)
            os.write(it.sandbox.write_stdout, b"hello\n")
            take(it, f"id-{number}")
            assert (ticket.result().log_tail, ticket.result().max_memory_mb) == (b"", None)
            assert world.lines[-1].startswith(f"START RequestId: id-{number}")
            if number == 1:
                # Nobody calls finish_turn: the next START does.
                os.write(it.sandbox.write_stdout, b"afterwards\n")
            it.environment.ask_next(lambda _: None)
        it.environment.finish_turn()
        it.environment.finish_turn()
    lines = [line.split("\t")[0] for line in world.lines if not line.startswith("INIT")]
    assert lines == [
        "START RequestId: id-1 Version: $LATEST", "hello", "afterwards", "END RequestId: id-1",
        "REPORT RequestId: id-1", "START RequestId: id-2 Version: $LATEST", "hello",
        "END RequestId: id-2", "REPORT RequestId: id-2",
    ]  # fmt: skip
    assert sum("Max Memory Used: 10 MB" in line for line in world.lines) == 2


async def test_a_tail_that_is_asked_for_has_all_of_its_invocation_and_nothing_else(
    autojump_clock: Clock,
) -> None:
    async with held(World(no_runtime)) as it:
        await trio.testing.wait_all_tasks_blocked()
        await parked(it)
        os.write(it.sandbox.write_stdout, b"before\n")
        ticket = Ticket(make_invocation(it.environment.function, request_id="id-1"))
        it.environment.dispatch(ticket)
        os.write(it.sandbox.write_stdout, b"x" * 60_000 + b"\n")
        take(it, "id-1")
        tail = ticket.result().log_tail.decode()
    assert "before" not in tail
    assert len(tail) == 4096
    assert tail.splitlines()[-1].startswith("REPORT RequestId: id-1")


async def test_what_was_answered_just_before_the_end_is_reported(autojump_clock: Clock) -> None:
    """The connection calls finish_turn in the same breath; killed in between, nothing is lost either."""
    world = World(no_runtime)
    async with held(world) as it:
        await trio.testing.wait_all_tasks_blocked()
        await parked(it)
        how = {"wants_tail": False, "wants_memory": False, "request_id": "id-1"}
        it.environment.dispatch(Ticket(make_invocation(it.environment.function, **how)))
        take(it, "id-1")
        it.environment.retire()
    assert any(line.startswith("REPORT RequestId: id-1") for line in world.lines)
