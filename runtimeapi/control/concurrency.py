"""Owns reserved concurrency: Put-, Get- and DeleteFunctionConcurrency (SPEC 7, 10.5)."""

from __future__ import annotations

from dataclasses import replace

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, invalid, not_found
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.concurrency import check_reserved
from sandbox.errors import FunctionNotFound
from sandbox.function import FunctionVersion
from sandbox.registry.records import LATEST, FunctionRecord


async def put_function_concurrency(control: Control, given: Input) -> Output:
    ref = _unqualified(control, given)
    wanted = given["ReservedConcurrentExecutions"]
    async with control.registry.edit() as edit:
        try:
            record = control.record(ref)
        except FunctionNotFound as exc:
            raise not_found(replace(ref, qualifier=LATEST)) from exc
        live = control.functions.live()
        check_reserved(record.name, wanted, control.account_concurrency, live)
        edit.put(replace(record, reserved_concurrency=wanted))
    return {"ReservedConcurrentExecutions": wanted}


async def get_function_concurrency(control: Control, given: Input) -> Output:
    ref = _unqualified(control, given)
    record = control.record(ref)
    return {"ReservedConcurrentExecutions": reserved(control, record)}


def reserved(control: Control, record: FunctionRecord) -> int | None:
    """A folder's function may have it in its function.toml."""
    if record.reserved_concurrency is not None or record.latest is not None:
        return record.reserved_concurrency
    found = control.folder(record.name)
    return found.reserved_concurrency if isinstance(found, FunctionVersion) else None


async def delete_function_concurrency(control: Control, given: Input) -> Output:
    ref = _unqualified(control, given)
    async with control.registry.edit() as edit:
        edit.put(replace(control.record(ref), reserved_concurrency=None))
    return {}


def _unqualified(control: Control, given: Input) -> FunctionRef:
    ref = control.ref(given["FunctionName"])
    if ref.qualifier is not None:
        raise invalid(
            "This operation is permitted on Lambda functions only. Aliases and versions do not support "
            "this operation. Please specify either a function name or an unqualified function ARN."
        )
    return ref


OPERATIONS = {
    "PutFunctionConcurrency": put_function_concurrency,
    "GetFunctionConcurrency": get_function_concurrency,
    "DeleteFunctionConcurrency": delete_function_concurrency,
}
NOTES: dict[str, str] = {
    "DeleteFunctionConcurrency": "What a folder's function.toml reserves stays.",
}
