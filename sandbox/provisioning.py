"""Owns how one version's provisioned environments stand: which count, how many to start, whom to let go.

Plain bookkeeping: the clock's reading comes in, decisions go out, the scheduler carries them out. An
environment counts from its start until it is lost or replaced. It is replaced a little before it wears
out, so that there is no moment without. A failed init, or a death without a single invocation, makes the
next start wait, twice as long each time; until one has worked, starts go one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 60.0
RENEW_AT = 0.9
"""Of the greatest age."""
INIT_FAILURE = "FUNCTION_ERROR_INIT_FAILURE"
"""AWS's StatusReason where the function's own init fails (SPEC 7)."""
INTERNAL_ERROR = "INTERNAL_ERROR"
"""Our StatusReason where the host cannot start one; what it said follows."""


@dataclass(frozen=True, slots=True)
class Provisioned:
    """How far a request for provisioned concurrency has come, in AWS's words (SPEC 7)."""

    requested: int
    allocated: int = 0
    """Initialised, idle or at work."""
    available: int = 0
    """The same: those at work are not counted off."""
    status: Literal["IN_PROGRESS", "READY", "FAILED"] = "IN_PROGRESS"
    reason: str | None = None
    """Of FAILED, which lasts until the next try works: failed ones are tried again, with growing delays."""


class Aging(Protocol):
    """What is provisioned; an Environment."""

    born_at: float
    invocations: int


E = TypeVar("E", bound=Aging)


class Provision(Generic[E]):
    """The provisioned environments of one version, of its current revision only."""

    def __init__(self, max_age_s: float = math.inf) -> None:
        self.wanted = 0
        self.starting: set[E] = set()
        self.ready: set[E] = set()
        """Initialised: idle or at work."""
        self.failures = 0
        """In a row."""
        self.retry_at = -math.inf
        self.problem: str | None = None
        """Why the last start that failed did."""
        self._reached = False
        """All of them stood at some time."""
        self._renew_s = RENEW_AT * max_age_s

    def __contains__(self, environment: E) -> bool:
        return environment in self.starting or environment in self.ready

    @property
    def concerns(self) -> bool:
        """Whether there is or should be anything."""
        return bool(self.wanted or self.starting or self.ready)

    def want(self, count: int) -> bool:
        """Whether that is news."""
        if count == self.wanted:
            return False
        self.wanted, self.problem, self._reached = count, None, len(self.ready) >= count
        return True

    def state(self) -> Provisioned:
        ready = min(len(self.ready), self.wanted)
        if ready == self.wanted or (self._reached and self.problem is None):
            # One that is replaced is no reason to be in progress again.
            return Provisioned(self.wanted, ready, ready, "READY")
        if self.problem is not None:
            return Provisioned(self.wanted, ready, ready, "FAILED", self.problem)
        return Provisioned(self.wanted, ready, ready)

    def missing(self, now: float) -> int:
        """How many to start now."""
        fresh = sum(now < self._renew_at(environment) for environment in self.ready)
        missing = self.wanted - len(self.starting) - fresh
        if self.failures:
            # One by one: what is broken is not tried N times over.
            missing = min(missing, 1 - len(self.starting)) if now >= self.retry_at else 0
        return max(0, missing)

    def surplus(self) -> list[E]:
        """Ready ones beyond those wanted: the oldest, whose replacements stand."""
        by_age = sorted(self.ready, key=lambda environment: environment.born_at)
        return by_age[: max(0, len(by_age) - self.wanted)]

    def next_look(self, now: float) -> float:
        """When `missing` may change by the passing of time alone."""
        if not self.wanted:
            return math.inf
        times = [self.retry_at, *map(self._renew_at, self.ready)]
        return min((time for time in times if time > now), default=math.inf)

    def _renew_at(self, environment: E) -> float:
        return environment.born_at + self._renew_s

    # --- what happens to them

    def started(self, environment: E) -> None:
        self.starting.add(environment)

    def became_ready(self, environment: E) -> bool:
        """Whether this was its init's end."""
        if environment not in self.starting:
            return False
        self.starting.remove(environment)
        self.ready.add(environment)
        self.problem = None
        self._reached = self._reached or len(self.ready) >= self.wanted
        return True

    def drop(self, environment: E) -> None:
        """Let go on purpose."""
        self.starting.discard(environment)
        self.ready.discard(environment)

    def drop_all(self) -> list[E]:
        """Changed code, or gone: nothing counts any more, past failures neither. Returns those starting."""
        starting = list(self.starting)
        self.starting.clear()
        self.ready.clear()
        self.failures, self.retry_at = 0, -math.inf
        self.problem, self._reached = None, False
        return starting

    def lost(self, environment: E, now: float, problem: str | None = None) -> float | None:
        """It died by itself. Seconds until the next start where that was no use at all, else None.

        `problem`: why it could not be initialised.
        """
        was_ready = environment in self.ready
        self.drop(environment)
        if environment.invocations:
            self.failures = 0
            return None
        self.problem = problem
        if was_ready and now - environment.born_at > BACKOFF_MOST_S:
            self.failures = 0
        self.failures += 1
        delay = min(BACKOFF_MOST_S, math.ldexp(BACKOFF_FIRST_S, min(self.failures - 1, 30)))
        self.retry_at = now + delay
        return delay
