"""Owns aliases: a name for a version, or for two of them with weights (SPEC 10.4). `resolving.py` draws which."""

from __future__ import annotations

from dataclasses import replace

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import (
    LATEST,
    Control,
    check_revision,
    conflict,
    invalid,
    missing,
    not_found,
)
from runtimeapi.control.paging import page
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.registry.records import AliasRecord, FunctionRecord

MOST = 10_000
"""Aliases of one answer (the model's MaxItems)."""


def alias_shown(control: Control, record: FunctionRecord, alias: AliasRecord) -> Output:
    """AliasConfiguration."""
    weights = {"AdditionalVersionWeights": alias.weights} if alias.weights else None
    return {
        "AliasArn": control.function_arn(record.name, alias.name),
        "Name": alias.name,
        "FunctionVersion": alias.version,
        "Description": alias.description,
        "RoutingConfig": weights,
        "RevisionId": alias.revision_id,
    }


async def create_alias(control: Control, given: Input) -> Output:
    ref = _function(control, given)
    async with control.registry.edit() as edit:
        record = _with_target(control, ref, given["FunctionVersion"])
        name = given["Name"]
        if name in record.aliases:
            arn = control.function_arn(record.name, name)
            raise conflict(f"Alias already exists: {arn}")
        alias = AliasRecord(
            name=name,
            version=given["FunctionVersion"],
            description=given.get("Description", ""),
            weights=_weights(given) or {},
            revision_id=control.new_id(),
        )
        _check_routing(control, record, alias)
        edit.put(replace(record, aliases={**record.aliases, name: alias}))
    return alias_shown(control, record, alias)


async def update_alias(control: Control, given: Input) -> Output:
    ref = _function(control, given)
    async with control.registry.edit() as edit:
        record = control.record(ref)
        before = record.aliases.get(given["Name"])
        if before is None:
            arn = control.function_arn(record.name, given["Name"])
            raise missing(f"Alias not found: {arn}")
        check_revision(given, before.revision_id)
        weights = _weights(given)
        alias = replace(
            before,
            version=given.get("FunctionVersion", before.version),
            description=given.get("Description", before.description),
            weights=before.weights if weights is None else weights,
            revision_id=control.new_id(),
        )
        _with_target(control, ref, alias.version)
        _check_routing(control, record, alias)
        edit.put(replace(record, aliases={**record.aliases, alias.name: alias}))
    return alias_shown(control, record, alias)


async def get_alias(control: Control, given: Input) -> Output:
    record = control.record(_function(control, given))
    alias = record.aliases.get(given["Name"])
    if alias is None:
        raise missing(f"Cannot find alias arn: {control.function_arn(record.name, given['Name'])}")
    return alias_shown(control, record, alias)


async def delete_alias(control: Control, given: Input) -> Output:
    """One that is not there is no mistake (SPEC 10.4)."""
    ref = _function(control, given)
    async with control.registry.edit() as edit:
        record = control.record(ref)
        if given["Name"] in record.aliases:
            edit.put(record.without(given["Name"]))
    return {}


async def list_aliases(control: Control, given: Input) -> Output:
    record = control.record(_function(control, given))
    wanted = given.get("FunctionVersion")
    keys = [(alias.name, 0) for alias in record.aliases.values() if wanted in (None, alias.version)]
    found, marker = page(keys, given, most=MOST)
    return {
        "Aliases": [alias_shown(control, record, record.aliases[name]) for name, _ in found],
        "NextMarker": marker,
    }


def _function(control: Control, given: Input) -> FunctionRef:
    return replace(control.ref(given["FunctionName"]), qualifier=None)


def _weights(given: Input) -> dict[str, float] | None:
    """None: the request says nothing of it; {}: away with them."""
    if "RoutingConfig" not in given:
        return None
    found: dict[str, float] = given["RoutingConfig"].get("AdditionalVersionWeights", {})
    return found


def _with_target(control: Control, ref: FunctionRef, version: str) -> FunctionRecord:
    """The function, which has this version. Raises FunctionNotFound, with the version's ARN."""
    target = replace(ref, qualifier=version)
    record = control.record(target)
    known = version in record.versions
    if version == LATEST:
        known = record.latest is not None or control.folder(record.name) is not None
    if not known:
        raise not_found(target)
    return record


def _check_routing(control: Control, record: FunctionRecord, alias: AliasRecord) -> None:
    """Raises CallerError, in AWS's words and order."""
    if len(alias.weights) > 1:
        raise invalid("Number of items in AdditionalVersionWeights cannot be greater than 1")
    for version in alias.weights:
        if version == alias.version:
            raise invalid(
                f"Invalid function version {version}. "
                f"Function version {version} is already included in routing configuration."
            )
        if alias.version == LATEST:
            raise invalid(
                "$LATEST is not supported for an alias pointing to more than 1 version", typed=False
            )
        if version not in record.versions:
            raise missing(f"Function not found: {control.function_arn(record.name, version)}")


OPERATIONS = {
    "CreateAlias": create_alias,
    "UpdateAlias": update_alias,
    "GetAlias": get_alias,
    "DeleteAlias": delete_alias,
    "ListAliases": list_aliases,
}
