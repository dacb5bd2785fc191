"""Owns accepted Event invocations: on disk before they are accepted, run later, retried as AWS does.

SPEC 8.1: a function error is retried up to twice, after one and two more minutes; a throttle or a fault of
ours goes back to the queue with a growing delay until the event is too old. How it ended is told to its
destinations (`telling.py`), and only then is it forgotten. What has not ended when the server ends, however
it does, is taken up by the next: an event may run twice but is not lost.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import trio

from sandbox.destinations import Message
from sandbox.errors import CallerError, FunctionNotFound, PlatformFault
from sandbox.eventconfig import MOST_HOPS, NOTHING, EventConfig
from sandbox.eventjournal import LAST_WRITE_S, Aside, Journal, Store, in_a_thread
from sandbox.eventstore import StoreProblem
from sandbox.function import FunctionVersion
from sandbox.ids import token
from sandbox.invocation import Invocation, Outcome
from sandbox.queued import (
    Accepted,
    Condition,
    Drop,
    Ended,
    Response,
    drops_of,
    from_text,
    to_text,
    without,
)
from sandbox.telling import Deliver, Teller, Undelivered, shown

log = logging.getLogger(__name__)
RETRY_S = 60.0
RETRY_TIMES = (1, 2)
"""Seconds before the second attempt after a function error, and how many times that before the second and third."""
BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 300.0
THROTTLED = Response(429, b"Rate Exceeded.")


def _no_config(name: str, qualifier: str | None) -> EventConfig:
    return NOTHING


async def _nowhere(message: Message) -> NoReturn:
    raise Undelivered("nothing is sent from here")


@dataclass(frozen=True, slots=True)
class Rules:
    """What an AsyncQueue goes by, and what it tells of ends with."""

    concurrency: int
    """Most attempts at once."""
    retry_s: float = RETRY_S
    config: Callable[[str, str | None], EventConfig] = _no_config
    """(function, qualifier) -> what is configured. May raise FunctionNotFound: nothing is."""
    deliver: Deliver = _nowhere


class AsyncQueue:
    """Runs accepted events. `open_queue` makes it."""

    def __init__(
        self,
        invoke: Callable[[Invocation], Awaitable[Outcome]],
        find: Callable[[str, str | None], FunctionVersion],
        journal: Journal,
        nursery: trio.Nursery,
        *,
        wall: Callable[[], float],
        rules: Rules,
        aside: Aside = in_a_thread,
    ) -> None:
        self._invoke = invoke
        self._find = find
        self._journal = journal
        self._nursery = nursery
        self._wall = wall
        self._slots = trio.CapacityLimiter(rules.concurrency)
        self._rules = rules
        self._open: dict[str, Accepted] = {}
        self._teller = Teller(self, rules.deliver, aside)
        self._settled = trio.Event()
        self.stopped = False
        """What is accepted from now on is the next server's."""

    def __len__(self) -> int:
        return len(self._open)

    async def accept(self, invocation: Invocation) -> None:
        """Take an event. Once this returned it is on disk, and ends in a result or in its retries.

        Raises PlatformFault when the disk does not take it: then it never runs.
        """
        try:
            await self._add(Accepted(invocation, self._wall(), trio.current_time()))
        except StoreProblem as exc:
            log.error("an event is refused: %s", exc)
            raise PlatformFault(f"the event cannot be kept: {exc}") from exc

    async def _add(self, accepted: Accepted, changes: dict[str, str | None] | None = None) -> None:
        key = token(16)
        taken = partial(self._take, key, accepted)
        await self._journal.add(key, to_text(accepted), taken, changes or {})

    def _take(self, key: str, accepted: Accepted) -> None:
        if self.stopped:
            return
        self._open[key] = accepted
        self._nursery.start_soon(self._run, key)

    async def _run(self, key: str) -> None:
        try:
            if self._open[key].ended is None:
                await self._attempts(key)
            if self._open[key].ended is not None:
                await self._teller.tell(key)
        except Exception:
            # One event's unforeseen trouble must not end all others, and the server at each of its starts.
            accepted = self._open[key]
            log.exception("event %s is left for the next start", accepted.invocation.request_id)
            self._forget(key)
        else:
            self._finish(key)

    # --- running it

    async def _attempts(self, key: str) -> None:
        """Until it has ended; then `ended` says how, if somebody is to be told."""
        backoff = BACKOFF_FIRST_S
        while True:
            try:
                # What does not run need not wait for room to run in.
                if self._to_run(key) is None:
                    return
                async with self._slots:
                    delay = await self._attempt(key)
            except FunctionNotFound as exc:
                self._give_up(self._open[key], f"the function is gone: {exc}")
                return
            except (CallerError, PlatformFault) as exc:
                accepted = self._open[key]
                log.info("event %s waits: %s", accepted.invocation.request_id, exc)
                delay, backoff = backoff, min(BACKOFF_MOST_S, backoff * 2)
                if accepted.response is None or not accepted.response.answered:
                    refused = _refused(exc)
                    self._open[key] = replace(accepted, response=refused)
            if delay is None:
                return
            accepted = self._open[key]
            config = self._config(accepted)
            if trio.current_time() + delay - accepted.since > config.most_age_s:
                self._end(key, accepted, "EventAgeExceeded", config)
                return
            await trio.sleep(delay)

    async def _attempt(self, key: str) -> float | None:
        """Seconds until the next one, or None when the event has ended. Raises what `invoke` raises."""
        invocation = self._to_run(key)
        return None if invocation is None else self._after(key, await self._invoke(invocation))

    def _to_run(self, key: str) -> Invocation | None:
        """As it would run now. None: it has ended instead. Raises what `find` raises."""
        accepted = self._open[key]
        invocation = self._refreshed(accepted.invocation)
        config = self._config(accepted)
        age_s = trio.current_time() - accepted.since
        if invocation.function.reserved_concurrency == 0:
            self._end(key, replace(accepted, response=THROTTLED), "ZeroReservedConcurrency", config)
        elif accepted.hops > MOST_HOPS and not config.allows_recursion:
            self._end(key, accepted, "RecursiveInvocation", config)
        elif config.max_age_s is not None and age_s > config.max_age_s:
            self._end(key, accepted, "EventAgeExceeded", config)
        else:
            return invocation
        return None

    def _after(self, key: str, outcome: Outcome) -> float | None:
        before = self._open[key]
        config = self._config(before)
        failed = outcome.status != "success"
        response = Response(200, outcome.payload, outcome.executed_version, failed)
        accepted = replace(before, attempts=before.attempts + 1, response=response)
        if not failed:
            self._end(key, accepted, "Success", config)
            return None
        if before.attempts >= config.most_retries:
            self._end(key, accepted, "RetriesExhausted", config, outcome.error_type)
            return None
        if not drops_of("EventAgeExceeded", config):
            accepted = replace(accepted, response=None)  # nobody will ask for it
        self._change(key, accepted)
        return self._rules.retry_s * RETRY_TIMES[before.attempts]

    def _refreshed(self, invocation: Invocation) -> Invocation:
        """SPEC 7: queued events run on the new code; an alias may have moved meanwhile."""
        function = self._find(invocation.function.name, invocation.qualifier)
        return replace(invocation, function=function)

    def _config(self, accepted: Accepted) -> EventConfig:
        try:
            return self._rules.config(accepted.name, accepted.invocation.qualifier)
        except CallerError:  # gone, or broken: the attempt says so
            return NOTHING

    # --- its end

    def _end(
        self,
        key: str,
        accepted: Accepted,
        condition: Condition,
        config: EventConfig,
        error: str = "",
    ) -> None:
        drops = drops_of(condition, config)
        if not drops:
            if condition != "Success":
                self._give_up(accepted, _why(condition, config, error))
            return
        if condition != "Success":
            log.info(
                "event %s of %s has failed, %s; this goes to %s",
                accepted.invocation.request_id,
                accepted.name,
                _why(condition, config, error),
                ", ".join(drop.target.text for drop in drops),
            )
        ended = Ended(condition, self._wall(), trio.current_time(), config.most_age_s, drops)
        self._change(key, replace(accepted, ended=ended))

    def _give_up(self, accepted: Accepted, why: str) -> None:
        log.error(
            "event %s of %s is dropped, %s; payload: %s",
            accepted.invocation.request_id,
            accepted.name,
            why,
            shown(accepted.invocation.payload),
        )

    def _finish(self, key: str) -> None:
        self._journal.drop(key)
        self._forget(key)

    def _forget(self, key: str) -> None:
        del self._open[key]
        if not self._open:
            self._settled.set()
            self._settled = trio.Event()

    def _change(self, key: str, accepted: Accepted) -> None:
        self._open[key] = accepted
        self._journal.change(key, to_text(accepted))

    # --- what the teller asks (`telling.Book`)

    def ended(self, key: str) -> Accepted:
        return self._open[key]

    def told(self, key: str, drop: Drop) -> None:
        accepted = without(self._open[key], drop)
        self._open[key] = accepted
        if accepted.ended is not None and accepted.ended.left:
            self._journal.change(key, to_text(accepted))

    async def hand_over(self, key: str, drop: Drop, event: Accepted) -> None:
        rest = without(self._open[key], drop)
        last = rest.ended is None or not rest.ended.left
        await self._add(event, {key: None if last else to_text(rest)})

    # --- the whole

    @property
    def now(self) -> float:
        """Unix seconds."""
        return self._wall()

    async def settle(self) -> None:
        """Returns when every accepted event has ended (events between retries count as open)."""
        while self._open:
            await self._settled.wait()

    def take_up(self, found: dict[str, str]) -> int:
        """Take up what an earlier server left. Returns how many events that were."""
        for key, text in found.items():
            try:
                self._take(key, from_text(text, self._wall()))
            except (ValueError, KeyError, TypeError) as exc:
                log.error("no event can be read: %s: %s", exc, text[:1024])
                self._journal.drop(key)
        return len(self._open)


