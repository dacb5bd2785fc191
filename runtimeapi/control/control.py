"""Owns what the operations of the Lambda API work on, and how they name functions."""

from __future__ import annotations

import platform
import secrets
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import BinaryIO

from rootfs.codestore import CodeStore
from runtimeapi.arns import FunctionRef, parse_function_name
from runtimeapi.control.folders import Folders
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output, timestamp
from runtimeapi.ports import Functions
from sandbox.errors import FunctionNotFound, InvalidRequest
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.provisioning import Provisioned
from sandbox.registry.records import LATEST, FunctionRecord, VersionRecord
from sandbox.registry.registry import Registry

ARCHITECTURES = {"aarch64": "arm64"}
"""Names of the kernel's that are not AWS's."""


def host_architecture() -> str:
    """In AWS's words: x86_64 or arm64."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


async def no_s3(bucket: str, key: str, version: str | None, into: BinaryIO) -> None:
    raise invalid(
        f"S3Bucket: there is no S3 to get s3://{bucket}/{key} from. Hint: send the zip itself as ZipFile"
    )


@dataclass(frozen=True, slots=True)
class Control:
    """The rooms behind the Lambda API. One per node."""

    registry: Registry
    functions: Functions
    """Folders' functions and those of the registry."""
    folder: Callable[[str], FunctionVersion | BrokenFunction | None]
    """The folder's function of this name. `face.py` has folders looked at anew before every operation."""
    code: CodeStore
    region: str
    account: str
    now: Callable[[], datetime]
    in_background: Callable[[Callable[[], Awaitable[None]]], None]
    """Run this after the answer, in the node's nursery."""
    activate: Callable[[str], Awaitable[None]]
    """Make ready what is Pending or InProgress of this function, and have it Active."""
    make_ready: Callable[[FunctionRecord, VersionRecord], Awaitable[None]]
    """Have a version that is not in the registry yet run as soon as it is."""
    folders: Folders
    queue_timeout_s: Callable[[str], Awaitable[int]]
    """Visibility timeout of the SQS queue with this ARN. Raises sandbox.sources.poller.QueueProblem."""
    fetch_code: Callable[[str, str, str | None, BinaryIO], Awaitable[None]] = no_s3
    """Bucket, key and version of an object; writes it into a file. Raises CallerError, in AWS's words."""
    account_concurrency: int = 1000
    """AccountLimit.ConcurrentExecutions."""
    provisioned: Callable[[str, str], Provisioned] = lambda name, version: Provisioned(0)
    """(function, version) -> how far the engine has come. Raises CallerError: the version cannot run."""
    mapping_problems: dict[str, str] = field(default_factory=dict)
    """What keeps event source mappings from their queues or functions just now, by UUID."""
    new_id: Callable[[], str] = field(default=lambda: str(uuid.uuid4()))
    architecture: str = field(default_factory=host_architecture)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    """Of this process: what addresses of packages are signed with."""

    def stamp(self) -> str:
        """LastModified, now."""
        return timestamp(self.now())

    def function_arn(self, name: str, qualifier: str | None = None) -> str:
        arn = f"arn:aws:lambda:{self.region}:{self.account}:function:{name}"
        return f"{arn}:{qualifier}" if qualifier else arn

    def ref(self, name: str, qualifier: str | None = None) -> FunctionRef:
        """A FunctionName as it was given (name, partial or full ARN) and the Qualifier. Raises CallerError."""
        return parse_function_name(name, qualifier, region=self.region, account=self.account)

    def record(self, ref: FunctionRef) -> FunctionRecord:
        """The record of an existing function; for a folder's function a fresh one, if it has none yet.

        Raises FunctionNotFound as Get, Update and Delete word it (SPEC 3.8). A folder that went leaves its
        published versions, if there are any; a function that went leaves the number of its next version.
        """
        found = self.registry.function(ref.name)
        if found is not None and (found.latest is not None or found.versions):
            return found
        if self.folder(ref.name) is None:
            raise not_found(ref)
        return found or FunctionRecord(name=ref.name, birth=self.new_id(), latest=None)

    async def latest(self, record: FunctionRecord) -> VersionRecord | None:
        """$LATEST, out of the registry or of its folder. None: its folder is gone."""
        if record.latest is not None:
            return record.latest
        function = self.folder(record.name)
        return None if function is None else await self.folders.latest(function, record)

    async def version(self, ref: FunctionRef) -> tuple[FunctionRecord, VersionRecord]:
        """What name and qualifier mean; an alias means the version it names first. Raises FunctionNotFound."""
        record = self.record(ref)
        alias = record.aliases.get(ref.qualifier or "")
        number = alias.version if alias is not None else ref.qualifier
        if number in (None, LATEST):
            found = await self.latest(record)
        else:
            found = record.versions.get(number)
        if found is None:
            raise not_found(ref)
        return record, found


Operation = Callable[[Control, Input], Awaitable[Output]]
"""What answers one operation: botocore's member names in and out. Raises CallerError or PlatformFault."""


def not_found(ref: FunctionRef) -> FunctionNotFound:
    """SPEC 3.8: unlike Invoke, these do not append `:$LATEST`."""
    return FunctionNotFound(f"Function not found: {ref.invoked_arn}")


def function_not_found(ref: FunctionRef) -> FunctionNotFound:
    """The same without the qualifier."""
    return not_found(replace(ref, qualifier=None))


def invalid(message: str, *, typed: bool = True) -> InvalidRequest:
    """`typed` False: AWS's answer to this has no `Type`."""
    return InvalidRequest(message, code="InvalidParameterValueException", typed=typed)


def conflict(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="ResourceConflictException", status=409)


def missing(
    message: str = "The resource you requested does not exist.", *, typed: bool = True
) -> InvalidRequest:
    return InvalidRequest(message, code="ResourceNotFoundException", status=404, typed=typed)


def stale(call: str = "GetFunction/GetAlias") -> InvalidRequest:
    """SPEC 10.4: a RevisionId that is not the latest."""
    return InvalidRequest(
        "The Revision Id provided does not match the latest Revision Id. "
        f"Call the {call} API to retrieve the latest Revision Id",
        code="PreconditionFailedException",
        status=412,
    )


def check_revision(given: Input, latest: str) -> None:
    """The request's RevisionId, if it has one that says something. Raises CallerError."""
    if given.get("RevisionId") not in (None, "", latest):
        raise stale()


__all__ = [
    "LATEST",
    "Control",
    "Operation",
    "check_revision",
    "conflict",
    "function_not_found",
    "invalid",
    "missing",
    "not_found",
    "stale",
]
