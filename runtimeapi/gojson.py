"""Owns how answers towards environments are written: as Go's encoder does, since AWS's server is Go (SPEC 1.5)."""

from __future__ import annotations

import json
from typing import Any, cast

from quart import Response, request

from runtimeapi.app import respond
from runtimeapi.connection import PACE_KEY
from runtimeapi.pace import REFUSAL, Pace
from runtimeapi.replies import Reply

JSON = {"Content-Type": "application/json"}
GO_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)
"""What Go's encoding/json escapes beyond JSON's need; all of it can only occur inside strings."""


def go_json(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(GO_ESCAPES)
    return text.encode("utf-8", "replace")


ACCEPTED = Reply(202, JSON, go_json({"status": "OK"}) + b"\n")


def refusal(status: int, error_type: str, message: str) -> Reply:
    body = go_json({"errorMessage": message, "errorType": error_type}) + b"\n"
    return Reply(status, JSON, body)


def render(reply: Reply) -> Response:
    return respond(reply.status, reply.headers, reply.body)


def charge() -> None:
    """The request in hand is none that a program makes often: more of them are answered later (`pace.py`)."""
    pace = cast("Pace | None", cast(dict[str, Any], request.scope)["state"].get(PACE_KEY))
    if pace is not None:
        pace.charge(REFUSAL)


def header(name: str) -> str | None:
    """Of the request in hand; None when absent or empty: the C++ clients send empty headers (SPEC 1.4)."""
    return request.headers.get(name) or None
