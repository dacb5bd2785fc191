"""Owns the polling of one queue for one function: receive, filter, invoke, delete (SPEC 8.4).

Messages are deleted when the function has done them. What it has not done is left alone: the queue gives it out
again after its visibility timeout, and to its own dead-letter queue in the end. So every message is given at
least once, whatever becomes of this server.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from sandbox.errors import CallerError, PlatformFault
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome, new_request_id
from sandbox.sources import batches, filters
from sandbox.sources.batches import Message
from sandbox.sources.filters import Pattern

log = logging.getLogger(__name__)
WAIT_S = 1
"""Long polling: one request waits for that long. Whoever stops a poller waits for the last one to end, so that no
message goes to nobody and is out of sight for the visibility timeout."""
ANSWER_S = 3.0
"""How much longer a queue may take for its answer."""
PER_RECEIVE = 10
"""SQS gives no more at a time."""
AT_ONCE_FIRST, AT_ONCE_MORE_PER_S, AT_ONCE_MOST = 5, 5, 1000
"""Batches at work: five at first, 300 more each minute while batches come full, as on AWS."""
BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 60.0


class QueueProblem(Exception):
    """The queue could not be asked; the message says what was said."""


class NoSuchQueue(QueueProblem):
    pass


class Queue(Protocol):
    """One SQS queue. All raise QueueProblem."""

    async def receive(self, most: int, wait_s: int) -> list[Message]: ...

    async def delete(self, messages: Sequence[Message]) -> None: ...

    async def give_back(self, messages: Sequence[Message]) -> None:
        """Visible again at once."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a mapping asks for."""

    queue_arn: str
    region: str
    function: str
    qualifier: str | None
    function_arn: str
    """As the mapping names it."""
    batch_size: int = 10
    window_s: int = 0
    patterns: tuple[Pattern, ...] = ()
    reports: bool = False
    """ReportBatchItemFailures"""
    at_once_most: int | None = None
    """ScalingConfig.MaximumConcurrency"""


