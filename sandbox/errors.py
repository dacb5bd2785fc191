"""Owns the exceptions that cross from the supervisor to a face.

    CallerError                    the caller's fault or a limit: rendered as AWS's exception, 4xx
      FunctionNotFound             404 ResourceNotFoundException
      FunctionFailed               409 ResourceConflictException: folder or function.toml is broken
      TooManyRequests              429 TooManyRequestsException with AWS's Reason
      InvalidRequest               400, any other code
    PlatformFault                  ours or the host's: 500 ServiceException, logged once with traceback

A function's own failure is never an exception here: it is an `Outcome`.
"""

from __future__ import annotations


class CallerError(Exception):
    """Answered to the caller as AWS does: HTTP `status`, header x-amzn-ErrorType `code`, body {Type, message}."""

    status = 400
    code = "InvalidParameterValueException"
    typed = True
    """Whether the body has a `Type`. AWS leaves it out now and then (SPEC 3.7, and its recorded messages)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class FunctionNotFound(CallerError):
    status = 404
    code = "ResourceNotFoundException"


class FunctionFailed(CallerError):
    """The function exists but cannot run as it is described; the message names file, key, value and mend."""

    status = 409
    code = "ResourceConflictException"


class InvalidRuntime(CallerError):
    """The function's runtime is not to be had on this host (AWS: 502 InvalidRuntimeException)."""

    status = 502
    code = "InvalidRuntimeException"


class InvalidRequest(CallerError):
    """Any other refusal, with AWS's own code."""

    def __init__(self, message: str, *, code: str, status: int = 400, typed: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.typed = typed


class TooManyRequests(CallerError):
    """SPEC 3.8: `reason` is a member of AWS's ThrottleReason; the message is AWS's `Rate Exceeded.`"""

    status = 429
    code = "TooManyRequestsException"

    def __init__(self, reason: str) -> None:
        super().__init__("Rate Exceeded.")
        self.reason = reason


class PlatformFault(Exception):
    """lambox or the host could not do its part; nothing the caller or the function did wrong."""
