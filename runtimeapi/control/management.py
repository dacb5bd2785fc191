"""Owns recursion and runtime management of functions; the latter is kept and shown, and changes nothing here."""

from __future__ import annotations

from runtimeapi.control.control import Control, invalid
from runtimeapi.control.eventinvoke import folder_events
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import attach, resolved
from runtimeapi.control.rendering import Output
from sandbox.registry.eventinvoke import RECURSION, event_config
from sandbox.registry.records import LATEST

MANAGEMENT = "runtime_management"


async def put_function_recursion_config(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    chosen = {"RecursiveLoop": given["RecursiveLoop"]}
    async with control.registry.edit() as edit:
        edit.put(attach(control.record(ref), RECURSION, LATEST, dict(chosen)))
    return chosen


async def get_function_recursion_config(control: Control, given: Input) -> Output:
    record = control.record(control.ref(given["FunctionName"]))
    allowed = event_config(record, folder_events(control, record), None).allows_recursion
    return {"RecursiveLoop": "Allow" if allowed else "Terminate"}


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
    "PutFunctionRecursionConfig": "Loops are noticed where destinations call functions; not through queues, HTTP or "
    "functions' own calls.",
    "PutRuntimeManagementConfig": "Kept. The runtime is the host's interpreter, whatever is chosen.",
}
ACCEPTED = frozenset({"PutRuntimeManagementConfig"})
