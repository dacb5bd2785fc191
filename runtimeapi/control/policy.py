"""Owns resource policies of functions, versions and aliases: kept and shown as AWS does (SPEC 10.5).

Nothing of lambox asks them but function URLs: who may call is settled by `auth` (docs/security.md).
"""

from __future__ import annotations

import json
import re
from typing import Any

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, conflict, invalid, missing, stale
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import attach, resolved, revision_of, touched
from runtimeapi.control.rendering import Output
from sandbox.errors import FunctionNotFound, InvalidRequest
from sandbox.registry.records import LATEST, FunctionRecord

FEATURE = "policy"
MAX_POLICY = 20 * 1024
"""Bytes of the document."""
_SERVICE = re.compile(r"[a-z0-9.-]+\.(amazonaws\.com(\.cn)?|amazon\.com)")
_ACCOUNT = re.compile(r"[0-9]{12}")
_IAM = re.compile(r"arn:aws[a-z-]*:(iam|sts):.*")
CONDITIONS = (
    ("SourceAccount", "StringEquals", "AWS:SourceAccount"),
    ("FunctionUrlAuthType", "StringEquals", "lambda:FunctionUrlAuthType"),
    ("EventSourceToken", "StringEquals", "lambda:EventSourceToken"),
    ("PrincipalOrgID", "StringEquals", "aws:PrincipalOrgID"),
    ("SourceArn", "ArnLike", "AWS:SourceArn"),
)
"""In the order AWS writes them."""

Statement = dict[str, Any]


