"""Owns the telling of how events ended, target by target, until each has taken it or there is no more hope.

A target that does not take it is tried again with growing delays, for as long as the event itself could have
waited (MaximumEventAgeInSeconds), counted from its end. Then it is logged, payload and all: never silence.

    Undelivered         a target did not take it; the message says why
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

import trio

from sandbox.destinations import Message, large, render
from sandbox.eventconfig import BadTarget, Target
from sandbox.eventjournal import Aside
from sandbox.eventstore import StoreProblem
from sandbox.invocation import MAX_ASYNC_PAYLOAD, MAX_PAYLOAD
from sandbox.queued import Accepted, Drop, handed_over

log = logging.getLogger(__name__)
FIRST_S, MOST_S = 1.0, 300.0
"""Delays between tries: the first, and the longest of those that double."""
AT_ONCE = 32
"""Messages on their way to one target; what sends them may allow fewer."""
MOST_SHOWN = 64 * 1024
"""Bytes of a payload that the log is given where nobody asked for it."""


class Undelivered(Exception):
    """The target did not take the message. `hopeless`: nor will it later; `too_large`: a smaller one it would."""

    def __init__(self, why: str, *, hopeless: bool = False, too_large: bool = False) -> None:
        super().__init__(why)
        self.hopeless = hopeless
        self.too_large = too_large


class Deliver(Protocol):
    """Hands a message to a target that is no function of ours."""

    async def __call__(self, message: Message, /) -> None:
        """Returns when the target has it. Raises Undelivered. Ends within a minute."""


class Book(Protocol):
    """The queue, as the teller needs it."""

    @property
    def now(self) -> float: ...

    def ended(self, key: str) -> Accepted:
        """The event as it is now."""

    def told(self, key: str, drop: Drop) -> None:
        """This one need not be told any more."""

    async def hand_over(self, key: str, drop: Drop, event: Accepted) -> None:
        """`event` is accepted, and `drop` told, in one commit. Raises StoreProblem: neither."""


class Teller:
    """Tells of ended events."""

    def __init__(self, book: Book, deliver: Deliver, aside: Aside) -> None:
        self._book = book
        self._deliver = deliver
        self._aside = aside
        self._lanes: dict[Target, trio.CapacityLimiter] = {}
        """As many as there are targets in configurations."""

    async def tell(self, key: str) -> None:
        """Returns when all have been told, or given up."""
        ended = self._book.ended(key).ended
        assert ended is not None
        async with trio.open_nursery() as nursery:
            for drop in ended.left:
                nursery.start_soon(self._tell_one, key, drop)

    async def _tell_one(self, key: str, drop: Drop) -> None:
        delay = FIRST_S
        while (problem := await self._try(key, drop)) is not None:
            accepted = self._book.ended(key)
            ended = accepted.ended
            assert ended is not None
            late = trio.current_time() + delay - ended.since > ended.patience_s
            if problem.hopeless or late:
                log.error(
                    "%s of event %s of %s (%s) is lost, %s does not take it: %s; payload: %s",
                    "the dead letter" if drop.role == "dead letter" else "the record",
                    accepted.invocation.request_id,
                    accepted.name,
                    ended.condition,
                    drop.target.text,
                    problem,
                    shown(accepted.invocation.payload, MAX_ASYNC_PAYLOAD),
                )
                break
            # Once per event: thousands of them may wait for the same target.
            log.log(
                logging.WARNING if delay == FIRST_S else logging.DEBUG,
                "event %s of %s: %s does not take its %s, the next try is in %g s: %s",
                accepted.invocation.request_id,
                accepted.name,
                drop.target.text,
                "dead letter" if drop.role == "dead letter" else "record",
                delay,
                problem,
            )
            await trio.sleep(delay)
            delay = min(MOST_S, delay * 2)
        self._book.told(key, drop)

    async def _try(self, key: str, drop: Drop) -> Undelivered | None:
        if drop.target not in self._lanes:
            self._lanes[drop.target] = trio.CapacityLimiter(AT_ONCE)
        try:
            # Nothing is made before it can be sent: thousands of messages would lie in memory.
            async with self._lanes[drop.target]:
                await self._send(key, drop)
        except Undelivered as problem:
            return problem
        except StoreProblem as exc:
            return Undelivered(str(exc))
        except Exception as exc:
            # One event's unforeseen trouble is told and tried again; it must not end all the others.
            log.exception("telling of an event to %s", drop.target.text)
            return Undelivered(repr(exc))
        return None

    async def _send(self, key: str, drop: Drop) -> None:
        try:
            await self._send_as(key, drop, slim=False)
        except Undelivered as problem:
            if not problem.too_large:
                raise
            if drop.role == "dead letter":
                raise Undelivered(str(problem), hopeless=True) from problem
            accepted = self._book.ended(key)
            log.warning(
                "the record of event %s of %s goes to %s without payloads: %s; payload: %s",
                accepted.invocation.request_id,
                accepted.name,
                drop.target.text,
                problem,
                shown(accepted.invocation.payload, MAX_ASYNC_PAYLOAD),
            )
            await self._send_as(key, drop, slim=True)

    async def _send_as(self, key: str, drop: Drop, *, slim: bool) -> None:
        accepted = self._book.ended(key)
        message = partial(render, key, accepted, drop, slim=slim)
        rendered: Message = await self._aside(message) if large(accepted) else message()
        if drop.target.kind == "function":
            await self._hand_over(key, drop, rendered.body)
        else:
            await self._deliver(rendered)

    async def _hand_over(self, key: str, drop: Drop, record: bytes) -> None:
        if len(record) > MAX_PAYLOAD:
            raise Undelivered(f"an event has at most {MAX_PAYLOAD} bytes", too_large=True)
        accepted = self._book.ended(key)
        try:
            event = handed_over(accepted, drop.target, record, now=self._book.now)
        except BadTarget as exc:
            raise Undelivered(str(exc), hopeless=True) from exc
        await self._book.hand_over(key, drop, event)


def shown(payload: bytes, most: int = MOST_SHOWN) -> str:
    """A payload as the log gets it."""
    if len(payload) <= most:
        return repr(payload)
    return f"{payload[:most]!r}... ({len(payload)} bytes)"
