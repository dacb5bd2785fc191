"""Owns the way of one request to a function URL: who may, the event, the invocation, the response (SPEC 9)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import trio
from quart import Response, request
from werkzeug.datastructures import Headers

from runtimeapi.app import FaceApp, body_of, head_of, on_request_end
from runtimeapi.guard import Guard
from runtimeapi.intake import read_body, read_trace_id
from runtimeapi.ports import Functions, Invoker
from runtimeapi.replies import aws_error, blame
from runtimeapi.sigv4 import RequestHead, SigV4
from runtimeapi.urls import cors as cors_of
from runtimeapi.urls.access import Signer, admit, forbidden
from runtimeapi.urls.answer import BadResponse, UrlAnswer, from_outcome
from runtimeapi.urls.directory import FunctionUrl, UrlDirectory
from runtimeapi.urls.event import UrlRequest, make_event
from runtimeapi.urls.names import Called, called
from runtimeapi.urls.stream import UrlStream
from sandbox.errors import FunctionNotFound, InvalidRequest
from sandbox.function import FunctionVersion
from sandbox.invocation import MAX_PAYLOAD, Invocation, new_request_id

log = logging.getLogger("lambox.urls")

INLINE = 64 * 1024
"""Bytes of a body that is encoded, or of a response that is read, in the event loop; more are left to a thread."""
PAGES = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
"""Content-Security-Policy of responses at an address that is the Lambda API's too. To a browser both are one
origin: without it the script of a page that a function serves could have the API do whatever it likes."""
BAD_GATEWAY = UrlAnswer(
    502, [("content-type", "text/plain; charset=utf-8")], b"Internal Server Error"
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Visit:
    """What is known of a request from its first line on."""

    called: Called
    head: RequestHead
    request_id: str
    trace_id: str
    origin: str | None


class UrlFace:
    """Answers requests to function URLs, and leaves all others alone."""

    def __init__(
        self,
        app: FaceApp,
        directory: UrlDirectory,
        functions: Functions,
        invoker: Invoker,
        guard: Guard,
        *,
        region: str,
        account: str,
        keys: SigV4 | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`keys`: of AWS_IAM; without, such URLs are closed."""
        self._app = app
        self._directory = directory
        self._functions = functions
        self._invoker = invoker
        self._guard = guard
        self._region = region
        self._account = account
        self._keys = keys
        self._wall = wall
        self._told: set[str] = set()
        """URLs that were said to be closed for want of keys."""

    async def answer(self) -> Response | None:
        """Of the current request; None: it is no function URL's."""
        head = head_of(request)
        host = b"".join(head.all(b"host")[:1]).decode("latin-1")
        found = called(host, head.path, self._region)
        if found is None:
            return None
        return await self._answer(
            _Visit(
                found,
                head,
                new_request_id(),
                read_trace_id(request.headers.get("x-amzn-trace-id")),
                request.headers.get("origin"),
            )
        )

    async def _answer(self, visit: _Visit) -> Response:
        url: FunctionUrl | None = None
        try:
            url = self._find(visit)
            if (preflight := _preflight(url, visit)) is not None:
                return _response(visit, None, preflight)
            return await self._invoke(url, visit)
        except BadResponse as exc:
            name = url.function if url is not None else ""
            log.warning("function %s: its result is no HTTP response: %s. It is a 502", name, exc)
            return _response(visit, url, BAD_GATEWAY)
        except Exception as exc:
            method, path = visit.head.method.decode(), visit.head.path.decode("latin-1")
            reply = aws_error(blame(exc, method, path))
            answer = UrlAnswer(reply.status, list(reply.headers.items()), reply.body)
            return _response(visit, url, answer)

    def _find(self, visit: _Visit) -> FunctionUrl:
        """Raises InvalidRequest."""
        self._guard.check_name(visit.head)
        if not visit.called.path.startswith(b"/") or visit.head.method == b"CONNECT":
            raise InvalidRequest(
                "A function URL is asked for by a path.", code="BadRequestException"
            )
        url = self._directory.find(visit.called.id) if visit.called.id else None
        if url is None:
            raise InvalidRequest("", code="AccessDeniedException", status=403)  # {"Message":null}
        return url

    async def _invoke(self, url: FunctionUrl, visit: _Visit) -> Response:
        self._tell_of_keys(url)
        signer = admit(url, visit.head, self._keys)
        function = self._function(url)
        body = await read_body(body_of(request), limit=MAX_PAYLOAD, operation="InvokeFunction")
        heard = self._request(visit, body, signer)
        if signer is not None:
            await _aside(len(body), signer.prove, body)
        payload = await _aside(_weight(heard), _payload, heard)
        if url.config.invoke_mode == "RESPONSE_STREAM":
            return await self._stream(url, visit, function, payload)
        outcome = await self._invoker.invoke(self._invocation(url, visit, function, payload))
        if outcome.function_error is not None:
            return _response(visit, url, BAD_GATEWAY)
        answer = await _aside(len(outcome.payload), from_outcome, outcome)
        return _response(visit, url, answer)

    async def _stream(
        self, url: FunctionUrl, visit: _Visit, function: FunctionVersion, payload: bytes
    ) -> Response:
        stream = UrlStream(url.function)
        on_request_end(request, stream.caller_gone)
        invocation = self._invocation(url, visit, function, payload, stream)
        self._app.nursery.start_soon(stream.run, self._invoker, invocation)
        answer = await stream.begin()
        if answer is None:
            return _response(visit, url, BAD_GATEWAY)
        return _response(visit, url, answer, stream)

    def _tell_of_keys(self, url: FunctionUrl) -> None:
        if url.config.auth_type == "AWS_IAM" and self._keys is None and url.id not in self._told:
            self._told.add(url.id)
            log.warning(
                "the function URL of %s has AuthType AWS_IAM, and nobody has a key to sign with. "
                'Hint: auth_keys_file = "FILE", and auth = "none" if nothing else is to be signed',
                url.function,
            )

    def _function(self, url: FunctionUrl) -> FunctionVersion:
        try:
            return self._functions.resolve(url.function, url.qualifier)
        except FunctionNotFound as exc:
            raise forbidden() from exc

    def _request(self, visit: _Visit, body: bytes, signer: Signer | None) -> UrlRequest:
        scope = cast(dict[str, Any], request.scope)
        sent_trace = bool(visit.head.all(b"x-amzn-trace-id"))
        return UrlRequest(
            url_id=visit.called.id,
            method=visit.head.method.decode(),
            path=visit.called.path,
            query=visit.head.query,
            headers=scope["headers"],
            body=body,
            http_version=scope["http_version"],
            source_ip=(scope["client"] or ("", 0))[0],
            port=(scope["server"] or ("", 0))[1] or 0,
            secure=visit.head.secure,
            request_id=visit.request_id,
            trace_id=visit.trace_id if sent_trace else visit.trace_id.partition(";")[0],
            at=self._wall(),
            account="anonymous" if signer is None else self._account,
            iam=None if signer is None else signer.iam(self._account),
        )

    def _invocation(
        self,
        url: FunctionUrl,
        visit: _Visit,
        function: FunctionVersion,
        payload: bytes,
        sink: UrlStream | None = None,
    ) -> Invocation:
        arn = function.arn(self._region, self._account)
        return Invocation(
            function=function,
            payload=payload,
            invoked_arn=f"{arn}:{url.qualifier}" if url.qualifier else arn,
            request_id=visit.request_id,
            trace_id=visit.trace_id,
            sink=sink,
            wants_tail=False,
            wants_memory=False,
        )


