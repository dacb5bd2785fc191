"""Owns changes of a function's $LATEST: UpdateFunctionCode, UpdateFunctionConfiguration (SPEC 10.2)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from runtimeapi.arns import FunctionRef
from runtimeapi.control.checks import (
    check_architectures,
    check_configuration,
    check_supported,
    tell_ignored,
)
from runtimeapi.control.code import check_source, taken_code
from runtimeapi.control.configuration import configured, shown
from runtimeapi.control.control import (
    Control,
    check_revision,
    conflict,
    function_not_found,
    invalid,
)
from runtimeapi.control.parsing import Input
from runtimeapi.control.references import check_size, referenced
from runtimeapi.control.rendering import Output
from runtimeapi.control.versions import check_settled, published
from sandbox.registry.records import Code, FunctionRecord, VersionRecord

UPDATING = "The function is being created."
"""AWS's own words for an update as well."""
OUTSIDE = frozenset(
    {"DeadLetterConfig", "Description", "KMSKeyArn", "Role", "SnapStart", "VpcConfig"}
)
"""Members of the configuration of which nothing is to be seen inside of an environment here."""


async def update_function_code(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    record, latest = _changeable(control, ref, given)
    check_supported(given)
    if "ImageUri" in given:
        raise invalid(
            "Please don't provide ImageUri when updating a function with packageType Zip."
        )
    check_source(given)
    check_architectures(control, given)
    if given.get("DryRun"):
        async with taken_code(control, given, keep=False) as code:
            check_size(code, latest.config)
            return shown(control, record, replace(latest, code=code))
    async with taken_code(control, given) as code, control.registry.edit() as edit:
        record, latest = _changeable(control, ref, given)
        config = configured(latest.config, _only(given, "Architectures"), record.name)
        check_size(code, config)
        latest = _updated(control, latest, config, code, control.new_id())
        record = record.with_version(latest)
        answer = latest
        if given.get("Publish"):
            record, answer = published(control, record, latest)
        edit.put(record)
    control.in_background(partial(control.activate, record.name))
    return shown(control, record, answer, answer.version if given.get("Publish") else None)


async def update_function_configuration(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    async with control.registry.edit() as edit:
        record, latest = _changeable(control, ref, given)
        runtime = given.get("Runtime", latest.config.get("Runtime"))
        check_configuration(control, given, name=record.name, runtime=runtime)
        config = configured(latest.config, given, record.name)
        if "Layers" in given:
            config["Layers"] = referenced(control, given["Layers"])
            check_size(latest.code, config)
        identity = latest.identity if _unnoticed(latest.config, config) else control.new_id()
        latest = _updated(control, latest, config, latest.code, identity)
        record = record.with_version(latest)
        edit.put(record)
    tell_ignored(record.name, given)
    control.in_background(partial(control.activate, record.name))
    return shown(control, record, latest)


def _changeable(
    control: Control, ref: FunctionRef, given: Input
) -> tuple[FunctionRecord, VersionRecord]:
    """The function, if it may be changed now. Raises CallerError."""
    record = control.registry.function(ref.name)
    if record is None or record.latest is None:
        folder = control.folder(ref.name)
        if folder is None:
            raise function_not_found(ref)
        raise conflict(
            f"{ref.name} is the folder {folder.code}: it cannot be changed through the Lambda API. "
            "Hint: edit what is in the folder (its configuration is function.toml); it is taken up at once"
        )
    latest = record.latest
    check_revision(given, latest.revision_id)
    check_settled(control, record, latest)
    return record, latest


def _unnoticed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether environments that run already would be the same with what is configured now: they are kept then."""
    return all(
        name in OUTSIDE or before.get(name) == after.get(name) for name in before.keys() | after
    )


def _updated(
    control: Control,
    latest: VersionRecord,
    config: dict[str, Any],
    code: Code,
    identity: str,
) -> VersionRecord:
    changed = replace(
        latest,
        config=config,
        code=code,
        identity=identity,
        revision_id=control.new_id(),
        last_modified=control.stamp(),
        last_update_status="InProgress",
        last_update_status_reason=UPDATING,
        last_update_status_reason_code="Creating",
    )
    if latest.state == "Active":
        return changed
    # It never came to life: this may be what mends it.
    return replace(changed, state="Pending", state_reason=UPDATING, state_reason_code="Creating")


def _only(given: Input, member: str) -> Input:
    return {member: given[member]} if member in given else {}


OPERATIONS = {
    "UpdateFunctionCode": update_function_code,
    "UpdateFunctionConfiguration": update_function_configuration,
}
NOTES = {
    "UpdateFunctionCode": "As CreateFunction; not of a folder's function.",
    "UpdateFunctionConfiguration": "As CreateFunction; not of a folder's function.",
}
