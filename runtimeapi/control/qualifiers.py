"""Owns what a qualifier of an existing function names: $LATEST, a version, an alias, or nothing (SPEC 10.4)."""

from __future__ import annotations

import re
from dataclasses import replace

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, missing, not_found
from sandbox.registry.records import LATEST, Document, FunctionRecord

_ALIAS = re.compile(r"(?!^[0-9]+$)[a-zA-Z0-9-_]+", re.ASCII)


def names_alias(qualifier: str) -> bool:
    """By its looks, whether it exists or not."""
    return _ALIAS.fullmatch(qualifier) is not None


def resolved(record: FunctionRecord, ref: FunctionRef) -> str:
    """The version or alias that is meant. Raises CallerError where there is none."""
    qualifier = ref.qualifier or LATEST
    if qualifier == LATEST or qualifier in record.versions or qualifier in record.aliases:
        return qualifier
    raise nothing_there(ref)


def nothing_there(ref: FunctionRef) -> Exception:
    """AWS words it by what the qualifier looks like, even where there is no function (SPEC 10.4)."""
    if ref.qualifier and names_alias(ref.qualifier):
        return missing(f"Cannot find alias arn: {ref.invoked_arn}")
    return not_found(ref)


def revision_of(record: FunctionRecord, qualifier: str) -> str | None:
    """RevisionId of $LATEST, a version or an alias; None: a folder's $LATEST has none of ours."""
    if qualifier in record.aliases:
        return record.aliases[qualifier].revision_id
    version = record.latest if qualifier == LATEST else record.versions[qualifier]
    return None if version is None else version.revision_id


def touched(control: Control, record: FunctionRecord, qualifier: str) -> FunctionRecord:
    """With a new RevisionId at this qualifier: policies and tags change it (SPEC 10.2)."""
    new = control.new_id()
    if qualifier in record.aliases:
        alias = replace(record.aliases[qualifier], revision_id=new)
        return replace(record, aliases={**record.aliases, qualifier: alias})
    if qualifier in record.versions:
        version = replace(record.versions[qualifier], revision_id=new)
        return replace(record, versions={**record.versions, qualifier: version})
    if record.latest is None:
        return record
    return replace(record, latest=replace(record.latest, revision_id=new))


def attach(
    record: FunctionRecord, feature: str, qualifier: str, document: Document | None
) -> FunctionRecord:
    """With this configured of a feature; None: with nothing of it."""
    there = dict(record.attached.get(feature, {}))
    there.pop(qualifier, None)
    if document is not None:
        there[qualifier] = document
    attached = {name: value for name, value in record.attached.items() if name != feature}
    if there:
        attached[feature] = there
    return replace(record, attached=attached)
