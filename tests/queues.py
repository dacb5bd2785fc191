"""Queues of events on a virtual clock, with functions and targets that do as they are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from sandbox.asyncqueue import AsyncQueue, Rules, open_queue
from sandbox.destinations import Message
from sandbox.eventconfig import NOTHING, EventConfig, parse_target
from sandbox.eventstore import EventStore
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome
from tests.fakes import find_any

GOOD = Outcome("success")
BAD = Outcome("error", b'{"errorMessage":"no"}', error_type="Boom")
QUEUE = parse_target("arn:aws:sqs:us-east-1:123456789012:q")
DEAD = parse_target("arn:aws:sns:us-east-1:123456789012:dead")


class Backend:
    """Answers attempt by attempt from `plan` (the last entry for ever); None hangs."""

    def __init__(self, *plan: Outcome | Exception | None) -> None:
        self.plan = list(plan)
        self.attempts: list[tuple[float, Invocation]] = []

    async def __call__(self, invocation: Invocation) -> Outcome:
        self.attempts.append((trio.current_time(), invocation))
        step = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        if step is None:
            await trio.sleep_forever()
        if isinstance(step, Exception):
            raise step
        assert step is not None
        return step

    @property
    def times(self) -> list[float]:
        return [round(time, 3) for time, _ in self.attempts]


class Receiver:
    """Stands for all targets: takes a message, or fails as `plan` says, try by try; None hangs."""

    def __init__(self, *plan: Exception | None) -> None:
        self.plan = list(plan)
        self.tries: list[tuple[float, Message]] = []
        self.taken: list[Message] = []

    async def __call__(self, message: Message, /) -> None:
        self.tries.append((round(trio.current_time(), 3), message))
        if self.plan:
            step = self.plan.pop(0)
            if step is None:
                await trio.sleep_forever()
            assert step is not None
            raise step
        self.taken.append(message)

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.tries]

    @property
    def records(self) -> list[Any]:
        return [json.loads(message.body) for message in self.taken]

    @property
    def contexts(self) -> list[tuple[str, int]]:
        """Condition and count of each record that was taken."""
        found = (record["requestContext"] for record in self.records)
        return [(one["condition"], one["approximateInvokeCount"]) for one in found]


@asynccontextmanager
async def queueing(
    backend: Callable[[Invocation], Any],
    spool: Path,
    find: Callable[[str, str | None], FunctionVersion] = find_any,
    wall: Callable[[], float] = trio.current_time,
    *,
    config: EventConfig | Callable[[str, str | None], EventConfig] = NOTHING,
    receiver: Receiver | None = None,
    store: EventStore | None = None,
    **rules: Any,
) -> AsyncIterator[AsyncQueue]:
    rules["config"] = config if callable(config) else lambda name, qualifier: config
    if receiver is not None:
        rules["deliver"] = receiver
    async with open_queue(
        backend,
        find,
        store or EventStore(spool, "key"),
        wall=wall,
        rules=Rules(concurrency=2, **rules),
        aside=at_once,
    ) as queue:
        yield queue


async def at_once(call: Callable[[], Any]) -> Any:
    """In place of a thread, during which the clock would jump."""
    await trio.lowlevel.checkpoint()
    return call()


def kept(spool: Path) -> int:
    store = EventStore(spool, "key")
    try:
        return len(store.take_up())
    finally:
        store.close()
