"""Owns what both quart-trio apps share: streamed request bodies, no quart limits of its own, no
HTML.

quart's defaults are for websites: a 16 MB body limit, 60 s for a body and 60 s for a response,
redirects for slashes, static files. An environment parks in `next` for hours, and a response may be
streamed for 15 minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Request, Response
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from runtimeapi.bodies import StreamedBody
from runtimeapi.connection import BODY_KEY
from runtimeapi.sigv4 import RequestHead, grouped

log = logging.getLogger("lambox.http")

ON_END_KEY = "lambox.on_end"


class Unfinished(Exception):
    """Raised by a response's own iterator: the rest of the body does not come. The connection ends without the
    chunk that would say that it was whole."""


class FaceHTTPConnection(TrioASGIHTTPConnection):
    """Takes the request body that the connection made, instead of gathering one from ASGI
    messages."""

    def _create_request_from_scope(self, send: ASGISendCallable) -> Request:
        request = super()._create_request_from_scope(send)
        body: StreamedBody = self.scope["state"][BODY_KEY]
        body.expected_bytes = request.content_length
        request.body = body  # type: ignore[assignment]
        return request

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        try:
            await super().__call__(receive, send)
        except* Unfinished as group:
            log.info("%s", group.exceptions[0])
        finally:
            for callback in cast(dict[str, Any], self.scope).get(ON_END_KEY, ()):
                callback()


class FaceApp(QuartTrio):
    asgi_http_class = FaceHTTPConnection

    def __init__(self, import_name: str) -> None:
        super().__init__(import_name, static_folder=None)
        self.config.update(MAX_CONTENT_LENGTH=None, BODY_TIMEOUT=None, RESPONSE_TIMEOUT=None)
        self.url_map.merge_slashes = False
        self.url_map.strict_slashes = False


def body_of(request: Request) -> StreamedBody:
    return cast(StreamedBody, request.body)


def on_request_end(request: Request, callback: Callable[[], None]) -> None:
    """Call it when the request is over, however: answered, refused, or the peer gone.

    A response's own body iterator is no place for this: a peer that leaves early means it is never
    iterated, nor closed.
    """
    cast(dict[str, Any], request.scope).setdefault(ON_END_KEY, []).append(callback)


def head_of(request: Request) -> RequestHead:
    """As it was sent, for `guard.py`."""
    scope = cast(dict[str, Any], request.scope)
    return RequestHead(
        method=request.method.encode(),
        path=scope["raw_path"],
        query=scope["query_string"],
        headers=grouped(scope["headers"]),
        secure=scope["scheme"] == "https",
    )


def path_of(request: Request) -> str:
    """The path as sent, for messages."""
    return cast(bytes, cast(dict[str, Any], request.scope)["raw_path"]).decode("ascii")


def respond(status: int, headers: dict[str, str], body: bytes) -> Response:
    """A response with exactly these headers (plus Content-Length): quart would add `text/html`."""
    content_type = headers.get("Content-Type", "application/json")
    return Response(body, status, headers, content_type=content_type)
