"""Owns accepted Event invocations: on disk before they are accepted, run later, retried as AWS does.

SPEC 8.1: a function error is retried twice, after one and two more minutes; a throttle or a fault of
ours goes back to the queue with a growing delay until the event is six hours old. What has not ended
when the server ends, however it does, is taken up by the next: an event may run twice but is not lost.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from sandbox.errors import CallerError, FunctionNotFound, PlatformFault
from sandbox.eventjournal import LAST_WRITE_S, Aside, Journal, Store, in_a_thread
from sandbox.eventstore import StoreProblem
from sandbox.function import FunctionVersion
from sandbox.ids import token
from sandbox.invocation import Invocation, Outcome

log = logging.getLogger(__name__)
MAX_AGE_S = 6 * 3600.0
RETRY_S = 60.0
RETRY_TIMES = (1, 2)
"""Seconds before the second attempt after a function error, and how many times that before the second and third."""
BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 300.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """One event in the queue."""

    invocation: Invocation
    accepted_at: float
    """Unix seconds, so that it means something after a restart."""
    since: float
    """The same moment on trio's clock, which nobody sets: what its age is counted from."""
    attempts: int = 0
    """Attempts that ended in a function error."""


class AsyncQueue:
    """Runs accepted events, at most `concurrency` at once."""

    def __init__(
        self,
        invoke: Callable[[Invocation], Awaitable[Outcome]],
        find: Callable[[str, str | None], FunctionVersion],
        journal: Journal,
        nursery: trio.Nursery,
        *,
        wall: Callable[[], float],
        concurrency: int,
        retry_s: float = RETRY_S,
    ) -> None:
        self._invoke = invoke
        self._find = find
        self._journal = journal
        self._nursery = nursery
        self._wall = wall
        self._slots = trio.CapacityLimiter(concurrency)
        self._retry_s = retry_s
        self._open: dict[str, Accepted] = {}
        self._settled = trio.Event()
        self.stopped = False
        """What is accepted from now on is the next server's."""

    def __len__(self) -> int:
        return len(self._open)

    async def accept(self, invocation: Invocation) -> None:
        """Take an event. Once this returned it is on disk, and ends in a result or in its retries.

        Raises PlatformFault when the disk does not take it: then it never runs.
        """
        key = token(16)
        accepted = Accepted(invocation, self._wall(), trio.current_time())
        try:
            await self._journal.add(key, _to_text(accepted), lambda: self._take(key, accepted))
        except StoreProblem as exc:
            log.error("an event is refused: %s", exc)
            raise PlatformFault(f"the event cannot be kept: {exc}") from exc

    def _take(self, key: str, accepted: Accepted) -> None:
        if self.stopped:
            return
        self._open[key] = accepted
        self._nursery.start_soon(self._run, key)

    async def _run(self, key: str) -> None:
        backoff = BACKOFF_FIRST_S
        while True:
            accepted = self._open[key]
            delay: float | None
            try:
                async with self._slots:
                    outcome = await self._invoke(self._refreshed(accepted.invocation))
            except FunctionNotFound as exc:
                self._give_up(accepted, f"the function is gone: {exc}")
                delay = None
            except (CallerError, PlatformFault) as exc:
                log.info("event %s waits: %s", accepted.invocation.request_id, exc)
                delay, backoff = backoff, min(BACKOFF_MOST_S, backoff * 2)
            else:
                delay = self._after(key, accepted, outcome)
            if delay is not None and trio.current_time() + delay - accepted.since > MAX_AGE_S:
                self._give_up(accepted, "it is older than six hours")
                delay = None
            if delay is None:
                self._ended(key)
                return
            await trio.sleep(delay)

    def _after(self, key: str, accepted: Accepted, outcome: Outcome) -> float | None:
        """Seconds until the next attempt, or None when the event has ended."""
        if outcome.status == "success":
            return None
        if accepted.attempts >= len(RETRY_TIMES):
            self._give_up(accepted, f"its retries are used up: {outcome.error_type}")
            return None
        changed = self._open[key] = replace(accepted, attempts=accepted.attempts + 1)
        self._journal.change(key, _to_text(changed))
        return self._retry_s * RETRY_TIMES[accepted.attempts]

    def _refreshed(self, invocation: Invocation) -> Invocation:
        """SPEC 7: queued events run on the new code; an alias may have moved meanwhile."""
        function = self._find(invocation.function.name, invocation.qualifier)
        return replace(invocation, function=function)

    def _give_up(self, accepted: Accepted, why: str) -> None:
        log.error(
            "event %s of %s is dropped, %s; payload: %r",
            accepted.invocation.request_id,
            accepted.invocation.function.name,
            why,
            accepted.invocation.payload[:1024],
        )

    def _ended(self, key: str) -> None:
        del self._open[key]
        self._journal.drop(key)
        if not self._open:
            self._settled.set()
            self._settled = trio.Event()

    async def settle(self) -> None:
        """Returns when every accepted event has ended (events between retries count as open)."""
        while self._open:
            await self._settled.wait()

    def take_up(self, found: dict[str, str]) -> int:
        """Take up what an earlier server left. Returns how many events that were."""
        for key, text in found.items():
            try:
                self._take(key, _from_text(text, self._wall()))
            except (ValueError, KeyError, TypeError) as exc:
                log.error("no event can be read: %s: %s", exc, text[:1024])
                self._journal.drop(key)
        return len(self._open)


