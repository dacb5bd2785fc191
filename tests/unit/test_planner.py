from __future__ import annotations

from sandbox.planner import (
    LONGEST_PATIENCE_S,
    SHORTEST_PATIENCE_S,
    Limits,
    Load,
    Pace,
    starts_wanted,
    throttle_reason,
)

RESERVED = "ReservedFunctionConcurrentInvocationLimitExceeded"
ACCOUNT = "ConcurrentInvocationLimitExceeded"


def reason(
    *, mine: int = 0, unreserved: int = 0, held: int = 0, memory: int = 0, **kw: object
) -> str | None:
    limits = Limits(account_concurrency=10, memory_budget_mb=1000)
    load = Load(mine, unreserved, held, memory)
    reserved = kw.get("reserved")
    assert reserved is None or isinstance(reserved, int)
    return throttle_reason(load, limits, reserved=reserved, memory_mb=128)


def test_reserved_concurrency_is_a_maximum() -> None:
    assert reason(mine=1, reserved=2) is None
    assert reason(mine=2, reserved=2) == RESERVED


def test_zero_reserved_blocks_everything() -> None:
    assert reason(reserved=0) == RESERVED


def test_a_reservation_is_also_a_guarantee() -> None:
    assert reason(unreserved=6, held=3) is None
    assert reason(unreserved=7, held=3) == ACCOUNT
    assert reason(mine=0, unreserved=7, held=3, reserved=3) is None


def test_memory_budget() -> None:
    assert reason(memory=800) is None
    assert reason(memory=900) == ACCOUNT


def test_an_invocation_needs_a_place_reserved_or_not() -> None:
    def reason(in_flight: int, reserved: int | None) -> str | None:
        load = Load(0, 0, 0, 0, in_flight=in_flight, places=3)
        return throttle_reason(load, Limits(), reserved=reserved, memory_mb=128)

    assert [reason(2, None), reason(2, 1)] == [None, None]
    assert [reason(3, None), reason(3, 1)] == [ACCOUNT, ACCOUNT]


def test_one_invocation_always_fits() -> None:
    limits = Limits(memory_budget_mb=64)
    assert throttle_reason(Load(0, 0, 0, 0), limits, reserved=None, memory_mb=128) is None


def starts(waiting: int, coming: int, everywhere: int, room: int | None = None) -> int:
    return starts_wanted(
        waiting=waiting,
        coming=coming,
        room=room,
        starting_everywhere=everywhere,
        limits=Limits(max_starts=4),
    )


def test_starts_are_bounded_by_waiting_and_by_slots() -> None:
    assert starts(3, 0, 0) == 3
    assert starts(3, 2, 2) == 1
    assert starts(9, 0, 0) == 4
    assert starts(9, 1, 3) == 1
    assert starts(1, 2, 2) == 0
    assert starts(5, 0, 4) == 0


def test_starts_are_bounded_by_a_reservation() -> None:
    assert starts(3, 0, 0, room=1) == 1
    assert starts(3, 0, 0, room=0) == 0
    assert starts(3, 0, 0, room=-1) == 0


def test_the_first_environments_are_started_without_further_thought() -> None:
    pace = Pace()
    assert pace.reached_soon(0) == pace.reached_soon(5) == 0
    pace.took_start(0.01)
    assert pace.reached_soon(5) == 0  # how long a turn takes is not known yet


def test_quick_turns_are_waited_for_as_long_as_a_start_would_take() -> None:
    pace = Pace()
    pace.took_start(0.01)
    pace.took_turn(0.001)
    assert pace.reached_soon(2) == 20
    assert pace.reached_soon(0) == 0
    slow = Pace()
    slow.took_start(0.01)
    slow.took_turn(1.0)
    assert slow.reached_soon(50) == 0


def test_those_that_are_not_reached_soon_or_overdue_are_started_for() -> None:
    def wanted(**how: int) -> int:
        return starts_wanted(room=None, starting_everywhere=0, limits=Limits(max_starts=100), **how)

    assert wanted(waiting=30, coming=0, soon=20) == 10
    assert wanted(waiting=30, coming=10, soon=20) == 0
    assert wanted(waiting=10, coming=0, soon=20) == 0
    assert wanted(waiting=10, coming=0, soon=20, overdue=3) == 3
    assert wanted(waiting=10, coming=2, soon=20, overdue=3) == 1


def test_the_pace_follows_what_is_measured() -> None:
    pace = Pace()
    for _ in range(50):
        pace.took_turn(1.0)
    for _ in range(50):
        pace.took_turn(2.0)
    assert pace.turn_s is not None
    assert 1.9 < pace.turn_s < 2.0
    assert pace.patience_s == SHORTEST_PATIENCE_S
    pace.took_start(30.0)
    assert pace.patience_s == LONGEST_PATIENCE_S
