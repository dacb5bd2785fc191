"""Owns the HTTP face towards callers: AWS's Invoke API (SPEC 3), the friendly face, and every
error's shape.

POST /2015-03-31/functions/NAME/invocations                     Invoke
POST /2014-11-13/functions/NAME/invoke-async/                   InvokeAsync
POST /2021-11-15/functions/NAME/response-streaming-invocations  InvokeWithResponseStream
POST /invoke/NAME                                               JSON in, the handler's JSON out
GET  /healthz, /_lambox/...                                     `console.py`
any  /URLID/..., Host URLID.lambda-url.REGION...                function URLs: `urls/`
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import trio
from quart import Response, g, request
from werkzeug.exceptions import HTTPException

from runtimeapi.app import FaceApp, body_of, head_of, on_request_end, path_of, respond
from runtimeapi.bodies import StreamedBody
from runtimeapi.console import mount_console
from runtimeapi.control.control import Control
from runtimeapi.control.face import code_carrier, mount_control, receive_code
from runtimeapi.eventstream import CONTENT_TYPE
from runtimeapi.guard import HASHED_INLINE, Claim, Guard
from runtimeapi.intake import (
    INVOCATION_TYPES,
    STREAMING_TYPES,
    Ask,
    find_function,
    read_ask,
    read_body,
    read_payload,
)
from runtimeapi.ports import Console, Functions, Invoker
from runtimeapi.replies import (
    Reply,
    aws_error,
    aws_success,
    blame,
    friendly_error,
    friendly_success,
    with_ids,
)
from runtimeapi.sigv4 import SigV4
from runtimeapi.spool import Spool
from runtimeapi.streaming import StreamedInvocation
from runtimeapi.urls.directory import UrlDirectory
from runtimeapi.urls.face import UrlFace
from sandbox.errors import CallerError, InvalidRequest, PlatformFault
from sandbox.function import LATEST, FunctionVersion
from sandbox.invocation import MAX_ASYNC_PAYLOAD, MAX_PAYLOAD, new_request_id

MAX_INVOKE_ASYNC = 256 * 1024
"""Bytes of the legacy InvokeAsync's payload (SPEC 3.1)."""
AWS_PATH = re.compile(r"/20\d\d-\d\d-\d\d/")
STREAM_PATH = "/2021-11-15/functions/<name>/response-streaming-invocations"


def make_invoke_app(
    functions: Functions,
    invoker: Invoker,
    console: Console,
    *,
    region: str,
    account: str,
    guard: Guard | None = None,
    control: Control | None = None,
    url_keys: SigV4 | None = None,
) -> FaceApp:
    """Serve it with `caller_config()`; `state` is not used. Without a `guard` one that knows loopback's names
    and takes every caller; without a `control` there is no Lambda API but Invoke. `url_keys`: of function URLs
    with AuthType AWS_IAM."""
    app = FaceApp(__name__)
    guard = guard or Guard()
    registry = None if control is None else control.registry
    directory = UrlDirectory(functions, registry, region=region, account=account)
    urls = UrlFace(
        app,
        directory,
        functions,
        invoker,
        guard,
        region=region,
        account=account,
        keys=url_keys,
    )
    # Before everything: neither routes nor the guard of this server's own addresses are theirs.
    app.before_request(urls.answer)
    spool = None if control is None else Spool(control.code.folder)
    _mount_guard(app, guard, spool)
    face = _InvokeFace(app, functions, invoker, region, account)
    app.post("/2015-03-31/functions/<name>/invocations")(face.invoke)
    app.post("/2014-11-13/functions/<name>/invoke-async/")(face.invoke_async)
    app.post(STREAM_PATH)(face.invoke_with_response_stream)
    app.post("/invoke/<name>")(face.friendly)
    mount_console(app, functions, console, directory, region)
    if control is not None:
        mount_control(app, control, spool or Spool(control.code.folder))
    _mount_errors(app)
    return app


def _mount_guard(app: FaceApp, guard: Guard, spool: Spool | None) -> None:
    """`spool`: where bodies with code wait; None: there are no operations that take one."""

    @app.before_request
    async def admit() -> None:
        """Before anything else is looked at: who may not speak learns nothing, not even which paths there are."""
        claim = guard.admit(head_of(request))
        if claim is None:
            return
        claim.check_head()
        operation = None if spool is None else code_carrier(request.method, path_of(request))
        if spool is not None and operation is not None:
            arrived = await receive_code(spool, body_of(request), operation)
            on_request_end(request, arrived.close)
            claim.check(arrived.sha256)
            g.arrived = arrived
            return
        body = await read_body(body_of(request), limit=MAX_PAYLOAD, operation="InvokeFunction")
        if len(body) > HASHED_INLINE:
            await trio.to_thread.run_sync(_prove, claim, body)
        else:
            _prove(claim, body)
        request.body = StreamedBody.whole(body)  # type: ignore[assignment]


def _prove(claim: Claim, body: bytes) -> None:
    claim.check(hashlib.sha256(body).hexdigest())