def _payload(heard: UrlRequest) -> bytes:
    """The event. Raises InvalidRequest: base64 makes a body a third larger (SPEC 3.3)."""
    payload = make_event(heard)
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(
            f"Request must be smaller than {MAX_PAYLOAD} bytes for the InvokeFunction operation",
            code="RequestTooLargeException",
            status=413,
        )
    return payload


def _weight(heard: UrlRequest) -> int:
    """Bytes that cost as much as those of a body: of a query every third may be a parameter's."""
    heads = sum(len(name) + len(value) for name, value in heard.headers)
    return len(heard.body) + 8 * (len(heard.query) + heads)


async def _aside(size: int, work: Callable[..., T], *given: Any) -> T:
    if size <= INLINE:
        return work(*given)
    return await trio.to_thread.run_sync(work, *given)


def _preflight(url: FunctionUrl, visit: _Visit) -> UrlAnswer | None:
    """What the platform answers without asking the function (SPEC 9.5)."""
    cors = url.config.cors
    wanted = request.headers.get("access-control-request-method")
    if cors is None or not cors_of.is_preflight(request.method, visit.origin, wanted):
        return None
    assert visit.origin is not None
    assert wanted is not None
    names = request.headers.get("access-control-request-headers")
    return UrlAnswer(200, cors_of.preflight_headers(cors, visit.origin, wanted, names), b"")


def _response(
    visit: _Visit, url: FunctionUrl | None, answer: UrlAnswer, stream: UrlStream | None = None
) -> Response:
    headers = answer.headers
    if url is not None and url.config.cors is not None:
        ours = cors_of.response_headers(url.config.cors, visit.origin)
        headers = cors_of.overridden(headers, ours)
    headers = [
        *headers,
        ("x-amzn-requestid", visit.request_id),
        ("x-amzn-trace-id", visit.trace_id),
    ]
    if visit.called.by_path:
        headers.append(("content-security-policy", PAGES))
    response = Response(answer.body if stream is None else stream, answer.status, Headers(headers))
    if answer.status in (204, 304):
        response.headers.pop("Content-Length", None)  # RFC 9110, 8.6
    if not any(name.lower() == "content-type" for name, _ in headers):
        response.headers.pop("Content-Type", None)  # quart's own
    return response
