"""sandbox.provisioning: how many to start, whom to let go, when to try again. And the planner's share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from sandbox.planner import Limits, provisioned_starts
from sandbox.provisioning import Provision


@dataclass(eq=False)
class One:
    """An environment as Provision sees it."""

    born_at: float = 0.0
    invocations: int = 0


def provision(wanted: int, *ready: One, max_age_s: float = 100.0) -> Provision[One]:
    found: Provision[One] = Provision(max_age_s)
    found.wanted = wanted
    for one in ready:
        found.started(one)
        assert found.became_ready(one)
    return found


def test_what_starts_and_what_is_ready_counts() -> None:
    three = provision(3, One())
    assert three.missing(0) == 2
    three.started(One())
    assert three.missing(0) == 1
    assert three.surplus() == []
    assert provision(0).missing(0) == 0


def test_an_init_ends_once() -> None:
    one = One()
    held = provision(1, one)
    assert not held.became_ready(one)
    assert one in held
    assert One() not in held


def test_a_replacement_starts_before_the_old_one_wears_out_and_then_the_oldest_goes() -> None:
    old, new = One(0.0), One(90.0)
    held = provision(1, old)
    assert (held.missing(89.9), held.next_look(0.0)) == (0, 90.0)
    assert held.missing(90.0) == 1
    held.started(new)
    assert (held.missing(90.0), held.surplus()) == (0, [])
    held.became_ready(new)
    assert held.surplus() == [old]


def test_fewer_wanted_are_a_surplus() -> None:
    first, second = One(1.0), One(2.0)
    held = provision(2, second, first)
    held.wanted = 1
    assert held.surplus() == [first]


def test_a_failed_init_backs_off_up_to_a_minute() -> None:
    held, now, delays = provision(5), 0.0, []
    for _ in range(9):
        one = One(now)
        held.started(one)
        delay = held.lost(one, now)
        assert delay is not None
        assert held.missing(now + delay - 0.001) == 0
        assert held.next_look(now) == now + delay
        now += delay
        delays.append(delay)
        assert held.missing(now) == 1, "one by one until one has worked"
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_after_a_failure_the_others_follow_one_by_one() -> None:
    held = provision(3)
    bad, good = One(), One()
    held.started(bad)
    held.lost(bad, 0.0)
    held.started(good)
    assert held.missing(5.0) == 0
    held.became_ready(good)
    assert held.missing(5.0) == 1


def test_dying_idle_again_and_again_backs_off_too() -> None:
    held, delays = provision(1), []
    for now in (0.0, 10.0, 20.0):
        one = One(now)
        held.started(one)
        held.became_ready(one)
        delays.append(held.lost(one, now + 1))
    assert delays == [1, 2, 4]


def test_dying_after_a_long_time_is_no_row_of_failures() -> None:
    one = One()
    held = provision(1, one)
    held.failures = 5
    assert held.lost(one, 61.0) == 1.0


def test_one_that_has_served_is_replaced_at_once() -> None:
    one = One(invocations=1)
    held = provision(1, one)
    held.failures = 3
    assert held.lost(one, 5.0) is None
    assert held.missing(5.0) == 1


def test_new_code_forgets_old_failures() -> None:
    ready, starting, failed = One(), One(), One()
    held = provision(2, ready)
    held.started(failed)
    held.lost(failed, 0.0)
    held.started(starting)
    assert held.drop_all() == [starting]
    assert (held.missing(0.0), held.failures) == (2, 0)


def test_nothing_wanted_is_nothing_to_look_at() -> None:
    assert provision(0, One()).next_look(0.0) == math.inf
    assert provision(1, One(), max_age_s=math.inf).next_look(0.0) == math.inf


@pytest.mark.parametrize(
    ("missing", "starting", "on_demand", "most", "found"),
    [
        (9, 0, 0, 8, 4),  # half of the slots
        (9, 3, 0, 8, 1),
        (9, 4, 0, 8, 0),
        (1, 0, 0, 8, 1),
        (9, 0, 7, 8, 1),  # what demand leaves
        (9, 0, 8, 8, 0),
        (9, 2, 6, 8, 0),
        (9, 0, 0, 1, 1),  # one slot: provisioned ones go when nobody else wants it
        (9, 0, 1, 1, 0),
        (9, 5, 5, 8, 0),
    ],
)
def test_provisioned_starts_take_what_demand_leaves(
    missing: int, starting: int, on_demand: int, most: int, found: int
) -> None:
    starts = provisioned_starts(
        missing=missing,
        starting=starting,
        starting_on_demand=on_demand,
        limits=Limits(max_starts=most),
    )
    assert starts == found