class _InvokeFace:
    """The handlers of one app, over what stands behind it."""

    def __init__(
        self, app: FaceApp, functions: Functions, invoker: Invoker, region: str, account: str
    ) -> None:
        self._app = app
        self._functions = functions
        self._invoker = invoker
        self._region = region
        self._account = account

    def _ask(self, name: str, types: tuple[str, ...] = INVOCATION_TYPES) -> Ask:
        ask = read_ask(
            name,
            request.args.get("Qualifier"),
            request.headers,
            region=self._region,
            account=self._account,
            types=types,
        )
        g.request_id = ask.request_id
        g.trace_id = ask.trace_id
        return ask

    def _exists(self, ask: Ask) -> None:
        """Before the body is read, as AWS does."""
        find_function(self._functions, ask.ref)

    def _function(self, ask: Ask) -> FunctionVersion:
        """Once the body is here: it may have taken its time, in which code changes and aliases move."""
        return find_function(self._functions, ask.ref, refresh=False)

    async def invoke(self, name: str) -> Response:
        ask = self._ask(name)
        self._exists(ask)
        limit = MAX_ASYNC_PAYLOAD if ask.kind == "Event" else MAX_PAYLOAD
        payload = await read_payload(body_of(request), limit=limit, operation="InvokeFunction")
        if ask.kind == "DryRun":
            return _render(Reply(204, {}, b""))
        function = self._function(ask)
        if ask.kind == "Event":
            await self._invoker.accept(ask.invocation(function, payload))
            return _render(Reply(202, {}, b""))
        outcome = await self._invoker.invoke(ask.invocation(function, payload))
        return _render(aws_success(outcome, tail=ask.tail))

    async def invoke_async(self, name: str) -> Response:
        ask = replace(self._ask(name), kind="Event")
        self._exists(ask)
        payload = await read_payload(
            body_of(request), limit=MAX_INVOKE_ASYNC, operation="InvokeAsync"
        )
        await self._invoker.accept(ask.invocation(self._function(ask), payload))
        return _render(Reply(202, {"Content-Type": "application/json"}, b'{"Status":202}'))

    async def invoke_with_response_stream(self, name: str) -> Response:
        ask = self._ask(name, STREAMING_TYPES)
        self._exists(ask)
        payload = await read_payload(
            body_of(request), limit=MAX_PAYLOAD, operation="InvokeWithResponseStream"
        )
        if ask.kind == "DryRun":
            return _render(Reply(204, {}, b""))
        function = self._function(ask)
        stream = StreamedInvocation(tail=ask.tail)
        on_request_end(request, stream.caller_gone)
        invocation = ask.invocation(function, payload, sink=stream)
        self._app.nursery.start_soon(stream.run, self._invoker, invocation)
        await stream.begin()
        headers = {"X-Amz-Executed-Version": function.version or LATEST}
        begun = with_ids(Reply(200, headers, b""), *_ids())
        return Response(stream, 200, begun.headers, content_type=CONTENT_TYPE)

    async def friendly(self, name: str) -> Response:
        ask = replace(self._ask(name), kind="RequestResponse")
        self._exists(ask)
        payload = await read_payload(
            body_of(request), limit=MAX_PAYLOAD, operation="InvokeFunction"
        )
        invocation = ask.invocation(self._function(ask), payload, memory=True)
        outcome = await self._invoker.invoke(invocation)
        reply = friendly_success(outcome, ask.request_id)
        return respond(reply.status, reply.headers, reply.body)


def _ids() -> tuple[str, str | None]:
    return g.get("request_id") or new_request_id(), g.get("trace_id")


def _render(reply: Reply) -> Response:
    reply = with_ids(reply, *_ids())
    response = respond(reply.status, reply.headers, reply.body)
    if not reply.body:
        response.headers.remove("Content-Type")
    if reply.status == 204:
        response.headers.remove("Content-Length")  # RFC 9110, 8.6: a 204 must not have one
    return response


def _render_error(error: CallerError | PlatformFault) -> Response:
    if path_of(request).startswith(("/invoke/", "/_lambox/")):
        reply = friendly_error(error, g.get("request_id") or new_request_id())
        return respond(reply.status, reply.headers, reply.body)
    return _render(aws_error(error))


def _mount_errors(app: FaceApp) -> None:
    @app.errorhandler(CallerError)
    async def caller_error(error: CallerError) -> Response:
        return _render_error(error)

    @app.errorhandler(HTTPException)
    async def no_route(error: HTTPException) -> Response:
        return _render_error(
            _no_such_operation(error.code or 404, request.method, path_of(request))
        )

    @app.errorhandler(Exception)
    async def fault(error: Exception) -> Response:
        return _render_error(blame(error, request.method, path_of(request)))


def _no_such_operation(status: int, method: str, path: str) -> CallerError:
    """boto3 shows code and message: they say what was asked for and that it is lambox that has not
    got it."""
    if status == 404 and AWS_PATH.match(path):
        message = f"{method} {path} is not supported by lambox."
        return InvalidRequest(message, code="NotImplementedException", status=501)
    if status == 405:
        message = f"{path} does not take {method}."
        return InvalidRequest(message, code="MethodNotAllowedException", status=405)
    message = f"lambox has no {method} {path}. Hint: POST /invoke/NAME, GET /healthz."
    return InvalidRequest(message, code="UnknownOperationException", status=status)