class Poller:
    """Runs until `stop`, then until what it has received is done."""

    def __init__(
        self,
        source: Source,
        queue: Queue,
        *,
        invoke: Callable[[Invocation], Awaitable[Outcome]],
        find: Callable[[str, str | None], FunctionVersion],
        trace_id: Callable[[], str] = lambda: "",
        tell: Callable[[str], None] = lambda problem: None,
    ) -> None:
        """`tell` is told what stands in the way, and "" when nothing does any more."""
        self.source = source
        self._problem = ""
        self._tell = tell
        self._queue = queue
        self._invoke = invoke
        self._find = find
        self._trace_id = trace_id
        self._stop = trio.Event()
        self._at_once = min(AT_ONCE_FIRST, source.at_once_most or AT_ONCE_FIRST)
        self._at_work = 0
        self._grown_at = -math.inf
        self._room = trio.Event()
        self._backoff_s = BACKOFF_FIRST_S
        self._resume_at = -math.inf

    def stop(self) -> None:
        self._stop.set()
        self._room.set()

    async def run(self) -> None:
        try:
            await self._run_until_stopped()
        finally:
            self._well()  # what stood in its way says nothing of the mapping as it will be

    async def _run_until_stopped(self) -> None:
        async with trio.open_nursery() as nursery:
            while not self._stop.is_set():
                await self._pause()
                while self._at_work >= self._at_once and not self._stop.is_set():
                    self._room = trio.Event()
                    await self._room.wait()
                if self._stop.is_set():
                    return
                try:
                    messages = await self._gather()
                    if messages and self._stop.is_set():
                        await self._queue.give_back(messages)
                        return
                except QueueProblem as exc:
                    self._trouble(f"{self.source.queue_arn}: {exc}")
                    continue
                except Exception as exc:
                    log.exception("event source of %s", self.source.function_arn)
                    self._trouble(f"{self.source.queue_arn}: {exc!r}")
                    continue
                if messages:
                    self._at_work += 1
                    nursery.start_soon(self._process, messages)

    async def _pause(self) -> None:
        with trio.move_on_at(self._resume_at):
            await self._stop.wait()

    def _trouble(self, problem: str) -> None:
        if problem != self._problem:
            log.warning(
                "event source of %s: %s; it is tried again", self.source.function_arn, problem
            )
            self._problem = problem
            self._tell(problem)
        self._resume_at = trio.current_time() + self._backoff_s
        self._backoff_s = min(BACKOFF_MOST_S, 2 * self._backoff_s)

    def _well(self) -> None:
        if self._problem:
            self._problem = ""
            self._tell("")
        self._backoff_s = BACKOFF_FIRST_S

    async def _gather(self) -> list[Message]:
        """One batch: what there is, or, with a window, what comes until it is full or the window is over."""
        source = self.source
        found = await self._receive(min(PER_RECEIVE, source.batch_size))
        until = trio.current_time() + source.window_s
        while found and source.window_s and len(found) < source.batch_size:
            left = until - trio.current_time()
            if left <= 0 or self._stop.is_set():
                break
            found += await self._receive(min(PER_RECEIVE, source.batch_size - len(found)))
        if len(found) >= min(PER_RECEIVE, source.batch_size):
            self._grow()
        return found

    async def _receive(self, most: int) -> list[Message]:
        """Not cancelled half-way: what it brings would be out of everybody's sight."""
        found: list[Message] | None = None
        with trio.move_on_after(WAIT_S + ANSWER_S, shield=True):
            found = await self._queue.receive(most, WAIT_S)
        if found is None:
            raise QueueProblem(f"no answer within {WAIT_S + ANSWER_S:g} s")
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:
            with trio.move_on_after(ANSWER_S, shield=True), suppress(QueueProblem):
                await self._queue.give_back(found)
            raise
        return found

    def _grow(self) -> None:
        now, most = trio.current_time(), self.source.at_once_most or AT_ONCE_MOST
        if now - self._grown_at >= 1.0 and self._at_work + 1 >= self._at_once:
            self._at_once = min(most, self._at_once + AT_ONCE_MORE_PER_S)
            self._grown_at = now

    async def _process(self, messages: list[Message]) -> None:
        try:
            await self._do(messages)
        except QueueProblem as exc:
            # They come again, though they are done: at least once.
            self._trouble(f"{self.source.queue_arn}: {exc}")
        except Exception as exc:
            # What one queue gives must not end all the others, and the server.
            log.exception("event source of %s", self.source.function_arn)
            self._trouble(f"{self.source.queue_arn}: {exc!r}")
        finally:
            self._at_work -= 1
            self._room.set()

    async def _do(self, messages: list[Message]) -> None:
        source = self.source
        records = {
            message["MessageId"]: batches.record(
                message, queue_arn=source.queue_arn, region=source.region
            )
            for message in messages
        }
        wanted = {
            id_: one
            for id_, one in records.items()
            if filters.matches(source.patterns, batches.filtered(one))
        }
        # Nobody wants these: AWS deletes them as well.
        await self._delete([one for one in messages if one["MessageId"] not in wanted])
        for payload, ids in batches.events(list(wanted.values())):
            failed = await self._run(payload, ids)
            done = [one for one in messages if one["MessageId"] in set(ids) - failed]
            await self._delete(done)

    async def _delete(self, messages: list[Message]) -> None:
        for at in range(0, len(messages), PER_RECEIVE):
            await self._queue.delete(messages[at : at + PER_RECEIVE])

    async def _run(self, payload: bytes, ids: Sequence[str]) -> frozenset[str]:
        source = self.source
        try:
            function = self._find(source.function, source.qualifier)
            outcome = await self._invoke(
                Invocation(
                    function=function,
                    payload=payload,
                    invoked_arn=source.function_arn,
                    request_id=new_request_id(),
                    trace_id=self._trace_id(),
                    wants_tail=False,
                    wants_memory=False,
                )
            )
        except (CallerError, PlatformFault) as exc:
            self._trouble(f"{source.function} cannot be invoked: {exc}")
            return frozenset(ids)
        self._well()
        return batches.failed(outcome, ids, reports=source.reports)


def source_of(document: dict[str, Any], function: str, qualifier: str | None) -> Source:
    """Of a mapping's document (EventSourceMappingConfiguration)."""
    arn = document["EventSourceArn"]
    found = document.get("FilterCriteria", {}).get("Filters", ())
    return Source(
        queue_arn=arn,
        region=arn.split(":")[3],
        function=function,
        qualifier=qualifier,
        function_arn=document["FunctionArn"],
        batch_size=document["BatchSize"],
        window_s=document.get("MaximumBatchingWindowInSeconds", 0),
        patterns=tuple(filters.parse(one["Pattern"]) for one in found),
        reports="ReportBatchItemFailures" in document.get("FunctionResponseTypes", ()),
        at_once_most=document.get("ScalingConfig", {}).get("MaximumConcurrency"),
    )
