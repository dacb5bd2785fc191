"""Owns who may speak at a face: no page in somebody's browser, and at the callers' face whom `auth` names.

A browser on this host reaches what listens on loopback. Two ways lead there:

- a page makes requests to http://127.0.0.1:9000 (CSRF). The browser tells: `Origin`, `Sec-Fetch-Site`.
  Whatever comes from another origin is refused, preflights too, with no CORS header;
- a name of the page's own is made to resolve to 127.0.0.1 (DNS rebinding). To the browser it is then the
  page's own origin, but the name stands in `Host`: it must be a name of this server.

Both lanes ask the same `Guard`. What it refuses the fast lane hands to hypercorn, where it is asked again and the
refusal is written: there is one place for that.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from runtimeapi import sigv4
from runtimeapi.sigv4 import RequestHead
from sandbox.errors import InvalidRequest

OPEN_PATH = b"/healthz"
"""Tells that a lambox is here and its version, to whoever asks."""
DOWNLOADS = b"/_lambox/code/"
"""Addresses below it have a token of their own (`control/downloads.py`): who has one need show nothing else."""
HASHED_INLINE = 64 * 1024
"""Bytes hashed in the event loop (40 us); more are left to a thread (6 MB: 3 ms)."""
_FOREIGN = frozenset({b"cross-site", b"same-site"})
_MOST_HOSTS = 256
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::[0-9]{1,5})?")


class Claim(Protocol):
    def check_head(self) -> None:
        """What can be proven before the body is here. Raises InvalidRequest."""

    def check(self, body_sha256: str) -> None:
        """Raises InvalidRequest."""


class Auth(Protocol):
    """How callers show who they are."""

    def claim(self, head: RequestHead) -> Claim | None:
        """None: the head was enough. Raises InvalidRequest."""


class TokenAuth:
    """`Authorization: Bearer TOKEN`, with one of the tokens that are valid now."""

    def __init__(self, tokens: Callable[[], Sequence[bytes]]) -> None:
        self._tokens = tokens

    def claim(self, head: RequestHead) -> None:
        authorization = head.one(b"authorization")
        if authorization is None:
            raise sigv4.missing()
        scheme, _, token = authorization.partition(b" ")
        # All are compared, so that time tells nothing about which was close.
        found = [hmac.compare_digest(token, one) for one in self._tokens()]
        if scheme.lower() != b"bearer" or True not in found:
            raise sigv4.unrecognized()


@dataclass(frozen=True, slots=True)
class Names:
    """Which `Host` headers are this server's.

    Every IP address is (a page cannot make a browser send one that is not its own server's), or only loopback's
    where nothing else can reach the listener; `localhost` and `*.localhost`, which no resolver may send elsewhere
    (RFC 6761, 6.3); and `allowed`: names, `.example.com` with all below it, `*` for any.
    """

    allowed: tuple[str, ...] = ()
    loopback: bool = True

    def has(self, host: str) -> bool:
        name = _without_port(host).lower().rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        for one in self.allowed:
            if one in ("*", name) or (one[:1] == "." and ("." + name).endswith(one)):
                return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return address.is_loopback or not self.loopback


is_loopback_name = lru_cache(maxsize=256)(Names().has)
"""The Runtime API's: it is asked for as 127.0.0.1:PORT, and never from anywhere else."""


class Guard:
    def __init__(self, names: Names = Names(), auth: Auth | None = None) -> None:
        """Without `auth` any caller is taken."""
        self._auth = auth
        self.knows = lru_cache(maxsize=_MOST_HOSTS)(names.has)
        """(Host header) -> whether it names this server."""

    @property
    def takes_anyone(self) -> bool:
        """The head of a request need not be looked at, but for where it comes from."""
        return self._auth is None

    def admit(self, head: RequestHead) -> Claim | None:
        """A claim still has to be checked with the body. Raises InvalidRequest (403)."""
        if head.path == OPEN_PATH:
            return None
        self.check_source(head)
        if head.path.startswith(DOWNLOADS):
            return None
        return self.claim(head)

    def claim(self, head: RequestHead) -> Claim | None:
        return None if self._auth is None else self._auth.claim(head)

    def check_name(self, head: RequestHead) -> None:
        """Raises InvalidRequest."""
        for host in head.all(b"host"):
            text = host.decode("latin-1")
            if not self.knows(text):
                name = _without_port(text)
                raise _denied(
                    f"{text!r} is not a name of this server. Hint: if it should be, "
                    f'allowed_hosts = ["{name}"]'
                )

    def check_source(self, head: RequestHead) -> None:
        """Raises InvalidRequest."""
        self.check_name(head)
        own = own_origins(head)
        foreign = any(origin.lower() not in own for origin in head.all(b"origin"))
        if foreign or not _FOREIGN.isdisjoint(head.all(b"sec-fetch-site")):
            raise _denied("Requests that a page of another origin makes in a browser are refused.")


def own_origins(head: RequestHead) -> set[bytes]:
    """Of pages that came from where this request goes.

    Either scheme: TLS may end in front of lambox, and no port speaks both.
    """
    hosts = head.all(b"host")
    return {scheme + host.lower() for host in hosts for scheme in (b"http://", b"https://")}


def _without_port(host: str) -> str:
    match = _HOST.fullmatch(host)
    return match[1] if match is not None else ""


def _denied(message: str) -> InvalidRequest:
    return sigv4.refused("AccessDeniedException", message)
