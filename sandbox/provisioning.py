"""Owns how one function's provisioned environments stand: which count, how many to start, whom to let go.

Plain bookkeeping: the clock's reading comes in, decisions go out, the scheduler carries them out. An
environment counts from its start until it is lost or replaced. It is replaced a little before it wears
out, so that there is no moment without. A failed init, or a death without a single invocation, makes the
next start wait, twice as long each time; until one has worked, starts go one by one.
"""

from __future__ import annotations

import math
from typing import Generic, Protocol, TypeVar

BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 60.0
RENEW_AT = 0.9
"""Of the greatest age."""


class Aging(Protocol):
    """What is provisioned; an Environment."""

    born_at: float
    invocations: int


E = TypeVar("E", bound=Aging)


class Provision(Generic[E]):
    """The provisioned environments of one function, of its current revision only."""

    def __init__(self, max_age_s: float = math.inf) -> None:
        self.wanted = 0
        self.starting: set[E] = set()
        self.ready: set[E] = set()
        """Initialised: idle or at work."""
        self.failures = 0
        """In a row."""
        self.retry_at = -math.inf
        self._renew_s = RENEW_AT * max_age_s

    def __contains__(self, environment: E) -> bool:
        return environment in self.starting or environment in self.ready

    @property
    def concerns(self) -> bool:
        """Whether there is or should be anything."""
        return bool(self.wanted or self.starting or self.ready)

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
        return starting

    def lost(self, environment: E, now: float) -> float | None:
        """It died by itself. Seconds until the next start where that was no use at all, else None."""
        was_ready = environment in self.ready
        self.drop(environment)
        if environment.invocations:
            self.failures = 0
            return None
        if was_ready and now - environment.born_at > BACKOFF_MOST_S:
            self.failures = 0
        self.failures += 1
        delay = min(BACKOFF_MOST_S, math.ldexp(BACKOFF_FIRST_S, min(self.failures - 1, 30)))
        self.retry_at = now + delay
        return delay
