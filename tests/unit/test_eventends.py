"""How accepted events end by their configuration, and who is told: ages, retries, conditions, targets that fail."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.errors import FunctionNotFound, PlatformFault, TooManyRequests
from sandbox.eventconfig import MOST_HOPS, EventConfig, parse_target
from sandbox.eventstore import EventStore, StoreProblem
from sandbox.function import FunctionVersion
from sandbox.invocation import MAX_PAYLOAD, Invocation, Outcome
from sandbox.telling import AT_ONCE, Undelivered
from tests.fakes import make_function, make_invocation
from tests.queues import BAD, DEAD, GOOD, QUEUE, Backend, Receiver, kept, queueing

Clock = trio.testing.MockClock
THROTTLE = TooManyRequests("ConcurrentInvocationLimitExceeded")
DOWN = Undelivered("connection refused")


async def one(
    spool: Path, backend: Backend, config: EventConfig, payload: bytes = b"{}", **how: Any
) -> Receiver:
    """One event, to its very end."""
    receiver: Receiver = how.pop("receiver", None) or Receiver()
    async with queueing(backend, spool, config=config, receiver=receiver, **how) as queue:
        await queue.accept(make_invocation(make_function(), payload))
        await queue.settle()
    assert kept(spool) == 0
    return receiver


async def test_success_is_told_to_its_own_destination(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    backend = Backend(BAD, Outcome("success", b"[1]", executed_version="7"))
    config = EventConfig(on_success=QUEUE, on_failure=DEAD, dead_letter=DEAD)
    receiver = await one(tmp_path, backend, config)
    assert receiver.contexts == [("Success", 2)]
    assert receiver.taken[0].target == QUEUE
    assert receiver.records[0]["responseContext"] == {"statusCode": 200, "executedVersion": "7"}
    assert receiver.records[0]["responsePayload"] == [1]


@pytest.mark.parametrize(("retries", "times"), [(0, [0]), (1, [0, 60]), (2, [0, 60, 180])])
async def test_as_many_retries_as_configured(
    autojump_clock: Clock, tmp_path: Path, retries: int, times: list[float]
) -> None:
    backend = Backend(BAD)
    receiver = await one(tmp_path, backend, EventConfig(retries=retries, on_failure=QUEUE))
    assert backend.times == times
    assert receiver.contexts == [("RetriesExhausted", retries + 1)]
    assert receiver.records[0]["responsePayload"] == {"errorMessage": "no"}


@pytest.mark.parametrize(("age", "times"), [(60, [0, 60]), (90, [0, 60]), (200, [0, 60, 180])])
async def test_no_retry_that_would_come_too_late(
    autojump_clock: Clock, tmp_path: Path, age: int, times: list[float]
) -> None:
    """test_maxeventage as recorded: with 90 s a second attempt and no third, and nobody waits for the age."""
    backend = Backend(BAD)
    receiver = await one(tmp_path, backend, EventConfig(max_age_s=age, on_failure=QUEUE))
    assert backend.times == times
    condition = "EventAgeExceeded" if len(times) < 3 else "RetriesExhausted"
    assert receiver.contexts == [(condition, len(times))]
    assert receiver.times == [times[-1]]
    assert receiver.records[0]["responseContext"]["functionError"] == "Unhandled"


async def test_throttles_back_off_until_the_age(autojump_clock: Clock, tmp_path: Path) -> None:
    backend = Backend(THROTTLE)
    receiver = await one(tmp_path, backend, EventConfig(max_age_s=60, on_failure=QUEUE))
    assert backend.times == [0, 1, 3, 7, 15, 31]
    assert receiver.contexts == [("EventAgeExceeded", 0)]
    assert "responseContext" not in receiver.records[0]


async def test_delays_grow_to_five_minutes(autojump_clock: Clock, tmp_path: Path) -> None:
    backend = Backend(*[PlatformFault("ill")] * 12, GOOD)
    await one(tmp_path, backend, EventConfig())
    delays = [b - a for a, b in zip(backend.times, backend.times[1:], strict=False)]
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]


async def test_an_earlier_answer_stays_in_the_record_when_throttles_end_it(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    backend = Backend(BAD, THROTTLE)
    receiver = await one(tmp_path, backend, EventConfig(max_age_s=120, on_failure=QUEUE))
    assert receiver.contexts == [("EventAgeExceeded", 1)]
    assert receiver.records[0]["responsePayload"] == {"errorMessage": "no"}


async def test_an_event_that_waited_longer_than_configured_does_not_run(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """Behind others, or with no server there. Without a configured age it has its one attempt."""
    async with queueing(Backend(None), tmp_path, wall=lambda: 1e9) as queue:
        await queue.accept(make_invocation(make_function()))
    backend = Backend(GOOD)
    config = EventConfig(max_age_s=60, on_failure=QUEUE)
    receiver = Receiver()
    async with queueing(
        backend, tmp_path, wall=lambda: 1e9 + 61, config=config, receiver=receiver
    ) as queue:
        await queue.settle()
    assert backend.attempts == []
    assert receiver.contexts == [("EventAgeExceeded", 0)]


async def test_reserved_concurrency_zero_ends_it_at_once(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    def find(name: str, qualifier: str | None) -> FunctionVersion:
        return make_function(name, reserved_concurrency=0)

    backend = Backend(GOOD)
    config = EventConfig(on_failure=QUEUE, dead_letter=DEAD)
    receiver = await one(tmp_path, backend, config, find=find)
    assert backend.attempts == []
    assert trio.current_time() == 0
    record, dead = sorted(receiver.taken, key=lambda message: len(message.attributes))
    context = json.loads(record.body)["requestContext"]
    assert (context["condition"], context["approximateInvokeCount"]) == (
        "ZeroReservedConcurrency",
        0,
    )
    assert "responseContext" not in json.loads(record.body)
    assert dead.attributes["ErrorCode"] == ("Number", "429")


async def test_what_does_not_run_waits_for_no_room_to_run_in(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    def find(name: str, qualifier: str | None) -> FunctionVersion:
        return make_function(name, reserved_concurrency=0 if name == "off" else None)

    receiver, config = Receiver(), EventConfig(on_failure=QUEUE)
    async with queueing(Backend(None), tmp_path, find, config=config, receiver=receiver) as queue:
        for _ in range(5):
            await queue.accept(make_invocation(make_function("slow")))
        await queue.accept(make_invocation(make_function("off")))
        await trio.testing.wait_all_tasks_blocked()
        assert receiver.contexts == [("ZeroReservedConcurrency", 0)]


async def test_a_destination_and_a_dead_letter_queue_get_both(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    config = EventConfig(retries=0, on_failure=QUEUE, dead_letter=DEAD)
    receiver = await one(tmp_path, Backend(BAD), config, payload=b'{"a":1}')
    taken = {message.target: message for message in receiver.taken}
    assert json.loads(taken[QUEUE].body)["requestPayload"] == {"a": 1}
    assert taken[DEAD].body == b'{"a":1}'
    assert taken[DEAD].attributes["ErrorMessage"] == ("String", "no")


async def test_the_configuration_is_that_of_the_qualifier_as_it_is_now(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    configs = {"live": EventConfig(retries=2)}

    def config(name: str, qualifier: str | None) -> EventConfig:
        assert qualifier is not None
        return configs[qualifier]

    backend, receiver = Backend(BAD), Receiver()
    arn = make_function().arn("us-east-1", "123456789012") + ":live"
    async with queueing(backend, tmp_path, config=config, receiver=receiver) as queue:
        await queue.accept(make_invocation(make_function(), invoked_arn=arn))
        await trio.sleep(1)
        configs["live"] = EventConfig(retries=1, on_failure=QUEUE)
        await queue.settle()
    assert backend.times == [0, 60]
    assert receiver.records[0]["requestContext"]["functionArn"] == arn


# --- targets that do not take it


async def test_a_target_that_is_down_is_tried_again_with_growing_delays(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(*[DOWN] * 11)
    await one(tmp_path, Backend(GOOD), EventConfig(on_success=QUEUE), receiver=receiver)
    assert receiver.times == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1111]
    assert len(receiver.taken) == 1
    (told,) = caplog.messages  # once, however often it is tried
    assert f"{QUEUE.text} does not take its record, the next try is in 1 s" in told


async def test_after_the_events_age_a_target_is_given_up_with_the_payload_in_the_log(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(*[DOWN] * 1000)
    config = EventConfig(retries=0, max_age_s=60, on_failure=QUEUE)
    await one(tmp_path, Backend(BAD), config, payload=b'"precious"', receiver=receiver)
    assert receiver.times == [0, 1, 3, 7, 15, 31]
    assert "the record of event" in caplog.text
    assert "is lost" in caplog.text
    assert "precious" in caplog.text
    assert "connection refused" in caplog.text


async def test_one_target_that_is_down_keeps_no_other_waiting(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    class Half(Receiver):
        async def __call__(self, message: Any, /) -> None:
            if message.target == QUEUE and trio.current_time() < 100:
                raise DOWN
            await super().__call__(message)

    receiver = Half()
    config = EventConfig(retries=0, on_failure=QUEUE, dead_letter=DEAD)
    await one(tmp_path, Backend(BAD), config, receiver=receiver)
    assert [(time, message.target) for time, message in receiver.tries] == [(0, DEAD), (127, QUEUE)]


async def test_messages_are_made_when_they_can_be_sent(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """A target that hangs is not waited for by thousands of messages in memory."""
    receiver = Receiver(*[None] * 1000)
    async with queueing(
        Backend(GOOD), tmp_path, config=EventConfig(on_success=QUEUE), receiver=receiver
    ) as queue:
        for _ in range(AT_ONCE + 5):
            await queue.accept(make_invocation(make_function()))
        await trio.testing.wait_all_tasks_blocked()
        assert len(receiver.tries) == AT_ONCE
        assert len(queue) == AT_ONCE + 5


async def test_a_record_that_is_too_large_goes_without_payloads(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has them; a dead letter would be nothing without its payload."""

    class Small(Receiver):
        async def __call__(self, message: Any, /) -> None:
            if len(message.body) > 500:
                raise Undelivered("Message must be shorter than 500 bytes.", too_large=True)
            await super().__call__(message)

    config = EventConfig(retries=0, on_failure=QUEUE, dead_letter=DEAD)
    payload = b'"' + b"precious" * 100_000 + b'"'
    receiver = await one(tmp_path, Backend(BAD), config, payload=payload, receiver=Small())
    assert trio.current_time() == 0
    (record,) = receiver.records
    assert list(record) == ["version", "timestamp", "requestContext", "responseContext"]
    slim, lost = sorted(caplog.messages, key=lambda line: "is lost" in line)
    assert "goes to arn:aws:sqs:us-east-1:123456789012:q without payloads" in slim
    assert "the dead letter of event" in lost
    assert all("precious" * 100_000 in line for line in (slim, lost))