def _refused(exc: CallerError | PlatformFault) -> Response:
    status = exc.status if isinstance(exc, CallerError) else 500
    return Response(status, str(exc).encode())


def _why(condition: Condition, config: EventConfig, error: str) -> str:
    match condition:
        case "RetriesExhausted":
            return f"its retries are used up: {error}"
        case "EventAgeExceeded":
            hours = "six hours" if config.max_age_s is None else f"{config.max_age_s:g} s"
            return f"it is older than {hours}"
        case "ZeroReservedConcurrency":
            return "the function's reserved concurrency is 0"
        case _:
            return f"it came through {MOST_HOPS} functions as a record"


@asynccontextmanager
async def open_queue(
    invoke: Callable[[Invocation], Awaitable[Outcome]],
    find: Callable[[str, str | None], FunctionVersion],
    store: Store,
    *,
    wall: Callable[[], float],
    rules: Rules,
    aside: Aside = in_a_thread,
) -> AsyncIterator[AsyncQueue]:
    """A queue that takes up at once what an earlier server left, and leaves to the next what has not ended."""
    journal = Journal(store, aside)
    async with trio.open_nursery() as writing:
        writing.start_soon(journal.run)
        try:
            async with trio.open_nursery() as nursery:
                queue = AsyncQueue(
                    *(invoke, find, journal, nursery), wall=wall, rules=rules, aside=aside
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
