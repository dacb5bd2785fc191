"""Owns the scheduler's decisions as pure functions: reuse, start, wait or throttle.

No I/O, no clock, no tasks: plain numbers in, a decision out. The scheduler carries it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONCURRENCY_EXCEEDED = "ConcurrentInvocationLimitExceeded"
RESERVED_EXCEEDED = "ReservedFunctionConcurrentInvocationLimitExceeded"
NEW_SHARE = 0.1
SHORTEST_TURN_S = 0.0002
SHORTEST_PATIENCE_S, LONGEST_PATIENCE_S = 0.02, 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """What this node allows. Concurrency counts invocations, memory counts MB of those in flight."""

    account_concurrency: int = 1000
    memory_budget_mb: int = 1 << 30
    max_starts: int = 4
    """Environments starting at once: more of them than cores only slow each other down."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is in flight (waiting or running) when an invocation arrives."""

    function_in_flight: int
    unreserved_in_flight: int
    """Of all functions without a reservation."""
    reserved_total: int
    """Sum of all functions' reserved concurrency."""
    memory_mb_in_flight: int
    in_flight: int = 0
    """Of all functions."""
    places: float = math.inf
    """Environments that the host can hold: each invocation at work has one to itself."""


def throttle_reason(
    load: Load, limits: Limits, *, reserved: int | None, memory_mb: int
) -> str | None:
    """AWS's ThrottleReason where one more invocation is too many, else None (SPEC 3.8, 7)."""
    if reserved is not None:
        if load.function_in_flight >= reserved:
            return RESERVED_EXCEEDED
    elif load.unreserved_in_flight >= limits.account_concurrency - load.reserved_total:
        return CONCURRENCY_EXCEEDED
    if load.in_flight >= load.places:
        return CONCURRENCY_EXCEEDED
    # One invocation always runs: a budget below one function's memory would stop that function for good.
    if load.memory_mb_in_flight and load.memory_mb_in_flight + memory_mb > limits.memory_budget_mb:
        return CONCURRENCY_EXCEEDED
    return None


class Pace:
    """How long the turns and the starts of one function's environments take: moving averages, in seconds."""

    __slots__ = ("start_s", "turn_s")

    def __init__(self) -> None:
        self.turn_s: float | None = None
        """From an event that is given out to the next one asked for."""
        self.start_s: float | None = None

    def took_turn(self, seconds: float) -> None:
        self.turn_s = _average(self.turn_s, seconds)

    def took_start(self, seconds: float) -> None:
        self.start_s = _average(self.start_s, seconds)

    @property
    def patience_s(self) -> float:
        """How long an invocation may wait for environments at work before one is started for it all the same."""
        return min(max(self.start_s or 0.0, SHORTEST_PATIENCE_S), LONGEST_PATIENCE_S)

    def reached_soon(self, at_work: int) -> int:
        """How many waiting invocations environments at work get to before one that starts now could.

        Quick functions under load are queued for a moment then, on environments whose memory is in the
        caches, where one environment each would only make them wait for each other's processor time.
        """
        if self.turn_s is None or self.start_s is None:
            return 0
        return int(
            at_work * min(self.start_s, LONGEST_PATIENCE_S) / max(self.turn_s, SHORTEST_TURN_S)
        )


def _average(before: float | None, now: float) -> float:
    return now if before is None else before + (now - before) * NEW_SHARE


def starts_wanted(
    *,
    waiting: int,
    coming: int,
    room: int | None,
    starting_everywhere: int,
    limits: Limits,
    soon: int = 0,
    overdue: int = 0,
) -> int:
    """How many environments of one function to start now.

    One per waiting invocation that no environment is coming for (starting, or about to be idle) and none at
    work gets to `soon`, but for those that have been waiting too long for that (`overdue`); bounded by
    the node's start slots and by a reservation's `room`. A start is not tied to the invocation it was made
    for: whichever environment is free first takes the head of the queue.
    """
    wanted = max(waiting - soon, overdue) - coming
    wanted = min(wanted, limits.max_starts - starting_everywhere)
    return max(0, wanted if room is None else min(wanted, room))


def provisioned_starts(
    *, missing: int, starting: int, starting_on_demand: int, limits: Limits
) -> int:
    """How many provisioned environments of one function to start now.

    Demand first: only what waiting invocations leave of the start slots, and at most half of all (`starting`
    of them are taken by provisioned ones, of any function). What is started here is not counted by
    `starts_wanted`: an invocation that comes now finds all slots free.
    """
    free = limits.max_starts - starting_on_demand - starting
    share = max(1, limits.max_starts // 2) - starting
    return max(0, min(missing, free, share))
