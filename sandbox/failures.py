"""Owns the words of platform-made failures: what AWS says when a runtime exits, hangs or overflows.

Pure functions; the texts are SPEC 3.4's, the error types SPEC 1.7's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from sandbox.confine.spec import Exit
from sandbox.extensions import CRASH, Extensions

_KNOWN_TYPE = re.compile(r"(Runtime|Function)\.[A-Z][a-zA-Z]+")
RESPONSE_TOO_LARGE = "Function.ResponseSizeTooLarge"
TRUNCATED = "Runtime.TruncatedResponse"
TIMED_OUT = "Sandbox.Timedout"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an environment failed. `payload` is set where the runtime itself reported the error."""

    status: Literal["error", "timeout", "failure"]
    error_type: str
    """As the caller reads it."""
    reason: str = ""
    payload: bytes | None = None
    logged_type: str = ""
    """As REPORT and INIT_REPORT print it, where that differs."""

    def body(self, request_id: str) -> bytes:
        if self.payload is not None:
            return self.payload
        return error_body(self.error_type, f"RequestId: {request_id} Error: {self.reason}")

    @property
    def report_type(self) -> str:
        return self.logged_type or self.error_type


def error_body(error_type: str, message: str) -> bytes:
    """Platform-made errors have errorType first (SPEC 3.4)."""
    return json.dumps(
        {"errorType": error_type, "errorMessage": message}, separators=(",", ":")
    ).encode()


def too_large(limit: int) -> bytes:
    """SPEC 3.3: here the message comes first."""
    return json.dumps(
        {
            "errorMessage": f"Response payload size exceeded maximum allowed payload size ({limit} bytes).",
            "errorType": RESPONSE_TOO_LARGE,
        },
        separators=(",", ":"),
    ).encode()


def exited(exit_: Exit) -> Failure:
    """The runtime ended by itself, or the kernel ended it: told apart by wait status and oom counter."""
    if exit_.code == 0:
        reason = "Runtime exited without providing a reason"
    else:
        reason = f"Runtime exited with error: {exit_.describe()}"
    # An out-of-memory kill that did not take the runtime itself (a child's, handled by the
    # runtime) leaves an ordinary exit code; only a SIGKILL with a risen counter is OOM.
    oom = exit_.oom_kills > 0 and exit_.code is None
    return Failure(
        "error", "Runtime.ExitError", reason, logged_type="Runtime.OutOfMemory" if oom else ""
    )


def extension_exited(exit_: Exit, reported: str) -> Failure:
    """An external extension ended unasked. `reported`: the type of the error that it told before, if it did."""
    reason = "exit code 0" if exit_.code == 0 else exit_.describe()
    return Failure("error", reported or CRASH, reason)


def extension_reported(extensions: Extensions) -> Failure:
    """One of them said that its init failed, and has not exited."""
    found = next((one for one in extensions if one.error_type), None)
    reason = f"extension {found.name} reported {found.error_type}" if found else "no reason given"
    return Failure("error", extensions.first_fatal, reason)


def timed_out(timeout_s: float) -> Failure:
    return Failure("timeout", TIMED_OUT, f"Task timed out after {timeout_s:.2f} seconds")


def not_executable(argv0: str, reason: str) -> Failure:
    """SPEC 3.4: type fixed by the open core, text as commonly reported from AWS."""
    if argv0 == "/var/task/bootstrap":
        return Failure(
            "error",
            "Runtime.InvalidEntrypoint",
            "Couldn't find valid bootstrap(s): [/var/task/bootstrap /opt/bootstrap]",
        )
    return Failure("error", "Runtime.InvalidEntrypoint", f"cannot execute {argv0}: {reason}")


def normalise_type(header: str | None) -> str:
    """SPEC 1.7: what logs call an error whose type the runtime named in a header (or did not)."""
    if header and _KNOWN_TYPE.search(header):
        return header
    return "Function.Unknown" if (header or "").startswith("Function.") else "Runtime.Unknown"
