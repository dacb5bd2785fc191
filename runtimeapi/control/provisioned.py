"""Owns provisioned concurrency of versions and aliases (SPEC 7, 10.5). The engine says how far it has come."""

from __future__ import annotations

from dataclasses import replace

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, conflict, invalid, not_found
from runtimeapi.control.paging import page
from runtimeapi.control.parsing import Input
from runtimeapi.control.qualifiers import attach, nothing_there, resolved
from runtimeapi.control.rendering import Output
from sandbox.concurrency import check_provisioned
from sandbox.errors import CallerError, FunctionNotFound, InvalidRequest
from sandbox.provisioning import INTERNAL_ERROR, Provisioned
from sandbox.registry.records import LATEST, FunctionRecord

FEATURE = "provisioned"
REQUESTED = "RequestedProvisionedConcurrentExecutions"
NOT_QUALIFIED = "The function resource provided must be an alias or a published version."
UNPUBLISHED = "Provisioned Concurrency Configs cannot be applied to unpublished function versions."


async def put_provisioned_concurrency_config(control: Control, given: Input) -> Output:
    ref = _ref(control, given, UNPUBLISHED)
    wanted = given["ProvisionedConcurrentExecutions"]
    async with control.registry.edit() as edit:
        record, qualifier = _found(control, ref)
        live = control.functions.live()
        version = _version(record, qualifier)
        check_provisioned(record.name, version, wanted, control.account_concurrency, live)
        _check_conflicts(record, qualifier)
        stamp = control.stamp()
        edit.put(attach(record, FEATURE, qualifier, {REQUESTED: wanted, "LastModified": stamp}))
    # As AWS does, before the engine has looked at it.
    return {
        REQUESTED: wanted,
        "AllocatedProvisionedConcurrentExecutions": 0,
        "AvailableProvisionedConcurrentExecutions": 0,
        "Status": "IN_PROGRESS",
        "LastModified": stamp,
    }


def _check_conflicts(record: FunctionRecord, qualifier: str) -> None:
    """One version has its environments from one request: its own or one alias's."""
    configured = record.attached.get(FEATURE, {})
    alias = record.aliases.get(qualifier)
    if alias is None:
        if any(
            other.name in configured and other.version == qualifier
            for other in record.aliases.values()
        ):
            raise conflict("Version is pointed by a Provisioned Concurrency alias")
        return
    if alias.weights:
        raise invalid("Alias with weights can not be used with Provisioned Concurrency")
    taken = {alias.version} | {
        other.name
        for other in record.aliases.values()
        if other.name != qualifier and other.version == alias.version
    }
    if not taken.isdisjoint(configured):
        raise conflict(
            "Alias can't be used for Provisioned Concurrency configuration on an already "
            "Provisioned version"
        )


async def get_provisioned_concurrency_config(control: Control, given: Input) -> Output:
    record, qualifier = _found(control, _ref(control, given, NOT_QUALIFIED))
    if qualifier not in record.attached.get(FEATURE, {}):
        raise InvalidRequest(
            "No Provisioned Concurrency Config found for this function",
            code="ProvisionedConcurrencyConfigNotFoundException",
            status=404,
        )
    return _shown(control, record, qualifier)


async def list_provisioned_concurrency_configs(control: Control, given: Input) -> Output:
    ref = control.ref(given["FunctionName"])
    record = control.record(ref)
    keys, following = page(
        [(qualifier, 0) for qualifier in record.attached.get(FEATURE, {})], given
    )
    return {
        "ProvisionedConcurrencyConfigs": [
            {
                "FunctionArn": control.function_arn(record.name, qualifier),
                **_shown(control, record, qualifier),
            }
            for qualifier, _ in keys
        ],
        "NextMarker": following,
    }


async def delete_provisioned_concurrency_config(control: Control, given: Input) -> Output:
    async with control.registry.edit() as edit:
        record, qualifier = _found(control, _ref(control, given, NOT_QUALIFIED))
        if qualifier in record.attached.get(FEATURE, {}):
            edit.put(attach(record, FEATURE, qualifier, None))
    return {}


def _shown(control: Control, record: FunctionRecord, qualifier: str) -> Output:
    document = record.attached[FEATURE][qualifier]
    wanted = document[REQUESTED]
    try:
        state = control.provisioned(record.name, _version(record, qualifier))
    except CallerError as exc:
        state = Provisioned(wanted, status="FAILED", reason=f"{INTERNAL_ERROR}: {exc.message}")
    if state.requested != wanted:
        # It has not yet heard of the newest request.
        state = replace(state, status="IN_PROGRESS", reason=None)
    return {
        REQUESTED: wanted,
        "AllocatedProvisionedConcurrentExecutions": state.allocated,
        "AvailableProvisionedConcurrentExecutions": state.available,
        "Status": state.status,
        "StatusReason": state.reason,
        "LastModified": document["LastModified"],
    }


def _version(record: FunctionRecord, qualifier: str) -> str:
    alias = record.aliases.get(qualifier)
    return alias.version if alias is not None else qualifier


def _ref(control: Control, given: Input, unpublished: str) -> FunctionRef:
    ref = control.ref(given["FunctionName"], given["Qualifier"])
    if ref.qualifier in (None, LATEST):
        raise invalid(unpublished)
    return ref


def _found(control: Control, ref: FunctionRef) -> tuple[FunctionRecord, str]:
    try:
        record = control.record(ref)
    except FunctionNotFound as exc:
        raise nothing_there(ref) from exc
    qualifier = resolved(record, ref)
    alias = record.aliases.get(qualifier)
    if alias is not None and alias.version == LATEST:
        raise invalid(UNPUBLISHED)
    if qualifier not in record.versions and alias is None:
        raise not_found(ref)
    return record, qualifier


OPERATIONS = {
    "PutProvisionedConcurrencyConfig": put_provisioned_concurrency_config,
    "GetProvisionedConcurrencyConfig": get_provisioned_concurrency_config,
    "ListProvisionedConcurrencyConfigs": list_provisioned_concurrency_configs,
    "DeleteProvisionedConcurrencyConfig": delete_provisioned_concurrency_config,
}
NOTES: dict[str, str] = {}
