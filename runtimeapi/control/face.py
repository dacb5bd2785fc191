"""Owns the way of one request of the Lambda API: route, body, input, operation, answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial

import trio
from quart import Response, g, request
from werkzeug.routing import BaseConverter

from runtimeapi.app import FaceApp, body_of, on_request_end, path_of
from runtimeapi.bodies import StreamedBody
from runtimeapi.control import model
from runtimeapi.control.control import Control, Operation
from runtimeapi.control.downloads import mount_downloads
from runtimeapi.control.parsing import Input, parse
from runtimeapi.control.rendering import Output, render
from runtimeapi.intake import read_body, read_request_id
from runtimeapi.replies import Reply
from runtimeapi.spool import Spool, Spooled
from sandbox.errors import CallerError, InvalidRequest

MAX_BODY = 1024 * 1024
"""Bytes of a request that carries no code."""
MAX_CODE_BODY = 70_167_211
"""Bytes of one that does (SPEC 10.6)."""
CARRY_CODE = {
    "CreateFunction": re.compile(r"POST /2015-03-31/functions/?"),
    "UpdateFunctionCode": re.compile(r"PUT /2015-03-31/functions/[^/]+/code/?"),
    "PublishLayerVersion": re.compile(r"POST /2018-10-31/layers/[^/]+/versions/?"),
}
"""Operations with packages in their bodies, and where they are (a test compares with the model): known without
the model, which need not be loaded for callers that have proven nothing yet."""
PARSED_INLINE = 16 * 1024
"""Bytes of JSON that are read in the event loop; more are left to a thread."""
LARGE_AT_ONCE = 2
"""Requests with code that are held in memory at a time: each takes up to 250 MB while it is read."""
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]


class DateConverter(BaseConverter):
    """The version of the API at the beginning of each of its paths."""

    regex = r"20\d\d-\d\d-\d\d"


def code_carrier(method: str, path: str) -> str | None:
    """The operation with code that is asked for, if it is one. `path` as it was sent."""
    line = f"{method} {path}"
    return next((name for name, where in CARRY_CODE.items() if where.fullmatch(line)), None)


async def receive_code(spool: Spool, body: StreamedBody, operation: str) -> Spooled:
    """A body with code; whoever gets it closes it. Raises CallerError or PlatformFault."""
    try:
        return await spool.receive(body, limit=MAX_CODE_BODY, operation=operation)
    except CallerError as exc:
        raise _in_its_words(exc) from exc


def mount_control(app: FaceApp, control: Control, spool: Spool) -> None:
    mount_downloads(app, control)
    app.url_map.converters["apidate"] = DateConverter
    large = trio.CapacityLimiter(LARGE_AT_ONCE)

    @app.route("/<apidate:date>/<path:rest>", methods=METHODS, provide_automatic_options=False)
    async def operation(date: str, rest: str) -> Response:
        g.request_id = read_request_id(request.headers.get("x-amzn-requestid"))
        return _response(await _answer(control, spool, large))

    app.route("/<apidate:date>/<path:rest>/", methods=METHODS, provide_automatic_options=False)(
        operation
    )


@cache
def _load() -> tuple[model.Model, Mapping[str, Operation]]:
    """Blocks for 0.2 s the first time. Here, and not at a start that few servers need it at."""
    from runtimeapi.control.operations import OPERATIONS

    return model.load(), OPERATIONS


async def _answer(control: Control, spool: Spool, large: trio.CapacityLimiter) -> Reply:
    method, path = request.method, path_of(request)
    query = {name: request.args.getlist(name) for name in request.args}
    known, operations = await trio.to_thread.run_sync(_load)
    match = known.match(method, path, query)
    if match is None:
        raise _unknown(method, path, known.methods(path))
    name = match.operation.name
    handler = operations.get(name)
    if handler is None:
        raise InvalidRequest(
            f"{name} is not supported by lambox.", code="NotImplementedException", status=501
        )
    control.functions.refresh()
    if method != "GET":  # before a package is stored for nothing
        control.registry.check_writable()
    headers = {key.lower(): value for key, value in request.headers.items()}
    read = partial(parse, match.operation, match.labels, query, headers)
    if name in CARRY_CODE:
        output = await _run_with_code(control, handler, name, read, spool, large)
    else:
        output = await handler(control, await _parsed(read, await _body(name)))
    return render(match.operation, output)


async def _run_with_code(
    control: Control,
    handler: Operation,
    name: str,
    read: partial[Input],
    spool: Spool,
    large: trio.CapacityLimiter,
) -> Output:
    """The body comes into memory when all of it is here, and there is room for one more."""
    arrived: Spooled | None = g.pop("arrived", None)
    if arrived is None:
        arrived = await receive_code(spool, body_of(request), name)
        on_request_end(request, arrived.close)
    if arrived.size <= MAX_BODY:
        return await handler(control, await _parsed(read, arrived.read()))
    async with large:
        given = await trio.to_thread.run_sync(lambda: read(arrived.read()))
        return await handler(control, given)


async def _parsed(read: partial[Input], body: bytes) -> Input:
    return read(body) if len(body) <= PARSED_INLINE else await trio.to_thread.run_sync(read, body)


async def _body(name: str) -> bytes:
    try:
        return await read_body(body_of(request), limit=MAX_BODY, operation=name)
    except CallerError as exc:
        raise _in_its_words(exc) from exc


def _in_its_words(error: CallerError) -> CallerError:
    """SPEC 10.6: what is too large has another code here than at Invoke."""
    if error.code != "RequestTooLargeException":
        return error
    return InvalidRequest(error.message, code="RequestEntityTooLargeException", status=413)


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
