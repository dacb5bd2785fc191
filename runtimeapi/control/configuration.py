"""Owns FunctionConfiguration: from what Create and Update are given, and as it is shown (SPEC 10.2)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from runtimeapi.control.control import Control
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.loggingconfig import LoggingConfig, from_api
from sandbox.registry.records import Document, FunctionRecord, VersionRecord

AS_GIVEN = (
    "Runtime",
    "Role",
    "Handler",
    "Description",
    "Timeout",
    "MemorySize",
    "PackageType",
    "Architectures",
    "EphemeralStorage",
)
"""Members that a version keeps as they were sent."""
STATES = (
    ("State", "state"),
    ("StateReason", "state_reason"),
    ("StateReasonCode", "state_reason_code"),
    ("LastUpdateStatus", "last_update_status"),
    ("LastUpdateStatusReason", "last_update_status_reason"),
    ("LastUpdateStatusReasonCode", "last_update_status_reason_code"),
)


def defaults(name: str, architecture: str) -> Document:
    return {
        "Description": "",
        "Timeout": 3,
        "MemorySize": 128,
        "Architectures": [architecture],
        "EphemeralStorage": {"Size": 512},
        "PackageType": "Zip",
        "TracingConfig": {"Mode": "PassThrough"},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": LoggingConfig().response(name),
    }


def configured(before: Document, given: Input, name: str) -> Document:
    """The configuration after a request: what it names is replaced whole, all else stays. Raises CallerError."""
    config = {**before, **{member: given[member] for member in AS_GIVEN if member in given}}
    if "Environment" in given:
        config["Environment"] = {"Variables": given["Environment"].get("Variables", {})}
    if "SnapStart" in given:
        # Truthfully: there are no snapshots here.
        applied = given["SnapStart"].get("ApplyOn", "None")
        config["SnapStart"] = {"ApplyOn": applied, "OptimizationStatus": "Off"}
    if "LoggingConfig" in given:
        config["LoggingConfig"] = from_api(
            given["LoggingConfig"], _logging(config["LoggingConfig"])
        ).response(name)
    if mode := given.get("TracingConfig", {}).get("Mode"):
        config["TracingConfig"] = {"Mode": mode}
    if "VpcConfig" in given:
        config["VpcConfig"] = _vpc(given["VpcConfig"])
    if "DeadLetterConfig" in given:
        _set(config, "DeadLetterConfig", given["DeadLetterConfig"], "TargetArn")
    if "KMSKeyArn" in given:
        config["KMSKeyArn"] = given["KMSKeyArn"]
        if not given["KMSKeyArn"]:
            del config["KMSKeyArn"]
    return config


def _set(config: Document, member: str, given: dict[str, Any], key: str) -> None:
    """An empty target takes the member away."""
    config.pop(member, None)
    if given.get(key):
        config[member] = given


def _logging(shown: dict[str, Any]) -> LoggingConfig:
    return LoggingConfig(
        shown["LogFormat"],
        shown.get("ApplicationLogLevel"),
        shown.get("SystemLogLevel"),
        shown.get("LogGroup"),
    )


def _vpc(given: dict[str, Any]) -> Document:
    return {
        "SubnetIds": given.get("SubnetIds", []),
        "SecurityGroupIds": given.get("SecurityGroupIds", []),
        "VpcId": "",
        "Ipv6AllowedForDualStack": given.get("Ipv6AllowedForDualStack", False),
    }


def content(version: VersionRecord) -> str:
    """Code and configuration in a word: two versions with the same one are the same to PublishVersion."""
    here = {key: value for key, value in version.here.items() if key != "opt"}
    said = json.dumps([version.config, version.code.sha256, here], sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def shown(
    control: Control,
    record: FunctionRecord,
    version: VersionRecord,
    qualifier: str | None = None,
    *,
    listed: bool = False,
) -> Output:
    """FunctionConfiguration. `qualifier`: as it was asked for; `listed`: lists leave states out."""
    config = dict(version.config)
    output: Output = {
        "FunctionName": record.name,
        "FunctionArn": control.function_arn(record.name, qualifier),
        **config,
        "CodeSize": version.code.size,
        "CodeSha256": version.code.sha256,
        "LastModified": version.last_modified,
        "Version": version.version,
        "RevisionId": version.revision_id,
    }
    if "Layers" in config:
        output["Layers"] = [
            {"Arn": one["Arn"], "CodeSize": one["CodeSize"]} for one in config["Layers"]
        ] or None
    if not listed:
        output |= {member: getattr(version, attribute) for member, attribute in STATES}
        if "Runtime" in config:
            arn = runtime_version_arn(control, config["Runtime"])
            output["RuntimeVersionConfig"] = {"RuntimeVersionArn": arn}
    return output


def runtime_version_arn(control: Control, runtime: str) -> str:
    """What stands for the build of a runtime: the same for the same identifier."""
    return (
        f"arn:aws:lambda:{control.region}::runtime:{hashlib.sha256(runtime.encode()).hexdigest()}"
    )
