"""Polling, on a clock that jumps: batches, windows, partial failures, throttles, stopping."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sandbox.errors import TooManyRequests
from sandbox.function import FunctionVersion
from sandbox.invocation import MAX_PAYLOAD, Invocation, Outcome
from sandbox.sources import batches
from sandbox.sources.batches import Message
from sandbox.sources.filters import parse
from sandbox.sources.poller import Poller, QueueProblem, Source

ARN = "arn:aws:sqs:us-east-1:123456789012:work"
FUNCTION = FunctionVersion("worker", "python3.11", "index.handler", Path("/code"), "r1")


def source(**changes: Any) -> Source:
    given: dict[str, Any] = {
        "queue_arn": ARN,
        "region": "us-east-1",
        "function": "worker",
        "qualifier": None,
        "function_arn": FUNCTION.arn("us-east-1", "123456789012"),
        **changes,
    }
    return Source(**given)


class ClockedQueue:
    """A queue with visibility on trio's clock: SQS's rules, whose real times no test waits for."""

    def __init__(self, visibility_s: float = 30.0) -> None:
        self.visibility_s = visibility_s
        self.messages: dict[str, tuple[str, float]] = {}
        self.received: dict[str, int] = {}
        self.problem: QueueProblem | None = None
        self.asked = 0

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.messages[f"m{len(self.received) + len(self.messages)}-{body}"] = (body, 0.0)

    async def receive(self, most: int, wait_s: int) -> list[Message]:
        self.asked += 1
        with trio.move_on_after(wait_s):
            while True:
                if self.problem:
                    raise self.problem
                now = trio.current_time()
                seen = [key for key, (_, at) in self.messages.items() if at <= now][:most]
                if seen:
                    return [self._give(key, now) for key in seen]
                await trio.sleep(0.05)
        return []

    def _give(self, key: str, now: float) -> Message:
        body = self.messages[key][0]
        self.messages[key] = body, now + self.visibility_s
        self.received[key] = self.received.get(key, 0) + 1
        return {
            "MessageId": key,
            "ReceiptHandle": key,
            "Body": body,
            "Attributes": {"ApproximateReceiveCount": str(self.received[key])},
            "MD5OfBody": "",
        }

    async def delete(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.messages.pop(message["ReceiptHandle"], None)

    async def give_back(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.messages[message["ReceiptHandle"]] = message["Body"], 0.0


class Engine:
    def __init__(self, answer: Callable[[list[str]], Outcome | Awaitable[Outcome]]) -> None:
        self.answer = answer
        self.batches: list[list[str]] = []
        self.at_work = 0
        self.most = 0

    async def invoke(self, invocation: Invocation) -> Outcome:
        bodies = [one["body"] for one in json.loads(invocation.payload)["Records"]]
        self.batches.append(bodies)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            found = self.answer(bodies)
            return found if isinstance(found, Outcome) else await found
        finally:
            self.at_work -= 1


def ok(payload: bytes = b"null") -> Callable[[list[str]], Outcome]:
    return lambda bodies: Outcome("success", payload)


async def polled(queue: ClockedQueue, engine: Engine, seconds: float, **changes: Any) -> list[str]:
    """What the poller told of problems meanwhile."""
    told: list[str] = []
    poller = Poller(
        source(**changes),
        queue,
        invoke=engine.invoke,
        find=lambda name, qualifier: FUNCTION,
        tell=told.append,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        await trio.sleep(seconds)
        poller.stop()
    return told


async def test_done_messages_are_deleted(autojump_clock: MockClock) -> None:
    queue, engine = ClockedQueue(), Engine(ok())
    queue.send(*map(str, range(25)))
    await polled(queue, engine, 5)
    assert queue.messages == {}
    assert [len(one) for one in engine.batches] == [10, 10, 5]


async def test_what_fails_comes_again_after_the_visibility_timeout(
    autojump_clock: MockClock,
) -> None:
    answers = iter(["error", "timeout", "success"])
    queue = ClockedQueue(visibility_s=30)
    engine = Engine(lambda bodies: Outcome(next(answers)))  # type: ignore[arg-type]
    queue.send("a", "b")
    await polled(queue, engine, 80)
    assert engine.batches == [["a", "b"]] * 3
    assert queue.messages == {}


async def test_a_partial_failure_brings_back_what_failed(autojump_clock: MockClock) -> None:
    queue = ClockedQueue(visibility_s=10)
    seen: list[list[str]] = []

    def answer(bodies: list[str]) -> Outcome:
        seen.append(bodies)
        bad = [key for key in queue.messages if key.endswith("bad")] if len(seen) == 1 else []
        report = {"batchItemFailures": [{"itemIdentifier": one} for one in bad]}
        return Outcome("success", json.dumps(report).encode())

    queue.send("good", "bad", "fine")
    await polled(queue, Engine(answer), 25, reports=True)
    assert seen == [["good", "bad", "fine"], ["bad"]]
    assert queue.messages == {}


async def test_what_stood_in_the_way_is_not_told_of_a_mapping_that_was_changed(
    autojump_clock: MockClock,
) -> None:
    queue = ClockedQueue()
    queue.problem = QueueProblem("not there")
    told = await polled(queue, Engine(ok()), 3)
    assert told == [f"{ARN}: not there", ""]


async def test_what_a_queue_never_gives_ends_nothing(autojump_clock: MockClock) -> None:
    class Odd(ClockedQueue):
        async def receive(self, most: int, wait_s: int) -> list[Message]:
            found = await super().receive(most, wait_s)
            if self.asked == 1:
                raise TypeError("that is no answer")
            return [{"Body": "no MessageId"}] if self.asked == 2 else found

    queue, engine = Odd(visibility_s=1), Engine(ok())
    queue.send("a")
    told = await polled(queue, engine, 20)
    assert [text.partition(": ")[2] for text in told] == [
        "TypeError('that is no answer')",
        "KeyError('MessageId')",
        "",
    ]
    assert (engine.batches, queue.messages) == ([["a"]], {})


async def test_a_window_gathers_a_large_batch(autojump_clock: MockClock) -> None:
    queue, engine = ClockedQueue(), Engine(ok())
    queue.send(*map(str, range(35)))
    await polled(queue, engine, 4, batch_size=100, window_s=2)
    assert [len(one) for one in engine.batches] == [35]


async def test_no_more_batches_at_once_than_maximum_concurrency(
    autojump_clock: MockClock,
) -> None:
    async def slow(bodies: list[str]) -> Outcome:
        await trio.sleep(1)
        return Outcome("success")

    queue, engine = ClockedQueue(), Engine(slow)
    queue.send(*map(str, range(12)))
    await polled(queue, engine, 10, batch_size=1, at_once_most=2)
    assert (engine.most, queue.messages) == (2, {})


async def test_full_batches_bring_more_at_once(autojump_clock: MockClock) -> None:
    async def slow(bodies: list[str]) -> Outcome:
        await trio.sleep(3)
        return Outcome("success")

    queue, engine = ClockedQueue(), Engine(slow)
    queue.send(*map(str, range(60)))
    await polled(queue, engine, 20, batch_size=1)
    assert engine.most > 5
    assert queue.messages == {}


async def test_unwanted_messages_are_deleted_unseen(autojump_clock: MockClock) -> None:
    queue, engine = ClockedQueue(), Engine(ok())
    queue.send('{"kind": "x"}', '{"kind": "y"}', "plain")
    await polled(queue, engine, 3, patterns=(parse('{"body": {"kind": ["x"]}}'),))
    assert engine.batches == [['{"kind": "x"}']]
    assert queue.messages == {}


async def test_a_throttled_batch_is_given_back_and_the_poller_slows_down(
    autojump_clock: MockClock,
) -> None:
    throttled = True

    def answer(bodies: list[str]) -> Outcome:
        if throttled:
            raise TooManyRequests("ReservedFunctionConcurrentInvocationLimitExceeded")
        return Outcome("success")

    queue, engine = ClockedQueue(visibility_s=1), Engine(answer)
    queue.send("a")
    told = await polled(queue, engine, 60)
    assert 4 <= len(engine.batches) <= 8
    assert told == ["worker cannot be invoked: Rate Exceeded.", ""]
    throttled = False
    await polled(queue, engine, 10)
    assert queue.messages == {}


async def test_a_queue_that_is_away_is_asked_ever_more_seldom(autojump_clock: MockClock) -> None:
    queue, engine = ClockedQueue(), Engine(ok())
    queue.problem = QueueProblem("nobody answers")
    told = await polled(queue, engine, 120)
    assert told == [f"{ARN}: nobody answers", ""]
    assert queue.asked < 10


async def test_what_is_received_while_stopping_is_given_back(autojump_clock: MockClock) -> None:
    queue, engine = ClockedQueue(visibility_s=600), Engine(ok())

    async with trio.open_nursery() as nursery:
        poller = Poller(
            source(), queue, invoke=engine.invoke, find=lambda name, qualifier: FUNCTION
        )
        nursery.start_soon(poller.run)
        await trio.sleep(0.5)
        poller.stop()
        queue.send("late")
    assert engine.batches == []
    assert [at for _, at in queue.messages.values()] == [0.0]


async def test_what_is_received_while_the_server_ends_is_given_back(
    autojump_clock: MockClock,
) -> None:
    queue, engine = ClockedQueue(visibility_s=600), Engine(ok())
    async with trio.open_nursery() as nursery:
        poller = Poller(
            source(), queue, invoke=engine.invoke, find=lambda name, qualifier: FUNCTION
        )
        nursery.start_soon(poller.run)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
        queue.send("late")
    assert engine.batches == []
    assert list(queue.messages.values()) == [("late", 0.0)]
    assert list(queue.received.values()) == [1]


async def test_a_queue_that_never_answers_does_not_hold_up_the_end(
    autojump_clock: MockClock,
) -> None:
    class Silent(ClockedQueue):
        async def receive(self, most: int, wait_s: int) -> list[Message]:
            await trio.sleep_forever()
            raise AssertionError

    began = trio.current_time()
    with trio.move_on_after(0.5):
        await Poller(
            source(), Silent(), invoke=Engine(ok()).invoke, find=lambda name, qualifier: FUNCTION
        ).run()
    assert trio.current_time() - began < 5


@pytest.mark.parametrize(
    ("payload", "failed"),
    [
        (b"", set()),
        (b"null", set()),
        (b'""', set()),
        (b"{}", set()),
        (b'{"batchItemFailures": null}', set()),
        (b'{"batchItemFailures": []}', set()),
        (b'{"batchItemFailures": [{"itemIdentifier": "b"}]}', {"b"}),
        (b'{"batchItemFailures": [{"itemIdentifier": ""}]}', {"a", "b"}),
        (b'{"batchItemFailures": [{"itemIdentifier": null}]}', {"a", "b"}),
        (b'{"batchItemFailures": [{"id": "b"}]}', {"a", "b"}),
        (b'{"batchItemFailures": [{"itemIdentifier": "z"}]}', {"a", "b"}),
        (b'{"batchItemFailures": ["b"]}', {"a", "b"}),
        (b'{"batchItemFailures": "b"}', {"a", "b"}),
        (b"{not json", {"a", "b"}),
        (b"[]", {"a", "b"}),
    ],
)
def test_what_a_report_says(payload: bytes, failed: set[str]) -> None:
    outcome = Outcome("success", payload)
    assert batches.failed(outcome, ["a", "b"], reports=True) == failed
    assert batches.failed(outcome, ["a", "b"], reports=False) == set()


def test_a_batch_that_is_too_large_is_several_invocations() -> None:
    large = [
        batches.record(
            {"MessageId": str(n), "ReceiptHandle": "r", "Body": "x" * 1_000_000, "MD5OfBody": ""},
            queue_arn=ARN,
            region="us-east-1",
        )
        for n in range(10)
    ]
    made = batches.events(large)
    assert [len(ids) for _, ids in made] == [6, 4]
    assert all(len(payload) <= MAX_PAYLOAD for payload, _ in made)
    assert sum((len(json.loads(payload)["Records"]) for payload, _ in made), 0) == 10
