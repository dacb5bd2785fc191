"""Owns what those are sent who are to know how an event ended: records (SPEC 8.2) and dead letters (SPEC 8.3).

Pure: values in, bytes out. `render` may take a while where payloads are large (see `large`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn
from uuid import UUID

from sandbox.eventconfig import Target
from sandbox.queued import Accepted, Drop, Ended, Response

SMALL = 64 * 1024
"""Bytes that are looked through on the event loop (0.3 ms at worst)."""
MOST_ERROR_MESSAGE = 1024
"""Bytes of a dead letter's ErrorMessage."""
EVENTS_SOURCE = "lambda"
"""As recorded; AWS's documentation says aws.lambda."""

Attributes = Mapping[str, tuple[str, str]]
"""Name -> (data type, value)."""


@dataclass(frozen=True, slots=True)
class Message:
    """What one target is sent."""

    target: Target
    body: bytes
    """JSON."""
    succeeded: bool
    function_arn: str
    """With a qualifier, always."""
    trace_id: str
    s3_key: str
    attributes: Attributes = field(default_factory=lambda: MappingProxyType({}))
    """Of a dead letter."""


def large(accepted: Accepted) -> bool:
    """Whether `render` is better called in a thread."""
    response = accepted.response.payload if accepted.response else b""
    return len(accepted.invocation.payload) + len(response) > SMALL


def render(key: str, accepted: Accepted, drop: Drop, *, slim: bool = False) -> Message:
    """`key`: the event's in the queue, 32 hexadecimal digits. `accepted` has ended.

    `slim`: a record without payloads, as AWS sends it where it would be too large (its model of OnFailure).
    """
    ended = accepted.ended
    assert ended is not None
    dead = drop.role == "dead letter"
    return Message(
        target=drop.target,
        body=accepted.invocation.payload if dead else _record(accepted, ended, slim=slim),
        succeeded=ended.condition == "Success",
        function_arn=accepted.qualified_arn,
        trace_id=accepted.invocation.trace_id,
        s3_key=_s3_key(key, accepted.name, ended.at),
        attributes=_attributes(accepted) if dead else MappingProxyType({}),
    )


def _record(accepted: Accepted, ended: Ended, *, slim: bool) -> bytes:
    """AWS's order of keys. Payloads go in as they are: reading and writing them could change numbers."""
    context = {
        "requestId": accepted.invocation.request_id,
        "functionArn": accepted.qualified_arn,
        "condition": ended.condition,
        "approximateInvokeCount": accepted.attempts,
    }
    parts = [
        b'{"version":"1.0","timestamp":' + _json(_timestamp(ended.at)),
        b'"requestContext":' + _json(context),
    ]
    if not slim:
        parts.append(b'"requestPayload":' + accepted.invocation.payload)
    if accepted.response is not None and accepted.response.answered:
        parts.append(b'"responseContext":' + _json(_response_context(accepted.response)))
        if not slim:
            parts.append(b'"responsePayload":' + _response_payload(accepted.response))
    return b",".join(parts) + b"}"


def _response_context(response: Response) -> dict[str, Any]:
    context: dict[str, Any] = {
        "statusCode": response.status,
        "executedVersion": response.executed_version,
    }
    if response.failed:
        context["functionError"] = "Unhandled"
    return context


def _response_payload(response: Response) -> bytes:
    """JSON as it is, anything else as a string."""
    if not response.payload:
        return b"null"
    if is_json(response.payload):
        return response.payload
    return _json(response.payload.decode("utf-8", "replace"))


def _timestamp(at: float) -> str:
    """2025-11-25T22:18:20.123Z"""
    whole, thousandths = divmod(round(at * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{thousandths:03d}Z"


def _s3_key(key: str, function: str, at: float) -> str:
    """The same each time it is tried."""
    moment = time.strftime("%Y/%m/%d/%Y-%m-%dT%H.%M.%S", time.gmtime(at))
    return f"aws/lambda/async/{function}/{moment}-{UUID(key)}"


def _attributes(accepted: Accepted) -> Attributes:
    response = accepted.response or Response(429)
    return {
        "RequestID": ("String", accepted.invocation.request_id),
        "ErrorCode": ("Number", str(response.status)),
        "ErrorMessage": ("String", _error_message(response)),
    }


def _error_message(response: Response) -> str:
    """What SQS and SNS take: not empty, no control characters."""
    text = response.payload.decode("utf-8", "replace")
    try:
        # A message is near the beginning or the end; what is larger is not worth a pause.
        found = json.loads(text) if len(text) <= SMALL else None
        if isinstance(found, dict) and isinstance(found.get("errorMessage"), str):
            text = found["errorMessage"]
    except (ValueError, RecursionError):
        pass
    text = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "�", text)
    cut = text.encode()[:MOST_ERROR_MESSAGE].decode("utf-8", "ignore")
    return cut or "-"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def is_json(payload: bytes) -> bool:
    """Of a large one SQLite is asked, which lets other threads run meanwhile."""
    try:
        text = payload.decode()
        if len(payload) > SMALL:
            return _sqlite_takes(text)
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _sqlite_takes(text: str) -> bool:
    import sqlite3  # here: 3 ms at a start that few servers need

    try:
        with closing(sqlite3.connect(":memory:")) as database:
            found = database.execute("SELECT json_valid(?)", (text,)).fetchone()
            return bool(found[0]) and "\0" not in text  # which SQLite takes for the end
    except sqlite3.Error:
        return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# `len`: numbers are not converted, Python refuses some that are good JSON.
_DECODER = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_no_constant)
