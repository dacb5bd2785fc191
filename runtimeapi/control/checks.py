"""Owns what a function's configuration may say, beyond what the model does: in AWS's words where it is AWS's rule,
in lambox's own, with the mend, where it is lambox that has not got something.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from rootfs.environ import RESERVED, RESERVED_MESSAGE
from runtimeapi.control.control import Control, invalid
from runtimeapi.control.parsing import Input
from runtimeapi.control.tags import check_tags
from sandbox.errors import InvalidRequest
from sandbox.registry.eventinvoke import check_dead_letter

log = logging.getLogger(__name__)

RUNTIMES = (
    "nodejs20.x", "python3.14", "provided.al2023", "python3.12", "python3.13", "nodejs24.x", "nodejs22.x",
    "java25", "python3.10", "python3.11", "java21", "ruby3.3", "ruby3.4", "ruby3.2", "python3.8",
    "python3.9", "java17", "nodejs16.x", "dotnet10", "dotnet8", "java11", "dotnet6", "nodejs18.x",
    "provided.al2", "java8.al2",
)  # fmt: skip
"""What AWS takes, in the order of its message (SPEC 5.5)."""
NEWER = frozenset({
    "ruby4.0", "nodejs26.x", "python3.15", "java8.al2023", "java11.al2023", "java17.al2023",
})  # fmt: skip
"""In the model since."""
DEPRECATED = frozenset({
    "nodejs", "nodejs4.3", "nodejs4.3-edge", "nodejs6.10", "nodejs8.10", "nodejs10.x", "nodejs12.x",
    "nodejs14.x", "java8", "python2.7", "python3.6", "python3.7", "dotnetcore1.0", "dotnetcore2.0",
    "dotnetcore2.1", "dotnetcore3.1", "dotnet5.0", "dotnet7", "go1.x", "ruby2.5", "ruby2.7", "provided",
})  # fmt: skip
SNAPSTART = frozenset({
    "java11", "java17", "java21", "java25", "python3.12", "python3.13", "python3.14", "dotnet8",
    "dotnet10",
})  # fmt: skip
MAX_ENVIRONMENT = 4096
"""Bytes of the variables as JSON (SPEC 5.4)."""
MAX_NAME = 64

UNSUPPORTED = {
    "CapacityProviderConfig": "Lambda Managed Instances",
    "DurableConfig": "durable functions",
    "TenancyConfig": "tenant isolation",
    "RuntimeConfig": "customer-managed runtimes",
    "AcceleratorConfig": "accelerators",
    "PublishTo": "Lambda Managed Instances",
    "ImageConfig": "container images",
}
"""Members of requests -> what they are for, which lambox has not got."""
NO_IMAGES = (
    "lambox runs no container images. Hint: send the program as a zip (ZipFile, or S3Bucket and S3Key) with "
    "PackageType Zip; for a language of your own with Runtime provided.al2023 and an executable bootstrap in it."
)


def check_configuration(control: Control, given: Input, *, name: str, runtime: str | None) -> None:
    """Of CreateFunction and UpdateFunctionConfiguration. `runtime`: what it will have. Raises CallerError."""
    check_supported(given)
    _check_environment(given.get("Environment", {}).get("Variables", {}))
    if "Runtime" in given:
        check_runtime(given["Runtime"])
    if given.get("SnapStart", {}).get("ApplyOn") == "PublishedVersions" and (
        runtime not in SNAPSTART
    ):
        raise invalid(f"{runtime} is not supported for SnapStart enabled functions.")
    check_dead_letter(given.get("DeadLetterConfig", {}), name=name)
    check_architectures(control, given)


def check_supported(given: Input) -> None:
    """Raises CallerError: what lambox has not got."""
    for member, what in UNSUPPORTED.items():
        if given.get(member):
            raise invalid(f"{member}: lambox has no {what}. Hint: leave {member} out.")
    if given.get("FileSystemConfigs"):
        raise invalid(
            "FileSystemConfigs: lambox mounts no EFS or S3 file systems. Hint: leave it out; what a function "
            "is to read goes into its package or a layer."
        )


def check_new(given: Input, name: str) -> None:
    """What only CreateFunction is asked. Raises CallerError."""
    if len(name) > MAX_NAME:
        raise invalid(
            f"1 validation error detected: Value '{name}' at 'functionName' failed to satisfy constraint: "
            f"Member must have length less than or equal to {MAX_NAME}"
        )
    if given.get("PackageType") == "Image" or "ImageUri" in given["Code"]:
        raise invalid(NO_IMAGES)
    if "Runtime" not in given or "Handler" not in given:
        raise invalid(
            "Runtime and Handler are mandatory parameters for functions created with deployment packages."
        )
    if "CodeSigningConfigArn" in given:
        raise InvalidRequest(
            "The code signing configuration cannot be found. Check that the provided configuration is not "
            f"deleted: {given['CodeSigningConfigArn']}.",
            code="CodeSigningConfigNotFoundException",
            status=404,
        )
    check_tags(given.get("Tags", {}))


def check_runtime(runtime: str) -> None:
    """That AWS takes it now; whether this host has it, its State tells. Raises CallerError."""
    if runtime in RUNTIMES or runtime in NEWER:
        return
    if runtime in DEPRECATED:
        raise invalid(
            f"The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda "
            "functions. We recommend you use a supported runtime while creating or updating functions."
        )
    raise invalid(
        f"Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: "
        f"[{', '.join(RUNTIMES)}] or be a valid ARN"
    )


def check_architectures(control: Control, given: Input) -> None:
    """Raises CallerError: programs run on this host's processor."""
    for asked in given.get("Architectures", ()):
        if asked != control.architecture:
            raise invalid(
                f"Architectures: this host is {control.architecture}, and lambox runs functions natively: none "
                f"for {asked}. Hint: build it for {control.architecture}, or leave Architectures out."
            )


def _check_environment(variables: dict[str, str]) -> None:
    reserved = [key for key in variables if key in RESERVED]
    if reserved:
        raise invalid(RESERVED_MESSAGE + ", ".join(reserved))
    measured = json.dumps(variables, separators=(",", ":"), ensure_ascii=False)
    if len(measured.encode()) > MAX_ENVIRONMENT:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment variables you "
            f"have provided exceeded the 4KB limit. String measured: {measured}"
        )


def tell_ignored(name: str, config: dict[str, Any]) -> None:
    """What is kept and shown, and has no effect here, is said once in the log."""
    if config.get("VpcConfig", {}).get("SubnetIds"):
        log.warning(
            "function %s: VpcConfig is kept and shown, and ignored: there are no VPCs here, it has the "
            "network that [defaults] gives all functions",
            name,
        )
    if config.get("TracingConfig", {}).get("Mode") == "Active":
        log.info("function %s: TracingConfig is kept and shown: nothing is sent to X-Ray", name)
    if config.get("KMSKeyArn"):
        log.warning("function %s: KMSKeyArn is kept and shown: nothing is encrypted with it", name)
    if config.get("SnapStart", {}).get("ApplyOn") == "PublishedVersions":
        log.info("function %s: SnapStart is kept and shown, its OptimizationStatus is Off", name)