async def add_permission(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    if ref.qualifier == LATEST:
        raise invalid("We currently do not support adding policies for $LATEST.")
    async with control.registry.edit() as edit:
        record = control.record(ref)
        qualifier = resolved(record, ref)
        _check_revision(record, qualifier, given, call="GetPolicy")
        document = _document(record, qualifier) or _fresh()
        statement = _statement(given, ref.invoked_arn)
        if any(one.get("Sid") == statement["Sid"] for one in document["Statement"]):
            raise conflict(
                f"The statement id ({statement['Sid']}) provided already exists. Please provide a new "
                "statement id, or remove the existing statement."
            )
        document = {**document, "Statement": [*document["Statement"], statement]}
        edit.put(_with_policy(control, record, qualifier, document))
    return {"Statement": _json(statement)}


async def get_policy(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    return _shown(control, ref)


async def remove_permission(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"], given.get("Qualifier"))
    async with control.registry.edit() as edit:
        try:
            record = control.record(ref)
        except FunctionNotFound as exc:
            raise missing(f"No policy found for: {ref.unqualified_arn}") from exc
        qualifier = resolved(record, ref)
        document = _document(record, qualifier)
        if document is None:
            raise missing("No policy is associated with the given resource.")
        sid = given["StatementId"]
        left = [one for one in document["Statement"] if one.get("Sid") != sid]
        if len(left) == len(document["Statement"]):
            raise missing(f"Statement {sid} is not found in resource policy.")
        _check_revision(record, qualifier, given)
        kept = {**document, "Statement": left} if left else None
        edit.put(_with_policy(control, record, qualifier, kept))
    return {}


# -- whole policies (the API of 2026-07-09)


async def put_resource_policy(control: Control, given: Input) -> Output:
    ref = _resource(control, given)
    document = _parsed(given["Policy"])
    async with control.registry.edit() as edit:
        record = control.record(ref)
        qualifier = resolved(record, ref)
        _check_revision(record, qualifier, given, call="GetPolicy")
        edit.put(_with_policy(control, record, qualifier, document))
    return _shown(control, ref)


async def get_resource_policy(control: Control, given: Input) -> Output:
    return _shown(control, _resource(control, given))


async def delete_resource_policy(control: Control, given: Input) -> Output:
    ref = _resource(control, given)
    async with control.registry.edit() as edit:
        record = control.record(ref)
        qualifier = resolved(record, ref)
        if _document(record, qualifier) is None:
            raise missing("No policy is associated with the given resource.")
        _check_revision(record, qualifier, given, call="GetPolicy")
        edit.put(_with_policy(control, record, qualifier, None))
    return {}


def _resource(control: Control, given: Input) -> FunctionRef:
    arn: str = given["ResourceArn"]
    if ":function:" not in arn:
        raise not_found_resource(arn)
    return control.ref(arn)


def not_found_resource(arn: str) -> InvalidRequest:
    return missing(f"Resource not found: {arn}")


def _parsed(text: str) -> Statement:
    """What AddPermission and GetPolicy can go on with. Raises CallerError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise invalid(f"The policy is not valid JSON: {exc}") from exc
    statements = found.get("Statement") if isinstance(found, dict) else None
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list) or not all(isinstance(one, dict) for one in statements):
        raise invalid("The policy must be an object with a list of Statement objects.")
    for one in statements:
        if (
            one.get("Effect") not in ("Allow", "Deny")
            or "Principal" not in one
            or "Action" not in one
        ):
            raise invalid(
                "Each statement of a policy must have an Effect (Allow or Deny), a Principal and an Action."
            )
    return {**found, "Statement": statements}


# -- what is kept


def _fresh() -> Statement:
    return {"Version": "2012-10-17", "Id": "default", "Statement": []}


def _document(record: FunctionRecord, qualifier: str) -> Statement | None:
    kept = record.attached.get(FEATURE, {}).get(qualifier)
    return None if kept is None else kept["Policy"]


def _with_policy(
    control: Control, record: FunctionRecord, qualifier: str, document: Statement | None
) -> FunctionRecord:
    if document is not None:
        size = len(_json(document).encode())
        if size > MAX_POLICY:
            raise InvalidRequest(
                f"The final policy size ({size}) is bigger than the limit ({MAX_POLICY}).",
                code="PolicyLengthExceededException",
            )
    record = touched(control, record, qualifier)
    # A folder's $LATEST has no RevisionId of its own: the policy's then is the only one.
    revision = revision_of(record, qualifier) or control.new_id()
    kept = None if document is None else {"Policy": document, "RevisionId": revision}
    return attach(record, FEATURE, qualifier, kept)


def _shown(control: Control, ref: FunctionRef) -> Output:
    try:
        record = control.record(ref)
    except FunctionNotFound as exc:
        raise missing() from exc
    qualifier = ref.qualifier or LATEST
    document = _document(record, qualifier)
    if document is None:
        raise missing()
    return {"Policy": _json(document), "RevisionId": _revision(record, qualifier)}


def _revision(record: FunctionRecord, qualifier: str) -> str | None:
    """Of what the policy is attached to, as AWS's are one."""
    own = revision_of(record, qualifier)
    if own is not None:
        return own
    kept = record.attached.get(FEATURE, {}).get(qualifier)
    return None if kept is None else kept["RevisionId"]


def _check_revision(
    record: FunctionRecord, qualifier: str, given: Input, *, call: str = "GetFunction/GetAlias"
) -> None:
    known = _revision(record, qualifier)
    if given.get("RevisionId") and known is not None and given["RevisionId"] != known:
        raise stale(call)


def _statement(given: Input, resource: str) -> Statement:
    statement: Statement = {
        "Sid": given["StatementId"],
        "Effect": "Allow",
        "Principal": principal(given["Principal"]),
        "Action": given["Action"],
        "Resource": resource,
    }
    conditions: dict[str, dict[str, str]] = {}
    for member, operator, key in CONDITIONS:
        if given.get(member):
            conditions.setdefault(operator, {})[key] = given[member]
    if given.get("InvokedViaFunctionUrl") is not None:
        told = "true" if given["InvokedViaFunctionUrl"] else "false"
        conditions["Bool"] = {"lambda:InvokedViaFunctionUrl": told}
    if conditions:
        statement["Condition"] = conditions
    return statement


def principal(told: str) -> str | dict[str, str]:
    """As policies write it (SPEC 10.5). Raises CallerError."""
    if told == "*":
        return told
    if _SERVICE.fullmatch(told):
        return {"Service": told}
    if _ACCOUNT.fullmatch(told):
        return {"AWS": f"arn:aws:iam::{told}:root"}
    if _IAM.fullmatch(told):
        return {"AWS": told}
    raise invalid("The provided principal was invalid. Please check the principal and try again.")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


OPERATIONS = {
    "AddPermission": add_permission,
    "GetPolicy": get_policy,
    "RemovePermission": remove_permission,
    "PutResourcePolicy": put_resource_policy,
    "GetResourcePolicy": get_resource_policy,
    "DeleteResourcePolicy": delete_resource_policy,
}
_KEPT = "Kept and shown. Function URLs with AuthType NONE ask it; who else may call is settled by `auth`"
NOTES = {
    "AddPermission": f"{_KEPT}.",
    "PutResourcePolicy": f"{_KEPT}. Of functions, versions and aliases.",
}