def _to_text(accepted: Accepted) -> str:
    invocation = accepted.invocation
    row = {
        "function": invocation.function.name,
        "payload": base64.b64encode(invocation.payload).decode(),
        "invoked_arn": invocation.invoked_arn,
        "request_id": invocation.request_id,
        "content_type": invocation.content_type,
        "trace_id": invocation.trace_id,
        "accepted_at": accepted.accepted_at,
        "attempts": accepted.attempts,
    }
    return json.dumps(row)


def _from_text(text: str, now: float) -> Accepted:
    row: dict[str, Any] = json.loads(text)
    accepted_at = float(row["accepted_at"])
    return Accepted(
        Invocation(
            # Only the name matters: what the function is now is looked up before each attempt.
            function=FunctionVersion(row["function"], "", "", Path(), ""),
            payload=base64.b64decode(row["payload"]),
            invoked_arn=row["invoked_arn"],
            request_id=row["request_id"],
            content_type=row["content_type"],
            trace_id=row["trace_id"],
            kind="Event",
        ),
        accepted_at=accepted_at,
        since=trio.current_time() - max(0.0, now - accepted_at),
        attempts=int(row["attempts"]),
    )


@asynccontextmanager
async def open_queue(
    invoke: Callable[[Invocation], Awaitable[Outcome]],
    find: Callable[[str, str | None], FunctionVersion],
    store: Store,
    *,
    wall: Callable[[], float],
    concurrency: int,
    retry_s: float = RETRY_S,
    aside: Aside = in_a_thread,
) -> AsyncIterator[AsyncQueue]:
    """A queue that takes up at once what an earlier server left, and leaves to the next what has not ended."""
    journal = Journal(store, aside)
    async with trio.open_nursery() as writing:
        writing.start_soon(journal.run)
        try:
            async with trio.open_nursery() as nursery:
                queue = AsyncQueue(
                    *(invoke, find, journal, nursery),
                    wall=wall,
                    concurrency=concurrency,
                    retry_s=retry_s,
                )
                await _take_up(queue, journal)
                try:
                    yield queue
                finally:
                    left = len(queue)
                    queue.stopped = True
                    nursery.cancel_scope.cancel()
            if left:
                log.warning("%d accepted events are kept for the next start", left)
        finally:
            with trio.move_on_after(LAST_WRITE_S, shield=True):
                await journal.finish()
            journal.abandon()


async def _take_up(queue: AsyncQueue, journal: Journal) -> None:
    try:
        taken = queue.take_up(await journal.take_up())
    except StoreProblem as exc:
        log.error("accepted events of the last server cannot be read: %s", exc)
    else:
        if taken:
            log.warning("%d accepted events from before the last stop are run now", taken)
