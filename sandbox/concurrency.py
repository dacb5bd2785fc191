"""Owns the account's concurrency: what is promised to functions, and what more may be. Pure.

Reserved concurrency is a promise to one function; so is provisioned concurrency, to a function that has
nothing reserved (of one that has, it is part of that). What is left is for all others, and AWS keeps 100 of an
account's 1,000 from being promised away: here it is the same tenth of `account_concurrency`. (An account that AWS
gives 10 or 50 can reserve nothing at all. A small host is no new customer: there the tenth holds too.)
Messages as AWS's (SPEC 7, 10.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandbox.errors import InvalidRequest
from sandbox.function import FunctionVersion

UNPROMISED_SHARE = 10


@dataclass(frozen=True, slots=True)
class AccountConcurrency:
    """GetAccountSettings' ConcurrentExecutions and UnreservedConcurrentExecutions."""

    concurrent: int
    unreserved: int

    @property
    def least_unreserved(self) -> int:
        """What must be left for functions to which nothing is promised."""
        return self.concurrent // UNPROMISED_SHARE


@dataclass(frozen=True, slots=True)
class Promised:
    """What one function has."""

    reserved: int | None
    provisioned: int
    """Of all its versions."""

    @property
    def counts(self) -> int:
        return self.provisioned if self.reserved is None else self.reserved


def promised(live: Iterable[FunctionVersion]) -> dict[str, Promised]:
    """By function. `live`: all versions of all functions."""
    found: dict[str, Promised] = {}
    for one in live:
        before = found.get(one.name, Promised(one.reserved_concurrency, 0))
        provisioned = before.provisioned + one.provisioned_concurrency
        found[one.name] = Promised(one.reserved_concurrency, provisioned)
    return found


def account(concurrent: int, live: Iterable[FunctionVersion]) -> AccountConcurrency:
    """`concurrent`: the setting account_concurrency. Unreserved may be negative: function.toml is not held to it."""
    left = concurrent - sum(one.counts for one in promised(live).values())
    return AccountConcurrency(concurrent, left)


def check_reserved(name: str, asked: int, concurrent: int, live: Iterable[FunctionVersion]) -> None:
    """Whether this function may have so much reserved. Raises InvalidRequest; nothing is changed."""
    live = list(live)
    now, here = account(concurrent, live), promised(live).get(name, Promised(None, 0))
    # One that shrinks is never refused: what there is in all of function.toml may be too much already.
    if asked > here.counts and now.unreserved + here.counts - asked < now.least_unreserved:
        raise _refused(
            "Specified ReservedConcurrentExecutions for function decreases account's "
            "UnreservedConcurrentExecution below its minimum value of "
            f"[{now.least_unreserved}]."
        )
    if here.provisioned > asked:
        # AWS's own spaces.
        raise _refused(
            f" ReservedConcurrentExecutions  {asked} should not be lower than function's total "
            f"provisioned concurrency [{here.provisioned}]."
        )


def check_provisioned(
    name: str, version: str, asked: int, concurrent: int, live: Iterable[FunctionVersion]
) -> None:
    """Whether this version may have so many provisioned. Raises InvalidRequest; nothing is changed."""
    live = list(live)
    now, here = account(concurrent, live), promised(live).get(name, Promised(None, 0))
    before = sum(
        one.provisioned_concurrency for one in live if (one.name, one.version) == (name, version)
    )
    if here.reserved is not None:
        if here.provisioned - before + asked > here.reserved:
            raise _refused(
                "Requested Provisioned Concurrency should not be greater than the "
                "reservedConcurrentExecution for function",
                typed=True,
            )
        return
    if asked > now.unreserved + before:
        raise _refused(
            "Specified ConcurrentExecutions for function is greater than account's unreserved "
            f"concurrency [{now.unreserved + before}]."
        )
    if now.unreserved + before - asked < now.least_unreserved:
        raise _refused(
            "Specified ConcurrentExecutions for function decreases account's "
            "UnreservedConcurrentExecution below its minimum value of "
            f"[{now.least_unreserved}]."
        )


def _refused(message: str, *, typed: bool = False) -> InvalidRequest:
    """AWS's answers about the account have no `Type`."""
    return InvalidRequest(message, code="InvalidParameterValueException", typed=typed)
