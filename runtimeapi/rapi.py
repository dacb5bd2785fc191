"""Owns the Runtime API of SPEC 1: routes towards the runtime inside an environment.

Which environment is speaking is known by the socket (`server.py`). Bodies are written as Go's
encoder does, since that is what AWS's are (SPEC 1.5). The routes for SnapStart are not mounted, which
AWS's own core also answers with 404 when a feature is off. Those of extensions and of metadata are
`extensions.py`'s and `metadata.py`'s.
"""

from __future__ import annotations

import json
import logging
from typing import Any, cast

from quart import Response, request
from werkzeug.exceptions import HTTPException

from runtimeapi.app import FaceApp, body_of, head_of, on_request_end, path_of, respond
from runtimeapi.bodies import BodyTooLarge, read_all
from runtimeapi.connection import PACE_KEY
from runtimeapi.extensions import mount_extensions
from runtimeapi.gojson import ACCEPTED, charge, go_json, header, refusal, render
from runtimeapi.guard import Guard
from runtimeapi.metadata import mount_metadata
from runtimeapi.pace import CAUSE_BYTE, Pace
from runtimeapi.ports import BodyTruncated, RuntimeFace
from runtimeapi.replies import Reply
from runtimeapi.room import SMALL, place_of
from runtimeapi.telemetry import mount_telemetry
from sandbox.errors import InvalidRequest
from sandbox.invocation import MAX_PAYLOAD
from sandbox.lifecycle import NextEvent, Refused

log = logging.getLogger("lambox.rapi")

VERSION = "/2018-06-01"
ON_HOST_NETWORK = "lambox.on_host_network"
"""In the state of a socket that browsers on this host reach as well: the Host header is looked at."""
ERROR_CAUSE_TYPE = "application/vnd.aws.lambda.error.cause+json"
MOST_VALUES = 200_000
"""JSON values of an error with its cause, by its commas and brackets: 50 ms of the event loop at most."""


def make_rapi_app() -> FaceApp:
    """One app for all environments; serve it with `state={"environment": RuntimeFace}` on each
    one's socket."""
    app = FaceApp(__name__)
    guard = Guard()
    _mount_invocation(app)
    mount_telemetry(app, environment)
    mount_extensions(app, environment)
    mount_metadata(app, environment)
    _mount_errors(app)

    @app.before_request
    async def admit() -> Response | None:
        place = place_of(_state())
        if place is not None:
            on_request_end(request, place.leave)
        # In a network namespace of its own nothing but the environment reaches the socket, and bootstraps
        # written by hand send any Host.
        try:
            if _state().get(ON_HOST_NETWORK):
                guard.check_source(head_of(request))
        except InvalidRequest as exc:
            return render(refusal(exc.status, exc.code, exc.message))
        # werkzeug answers HEAD wherever there is a GET: a HEAD of `next` would swallow an event.
        return respond(405, {"Allow": "GET"}, b"") if request.method == "HEAD" else None

    @app.get(f"{VERSION}/ping", provide_automatic_options=False)
    async def ping() -> Response:
        charge()
        return respond(200, {"Content-Type": "text/plain; charset=utf-8"}, b"pong")

    return app


def _mount_invocation(app: FaceApp) -> None:
    @app.get(f"{VERSION}/runtime/invocation/next", provide_automatic_options=False)
    async def next_event() -> Response:
        face = environment()
        if face.event_is_out:
            charge()
        return render(next_reply(await face.next()))

    @app.post(
        f"{VERSION}/runtime/invocation/<request_id>/response", provide_automatic_options=False
    )
    async def response(request_id: str) -> Response:
        await environment().respond(
            request_id,
            invocation_id=header("Lambda-Runtime-Invocation-Id"),
            response_mode=header("Lambda-Runtime-Function-Response-Mode"),
            content_type=header("Content-Type"),
            body=body_of(request),
        )
        return render(ACCEPTED)

    @app.post(f"{VERSION}/runtime/invocation/<request_id>/error", provide_automatic_options=False)
    async def error(request_id: str) -> Response:
        content_type = header("Content-Type")
        pace = cast("Pace | None", _state().get(PACE_KEY))
        content_type, body = for_the_caller(content_type, await _gathered(), pace)
        await environment().error(
            request_id,
            invocation_id=header("Lambda-Runtime-Invocation-Id"),
            error_type=header("Lambda-Runtime-Function-Error-Type"),
            content_type=content_type,
            body=body,
        )
        return render(ACCEPTED)

    @app.post(f"{VERSION}/runtime/init/error", provide_automatic_options=False)
    async def init_error() -> Response:
        body = await _gathered()
        error_type = header("Lambda-Runtime-Function-Error-Type")
        await environment().init_error(error_type=error_type, body=body)
        return render(ACCEPTED)


