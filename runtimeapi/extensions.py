"""Owns the Extensions API of SPEC 6.2: routes towards the extensions inside an environment.

What is legal when, and every refusal, is `sandbox/extensions.py`'s.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from quart import Response, request

from runtimeapi.app import FaceApp, body_of
from runtimeapi.bodies import read_all, read_off
from runtimeapi.gojson import ACCEPTED, JSON, charge, go_json, header, render
from runtimeapi.ports import RuntimeFace
from runtimeapi.replies import Reply
from sandbox.extensions import ExtensionEvent, InvokeEvent, check_name
from sandbox.lifecycle import Refused

PREFIX = "/2020-01-01/extension"
IDENTIFIER = "Lambda-Extension-Identifier"
ERROR_TYPE = "Lambda-Extension-Function-Error-Type"
MOST_REGISTER = 64 * 1024
"""Bytes of the body of `register`; a real one has 40."""
MOST_ERROR = 1024 * 1024
"""Bytes of an error's body, of which nothing is kept."""


def mount_extensions(app: FaceApp, environment: Callable[[], RuntimeFace]) -> None:
    """`environment()`: whose socket a request arrived on."""

    @app.post(f"{PREFIX}/register", provide_automatic_options=False)
    async def extension_register() -> Response:
        name = header("Lambda-Extension-Name")
        check_name(name)
        events = parse_events(await read_all(body_of(request), MOST_REGISTER))
        done = environment().extensions.register(name, events)
        features = request.headers.get("Lambda-Extension-Accept-Feature", "").split(",")
        body = {
            "functionName": done.function_name,
            "functionVersion": done.function_version,
            "handler": done.handler,
        }
        if done.account and "accountId" in map(str.strip, features):
            body = {"accountId": done.account, **body}
        return render(Reply(200, {**JSON, IDENTIFIER: done.identifier}, go_json(body) + b"\n"))

    @app.get(f"{PREFIX}/event/next", provide_automatic_options=False)
    async def extension_next() -> Response:
        return render(event_reply(await environment().extensions.next(header(IDENTIFIER))))

    @app.post(f"{PREFIX}/init/error", provide_automatic_options=False)
    async def extension_init_error() -> Response:
        charge()
        await read_off(body_of(request), MOST_ERROR)
        environment().extensions.init_error(header(IDENTIFIER), header(ERROR_TYPE))
        return render(ACCEPTED)

    @app.post(f"{PREFIX}/exit/error", provide_automatic_options=False)
    async def extension_exit_error() -> Response:
        charge()
        await read_off(body_of(request), MOST_ERROR)
        environment().extensions.exit_error(header(IDENTIFIER), header(ERROR_TYPE))
        return render(ACCEPTED)


def parse_events(body: bytes) -> list[str]:
    """The events of a `register`. Raises Refused(403). Go finds its keys in any case of letters."""
    if not body.strip():
        raise _malformed("unexpected end of JSON input")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _malformed(str(exc)) from exc
    if given is None:
        return []
    if not isinstance(given, dict):
        raise _malformed(f"json: cannot unmarshal {_kind(given)} into a request to register")
    fields = {key.lower(): value for key, value in given.items()}
    if _strings(fields, "configurationKeys"):
        raise _malformed("configurationKeys are deprecated; use environment variables instead")
    return _strings(fields, "events")


def _strings(fields: dict[str, Any], key: str) -> list[str]:
    value = fields.get(key.lower())
    if value is None:
        return []
    if not isinstance(value, list):
        raise _malformed(f"json: cannot unmarshal {_kind(value)} into {key}")
    for one in value:
        if not isinstance(one, str):
            raise _malformed(f"json: cannot unmarshal {_kind(one)} into one of {key}")
    return value


def _kind(value: object) -> str:
    """As Go calls it."""
    names = {bool: "bool", str: "string", list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "number")


def _malformed(message: str) -> Refused:
    return Refused(403, "InvalidRequestFormat", message)


def event_reply(event: ExtensionEvent) -> Reply:
    """SPEC 6.2: an INVOKE has an identifier of its own, a SHUTDOWN has none."""
    body: dict[str, object] = {"deadlineMs": event.deadline_ms}
    if isinstance(event, InvokeEvent):
        body = {"eventType": "INVOKE", **body}
        body |= {"requestId": event.request_id, "invokedFunctionArn": event.invoked_arn}
        if event.trace_id:
            body["tracing"] = {"type": "X-Amzn-Trace-Id", "value": event.trace_id}
        headers = {**JSON, "Lambda-Extension-Event-Identifier": str(uuid.uuid4())}
        return Reply(200, headers, go_json(body))
    return Reply(
        200, JSON, go_json({"eventType": "SHUTDOWN", **body, "shutdownReason": event.reason})
    )
