"""Owns what an outcome or an error looks like to a caller: status, headers, body.

AWS's face (SPEC 3.2, 3.7): a function error is a 200 with X-Amz-Function-Error; whatever else goes
wrong is JSON with the header x-amzn-ErrorType.

The friendly face (`/invoke/NAME`) speaks plain HTTP, so that `curl -f` and a browser understand it:

    success                  200   the handler's result
    function error           500   the function's own error JSON
    timeout                  504   {"errorType":"Sandbox.Timedout",...}
    throttled                429   bad JSON 400   unknown function 404   broken function 409
    too large                413   runtime not on this host 502   lambox or host at fault 500
"""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass

from sandbox.errors import CallerError, PlatformFault, TooManyRequests
from sandbox.invocation import Outcome

log = logging.getLogger("lambox.invoke")

CAPITAL_MESSAGE = frozenset(
    [
        "ResourceNotFoundException",
        "ServiceException",
        "AccessDeniedException",
        "CodeSigningConfigNotFoundException",
        "CodeVerificationFailedException",
        "InvalidCodeSignatureException",
        "RecursiveInvocationException",
        "ResourceInUseException",
        "CallbackTimeoutException",
        "DurableExecutionAlreadyStartedException",
        "NoPublishedVersionException",
        "SnapStartException",
        "SnapStartTimeoutException",
        "SnapStartNotReadyException",
        "SnapStartRegenerationFailureException",
        "PublicPolicyException",
        "ServiceQuotaExceededException",
        "EFSIOException",
        "EFSMountConnectivityException",
        "EFSMountFailureException",
        "EFSMountTimeoutException",
        "EC2AccessDeniedException",
        "EC2ThrottledException",
        "EC2UnexpectedException",
        "ENILimitReachedException",
        "ENINotReadyException",
        "InvalidRuntimeException",
        "InvalidSecurityGroupIDException",
        "InvalidSubnetIDException",
        "InvalidZipFileException",
        "KMSAccessDeniedException",
        "KMSDisabledException",
        "KMSInvalidStateException",
        "KMSNotFoundException",
        "SubnetIPAddressLimitReachedException",
        "S3FilesMountFailureException",
        "S3FilesMountConnectivityException",
        "S3FilesMountTimeoutException",
    ]
)
"""SPEC 3.7: exceptions whose message member is `Message`; for all others it is `message`."""
WITHOUT_TYPE = frozenset(
    {
        "ValidationException",
        "AccessDeniedException",
        "RequestEntityTooLargeException",
        "UnrecognizedClientException",
        "MissingAuthenticationTokenException",
        "IncompleteSignatureException",
        "InvalidSignatureException",
        "UnknownOperationException",
    }
)
"""SPEC 3.7: codes outside Lambda's model; their body has no `Type`."""
FRIENDLY_STATUS = {"success": 200, "error": 500, "timeout": 504, "failure": 500}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


def blame(error: Exception, method: str, path: str) -> CallerError | PlatformFault:
    """Whose fault it is; ours is logged, here and nowhere else."""
    if isinstance(error, CallerError):
        return error
    log.error("%s %s failed", method, path, exc_info=error)
    return error if isinstance(error, PlatformFault) else PlatformFault("unexpected")


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


# -- AWS's face


def aws_success(outcome: Outcome, *, tail: bool) -> Reply:
    """A RequestResponse invocation that ran, however it ended (SPEC 3.2)."""
    headers = {
        "Content-Type": "application/json",
        "X-Amz-Executed-Version": outcome.executed_version,
    }
    if outcome.function_error is not None:
        headers["X-Amz-Function-Error"] = outcome.function_error
    if tail:
        headers["X-Amz-Log-Result"] = base64.b64encode(outcome.log_tail).decode()
    return Reply(200, headers, outcome.payload)


def with_ids(reply: Reply, request_id: str, trace_id: str | None) -> Reply:
    """SPEC 3.2: every answer of AWS's face has a request id, and a trace id once there is one."""
    headers = {**reply.headers, "x-amzn-RequestId": request_id}
    if trace_id:
        headers["X-Amzn-Trace-Id"] = trace_id
    if not reply.body:
        headers.pop("Content-Type", None)
    return Reply(reply.status, headers, reply.body)


def aws_error(error: CallerError | PlatformFault) -> Reply:
    if isinstance(error, PlatformFault):
        # Nothing of the fault's text: it may name paths of the host. It is in the log.
        body = {"Type": "Server", "Message": "Internal server error"}
        return _aws_error(500, "ServiceException", body)
    members: dict[str, str | None] = {}
    if isinstance(error, TooManyRequests):
        members["Reason"] = error.reason
    if error.typed and error.code not in WITHOUT_TYPE:
        members["Type"] = "User"
    key = "Message" if error.code in CAPITAL_MESSAGE else "message"
    return _aws_error(error.status, error.code, {**members, key: error.message or None})


def _aws_error(status: int, code: str, body: object) -> Reply:
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": code}
    return Reply(status, headers, to_json(body))


def stream_end(outcome: Outcome) -> tuple[str, str] | None:
    """(ErrorCode, ErrorDetails) of InvokeComplete: a stream that broke, or a buffered function
    error."""
    if outcome.stream_error is not None:
        return outcome.stream_error
    if outcome.function_error is None:
        return None
    return outcome.function_error, outcome.payload.decode("utf-8", "replace")


def fault_end(error: CallerError | PlatformFault) -> tuple[str, str]:
    """The same for an invocation that was refused or failed after the response had begun."""
    if isinstance(error, PlatformFault):
        return "ServiceException", "Internal server error"
    return error.code, error.message


# -- the friendly face


def friendly_success(outcome: Outcome, request_id: str) -> Reply:
    headers = {
        "Content-Type": outcome.content_type or "application/json",
        "X-Lambox-Request-Id": request_id,
        "X-Lambox-Duration-Ms": f"{outcome.duration_ms:.2f}",
        "X-Lambox-Billed-Ms": str(outcome.billed_ms),
        "X-Lambox-Cold": "true" if outcome.cold else "false",
        "X-Lambox-Version": outcome.executed_version,
    }
    if outcome.init_ms is not None:
        headers["X-Lambox-Init-Ms"] = f"{outcome.init_ms:.2f}"
    if outcome.max_memory_mb is not None:
        headers["X-Lambox-Max-Memory-Mb"] = str(outcome.max_memory_mb)
    if outcome.function_error is not None:
        headers["X-Lambox-Function-Error"] = outcome.error_type or outcome.function_error
    return Reply(FRIENDLY_STATUS[outcome.status], headers, outcome.payload)


def friendly_error(error: CallerError | PlatformFault, request_id: str) -> Reply:
    headers = {"Content-Type": "application/json", "X-Lambox-Request-Id": request_id}
    if isinstance(error, PlatformFault):
        status, code, message = 500, "ServiceException", "lambox failed; its log says how"
    else:
        status, code, message = error.status, error.code, error.message
    body = {"errorType": code, "errorMessage": message, "requestId": request_id}
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = "1"
        body["reason"] = error.reason
    return Reply(status, headers, to_json(body))
