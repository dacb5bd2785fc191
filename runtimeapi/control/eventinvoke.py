"""Owns EventInvokeConfig: Put, Update, Get, Delete and ListFunctionEventInvokeConfigs (SPEC 8.1, 10.5).

What a folder's function.toml says is shown too, and counts until something is put here.
"""

from __future__ import annotations

from typing import Any

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, conflict, missing
from runtimeapi.control.paging import page
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import attach
from runtimeapi.control.rendering import Output
from sandbox.errors import CallerError, FunctionNotFound
from sandbox.eventconfig import EventConfig, Target
from sandbox.registry.eventinvoke import (
    DESTINATIONS,
    FEATURE,
    MEMBERS,
    check_config,
    check_destinations,
    destination,
    document_of,
)
from sandbox.registry.records import LATEST, Document, FunctionRecord

NO_FUNCTION = "The function doesn't exist."


async def put_function_event_invoke_config(control: Control, given: Input) -> Output:
    return await _write(control, given, {})


async def update_function_event_invoke_config(control: Control, given: Input) -> Output:
    return await _write(control, given, None)


async def _write(control: Control, given: Input, before: Document | None) -> Output:
    """`before`: what members that are not given have; None: what they have now."""
    check_config(given)
    ref = _ref(control, given)
    qualifier = ref.qualifier or LATEST
    async with control.registry.edit() as edit:
        record = _existing(control, ref)
        if before is None:
            before = _configured(control, record).get(qualifier)
            if before is None:
                raise _none(ref)
        if DESTINATIONS in given:
            _check(control, given[DESTINATIONS], ref.name)
        sent = {member: given[member] for member in MEMBERS if member in given}
        document = {**before, **sent, "LastModified": control.now().timestamp()}
        document[DESTINATIONS] = _tidy(document.get(DESTINATIONS, {}))
        edit.put(attach(record, FEATURE, qualifier, document))
    return _shown(control, ref.name, qualifier, document)


async def get_function_event_invoke_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given)
    qualifier = ref.qualifier or LATEST
    record = _found(control, ref)
    document = None if record is None else _configured(control, record).get(qualifier)
    if document is None:
        raise _none(ref)
    return _shown(control, ref.name, qualifier, document)


async def delete_function_event_invoke_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given)
    qualifier = ref.qualifier or LATEST
    async with control.registry.edit() as edit:
        record = _found(control, ref)
        if record is None or qualifier not in _configured(control, record):
            raise _none(ref)
        if qualifier not in record.attached.get(FEATURE, {}):
            raise conflict(f"The EventInvokeConfig of {ref.name} is in its function.toml.")
        edit.put(attach(record, FEATURE, qualifier, None))
    return {}


async def list_function_event_invoke_configs(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    record = _found(control, ref)
    if record is None:
        raise missing(NO_FUNCTION)
    found = _configured(control, record)
    keys, following = page([(qualifier, 0) for qualifier in found], given)
    return {
        "FunctionEventInvokeConfigs": [
            _shown(control, ref.name, qualifier, found[qualifier]) for qualifier, _ in keys
        ],
        "NextMarker": following,
    }


def _ref(control: Control, given: Input) -> FunctionRef:
    return control.ref(given["FunctionName"], given.get("Qualifier"))


def _found(control: Control, ref: FunctionRef) -> FunctionRecord | None:
    try:
        return control.record(ref)
    except FunctionNotFound:
        return None


def _existing(control: Control, ref: FunctionRef) -> FunctionRecord:
    """Raises InvalidRequest, also where there is no such version or alias."""
    record = _found(control, ref)
    if record is None or not _has(record, ref.qualifier):
        raise missing(NO_FUNCTION)
    return record


def _has(record: FunctionRecord, qualifier: str | None) -> bool:
    return qualifier in (None, LATEST, *record.versions, *record.aliases)


def _none(ref: FunctionRef) -> CallerError:
    arn = f"{ref.unqualified_arn}:{ref.qualifier or LATEST}"
    return missing(f"The function {arn} doesn't have an EventInvokeConfig")


def _configured(control: Control, record: FunctionRecord) -> dict[str, Document]:
    """By qualifier, those of function.toml included."""
    found: dict[str, Document] = {}
    folder = _folder(control, record)

    def arn(target: Target) -> str:
        return control.function_arn(target.name, target.qualifier)

    if folder is not None and (document := document_of(folder, arn)) is not None:
        found[LATEST] = document
    return {**found, **record.attached.get(FEATURE, {})}


def _folder(control: Control, record: FunctionRecord) -> EventConfig | None:
    if record.latest is not None:
        return None
    try:
        return control.functions.resolve(record.name, None).events
    except CallerError:  # a broken one
        return None


def _check(control: Control, config: dict[str, Any], name: str) -> None:
    def exists(other: str, qualifier: str | None) -> bool:
        ref = FunctionRef(other, qualifier, control.region, control.account)
        record = _found(control, ref)
        return record is not None and _has(record, qualifier)

    check_destinations(
        config, name=name, region=control.region, account=control.account, exists=exists
    )


def _tidy(config: Document) -> Document:
    """Both members, empty where there is no destination, as recorded."""
    found: Document = {}
    for member in ("OnSuccess", "OnFailure"):
        text = destination(config, member)
        found[member] = {"Destination": text} if text else {}
    return found


def _shown(control: Control, name: str, qualifier: str, document: Document) -> Output:
    return {"FunctionArn": control.function_arn(name, qualifier), **document}


OPERATIONS = {
    "PutFunctionEventInvokeConfig": put_function_event_invoke_config,
    "UpdateFunctionEventInvokeConfig": update_function_event_invoke_config,
    "GetFunctionEventInvokeConfig": get_function_event_invoke_config,
    "DeleteFunctionEventInvokeConfig": delete_function_event_invoke_config,
    "ListFunctionEventInvokeConfigs": list_function_event_invoke_configs,
}
OURS = "Destinations may also be http(s) addresses."
NOTES = {"PutFunctionEventInvokeConfig": OURS, "UpdateFunctionEventInvokeConfig": OURS}