async def test_a_function_gets_at_most_what_an_event_may_have(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    chain = Chain(f=Outcome("success", b'"' + b"x" * MAX_PAYLOAD + b'"'))
    config = by_name(f=EventConfig(on_success=parse_target("audit")))
    async with queueing(chain, tmp_path, config=config) as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    record = json.loads(chain.given[1].payload)
    assert record["requestContext"]["condition"] == "Success"
    assert "responsePayload" not in record


async def test_what_is_left_to_tell_is_told_after_a_restart(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """The function does not run again, and who was told is not told again."""

    class Half(Receiver):
        async def __call__(self, message: Any, /) -> None:
            if message.target == QUEUE:
                await trio.sleep_forever()
            await super().__call__(message)

    config = EventConfig(retries=0, on_failure=QUEUE, dead_letter=DEAD)
    async with queueing(Backend(BAD), tmp_path, config=config, receiver=Half()) as queue:
        await queue.accept(make_invocation(make_function(), b'{"a":1}'))
        await trio.testing.wait_all_tasks_blocked()
    backend, receiver = Backend(GOOD), Receiver()
    async with queueing(backend, tmp_path, receiver=receiver) as queue:
        await queue.settle()
    assert backend.attempts == []
    assert [message.target for message in receiver.taken] == [QUEUE]
    assert receiver.records[0]["requestPayload"] == {"a": 1}
    assert receiver.records[0]["responsePayload"] == {"errorMessage": "no"}
    assert kept(tmp_path) == 0


async def test_the_time_to_tell_goes_on_over_a_restart(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    config = EventConfig(retries=0, max_age_s=60, on_failure=QUEUE)
    async with queueing(
        Backend(BAD), tmp_path, wall=lambda: 1e9, config=config, receiver=Receiver(None)
    ) as queue:
        await queue.accept(make_invocation(make_function()))
        await trio.testing.wait_all_tasks_blocked()
    receiver = Receiver(*[DOWN] * 10)
    async with queueing(Backend(GOOD), tmp_path, wall=lambda: 1e9 + 58, receiver=receiver) as queue:
        await queue.settle()
    assert len(receiver.tries) == 2


async def test_a_bug_in_telling_is_no_end_of_the_server(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver(ZeroDivisionError("oh"))
    await one(tmp_path, Backend(GOOD), EventConfig(on_success=QUEUE), receiver=receiver)
    assert receiver.times == [0, 1]
    assert "ZeroDivisionError" in caplog.text


# --- functions as targets


AUDIT = parse_target("arn:aws:lambda:us-east-1:123456789012:function:audit:live")


class Chain:
    """Functions by name: each does as its entry says; what they were given is kept."""

    def __init__(self, **outcomes: Outcome) -> None:
        self.outcomes = outcomes
        self.given: list[Invocation] = []

    async def __call__(self, invocation: Invocation) -> Outcome:
        self.given.append(invocation)
        return self.outcomes.get(invocation.function.name, GOOD)


def by_name(**configs: EventConfig) -> Any:
    return lambda name, qualifier: configs.get(name, EventConfig())


async def test_another_function_gets_the_record_as_its_event(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    chain = Chain(f=Outcome("success", b'"done"'))
    config = by_name(f=EventConfig(on_success=AUDIT))
    first = make_invocation(make_function(), b"[7]", trace_id="Root=1")
    async with queueing(chain, tmp_path, config=config) as queue:
        await queue.accept(first)
        await queue.settle()
    _, second = chain.given
    assert second.invoked_arn == AUDIT.text
    assert second.request_id != first.request_id
    assert second.trace_id == first.trace_id
    record = json.loads(second.payload)
    assert record["requestContext"]["requestId"] == first.request_id
    assert (record["requestPayload"], record["responsePayload"]) == ([7], "done")
    assert kept(tmp_path) == 0


async def ring(spool: Path, config: EventConfig, **how: Any) -> Chain:
    """Two functions that are each other's destination."""
    chain = Chain()
    ways = by_name(
        a=replace(config, on_success=parse_target("b")),
        b=replace(config, on_success=parse_target("a")),
    )
    async with queueing(chain, spool, config=ways, **how) as queue:
        await queue.accept(make_invocation(make_function("a")))
        with trio.move_on_after(1):
            await queue.settle()
    return chain


async def test_an_event_that_goes_round_is_stopped_after_sixteen_hops(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The function that would be the 17th does not run; whoever gets its failures is told."""
    receiver = Receiver()
    config = EventConfig(on_failure=QUEUE, dead_letter=DEAD)
    chain = await ring(tmp_path, config, receiver=receiver)
    names = [invocation.function.name for invocation in chain.given]
    assert names == ["a", "b"] * 8 + ["a"]
    assert len(names) == MOST_HOPS + 1
    assert {message.target for message in receiver.taken} == {QUEUE, DEAD}
    record = next(message for message in receiver.taken if message.target == QUEUE)
    assert json.loads(record.body)["requestContext"]["condition"] == "RecursiveInvocation"
    assert kept(tmp_path) == 0


async def test_what_went_round_goes_to_no_function_any_more(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = await ring(tmp_path, EventConfig(on_failure=parse_target("c")))
    assert "c" not in {invocation.function.name for invocation in chain.given}
    assert "is dropped, it came through 16 functions as a record" in caplog.text


async def test_recursion_can_be_allowed(autojump_clock: Clock, tmp_path: Path) -> None:
    class Slow(Chain):
        async def __call__(self, invocation: Invocation) -> Outcome:
            await trio.sleep(0.01)
            return await super().__call__(invocation)

    chain = Slow()
    ways = by_name(
        a=EventConfig(on_success=parse_target("b"), allows_recursion=True),
        b=EventConfig(on_success=parse_target("a"), allows_recursion=True),
    )
    async with queueing(chain, tmp_path, config=ways) as queue:
        await queue.accept(make_invocation(make_function("a")))
        await trio.sleep(1)
        assert len(chain.given) > 3 * MOST_HOPS


async def test_hops_are_counted_over_a_restart(autojump_clock: Clock, tmp_path: Path) -> None:
    class Stuck(Chain):
        async def __call__(self, invocation: Invocation) -> Outcome:
            if len(self.given) == 10:
                await trio.sleep_forever()
            return await super().__call__(invocation)

    ways = by_name(
        a=EventConfig(on_success=parse_target("b")), b=EventConfig(on_success=parse_target("a"))
    )
    first, second = Stuck(), Chain()
    async with queueing(first, tmp_path, config=ways) as queue:
        await queue.accept(make_invocation(make_function("a")))
        await trio.testing.wait_all_tasks_blocked()
    async with queueing(second, tmp_path, config=ways) as queue:
        await queue.settle()
    assert len(first.given) + len(second.given) == MOST_HOPS + 1


class Commits(EventStore):
    """Refuses while `full`; remembers what each commit held."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "key")
        self.full = False
        self.held: list[tuple[set[str], set[str]]] = []

    def commit(self, put: Mapping[str, str], drop: Collection[str] = (), *, sync: bool) -> None:
        if self.full and put:
            raise StoreProblem("database or disk is full")
        super().commit(put, drop, sync=sync)
        self.held.append((set(put), set(drop)))


async def test_a_function_has_its_record_in_the_commit_that_forgets_the_event(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    store = Commits(tmp_path)
    config = by_name(f=EventConfig(on_success=parse_target("audit")))
    async with queueing(Chain(), tmp_path, config=config, store=store) as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    (event,) = store.held[0][0]
    assert next(put for put, drop in store.held if drop == {event}) - {event}


async def test_a_disk_that_is_full_at_the_hand_over_loses_nothing(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, chain = Commits(tmp_path), Chain()

    async def run(invocation: Invocation) -> Outcome:
        store.full = invocation.function.name == "f"
        return await chain(invocation)

    config = by_name(f=EventConfig(on_success=parse_target("audit")))
    async with queueing(run, tmp_path, config=config, store=store) as queue:
        await queue.accept(make_invocation(make_function()))
        await trio.sleep(4)
        assert [one.function.name for one in chain.given] == ["f"]
        store.full = False
        await queue.settle()
    assert [one.function.name for one in chain.given] == ["f", "audit"]
    assert "audit does not take its record" in caplog.text
    assert kept(tmp_path) == 0


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("arn:aws:lambda:eu-west-1:123456789012:function:audit", "this server's functions are"),
        ("210987654321:function:audit", "this server's functions are those of 123456789012"),
    ],
)
async def test_a_function_that_cannot_have_it_is_not_tried_again(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str, why: str
) -> None:
    chain = Chain()
    config = by_name(f=EventConfig(on_success=parse_target(target)))
    async with queueing(chain, tmp_path, config=config) as queue:
        await queue.accept(make_invocation(make_function(), b'"precious"'))
        await queue.settle()
    assert trio.current_time() == 0
    assert why in caplog.text
    assert "precious" in caplog.text


async def test_a_function_that_is_gone_by_then_is_told_aloud(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def find(name: str, qualifier: str | None) -> FunctionVersion:
        if name == "audit":
            raise FunctionNotFound(name)
        return make_function(name)

    config = by_name(f=EventConfig(on_success=parse_target("audit")))
    async with queueing(Chain(), tmp_path, find, config=config) as queue:
        await queue.accept(make_invocation(make_function(), b'"precious"'))
        await queue.settle()
    assert "audit is dropped, the function is gone" in caplog.text
    assert "precious" in caplog.text
