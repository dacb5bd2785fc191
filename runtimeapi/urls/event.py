"""Owns the event of a function URL: a request in payload format 2.0 (SPEC 9.2). Pure.

Where AWS's documents and recordings say nothing: a body without a content type, and one that is not the UTF-8 that its
type promises, is base64; there are no `x-amzn-tls-*` headers, since what a caller sends is not believed and
TLS may have ended elsewhere; x-forwarded-* are what this server saw.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from runtimeapi.replies import to_json

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""RFC 9110, 7.6.1: about this connection, not about the request or response."""
OURS = frozenset(
    {
        "x-forwarded-for",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-amzn-trace-id",
        "x-amzn-tls-version",
        "x-amzn-tls-cipher-suite",
    }
)
"""Headers that the platform adds: a caller's own would be believed."""
_TEXT = re.compile(
    r"text/.*|application/(.*[+.-])?(json|xml|javascript|ecmascript|graphql|yaml|toml|x-ndjson)"
)
_WHITE = " \t"


@dataclass(frozen=True, slots=True)
class UrlRequest:
    """One request to a function URL, as it came."""

    url_id: str
    method: str
    path: bytes
    """rawPath, still encoded."""
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    http_version: str
    source_ip: str
    port: int
    secure: bool
    request_id: str
    trace_id: str
    at: float
    """Seconds since the epoch."""
    account: str = "anonymous"
    """Of the caller, where a signature says it."""
    iam: Mapping[str, Any] | None = None
    """requestContext.authorizer.iam"""


def make_event(request: UrlRequest) -> bytes:
    """The event as JSON. Blocks for large bodies: 6 MB take 15 ms."""
    headers, cookies = _headers(request)
    path = request.path.decode("latin-1")
    domain = headers.get("host", "")
    context: dict[str, Any] = {
        "accountId": request.account,
        "apiId": request.url_id,
        "domainName": domain,
        "domainPrefix": request.url_id,
        "http": {
            "method": request.method,
            "path": path,
            "protocol": f"HTTP/{request.http_version}",
            "sourceIp": request.source_ip,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request.request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": clf_time(request.at),
        "timeEpoch": int(request.at * 1000),
    }
    if request.iam is not None:
        context["authorizer"] = {"iam": dict(request.iam)}
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": request.query.decode("latin-1"),
    }
    if cookies:
        event["cookies"] = cookies
    event["headers"] = headers
    if parameters := query_parameters(request.query):
        event["queryStringParameters"] = parameters
    event["requestContext"] = context
    body = _body(request.body, headers.get("content-type", ""))
    return to_json(event)[:-1] + body + b"}"


def clf_time(at: float) -> str:
    """12/Mar/2020:19:03:58 +0000, in whatever locale."""
    now = time.gmtime(at)
    day = f"{now.tm_mday:02d}/{MONTHS[now.tm_mon - 1]}/{now.tm_year}"
    return f"{day}:{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d} +0000"


def query_parameters(query: bytes) -> dict[str, str]:
    """Decoded; values of a name that comes several times joined by commas."""
    found: dict[str, list[str]] = {}
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            found.setdefault(_decoded(name), []).append(_decoded(value))
    return {name: ",".join(values) for name, values in found.items()}


def _decoded(part: bytes) -> str:
    return unquote_to_bytes(part.replace(b"+", b" ")).decode("utf-8", "replace")


def _headers(request: UrlRequest) -> tuple[dict[str, str], list[str]]:
    """Lower-case names, values joined by commas; cookies apart."""
    found: dict[str, list[str]] = {}
    cookies: list[str] = []
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1").lower(), _text(raw_value)
        if name == "cookie":
            cookies += [one for part in value.split(";") if (one := part.strip(_WHITE))]
        elif name not in HOP_BY_HOP and name not in OURS:
            found.setdefault(name, []).append(value)
    headers = {name: ",".join(values) for name, values in found.items()}
    if request.body:
        headers.setdefault("content-length", str(len(request.body)))  # it came in chunks
    headers["x-amzn-trace-id"] = request.trace_id
    headers["x-forwarded-for"] = request.source_ip
    headers["x-forwarded-port"] = str(request.port)
    headers["x-forwarded-proto"] = "https" if request.secure else "http"
    return headers, cookies


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _body(body: bytes, content_type: str) -> bytes:
    """The last members of the event. base64 is JSON as it is: nothing is escaped, nothing looked through again."""
    if not body:
        return b',"isBase64Encoded":false'
    if is_text(content_type):
        try:
            return b',"body":%b,"isBase64Encoded":false' % to_json(body.decode())
        except UnicodeDecodeError:
            pass
    return b',"body":"%b","isBase64Encoded":true' % base64.b64encode(body)


def is_text(content_type: str) -> bool:
    """Forms are not: AWS's gateway encodes them too."""
    return _TEXT.fullmatch(content_type.partition(";")[0].strip(_WHITE).lower()) is not None
