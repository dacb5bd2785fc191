"""Owns GetAccountSettings (SPEC 10.5)."""

from __future__ import annotations

from runtimeapi.control.control import Control
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.concurrency import account

TOTAL_CODE_SIZE = 80_530_636_800
"""Bytes: AWS's default quota (75 GB). lambox itself takes what the disk has room for."""
CODE_SIZE_UNZIPPED = 262_144_000
CODE_SIZE_ZIPPED = 52_428_800


async def get_account_settings(control: Control, given: Input) -> Output:
    registry = control.registry
    codes = [
        version.code.size
        for record in registry.functions()
        for version in (record.latest, *record.versions.values())
        if version is not None
    ]
    layers = [one.code.size for layer in registry.layers() for one in layer.versions.values()]
    control.functions.refresh()
    shares = account(control.account_concurrency, control.functions.live())
    return {
        "AccountLimit": {
            "TotalCodeSize": TOTAL_CODE_SIZE,
            "CodeSizeUnzipped": CODE_SIZE_UNZIPPED,
            "CodeSizeZipped": CODE_SIZE_ZIPPED,
            "ConcurrentExecutions": shares.concurrent,
            "UnreservedConcurrentExecutions": max(0, shares.unreserved),
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
