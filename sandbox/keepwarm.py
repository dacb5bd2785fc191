"""Owns what comes by the clock: which function is due when, and the scheduled event that it is sent (SPEC 8.5).

`schedule`: an EventBridge rule. An Event like any other: accepted by the queue, tried again, told of.
`warm`: a keep-warm ping, the same event, but never queued or tried again: one that finds the ping before it
still running, or no room, is left out.
Due times are wall-clock times; a clock that is set forward makes one ping, one that is set back none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Literal

import trio

from sandbox.errors import CallerError, PlatformFault, TooManyRequests
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome, new_request_id
from sandbox.schedules import Rate, Schedule

log = logging.getLogger(__name__)
LOOK_S = 30.0
"""Longest sleep: by then a clock that was set is noticed."""
MAX_RULE_NAME = 64
Kind = Literal["warm", "schedule"]


def idle_limit_s(function: FunctionVersion, now: datetime, max_age_s: float) -> float:
    """For how long an environment that is idle now may stay so.

    With `warm`, and nothing said of idle_timeout, the next ping finds it: idle_timeout counts from there on.
    No longer than its greatest age, after which it is of no use.
    """
    times = [schedule.next_after(now) for schedule in function.warm]
    pings = [time for time in times if time is not None]
    if not function.waits_for_ping or not pings:
        return function.idle_timeout_s
    return min((min(pings) - now).total_seconds(), max_age_s) + function.idle_timeout_s


Key = tuple[str, str, Kind, str]
"""(function, version, kind, expression)"""


def _schedules(function: FunctionVersion) -> Iterator[tuple[Kind, int, Schedule]]:
    for number, schedule in enumerate(function.warm, 1):
        yield "warm", number, schedule
    for number, schedule in enumerate(function.schedule, 1):
        yield "schedule", number, schedule


class _Rule:
    """One schedule of one function."""

    def __init__(
        self, function: FunctionVersion, kind: Kind, number: int, schedule: Schedule, now: datetime
    ) -> None:
        self.function = function.name
        self.version = function.version
        self.kind = kind
        suffix = f"-{kind}" if number == 1 else f"-{kind}-{number}"
        self.name = function.name[: MAX_RULE_NAME - len(suffix)] + suffix
        self.schedule = schedule
        self.fired: datetime | None = None
        self.running = False
        # A ping's rate begins now: what is to be warm is warm from the start. Where environments are provisioned
        # it is so anyway, and a ping would start one more, as these are not ready yet.
        at_once = (
            kind == "warm" and isinstance(schedule, Rate) and not function.provisioned_concurrency
        )
        self.due = now if at_once else schedule.next_after(now)

    def look(self, now: datetime) -> datetime | None:
        """The time that has come, if one has; the next is then counted from now: missed ones are not made up."""
        following = self.schedule.next_after(now)
        if self.due is not None and self.due <= now:
            self.fired, self.due = self.due, following
            return self.fired
        if self.due is None or (following is not None and following < self.due):
            # The clock was set back. The time that has just come may come again, and is not meant again.
            if following is not None and following == self.fired:
                following = self.schedule.next_after(following)
            self.due = following
        return None


class KeepWarm:
    """Sends pings and scheduled events of all functions. `keep` says which, `run` does it."""

    def __init__(
        self,
        invoke: Callable[[Invocation], Awaitable[Outcome]],
        find: Callable[[str, str | None], FunctionVersion],
        *,
        region: str,
        account: str,
        now: Callable[[], datetime],
        accept: Callable[[Invocation], Awaitable[None]] | None = None,
        renew: Callable[[FunctionVersion, float], None] = lambda function, within_s: None,
        max_age_s: float = 7200.0,
        trace_id: Callable[[], str] = lambda: "",
    ) -> None:
        self._invoke = invoke
        self._accept = accept
        self._find = find
        self._region = region
        self._account = account
        self._now = now
        self._renew = renew
        self._max_age_s = max_age_s
        self._trace_id = trace_id
        self._rules: dict[Key, _Rule] = {}
        self._changed = trio.Event()

    def keep(self, functions: Iterable[FunctionVersion]) -> None:
        """These are the versions now. Schedules that were there before go on undisturbed."""
        now = self._now()
        rules: dict[Key, _Rule] = {}
        for function in functions:
            for kind, number, schedule in _schedules(function):
                key = function.name, function.version, kind, schedule.expression
                rule = self._rules.get(key) or _Rule(function, kind, number, schedule, now)
                rules[key] = rule
                if rule.due is None and key not in self._rules:
                    log.warning("%s of %s never comes again", schedule.expression, function.name)
        if rules.keys() != self._rules.keys():
            self._changed.set()
        self._rules = rules

    async def run(self) -> None:
        """Send pings when they are due, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                now = self._now()
                for rule in self._rules.values():
                    due = rule.look(now)
                    if due is not None:
                        self._begin(rule, due, nursery)
                dues = [rule.due for rule in self._rules.values() if rule.due is not None]
                wait_s = (min(dues) - now).total_seconds() if dues else LOOK_S
                with trio.move_on_after(min(wait_s, LOOK_S)):
                    await self._changed.wait()

    def _begin(self, rule: _Rule, due: datetime, nursery: trio.Nursery) -> None:
        if rule.kind == "schedule":
            nursery.start_soon(self._send, rule, due)
            return
        if rule.running:
            log.warning(
                "keep-warm ping of %s left out: the one before is still running", rule.function
            )
            return
        rule.running = True
        nursery.start_soon(self._ping, rule, due)

    async def _send(self, rule: _Rule, due: datetime) -> None:
        try:
            function = self._find(rule.function, rule.version)
            if self._accept is not None:
                await self._accept(self._invocation(function, rule, due))
        except (CallerError, PlatformFault) as exc:
            log.error("scheduled event of %s is lost: %s", rule.name, exc)

    async def _ping(self, rule: _Rule, due: datetime) -> None:
        try:
            function = self._find(rule.function, rule.version)
            self._freshen(function)
            outcome = await self._invoke(self._invocation(function, rule, due))
        except TooManyRequests as exc:
            log.info("keep-warm ping of %s left out: throttled (%s)", rule.function, exc.reason)
        except (CallerError, PlatformFault) as exc:
            log.warning("keep-warm ping of %s left out: %s", rule.function, exc)
        else:
            if outcome.status != "success":
                log.warning("keep-warm ping of %s failed: %s", rule.function, outcome.error_type)
        finally:
            rule.running = False

    def _freshen(self, function: FunctionVersion) -> None:
        """The ping is to leave an environment that does not wear out before the next one."""
        gap_s = idle_limit_s(function, self._now(), self._max_age_s) - function.idle_timeout_s
        if 0 < gap_s < self._max_age_s:
            self._renew(function, gap_s)

    def _invocation(self, function: FunctionVersion, rule: _Rule, due: datetime) -> Invocation:
        event = {
            "version": "0",
            "id": new_request_id(),
            "detail-type": "Scheduled Event",
            "source": "aws.events",
            "account": self._account,
            "time": due.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": self._region,
            "resources": [f"arn:aws:events:{self._region}:{self._account}:rule/{rule.name}"],
            "detail": {},
        }
        return Invocation(
            function=function,
            payload=json.dumps(event, separators=(",", ":")).encode(),
            invoked_arn=function.qualified_arn(self._region, self._account),
            request_id=new_request_id(),
            trace_id=self._trace_id(),
            kind="Event",
        )
