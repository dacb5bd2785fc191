"""Owns permissions of layer versions: stored and returned. There is one account here, so nothing asks them."""

from __future__ import annotations

import json
from dataclasses import replace

from runtimeapi.control.control import Control, conflict, missing, stale
from runtimeapi.control.layers import LayerRef, check_number, find, layer_ref
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.errors import InvalidRequest
from sandbox.registry.records import Document, LayerVersionRecord
from sandbox.registry.registry import Edit

MAX_POLICY = 20_480
"""Bytes (SPEC 5.4)."""


async def add_layer_version_permission(control: Control, given: Input) -> Output:
    ref, number = _named(control, given)
    async with control.registry.edit() as edit:
        version = _version(control, ref, number)
        statements: Document = version.policy.get("Statements", {})
        if given["StatementId"] in statements:
            raise conflict(
                f"The statement id ({given['StatementId']}) provided already exists. "
                "Please provide a new statement id, or remove the existing statement."
            )
        _check_revision(version, given)
        statement = {
            "Sid": given["StatementId"],
            "Effect": "Allow",
            "Principal": _principal(given["Principal"]),
            "Action": given["Action"],
            "Resource": ref.version_arn(number),
        }
        if "OrganizationId" in given:
            statement["Condition"] = {
                "StringEquals": {"aws:PrincipalOrgID": given["OrganizationId"]}
            }
        statements = {**statements, given["StatementId"]: statement}
        if len(_policy(statements)) > MAX_POLICY:
            raise InvalidRequest(
                f"The final policy size is bigger than the limit ({MAX_POLICY}).",
                code="PolicyLengthExceededException",
            )
        revision = _put(control, edit, ref, version, statements)
    return {"Statement": _json(statement), "RevisionId": revision}


async def get_layer_version_policy(control: Control, given: Input) -> Output:
    ref, number = _named(control, given)
    policy = _version(control, ref, number).policy
    if not policy.get("Statements"):
        raise missing("No policy is associated with the given resource.")
    return {"Policy": _policy(policy["Statements"]), "RevisionId": policy["RevisionId"]}


async def remove_layer_version_permission(control: Control, given: Input) -> Output:
    ref, number = _named(control, given)
    async with control.registry.edit() as edit:
        version = _version(control, ref, number)
        statements: Document = version.policy.get("Statements", {})
        if not statements:
            raise missing("No policy is associated with the given resource.")
        _check_revision(version, given)
        if given["StatementId"] not in statements:
            raise missing(f"Statement {given['StatementId']} is not found in resource policy.")
        rest = {sid: one for sid, one in statements.items() if sid != given["StatementId"]}
        _put(control, edit, ref, version, rest)
    return {}


def _named(control: Control, given: Input) -> tuple[LayerRef, int]:
    check_number(given["VersionNumber"])
    return layer_ref(control, given["LayerName"]), given["VersionNumber"]


def _version(control: Control, ref: LayerRef, number: int) -> LayerVersionRecord:
    version = find(control, ref, number)
    if version is None:
        raise missing(f"Layer version {ref.version_arn(number)} does not exist.")
    return version


def _check_revision(version: LayerVersionRecord, given: Input) -> None:
    if given.get("RevisionId", version.policy.get("RevisionId")) != version.policy.get(
        "RevisionId"
    ):
        raise stale("GetLayerPolicy")


def _put(
    control: Control, edit: Edit, ref: LayerRef, version: LayerVersionRecord, statements: Document
) -> str:
    record = edit.layer(ref.name)
    assert record is not None
    policy = {"Statements": statements, "RevisionId": control.new_id()}
    changed = {**record.versions, str(version.version): replace(version, policy=policy)}
    edit.put(replace(record, versions=changed))
    return str(policy["RevisionId"])


def _principal(given: str) -> str | dict[str, str]:
    """SPEC 10.5."""
    if given == "*":
        return given
    return {"AWS": f"arn:aws:iam::{given}:root" if given.isdigit() else given}


def _policy(statements: Document) -> str:
    return _json({"Version": "2012-10-17", "Id": "default", "Statement": list(statements.values())})


def _json(document: Document) -> str:
    return json.dumps(document, separators=(",", ":"))


OPERATIONS = {
    "AddLayerVersionPermission": add_layer_version_permission,
    "GetLayerVersionPolicy": get_layer_version_policy,
    "RemoveLayerVersionPermission": remove_layer_version_permission,
}
