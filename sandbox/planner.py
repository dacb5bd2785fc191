"""Owns the scheduler's decisions as pure functions: reuse, start, wait or throttle.

No I/O, no clock, no tasks: plain numbers in, a decision out. The scheduler carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass


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


def throttle_reason(
    load: Load, limits: Limits, *, reserved: int | None, memory_mb: int
) -> str | None:
    """AWS's ThrottleReason where one more invocation is too many, else None (SPEC 3.8, 7)."""
    if reserved is not None:
        if load.function_in_flight >= reserved:
            return "ReservedFunctionConcurrentInvocationLimitExceeded"
    elif load.unreserved_in_flight >= limits.account_concurrency - load.reserved_total:
        return "ConcurrentInvocationLimitExceeded"
    # One invocation always runs: a budget below one function's memory would stop that function for good.
    if load.memory_mb_in_flight and load.memory_mb_in_flight + memory_mb > limits.memory_budget_mb:
        return "ConcurrentInvocationLimitExceeded"
    return None


def starts_wanted(
    *, waiting: int, coming: int, room: int | None, starting_everywhere: int, limits: Limits
) -> int:
    """How many environments of one function to start now.

    One per waiting invocation that no environment is coming for (starting, or about to be idle), bounded by
    the node's start slots and by a reservation's `room`. A start is not tied to the invocation it was made
    for: whichever environment is free first takes the head of the queue.
    """
    wanted = min(waiting - coming, limits.max_starts - starting_everywhere)
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