async def _gathered() -> bytes:
    """The whole body of an error. Raises BodyTooLarge, BodyTruncated."""
    body = body_of(request)
    place = place_of(_state())
    size = body.expected_bytes
    if place is not None and (size is None or SMALL < size <= MAX_PAYLOAD):
        await place.wait()
    return await read_all(body, MAX_PAYLOAD)


def _mount_errors(app: FaceApp) -> None:
    @app.errorhandler(Refused)
    async def refused(refused: Refused) -> Response:
        return render(refusal(refused.status, refused.error_type, refused.message))

    @app.errorhandler(BodyTruncated)
    async def truncated(_: BodyTruncated) -> Response:
        return render(refusal(400, "TruncatedHTTPRequest", "HTTP request detected as truncated"))

    @app.errorhandler(BodyTooLarge)
    async def too_large(_: BodyTooLarge) -> Response:
        message = f"Exceeded maximum allowed payload size ({MAX_PAYLOAD} bytes)."
        return render(refusal(413, "RequestEntityTooLarge", message))

    @app.errorhandler(HTTPException)
    async def no_route(error: HTTPException) -> Response:
        # Go's chi router: 404 with a line of text, 405 with nothing (SPEC 1.2, bodies unconfirmed).
        if error.code == 405:
            return respond(405, {"Content-Type": "text/plain; charset=utf-8"}, b"")
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        return respond(error.code or 404, headers, b"404 page not found\n")

    @app.errorhandler(Exception)
    async def failed(error: Exception) -> Response:
        return render(fault(error, request.method, path_of(request)))


def fault(error: Exception, method: str, path: str) -> Reply:
    """lambox is to blame: logged here, and nothing of it is told."""
    log.error("%s %s failed", method, path, exc_info=error)
    return refusal(500, "InternalServerError", "Internal Server Error")


def environment() -> RuntimeFace:
    """The environment whose socket this request arrived on."""
    return cast(RuntimeFace, _state()["environment"])


def _state() -> dict[str, Any]:
    """Of the connection that this request arrived on."""
    return cast(dict[str, Any], cast(dict[str, Any], request.scope)["state"])


def next_reply(event: NextEvent) -> Reply:
    return Reply(200, next_headers(event), event.payload)


def next_headers(event: NextEvent) -> dict[str, str]:
    """SPEC 1.3: in the classic core a header is sent only when it has a value."""
    headers = {
        "Content-Type": one_line(event.content_type or "application/json"),
        "Lambda-Runtime-Aws-Request-Id": event.request_id,
        "Lambda-Runtime-Invocation-Id": event.invocation_id,
        "Lambda-Runtime-Deadline-Ms": str(event.deadline_ms),
        "Lambda-Runtime-Invoked-Function-Arn": event.invoked_arn,
    }
    if event.trace_id:
        headers["Lambda-Runtime-Trace-Id"] = one_line(event.trace_id)
    if event.client_context:
        headers["Lambda-Runtime-Client-Context"] = one_line(event.client_context)
    if event.cognito_identity:
        headers["Lambda-Runtime-Cognito-Identity"] = one_line(event.cognito_identity)
    return headers


def one_line(value: str) -> str:
    """A caller's JSON may have line breaks between its tokens; Go writes them as spaces in a
    header, so do we."""
    return value.replace("\r", " ").replace("\n", " ").strip()


def for_the_caller(
    content_type: str | None, body: bytes, pace: Pace | None
) -> tuple[str | None, bytes]:
    """What an error's body is once the part for X-Ray is out of it. Reading it is charged to `pace`."""
    if content_type != ERROR_CAUSE_TYPE:
        return content_type, body
    if pace is not None:
        pace.charge(len(body) * CAUSE_BYTE)
    return without_cause(body)


def without_cause(body: bytes) -> tuple[str, bytes]:
    """SPEC 1.4: `errorCause` is for X-Ray; the caller gets the rest, re-serialised. -> (content
    type, body)"""
    try:
        if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
            raise ValueError("an error is no database")
        parsed = json.loads(body)
        fields = _error_fields(parsed)
    except (ValueError, TypeError, RecursionError):
        return "application/octet-stream", go_json("Invalid error body")
    return "application/json", go_json(fields)


def _error_fields(parsed: object) -> dict[str, object]:
    """As Go's json.Unmarshal into {errorMessage, errorType string; stackTrace []string} takes
    it."""
    if parsed is None:
        parsed = {}
    if not isinstance(parsed, dict):
        raise TypeError("an error is a JSON object")
    message = parsed.get("errorMessage") or ""
    error_type = parsed.get("errorType") or ""
    trace = parsed.get("stackTrace") or []
    if not (isinstance(message, str) and isinstance(error_type, str) and isinstance(trace, list)):
        raise TypeError("errorMessage and errorType are strings, stackTrace is a list")
    if not all(isinstance(line, str) for line in trace):
        raise TypeError("stackTrace is a list of strings")
    fields: dict[str, object] = {"errorMessage": message, "errorType": error_type}
    return {**fields, "stackTrace": trace} if trace else fields
