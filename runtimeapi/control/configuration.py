"""Owns FunctionConfiguration: from what CreateFunction is given, and as it is shown (SPEC 10.2)."""

from __future__ import annotations

from typing import Any

from runtimeapi.control.control import Control
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.registry.records import FunctionRecord, VersionRecord

CONFIGURED = (
    "Runtime",
    "Role",
    "Handler",
    "Description",
    "Timeout",
    "MemorySize",
    "VpcConfig",
    "PackageType",
    "DeadLetterConfig",
    "Environment",
    "KMSKeyArn",
    "TracingConfig",
    "Layers",
    "FileSystemConfigs",
    "ImageConfig",
    "Architectures",
    "EphemeralStorage",
    "SnapStart",
    "LoggingConfig",
)
"""Members of CreateFunction that a version keeps."""
STATES = (
    ("State", "state"),
    ("StateReason", "state_reason"),
    ("StateReasonCode", "state_reason_code"),
    ("LastUpdateStatus", "last_update_status"),
    ("LastUpdateStatusReason", "last_update_status_reason"),
    ("LastUpdateStatusReasonCode", "last_update_status_reason_code"),
)


def defaults(name: str) -> dict[str, Any]:
    return {
        "Description": "",
        "Timeout": 3,
        "MemorySize": 128,
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": 512},
        "PackageType": "Zip",
        "TracingConfig": {"Mode": "PassThrough"},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{name}"},
    }


def configured(given: Input, name: str) -> dict[str, Any]:
    """The configuration of a new function."""
    sent = {member: given[member] for member in CONFIGURED if member in given}
    return {**defaults(name), **sent}


def shown(
    control: Control,
    record: FunctionRecord,
    version: VersionRecord,
    qualifier: str | None = None,
    *,
    listed: bool = False,
) -> Output:
    """FunctionConfiguration. `qualifier`: as it was asked for; `listed`: ListFunctions leaves states out."""
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
        ]
    if not listed:
        output |= {member: getattr(version, attribute) for member, attribute in STATES}
    return output
