"""Owns CORS of function URLs: preflights, and the headers of all other responses (SPEC 9.5). Pure.

The origin is echoed, as AWS is seen to do even for `*` (aws-powertools/powertools-lambda-python#4163). With
`*` and AllowCredentials it is not: browsers then refuse what is only one user's to see, as the Fetch standard has it.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtimeapi.urls.answer import Headers
from sandbox.functionurl import Cors

ANY = "*"


def is_preflight(method: str, origin: str | None, wanted: str | None) -> bool:
    """`wanted`: Access-Control-Request-Method."""
    return method == "OPTIONS" and origin is not None and wanted is not None


def allows(cors: Cors, origin: str) -> bool:
    """Origins are compared as browsers write them, but for case."""
    return any(one in (ANY, origin) or one.lower() == origin.lower() for one in cors.allow_origins)


def response_headers(cors: Cors, origin: str | None) -> Headers:
    """For a response that is no preflight's."""
    if origin is None or not allows(cors, origin):
        return [("vary", "Origin")]
    headers = _allowed(cors, origin)
    if cors.expose_headers:
        headers.append(("access-control-expose-headers", ",".join(cors.expose_headers)))
    return headers


def preflight_headers(cors: Cors, origin: str, method: str, wanted: str | None) -> Headers:
    """`wanted`: Access-Control-Request-Headers."""
    vary = ("vary", "Origin,Access-Control-Request-Method,Access-Control-Request-Headers")
    if not allows(cors, origin):
        return [vary]
    headers = [pair for pair in _allowed(cors, origin) if pair[0] != "vary"]
    if methods := _listed(cors.allow_methods, method):
        headers.append(("access-control-allow-methods", methods))
    if names := _listed(cors.allow_headers, wanted):
        headers.append(("access-control-allow-headers", names))
    headers.append(("access-control-max-age", str(cors.max_age)))  # without it browsers keep 5 s
    return [*headers, vary]


def overridden(headers: Headers, ours: Headers) -> Headers:
    """A function's headers with ours: of CORS only the platform's count (SPEC 9.5)."""
    kept = [pair for pair in headers if not pair[0].startswith("access-control-")]
    return [*kept, *ours]


def _allowed(cors: Cors, origin: str) -> Headers:
    shared = cors.allow_credentials and ANY in cors.allow_origins
    headers = [("access-control-allow-origin", ANY if shared else origin)]
    if cors.allow_credentials:
        headers.append(("access-control-allow-credentials", "true"))
    return [*headers, ("vary", "Origin")]


def _listed(allowed: Sequence[str], asked: str | None) -> str:
    """What is asked for stands for `*`, which browsers do not take with credentials."""
    return (asked or ANY) if ANY in allowed else ",".join(allowed)
