"""Owns functions: CreateFunction, GetFunction, GetFunctionConfiguration, ListFunctions, DeleteFunction."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import trio

from rootfs.codestore import BadPackage
from runtimeapi.control.configuration import configured, shown
from runtimeapi.control.control import Control, conflict, invalid, not_found
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.registry.eventinvoke import check_dead_letter
from sandbox.registry.records import LATEST, Code, FunctionRecord, VersionRecord

CREATING = "The function is being created."
PAGE = 50
"""ListFunctions gives no more at a time, whatever MaxItems (SPEC 10.1)."""


async def create_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    check_dead_letter(given.get("DeadLetterConfig", {}), name=ref.name)
    package = given["Code"].get("ZipFile")
    if package is None:
        raise invalid("Please provide a source for function code.")
    code = await store(control, package)
    async with control.registry.edit() as edit:
        control.functions.refresh()
        taken = any(one.name == ref.name for one in control.functions.all())
        if taken or edit.function(ref.name) is not None:
            raise conflict(f"Function already exist: {ref.name}")
        latest = VersionRecord(
            version=LATEST,
            config=configured(given, ref.name),
            code=code,
            identity=control.new_id(),
            last_modified=control.stamp(),
            revision_id=control.new_id(),
            state="Pending",
            state_reason=CREATING,
            state_reason_code="Creating",
            last_update_status=None,
        )
        record = FunctionRecord(
            name=ref.name, birth=control.new_id(), latest=latest, tags=given.get("Tags", {})
        )
        edit.put(record)
    control.in_background(partial(control.activate, ref.name))
    return shown(control, record, latest)


async def store(control: Control, package: bytes) -> Code:
    """Keep a zip. Raises CallerError."""
    try:
        kept = await trio.to_thread.run_sync(control.code.put, package)
    except BadPackage as exc:
        raise invalid(
            "Could not unzip uploaded file. Please check your file, then try to upload again."
        ) from exc
    return Code(tree=kept.tree, sha256=kept.sha256, size=kept.size)


async def get_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    record = control.record(ref)
    if record.latest is None:
        raise not_found(ref)
    return {
        "Configuration": shown(control, record, record.latest, ref.qualifier),
        "Code": {"RepositoryType": "S3"},
        "Tags": record.tags or None,
    }


async def list_functions(control: Control, given: Input) -> Output:
    records = sorted(control.registry.functions(), key=lambda record: record.name)
    found = [
        shown(control, record, record.latest, listed=True)
        for record in records
        if record.latest is not None
    ]
    return {"Functions": found[:PAGE]}


async def delete_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    async with control.registry.edit() as edit:
        record = edit.function(ref.name)
        if record is None:
            raise not_found(replace(ref, qualifier=None))
        edit.drop(record)
    return {}


OPERATIONS = {
    "CreateFunction": create_function,
    "GetFunction": get_function,
    "ListFunctions": list_functions,
    "DeleteFunction": delete_function,
}
