"""Owns the account: how its concurrency is shared out, and GetAccountSettings (SPEC 7, 10.5)."""

from __future__ import annotations

from collections.abc import Iterable

from runtimeapi.control.control import Control
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.function import FunctionVersion
from sandbox.registry.records import FunctionRecord

MAX_UNRESERVED_FLOOR = 100
"""AWS keeps so many for functions without a reservation (SPEC 7)."""
TOTAL_CODE_SIZE = 80_530_636_800
"""Bytes: AWS's default quota (75 GB). lambox itself takes what the disk has room for."""
CODE_SIZE_UNZIPPED = 262_144_000
CODE_SIZE_ZIPPED = 52_428_800


def unreserved_floor(limit: int) -> int:
    """What must stay unreserved. AWS: 100 of 1,000; a small account_concurrency keeps a tenth too."""
    return min(MAX_UNRESERVED_FLOOR, limit // 10)


def provisioned_total(record: FunctionRecord, *, without: str | None = None) -> int:
    """Provisioned concurrency asked for of all qualifiers, but for one."""
    documents = record.attached.get("provisioned", {})
    return sum(
        int(document["RequestedProvisionedConcurrentExecutions"])
        for qualifier, document in documents.items()
        if qualifier != without
    )


def taken(
    functions: Iterable[FunctionVersion], records: Iterable[FunctionRecord], *, without: str = ""
) -> int:
    """Of the account's concurrency, by reservations, and by provisioned concurrency where there is none.

    `functions`: every $LATEST, which knows the reservation; `without`: a function that is not counted.
    """
    by_name = {record.name: record for record in records}
    total = 0
    for function in functions:
        if function.name == without:
            continue
        record = by_name.get(function.name)
        if function.reserved_concurrency is not None:
            total += function.reserved_concurrency
        elif record is not None:
            total += provisioned_total(record)
    return total


def unreserved(control: Control, *, without: str = "") -> int:
    """What is left for functions without a reservation."""
    control.functions.refresh()
    functions = [one for one in control.functions.all() if isinstance(one, FunctionVersion)]
    used = taken(functions, control.registry.functions(), without=without)
    return max(0, control.account_concurrency - used)


async def get_account_settings(control: Control, given: Input) -> Output:
    registry = control.registry
    codes = [
        version.code.size
        for record in registry.functions()
        for version in (record.latest, *record.versions.values())
        if version is not None
    ]
    layers = [one.code.size for layer in registry.layers() for one in layer.versions.values()]
    left = unreserved(control)
    return {
        "AccountLimit": {
            "TotalCodeSize": TOTAL_CODE_SIZE,
            "CodeSizeUnzipped": CODE_SIZE_UNZIPPED,
            "CodeSizeZipped": CODE_SIZE_ZIPPED,
            "ConcurrentExecutions": control.account_concurrency,
            "UnreservedConcurrentExecutions": left,
        },
        "AccountUsage": {
            "TotalCodeSize": sum(codes) + sum(layers),
            "FunctionCount": len(control.functions.all()),
        },
    }


OPERATIONS = {"GetAccountSettings": get_account_settings}
NOTES = {
    "GetAccountSettings": "Folders' functions count; their code, which lambox does not keep, does not.",
}
