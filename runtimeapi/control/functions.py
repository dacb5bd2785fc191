"""Owns functions: CreateFunction, GetFunction, GetFunctionConfiguration, ListFunctions, DeleteFunction."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from runtimeapi.arns import FunctionRef
from runtimeapi.control import downloads
from runtimeapi.control.checks import check_configuration, check_new, tell_ignored
from runtimeapi.control.code import check_source, taken_code
from runtimeapi.control.concurrency import reserved as reserved_concurrency
from runtimeapi.control.configuration import configured, defaults, shown
from runtimeapi.control.control import (
    Control,
    conflict,
    function_not_found,
    invalid,
)
from runtimeapi.control.paging import Key, page
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import names_alias
from runtimeapi.control.references import check_size, referenced
from runtimeapi.control.rendering import Output
from runtimeapi.control.versions import published
from sandbox.errors import CallerError
from sandbox.registry.records import LATEST, FunctionRecord, VersionRecord

CREATING = "The function is being created."


async def create_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    check_new(given, ref.name)
    check_source(given["Code"])
    check_configuration(control, given, name=ref.name, runtime=given.get("Runtime"))
    config = configured(defaults(ref.name, control.architecture), given, ref.name)
    if "Layers" in given:
        config["Layers"] = referenced(control, given["Layers"])
    _check_free(control, ref)
    async with taken_code(control, given["Code"]) as code, control.registry.edit() as edit:
        _check_free(control, ref)
        check_size(code, config)
        latest = VersionRecord(
            version=LATEST,
            config=config,
            code=code,
            identity=control.new_id(),
            last_modified=control.stamp(),
            revision_id=control.new_id(),
            state="Pending",
            state_reason=CREATING,
            state_reason_code="Creating",
            last_update_status=None,
        )
        left = edit.function(ref.name)
        record = FunctionRecord(
            name=ref.name,
            birth=control.new_id(),
            latest=latest,
            next_version=left.next_version if left is not None else 1,
            tags=given.get("Tags", {}),
        )
        answer = latest
        if given.get("Publish"):
            record, answer = published(control, record, latest)
        edit.put(record)
    tell_ignored(ref.name, config)
    control.in_background(partial(control.activate, ref.name))
    return shown(control, record, answer)


def _check_free(control: Control, ref: FunctionRef) -> None:
    """Raises CallerError."""
    found = control.registry.function(ref.name)
    if control.folder(ref.name) is not None or (found is not None and found.latest is not None):
        raise conflict(f"Function already exist: {ref.name}")
    if found is not None and found.versions:
        raise conflict(
            f"Function already exist: {ref.name}: its folder is gone, versions {', '.join(found.versions)} "
            "that were published from it are still here. Hint: DeleteFunction"
        )


async def get_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    record, version = await control.version(ref)
    reserved = reserved_concurrency(control, record)
    if version.version == LATEST and record.latest is None:
        place = downloads.of_folder(control, ref.name)
    else:
        place = downloads.stored(control, version.code.tree)
    return {
        "Configuration": shown(control, record, version, ref.qualifier),
        "Code": {"RepositoryType": "S3", "Location": place},
        "Tags": record.tags or None,
        "Concurrency": None if reserved is None else {"ReservedConcurrentExecutions": reserved},
    }


async def get_function_configuration(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    record, version = await control.version(ref)
    return shown(control, record, version, ref.qualifier)


async def list_functions(control: Control, given: Input) -> Output:
    keys, marker = page(list(_keys(control, every=given.get("FunctionVersion") == "ALL")), given)
    found = []
    for name, number in keys:
        qualifier = str(number) if number else None
        record, version = await control.version(control.ref(name, qualifier))
        if given.get("FunctionVersion") == "ALL":
            qualifier = qualifier or LATEST
        found.append(shown(control, record, version, qualifier, listed=True))
    return {"Functions": found, "NextMarker": marker}


def _keys(control: Control, *, every: bool) -> Iterator[Key]:
    """Of every function's $LATEST, and of all published versions."""
    for function in control.functions.all():
        yield function.name, 0
    if every:
        for record in control.registry.functions():
            for number in record.versions:
                yield record.name, int(number)


async def delete_function(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    if ref.qualifier == LATEST:
        raise invalid("$LATEST version cannot be deleted without deleting the function.")
    if ref.qualifier is not None and names_alias(ref.qualifier):
        raise invalid("Deletion of aliases is not currently supported.")
    async with control.registry.edit() as edit:
        try:
            record = control.record(ref)
        except CallerError as exc:
            raise function_not_found(ref) from exc
        if ref.qualifier is not None:
            edit.put(_without_version(record, ref.qualifier))
            return {}
        folder = control.folder(ref.name)
        if record.latest is None and folder is not None:
            raise conflict(
                f"{ref.name} is the folder {folder.code}: it cannot be deleted through the Lambda API. "
                "Hint: remove the folder, or move it away"
            )
        if record.next_version == 1:
            edit.drop(record)
            return {}
        # Numbers are not given again to a function that is made anew under this name.
        left = FunctionRecord(
            name=ref.name,
            birth=control.new_id(),
            latest=None,
            next_version=record.next_version,
        )
        edit.put(left)
    return {}


def _without_version(record: FunctionRecord, number: str) -> FunctionRecord:
    """One that is not there is no mistake (SPEC 10.4). Raises CallerError."""
    users = [alias.name for alias in record.aliases.values() if alias.leads_to(number)]
    if users:
        raise conflict(
            f"Unable to delete version because the following aliases reference it: [{', '.join(users)}]"
        )
    return record.without(number)


OPERATIONS = {
    "CreateFunction": create_function,
    "GetFunction": get_function,
    "GetFunctionConfiguration": get_function_configuration,
    "ListFunctions": list_functions,
    "DeleteFunction": delete_function,
}
NOTES = {
    "CreateFunction": "Zip packages only (no ImageUri), for the host's architecture. VpcConfig, KMSKeyArn, "
    "TracingConfig and SnapStart are kept and shown without effect; EFS, tenants, durable functions and managed "
    "instances are refused.",
}
