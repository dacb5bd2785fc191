"""Owns event source mappings: Create, Get, List, Update, DeleteEventSourceMapping (SPEC 8.4, 10.5).

What is polled is SQS; other sources are refused. States are brought on by `sandbox/sources/sources.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from runtimeapi.arns import FunctionRef
from runtimeapi.control.control import Control, invalid, missing
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.errors import CallerError, FunctionNotFound, InvalidRequest
from sandbox.registry.records import LATEST, MappingRecord
from sandbox.sources import filters
from sandbox.sources.poller import NoSuchQueue, QueueProblem

USER = "USER_INITIATED"
SETTABLE = (
    "BatchSize",
    "FilterCriteria",
    "MaximumBatchingWindowInSeconds",
    "FunctionResponseTypes",
    "ScalingConfig",
    "KMSKeyArn",
    "MetricsConfig",
)
OF_STREAMS = (
    "StartingPosition",
    "StartingPositionTimestamp",
    "ParallelizationFactor",
    "MaximumRecordAgeInSeconds",
    "BisectBatchOnFunctionError",
    "MaximumRetryAttempts",
    "TumblingWindowInSeconds",
    "Topics",
    "Queues",
    "SourceAccessConfigurations",
)
LARGEST = {"standard": 10_000, "fifo": 10}
SMALL_BATCH = 10
"""A larger one needs a window."""
PAGE = 100


async def create(control: Control, given: Input) -> Output:
    arn = given.get("EventSourceArn")
    if arn is None and not given.get("SelfManagedEventSource"):
        raise invalid("Unrecognized event source.")
    ref = control.ref(given["FunctionName"])
    timeout_s = _timeout_s(control, ref)
    _must_be_sqs(arn)
    assert arn is not None
    document = {
        "BatchSize": 10,
        "MaximumBatchingWindowInSeconds": 0,
        "FunctionResponseTypes": [],
        **_settings(given),
        "EventSourceArn": arn,
        "FunctionArn": ref.invoked_arn,
        "Enabled": given.get("Enabled", True),
        "State": "Creating",
        "StateTransitionReason": USER,
        "LastModified": control.now().timestamp(),
    }
    _check(document, given)
    await _check_queue(control, arn, timeout_s)
    async with control.registry.edit() as edit:
        _check_twin(control, arn, ref)
        made = MappingRecord(
            name=control.new_id(),
            function=ref.name,
            qualifier=ref.qualifier,
            document=document,
            tags=given.get("Tags", {}),
        )
        edit.put(made)
    return shown(control, made)


async def update(control: Control, given: Input) -> Output:
    known = _found(control, given["UUID"])
    ref = _ref(control, known, given.get("FunctionName"))
    if given.get("FunctionName"):
        await _check_queue(control, known.document["EventSourceArn"], _timeout_s(control, ref))
    async with control.registry.edit() as edit:
        before = _found(control, given["UUID"])
        if before.document["State"] not in ("Enabled", "Disabled"):
            raise InvalidRequest(
                "Cannot update the event source mapping because it is in use.",
                code="ResourceInUseException",
            )
        changed = {**before.document, **_settings(given), "FunctionArn": ref.invoked_arn}
        _check(changed, given)
        was = before.document["Enabled"]
        changed["Enabled"] = given.get("Enabled", was)
        state = "Updating"
        if changed["Enabled"] != was:
            state = "Enabling" if changed["Enabled"] else "Disabling"
        changed |= {
            "State": state,
            "StateTransitionReason": USER,
            "LastModified": control.now().timestamp(),
        }
        after = replace(before, function=ref.name, qualifier=ref.qualifier, document=changed)
        edit.put(after)
    return shown(control, after)


async def get(control: Control, given: Input) -> Output:
    return shown(control, _found(control, given["UUID"]))


async def delete(control: Control, given: Input) -> Output:
    async with control.registry.edit() as edit:
        before = _found(control, given["UUID"])
        if before.document["State"] == "Deleting":
            raise InvalidRequest(
                "Cannot delete the event source mapping because it is in use.",
                code="ResourceInUseException",
            )
        document = {**before.document, "State": "Deleting", "StateTransitionReason": USER}
        after = replace(before, document=document)
        edit.put(after)
    return shown(control, after)


async def list_(control: Control, given: Input) -> Output:
    found = sorted(control.registry.mappings(), key=lambda one: one.name)
    if "EventSourceArn" in given:
        found = [one for one in found if one.document["EventSourceArn"] == given["EventSourceArn"]]
    if "FunctionName" in given:
        ref = control.ref(given["FunctionName"])
        found = [one for one in found if (one.function, one.qualifier) == (ref.name, ref.qualifier)]
    after = given.get("Marker", "")
    rest = [one for one in found if one.name > after]
    size = min(given.get("MaxItems", PAGE), PAGE)
    page = rest[:size]
    return {
        "EventSourceMappings": [shown(control, one) for one in page],
        "NextMarker": page[-1].name if len(rest) > size else None,
    }


def shown(control: Control, mapping: MappingRecord) -> Output:
    """EventSourceMappingConfiguration."""
    output: dict[str, Any] = {
        key: value for key, value in mapping.document.items() if key != "Enabled"
    }
    output["UUID"] = mapping.name
    output["EventSourceMappingArn"] = mapping_arn(control, mapping.name)
    output["LastModified"] = datetime.fromtimestamp(mapping.document["LastModified"], UTC)
    if problem := control.mapping_problems.get(mapping.name):
        output["LastProcessingResult"] = f"PROBLEM: {problem}"
    return output


def mapping_arn(control: Control, name: str) -> str:
    return f"arn:aws:lambda:{control.region}:{control.account}:event-source-mapping:{name}"


def _found(control: Control, name: str) -> MappingRecord:
    found = control.registry.mapping(name)
    if found is None:
        raise missing()
    return found


def _ref(control: Control, mapping: MappingRecord, name: str | None) -> FunctionRef:
    if name is not None:
        return control.ref(name)
    return control.ref(mapping.document["FunctionArn"])


def _timeout_s(control: Control, ref: FunctionRef) -> int:
    """Of the function. Raises what AWS says of one that there is not."""
    control.functions.refresh()
    try:
        return control.functions.resolve(ref.name, ref.qualifier).timeout_s
    except FunctionNotFound as exc:
        if ref.qualifier not in (None, LATEST) and _exists(control, ref.name):
            raise ref.not_found() from exc
        raise invalid("Function does not exist") from exc
    except CallerError:
        return 0  # it is there, and cannot run as it is


def _exists(control: Control, name: str) -> bool:
    return any(one.name == name for one in control.functions.all())


def _must_be_sqs(arn: str | None) -> None:
    service = arn.split(":")[2] if arn else "self-managed Kafka"
    if service != "sqs":
        raise invalid(
            f"Event sources of {service} are not supported by lambox: it polls SQS queues."
        )


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: given[name] for name in SETTABLE if name in given}
    if "FilterCriteria" in found and not found["FilterCriteria"].get("Filters"):
        del found["FilterCriteria"]
    return found


def _check(document: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """What the model cannot say. Raises InvalidParameterValueException."""
    if given.get("DestinationConfig"):
        raise invalid(
            "Unsupported DestinationConfig parameter for given event source mapping type."
        )
    for name in OF_STREAMS:
        if name in given:
            raise invalid(f"Unsupported {name} parameter for given event source mapping type.")
    for one in document.get("FilterCriteria", {}).get("Filters", ()):
        try:
            filters.parse(one.get("Pattern", ""))
        except filters.BadPattern as exc:
            raise invalid("Invalid filter pattern definition.") from exc
    kind = "fifo" if document["EventSourceArn"].endswith(".fifo") else "standard"
    size, window_s = document["BatchSize"], document["MaximumBatchingWindowInSeconds"]
    if kind == "fifo" and window_s:
        raise invalid("Batching window is not supported for FIFO queues")
    if size > LARGEST[kind]:
        raise invalid(
            "1 validation error detected: Value "
            f"'{size}' at 'batchSize' failed to satisfy constraint: "
            f"Member must have value less than or equal to {LARGEST[kind]}"
        )
    if size > SMALL_BATCH and not window_s:
        raise invalid(
            "Maximum batch window in seconds must be greater than 0 "
            "if maximum batch size is greater than 10"
        )


async def _check_queue(control: Control, arn: str, timeout_s: int) -> None:
    try:
        visible_s = await control.queue_timeout_s(arn)
    except NoSuchQueue as exc:
        raise invalid(
            "Error occurred while ReceiveMessage. SQS Error Code: "
            "AWS.SimpleQueueService.NonExistentQueue. "
            "SQS Error Message: The specified queue does not exist."
        ) from exc
    except QueueProblem as exc:
        raise invalid(f"The queue {arn} cannot be asked: {exc}") from exc
    if visible_s < timeout_s:
        raise invalid(
            f"Queue visibility timeout: {visible_s} seconds "
            f"is less than Function timeout: {timeout_s} seconds"
        )


def _check_twin(control: Control, arn: str, ref: FunctionRef) -> None:
    for one in control.registry.mappings():
        twin = one.document["EventSourceArn"] == arn and one.function == ref.name
        if twin and one.qualifier == ref.qualifier:
            raise InvalidRequest(
                f'An event source mapping with SQS arn (" {arn} ") and function (" {ref.name} ") '
                f"already exists. Please update or delete the existing mapping with UUID {one.name}",
                code="ResourceConflictException",
                status=409,
            )


OPERATIONS = {
    "CreateEventSourceMapping": create,
    "GetEventSourceMapping": get,
    "ListEventSourceMappings": list_,
    "UpdateEventSourceMapping": update,
    "DeleteEventSourceMapping": delete,
}
_SQS = "SQS queues only."
NOTES = {"CreateEventSourceMapping": _SQS, "UpdateEventSourceMapping": _SQS}
