"""Owns the way of one request of the Lambda API: route, body, input, operation, answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio
from quart import Response, g, request
from werkzeug.routing import BaseConverter

from runtimeapi.app import FaceApp, body_of, path_of
from runtimeapi.control import model
from runtimeapi.control.control import Control, Operation
from runtimeapi.control.operations import OPERATIONS
from runtimeapi.control.parsing import Input, parse
from runtimeapi.control.rendering import render
from runtimeapi.intake import read_body, read_request_id
from runtimeapi.replies import Reply
from sandbox.errors import CallerError, InvalidRequest

if TYPE_CHECKING:
    from botocore.model import OperationModel

MAX_BODY = 1024 * 1024
"""Bytes of a request that carries no code."""
MAX_CODE_BODY = 70_167_211
"""Bytes of one that does (SPEC 10.6)."""
CARRY_CODE = frozenset({"CreateFunction", "UpdateFunctionCode", "PublishLayerVersion"})
PARSED_INLINE = 16 * 1024
"""Bytes of JSON that are read in the event loop; more are left to a thread."""
LARGE_AT_ONCE = 2
"""Requests with code that are held in memory at a time: each takes up to 250 MB while it is read."""
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]


class DateConverter(BaseConverter):
    """The version of the API at the beginning of each of its paths."""

    regex = r"20\d\d-\d\d-\d\d"


def mount_control(app: FaceApp, control: Control) -> None:
    app.url_map.converters["apidate"] = DateConverter
    large = trio.CapacityLimiter(LARGE_AT_ONCE)

    @app.route("/<apidate:date>/<path:rest>", methods=METHODS, provide_automatic_options=False)
    async def operation(date: str, rest: str) -> Response:
        g.request_id = read_request_id(request.headers.get("x-amzn-requestid"))
        return _response(await _answer(control, large))

    app.route("/<apidate:date>/<path:rest>/", methods=METHODS, provide_automatic_options=False)(
        operation
    )


async def _answer(control: Control, large: trio.CapacityLimiter) -> Reply:
    method, path = request.method, path_of(request)
    query = {name: request.args.getlist(name) for name in request.args}
    known = await trio.to_thread.run_sync(model.load)
    match = known.match(method, path, query)
    if match is None:
        raise _unknown(method, path, known.methods(path))
    name = match.operation.name
    handler = OPERATIONS.get(name)
    if handler is None:
        raise InvalidRequest(
            f"{name} is not supported by lambox.", code="NotImplementedException", status=501
        )
    headers = {key.lower(): value for key, value in request.headers.items()}
    read = partial(parse, match.operation, match.labels, query, headers)
    if name in CARRY_CODE:
        async with large:
            return await _run(control, handler, match.operation, name, read, MAX_CODE_BODY)
    return await _run(control, handler, match.operation, name, read, MAX_BODY)


async def _run(
    control: Control,
    handler: Operation,
    operation: OperationModel,
    name: str,
    read: partial[Input],
    limit: int,
) -> Reply:
    body = await _body(limit, name)
    given = read(body) if len(body) <= PARSED_INLINE else await trio.to_thread.run_sync(read, body)
    return render(operation, await handler(control, given))


async def _body(limit: int, name: str) -> bytes:
    try:
        return await read_body(body_of(request), limit=limit, operation=name)
    except CallerError as exc:
        if exc.code != "RequestTooLargeException":
            raise
        raise InvalidRequest(
            exc.message, code="RequestEntityTooLargeException", status=413
        ) from exc


def _unknown(method: str, path: str, methods: set[str]) -> InvalidRequest:
    if methods:
        return InvalidRequest(
            f"{path} does not take {method}.", code="MethodNotAllowedException", status=405
        )
    return InvalidRequest(
        f"{method} {path} is not supported by lambox.", code="NotImplementedException", status=501
    )


def _response(reply: Reply) -> Response:
    headers: Mapping[str, str] = {**reply.headers, "x-amzn-RequestId": g.request_id}
    response = Response(reply.body, reply.status, dict(headers))
    if not reply.body:
        response.headers.remove("Content-Type")
    if reply.status == 204:
        response.headers.remove("Content-Length")
    return response
