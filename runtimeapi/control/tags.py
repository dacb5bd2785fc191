"""Owns tags of functions and event source mappings (SPEC 10.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from runtimeapi.control.control import Control, invalid, missing
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import touched
from runtimeapi.control.rendering import Output
from sandbox.errors import CallerError, InvalidRequest
from sandbox.registry.records import LATEST, FunctionRecord, MappingRecord

MAX_TAGS = 50


def check_tags(tags: Mapping[str, str]) -> None:
    """Of one resource, all of them. Raises CallerError."""
    if len(tags) > MAX_TAGS:
        raise invalid("Number of tags exceeds resource tag limit.")


async def tag_resource(control: Control, given: Input) -> Output:
    if not given["Tags"]:
        raise invalid("An error occurred and the request cannot be processed.")
    async with control.registry.edit() as edit:
        record = _tagged(control, given["Resource"])
        tags = {**record.tags, **given["Tags"]}
        check_tags(tags)
        edit.put(_with_tags(control, record, tags))
    return {}


async def untag_resource(control: Control, given: Input) -> Output:
    async with control.registry.edit() as edit:
        record = _tagged(control, given["Resource"])
        gone = set(given["TagKeys"])
        tags = {key: value for key, value in record.tags.items() if key not in gone}
        if tags != record.tags:
            edit.put(_with_tags(control, record, tags))
    return {}


async def list_tags(control: Control, given: Input) -> Output:
    return {"Tags": dict(_tagged(control, given["Resource"]).tags)}


def _tagged(control: Control, arn: str) -> FunctionRecord | MappingRecord:
    """The record of a resource that can have tags. Raises CallerError."""
    kind, _, rest = arn.split(":", 5)[5].partition(":")
    if kind == "function":
        ref = control.ref(arn)
        if ref.qualifier is not None:
            raise invalid(
                "Tags on function aliases and versions are not supported. "
                "Please specify a function ARN."
            )
        return control.record(ref)
    _check_place(control, arn)
    if kind == "event-source-mapping":
        mapping = control.registry.mapping(rest)
        if mapping is None:
            raise missing(f"Event source mapping not found: {arn}")
        return mapping
    raise absent(kind, arn)


def _check_place(control: Control, arn: str) -> None:
    region, account = arn.split(":")[3:5]
    if account != control.account:
        raise InvalidRequest("", code="AccessDeniedException", status=403)
    if region != control.region:
        raise missing(
            f"Functions from '{region}' are not reachable in this region ('{control.region}')"
        )


def absent(kind: str, arn: str) -> CallerError:
    """Of resources that lambox has none of."""
    if kind == "code-signing-config":
        return missing(
            f"The Lambda code signing configuration {arn} can not be found.", typed=False
        )
    return missing(f"{kind.replace('-', ' ').capitalize()} not found: {arn}")


def _with_tags(
    control: Control, record: FunctionRecord | MappingRecord, tags: dict[str, str]
) -> FunctionRecord | MappingRecord:
    if isinstance(record, MappingRecord):
        return replace(record, tags=tags)
    return replace(touched(control, record, LATEST), tags=tags)


OPERATIONS = {
    "TagResource": tag_resource,
    "UntagResource": untag_resource,
    "ListTags": list_tags,
}
NOTES: dict[str, str] = {}
