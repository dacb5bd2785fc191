"""sandbox.concurrency: what may be promised of an account's concurrency, in AWS's words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.concurrency import (
    AccountConcurrency,
    account,
    check_provisioned,
    check_reserved,
    promised,
)
from sandbox.errors import InvalidRequest
from sandbox.function import FunctionVersion
from tests.fakes import make_function

LIVE = [
    make_function("held", reserved_concurrency=100),
    make_function("held", version="1", reserved_concurrency=100, provisioned_concurrency=30),
    make_function("held", version="2", reserved_concurrency=100, provisioned_concurrency=20),
    make_function("ready", version="3", provisioned_concurrency=50),
    make_function("ready", version="4", provisioned_concurrency=10),
    make_function("plain"),
]


def test_what_is_promised_is_off_the_account() -> None:
    found = account(1000, LIVE)
    assert found == AccountConcurrency(concurrent=1000, unreserved=1000 - 100 - 60)
    assert found.least_unreserved == 100
    assert account(1000, []) == AccountConcurrency(1000, 1000)
    assert AccountConcurrency(4, 4).least_unreserved == 0


def reserve(name: str, asked: int) -> str:
    return said(lambda: check_reserved(name, asked, 1000, LIVE))


def provision(name: str, version: str, asked: int) -> str:
    return said(lambda: check_provisioned(name, version, asked, 1000, LIVE))


def said(check: Callable[[], None]) -> str:
    try:
        check()
    except InvalidRequest as exc:
        return exc.message if exc.code == "InvalidParameterValueException" else exc.code
    return ""


BELOW = " decreases account's UnreservedConcurrentExecution below its minimum value of [100]."


def test_reserved_leaves_a_tenth_to_all_others() -> None:
    assert reserve("plain", 740) == ""
    message = "Specified ReservedConcurrentExecutions for function" + BELOW
    assert reserve("plain", 741) == message
    assert reserve("new", 741) == message
    # What it has already is not counted twice.
    assert reserve("held", 840) == ""
    assert reserve("held", 841) == message
    assert reserve("plain", 0) == ""


def test_reserved_is_not_less_than_what_is_provisioned() -> None:
    assert reserve("held", 50) == ""
    assert reserve("held", 49) == (
        " ReservedConcurrentExecutions  49 should not be lower than function's total provisioned "
        "concurrency [50]."
    )
    assert reserve("ready", 60) == ""
    assert "[60]" in reserve("ready", 59)


def test_provisioned_is_part_of_what_is_reserved() -> None:
    assert provision("held", "1", 80) == ""
    message = (
        "Requested Provisioned Concurrency should not be greater than the "
        "reservedConcurrentExecution for function"
    )
    assert provision("held", "1", 81) == message
    assert provision("held", "9", 50) == ""
    assert provision("held", "9", 51) == message


def test_provisioned_without_a_reservation_is_off_the_account() -> None:
    assert provision("plain", "1", 740) == ""
    assert provision("plain", "1", 741) == "Specified ConcurrentExecutions for function" + BELOW
    assert provision("plain", "1", 841) == (
        "Specified ConcurrentExecutions for function is greater than account's unreserved "
        "concurrency [840]."
    )
    assert provision("ready", "3", 790) == ""
    assert provision("ready", "3", 791) == "Specified ConcurrentExecutions for function" + BELOW


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.booleans()), max_size=20),
    st.integers(1, 100),
)
def test_whatever_is_granted_a_tenth_is_left(
    asked: list[tuple[str, int, bool]], concurrent: int
) -> None:
    live: dict[tuple[str, str], FunctionVersion] = {
        (name, version): make_function(name, version=version)
        for name in "ab"
        for version in ("1", "2")
    }
    for name, count, reserves in asked:
        try:
            if reserves:
                check_reserved(name, count, concurrent, live.values())
            else:
                check_provisioned(name, "1", count, concurrent, live.values())
        except InvalidRequest:
            continue
        for version in ("1", "2"):
            one = live[name, version]
            live[name, version] = make_function(
                name,
                version=version,
                reserved_concurrency=count if reserves else one.reserved_concurrency,
                provisioned_concurrency=count
                if not reserves and version == "1"
                else one.provisioned_concurrency,
            )
        now = account(concurrent, live.values())
        assert now.unreserved >= now.least_unreserved
        for has in promised(live.values()).values():
            assert has.reserved is None or has.provisioned <= has.reserved


@pytest.mark.parametrize("concurrent", [1, 5, 9])
def test_a_small_account_may_be_promised_whole(concurrent: int) -> None:
    check_reserved("f", concurrent, concurrent, [make_function()])
    check_provisioned("f", "1", concurrent, concurrent, [make_function()])
    with pytest.raises(InvalidRequest):
        check_reserved("f", concurrent + 1, concurrent, [make_function()])
