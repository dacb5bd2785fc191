"""Owns what the operations of the Lambda API work on, and how they name functions."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from rootfs.codestore import CodeStore
from runtimeapi.arns import FunctionRef, parse_function_name
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output, timestamp
from runtimeapi.ports import Functions, ProvisionedState
from sandbox.errors import FunctionNotFound, InvalidRequest
from sandbox.registry.records import LATEST, FunctionRecord
from sandbox.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Control:
    """The rooms behind the Lambda API. One per node."""

    registry: Registry
    functions: Functions
    """Folders' functions and those of the registry."""
    code: CodeStore
    region: str
    account: str
    now: Callable[[], datetime]
    in_background: Callable[[Callable[[], Awaitable[None]]], None]
    """Run this after the answer, in the node's nursery."""
    activate: Callable[[str], Awaitable[None]]
    """Make ready what is Pending or InProgress of this function, and have it Active."""
    queue_timeout_s: Callable[[str], Awaitable[int]]
    """Visibility timeout of the SQS queue with this ARN. Raises sandbox.sources.poller.QueueProblem."""
    account_concurrency: int = 1000
    """AccountLimit.ConcurrentExecutions."""
    provisioned: Callable[[str, str], ProvisionedState | None] = lambda name, version: None
    """(function, version) -> how far the engine has come; None: it has not heard of it."""
    mapping_problems: dict[str, str] = field(default_factory=dict)
    """What keeps event source mappings from their queues or functions just now, by UUID."""
    new_id: Callable[[], str] = field(default=lambda: str(uuid.uuid4()))

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

        Raises FunctionNotFound as Get, Update and Delete word it (SPEC 3.8).
        """
        found = self.registry.function(ref.name)
        if found is not None:
            return found
        self.functions.refresh()
        if any(one.name == ref.name for one in self.functions.all()):
            return FunctionRecord(name=ref.name, birth=self.new_id(), latest=None)
        raise not_found(ref)


Operation = Callable[[Control, Input], Awaitable[Output]]
"""What answers one operation: botocore's member names in and out. Raises CallerError or PlatformFault."""


def not_found(ref: FunctionRef) -> FunctionNotFound:
    """SPEC 3.8: unlike Invoke, these do not append `:$LATEST`."""
    return FunctionNotFound(f"Function not found: {ref.invoked_arn}")


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


__all__ = [
    "LATEST",
    "Control",
    "Operation",
    "conflict",
    "invalid",
    "missing",
    "not_found",
    "stale",
]
