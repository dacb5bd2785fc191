"""Owns how a function URL is told from every other address of this server. Pure.

    http://URLID.lambda-url.REGION.localhost:9000/path     by name
    http://127.0.0.1:9000/URLID/path                       by path

A Host with the label `lambda-url` in second place is never anything else's, and a path whose first segment is 32
lower-case letters and digits neither: no path of a URL reaches the Lambda API or the console, nor theirs a URL.
Looked at is what was sent, undecoded.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

_NAME = re.compile(r"([^.:]*)\.lambda-url\.([^:]*)(?::[0-9]{1,5})?", re.ASCII)
_PATH = re.compile(rb"/([a-z0-9]{32})(?![^/])")
_PORT = re.compile(r"(.*?)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Called:
    """A request to what looks like a function URL."""

    id: str
    """Empty where the name cannot be one of this region."""
    path: bytes
    """rawPath: what follows, still encoded."""
    by_path: bool
    """The address is that of the Lambda API, too: to a browser they are one origin."""


@lru_cache(maxsize=256)
def is_url_host(host: str) -> bool:
    """Whether this Host header names a function URL, if one there is not."""
    return _NAME.fullmatch(host.lower()) is not None


def called(host: str, path: bytes, region: str) -> Called | None:
    """None: this is no function URL's request."""
    match = _NAME.fullmatch(host.lower())
    if match is not None:
        ours = (match[2].rstrip(".") + ".").startswith(region + ".")
        return Called(match[1] if ours else "", path, by_path=False)
    found = _PATH.match(path)
    if found is None:
        return None
    return Called(found[1].decode(), path[found.end() :] or b"/", by_path=True)


def address(id_: str, *, host: str, secure: bool, region: str) -> str:
    """The URL as a caller reaches it who reached this server as `host` (a Host header).

    By name where every browser finds it without a resolver (RFC 6761: *.localhost is loopback). Else by path, and
    where there is TLS: a certificate for the names of all URLs is rarely at hand.
    """
    match = _PORT.fullmatch(host)
    assert match is not None
    name, port = match[1].lower(), match[2] or ""
    scheme = "https" if secure else "http"
    inner = _NAME.fullmatch(name)
    if inner is not None:
        name = "localhost" if name.endswith(".localhost") else inner[2].removeprefix(region + ".")
    if not secure and _is_loopback(name):
        return f"{scheme}://{id_}.lambda-url.{region}.localhost{port}/"
    return f"{scheme}://{name}{port}/{id_}/"


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
