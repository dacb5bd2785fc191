"""Owns EventInvokeConfig as the Lambda API has it (SPEC 8.1, 8.2, 10.5): what may be configured, and what it means.

Pure functions over documents with botocore's member names; `runtimeapi/control/eventinvoke.py` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sandbox.errors import InvalidRequest
from sandbox.eventconfig import BadTarget, EventConfig, Target, parse_target
from sandbox.registry.records import LATEST, Document, FunctionRecord, VersionRecord

FEATURE = "event_invoke"
"""Of FunctionRecord.attached."""
RECURSION = "recursion"
RETRIES, AGE = "MaximumRetryAttempts", "MaximumEventAgeInSeconds"
DESTINATIONS = "DestinationConfig"
MEMBERS = (RETRIES, AGE, DESTINATIONS)
NO_SUCCESS = ("s3",)
"""Kinds that AWS tells of failures alone."""

Exists = Callable[[str, str | None], bool]
"""(function, qualifier) -> whether there is one."""


# --- what may be configured


def check_config(given: Mapping[str, Any]) -> None:
    """Of PutFunctionEventInvokeConfig and Update. Raises InvalidRequest."""
    if not any(member in given for member in MEMBERS):
        raise _invalid("You must specify at least one of error handling or destination setting.")


def check_destinations(
    config: Mapping[str, Any], *, name: str, region: str, account: str, exists: Exists
) -> None:
    """DestinationConfig of the function `name`. Raises InvalidRequest."""
    for member in ("OnSuccess", "OnFailure"):
        text = destination(config, member)
        if not text:
            continue
        target = _target(text)
        if target is None or (member == "OnSuccess" and target.kind in NO_SUCCESS):
            raise _invalid(f"The provided destination config {_shown(config)} is invalid.")
        if target.kind == "function":
            ours = (target.region or region, target.account or account) == (region, account)
            if not ours or not exists(target.name, target.qualifier):
                raise _invalid(f"The destination ARN {text} is invalid.")
            if target.name == name:
                raise _invalid("You can't specify the function as a destination for itself.")


def check_dead_letter(config: Mapping[str, Any], *, name: str) -> None:
    """DeadLetterConfig of CreateFunction and UpdateFunctionConfiguration; an empty TargetArn is none.

    AWS takes queues and topics; here another function or an HTTP address will do, too. Raises InvalidRequest.
    """
    text = config.get("TargetArn")
    if not text:
        return
    try:
        target = parse_target(text)
    except BadTarget as exc:
        raise _invalid(f"Invalid dead letter ARN: {exc}: {text}") from exc
    if target.kind in ("events", "s3"):
        raise _invalid(f"Invalid dead letter ARN: must be of an SQS queue or SNS topic: {text}")
    if target.kind == "function" and target.name == name:
        raise _invalid("You can't specify the function as a destination for itself.")


def destination(config: Mapping[str, Any], member: str) -> str:
    """The Destination of OnSuccess or OnFailure; empty when there is none."""
    found: str = (config.get(member) or {}).get("Destination") or ""
    return found


def _target(text: str) -> Target | None:
    try:
        return parse_target(text)
    except BadTarget:
        return None


def _shown(config: Mapping[str, Any]) -> str:
    """As AWS's Java prints it (SPEC 8.2)."""
    parts = []
    for member in ("OnSuccess", "OnFailure"):
        text = destination(config, member)
        value = f"{member}(destination={text})" if text else "null"
        parts.append(f"{member[:1].lower()}{member[1:]}={value}")
    return f"DestinationConfig({', '.join(parts)})"


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="InvalidParameterValueException")


# --- what it means


def event_config(
    record: FunctionRecord, folder: EventConfig | None, qualifier: str | None
) -> EventConfig:
    """What counts for events to this qualifier. `folder`: what function.toml says, if it is a folder's function.

    Whatever has been put through the API replaces the folder's, but for its dead letters and recursion.
    """
    qualifier = qualifier or LATEST
    base = folder if folder is not None and qualifier == LATEST else EventConfig()
    found = dead_letters(base, _version(record, qualifier))
    recursion = record.attached.get(RECURSION, {}).get(LATEST)
    if recursion is not None:
        found = replace(found, allows_recursion=recursion.get("RecursiveLoop") == "Allow")
    elif folder is not None:
        found = replace(found, allows_recursion=folder.allows_recursion)
    document = record.attached.get(FEATURE, {}).get(qualifier)
    return found if document is None else _overlaid(found, document)


def dead_letters(config: EventConfig, version: VersionRecord | None) -> EventConfig:
    if version is None:
        return config
    text = version.config.get("DeadLetterConfig", {}).get("TargetArn")
    return replace(config, dead_letter=_target(text) if text else None)


def _version(record: FunctionRecord, qualifier: str) -> VersionRecord | None:
    """Of an alias with weights: its main one."""
    alias = record.aliases.get(qualifier)
    number = alias.version if alias is not None else qualifier
    return record.latest if number == LATEST else record.versions.get(number)


def _overlaid(config: EventConfig, document: Document) -> EventConfig:
    destinations = document.get(DESTINATIONS, {})
    success, failure = (destination(destinations, m) for m in ("OnSuccess", "OnFailure"))
    return replace(
        config,
        retries=document.get(RETRIES),
        max_age_s=document.get(AGE),
        on_success=_target(success) if success else None,
        on_failure=_target(failure) if failure else None,
    )


def document_of(config: EventConfig, arn: Callable[[Target], str]) -> Document | None:
    """What function.toml says, as the API shows it. None: nothing. `arn`: of a function that is a target."""
    if (config.retries, config.max_age_s, config.on_success, config.on_failure) == (None,) * 4:
        return None
    found: Document = {DESTINATIONS: {"OnSuccess": {}, "OnFailure": {}}}
    for member, target in (("OnSuccess", config.on_success), ("OnFailure", config.on_failure)):
        if target is not None:
            text = arn(target) if target.kind == "function" else target.text
            found[DESTINATIONS][member] = {"Destination": text}
    if config.retries is not None:
        found[RETRIES] = config.retries
    if config.max_age_s is not None:
        found[AGE] = int(config.max_age_s)
    return found
