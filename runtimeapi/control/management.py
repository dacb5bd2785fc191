"""Owns recursion (which the event queue goes by) and runtime management (kept and shown, and without effect here)."""

from __future__ import annotations

from contextlib import suppress

from runtimeapi.control.control import Control, invalid
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import attach, resolved
from runtimeapi.control.rendering import Output
from sandbox.errors import CallerError
from sandbox.registry.records import LATEST, FunctionRecord

RECURSION = "recursion"
MANAGEMENT = "runtime_management"


async def put_function_recursion_config(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    chosen = {"RecursiveLoop": given["RecursiveLoop"]}
    async with control.registry.edit() as edit:
        edit.put(attach(control.record(ref), RECURSION, LATEST, dict(chosen)))
    return chosen


async def get_function_recursion_config(control: Control, given: Input) -> Output:
    record = control.record(control.ref(given["FunctionName"]))
    return record.attached.get(RECURSION, {}).get(LATEST) or _of_folder(control, record)


def _of_folder(control: Control, record: FunctionRecord) -> Output:
    """What function.toml says; of a function of the API it says nothing."""
    allows = False
    with suppress(CallerError):  # a broken one
        allows = control.functions.resolve(record.name, None).events.allows_recursion
    return {"RecursiveLoop": "Allow" if allows else "Terminate"}


async def put_runtime_management_config(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    when, version = given["UpdateRuntimeOn"], given.get("RuntimeVersionArn")
    if (when == "Manual") != (version is not None):
        raise invalid(
            "RuntimeVersionArn must be given when UpdateRuntimeOn is Manual, and only then."
        )
    document = {"UpdateRuntimeOn": when, "RuntimeVersionArn": version}
    kept = {key: value for key, value in document.items() if value is not None}
    async with control.registry.edit() as edit:
        record = control.record(ref)
        edit.put(attach(record, MANAGEMENT, resolved(record, ref), kept))
    return {**document, "FunctionArn": ref.invoked_arn}


async def get_runtime_management_config(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    record = control.record(ref)
    kept = record.attached.get(MANAGEMENT, {}).get(resolved(record, ref))
    return {**(kept or {"UpdateRuntimeOn": "Auto"}), "FunctionArn": ref.invoked_arn}


OPERATIONS = {
    "PutFunctionRecursionConfig": put_function_recursion_config,
    "GetFunctionRecursionConfig": get_function_recursion_config,
    "PutRuntimeManagementConfig": put_runtime_management_config,
    "GetRuntimeManagementConfig": get_runtime_management_config,
}
NOTES = {
    "PutFunctionRecursionConfig": "Loops of destinations are seen, those through queues and SDKs are not.",
    "PutRuntimeManagementConfig": "Kept. The runtime is the host's interpreter, whatever is chosen.",
}
ACCEPTED = frozenset({"PutRuntimeManagementConfig"})
