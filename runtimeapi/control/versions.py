"""Owns published versions: PublishVersion, ListVersionsByFunction. They never change; a function's $LATEST does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from rootfs.codestore import BadPackage, CodeStore, Hold, Package
from rootfs.packing import pack
from rootfs.trees import MAX_UNZIPPED
from runtimeapi.arns import FunctionRef
from runtimeapi.control.checks import check_supported
from runtimeapi.control.configuration import content, shown
from runtimeapi.control.control import (
    LATEST,
    Control,
    check_revision,
    conflict,
    invalid,
    not_found,
)
from runtimeapi.control.paging import page
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.errors import InvalidRequest
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.registry.records import Code, FunctionRecord, VersionRecord


def check_settled(control: Control, record: FunctionRecord, latest: VersionRecord) -> None:
    """Raises CallerError while it is being created or updated (SPEC 10.2)."""
    if latest.state == "Pending":
        raise conflict(
            "The operation cannot be performed at this time. "
            "The function is currently in the following state: Pending"
        )
    if latest.last_update_status == "InProgress":
        raise conflict(
            "The operation cannot be performed at this time. "
            f"An update is in progress for resource: {control.function_arn(record.name)}"
        )


def published(
    control: Control, record: FunctionRecord, latest: VersionRecord, description: str | None = None
) -> tuple[FunctionRecord, VersionRecord]:
    """The record with $LATEST published as a version, and that version; the last one, if nothing has changed."""
    last = _last(record, latest)
    if last is not None:
        return record, last
    config = latest.config
    if description is not None:
        config = {**config, "Description": description}
    version = replace(
        latest,
        version=str(record.next_version),
        config=config,
        content=content(latest),
        revision_id=control.new_id(),
    )
    if version.unsettled:
        version = replace(
            version,
            state="Pending",
            state_reason="The function is being created.",
            state_reason_code="Creating",
            last_update_status=None,
            last_update_status_reason=None,
            last_update_status_reason_code=None,
        )
    record = replace(record.with_version(version), next_version=record.next_version + 1)
    if record.latest is not None:
        record = replace(record, latest=replace(record.latest, revision_id=control.new_id()))
    return record, version


async def publish_version(control: Control, given: Input) -> Output:
    ref = replace(control.ref(given["FunctionName"]), qualifier=LATEST)
    check_supported(given)
    with control.code.hold() as hold:
        record, latest = await _publishable(control, ref, given)
        kept = None
        if record.latest is None and _last(record, latest) is None:
            # Not inside of the edit: it may take seconds.
            kept = await _kept(control, record, latest, hold)
        async with control.registry.edit() as edit:
            record, latest = await _publishable(control, ref, given)
            before = record
            if kept is not None and content(kept) == content(latest):
                latest = kept
            elif record.latest is None and _last(record, latest) is None:
                raise _changed(control, record)
            record, version = published(control, record, latest, given.get("Description"))
            if record is not before:
                await control.make_ready(record, version)
                edit.put(record)
    return shown(control, record, version, version.version)


async def _publishable(
    control: Control, ref: FunctionRef, given: Input
) -> tuple[FunctionRecord, VersionRecord]:
    """The function and its $LATEST, if that may be published now. Raises CallerError."""
    record = control.record(ref)
    latest = await control.latest(record)
    if latest is None:
        raise not_found(ref)
    check_settled(control, record, latest)
    check_revision(given, latest.revision_id)
    if given.get("CodeSha256") not in (None, "", latest.code.sha256):
        raise invalid(
            f"CodeSHA256 ({given['CodeSha256']}) is different from current CodeSHA256 in $LATEST "
            f"({latest.code.sha256}). Please try again with the CodeSHA256 in $LATEST."
        )
    return record, latest


def _last(record: FunctionRecord, latest: VersionRecord) -> VersionRecord | None:
    """The version published last, if $LATEST has not changed since."""
    last = record.versions.get(str(record.next_version - 1))
    return last if last is not None and last.content == content(latest) else None


def _changed(control: Control, record: FunctionRecord) -> InvalidRequest:
    function = control.folder(record.name)
    place = "its folder" if function is None else function.code
    return conflict(f"{place} has changed while it was being published. Hint: publish it again")


async def _kept(
    control: Control, record: FunctionRecord, latest: VersionRecord, hold: Hold
) -> VersionRecord:
    """A folder's function with its code, and its layers, in the store. Raises CallerError."""
    function = control.folder(record.name)
    if function is None or isinstance(function, BrokenFunction):
        problem = function.problem if function is not None else "its folder is gone"
        raise conflict(f"{record.name} cannot be published as it is: {problem}")
    if latest.code.size > MAX_UNZIPPED:
        raise conflict(
            f"{function.code} cannot be published: it must be smaller than {MAX_UNZIPPED} bytes. "
            "Hint: move what is not needed out of it, or into a layer"
        )
    try:
        code, opt = await trio.to_thread.run_sync(_copy, control.code, function, hold)
    except (BadPackage, OSError, ValueError) as exc:
        raise conflict(
            f"{function.code} cannot be published: {exc}. "
            "Hint: a version is a copy of the folder; nothing in it may lead out of it"
        ) from exc
    if code.sha256 != latest.code.sha256:
        raise _changed(control, record)
    here = {**latest.here, "opt": opt} if opt else latest.here
    return replace(latest, code=code, here=here)


def _copy(store: CodeStore, function: FunctionVersion, hold: Hold) -> tuple[Code, str | None]:
    kept = _stored(store, function.code, hold)
    code = Code(tree=kept.tree, sha256=kept.sha256, size=kept.size, unzipped=kept.unzipped)
    opt = None
    for folder in function.layers:
        opt = _stored(store, folder, hold).tree
    return code, opt


def _stored(store: CodeStore, folder: Path, hold: Hold) -> Package:
    with store.scratch() as file:
        pack(folder, file)
        return store.put(file, may_be_empty=True, hold=hold)


async def list_versions_by_function(control: Control, given: Input) -> Output:
    ref = replace(control.ref(given["FunctionName"]), qualifier=None)
    record = control.record(ref)
    latest = await control.latest(record)
    versions = dict(record.versions)
    if latest is not None:
        versions[LATEST] = latest
    numbers = {0 if number == LATEST else int(number): number for number in versions}
    keys, marker = page([(record.name, number) for number in numbers], given)
    found = [(numbers[number], versions[numbers[number]]) for _, number in keys]
    return {
        "Versions": [
            shown(control, record, version, number, listed=True) for number, version in found
        ],
        "NextMarker": marker,
    }


OPERATIONS = {
    "PublishVersion": publish_version,
    "ListVersionsByFunction": list_versions_by_function,
}
