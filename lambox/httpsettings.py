"""Owns the settings of the callers' face: who may call, TLS, limits (docs/security.md says what each is for)."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Literal

from lambox.setting import Setting, file
from sandbox.checks import Wrong, seconds, whole

Auth = Literal["none", "sigv4", "token"]
AUTHS = ("none", "sigv4", "token")
HOST_NAME = re.compile(r"\*|(\*?\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")


def _auth(value: Any) -> str:
    if value not in AUTHS:
        raise Wrong('must be "none", "sigv4" or "token"')
    return str(value)


def _hosts(value: Any) -> tuple[str, ...]:
    """Names as `guard.Names` has them: lower case, `.example.com` for all below."""
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    names = [one.lower() if isinstance(one, str) else "" for one in _listed(items)]
    if not all(HOST_NAME.fullmatch(name) for name in names):
        raise Wrong('must be a list of host names without port, such as ["lambox.example.com"]')
    return tuple(dict.fromkeys(re.sub(r"^\*\.", ".", name) for name in names))


def _listed(items: Any) -> list[Any]:
    return items if isinstance(items, list) else [None]


HTTP_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "auth",
        _auth,
        lambda _: None,
        "none, sigv4, token",
        "how callers show who they are",
        "none on a loopback address; elsewhere it must be said",
        True,
    ),
    Setting(
        "auth_keys_file",
        file,
        lambda _: None,
        "a file of mode 0600",
        'for sigv4 and AWS_IAM function URLs: access keys, one ID = "SECRET" a line; read again when it changes',
        "none",
        True,
    ),
    Setting(
        "auth_token_file",
        file,
        lambda _: None,
        "a file of mode 0600",
        "for token: tokens, one a line; read again when it changes",
        "none",
        True,
    ),
    Setting(
        "allowed_hosts",
        _hosts,
        lambda _: (),
        "names",
        "further names in Host headers: name, .name for all below it, * for any",
        "nothing",
        is_list=True,
    ),
    Setting(
        "tls_cert",
        file,
        lambda _: None,
        "a PEM file",
        "certificate and its chain: serve HTTPS; read again when it changes",
        "none",
        True,
    ),
    Setting(
        "tls_key",
        file,
        lambda _: None,
        "a PEM file of mode 0600",
        "private key of tls_cert",
        "none",
        True,
    ),
    Setting(
        "max_connections",
        whole("", 1, 100_000),
        lambda _: 1024,
        "1 to 100000",
        "most connections of callers; more are answered 503",
    ),
    Setting(
        "max_header_bytes",
        whole("bytes", 8192, 1024 * 1024),
        lambda _: 64 * 1024,
        "8192 to 1048576 bytes",
        "most bytes of a request line and its headers",
    ),
    Setting(
        "header_timeout_s",
        seconds(0.1, 300),
        lambda _: 20.0,
        "0.1 to 300 s",
        "how long a head may take to arrive, and a TLS handshake",
    ),
    Setting(
        "body_timeout_s",
        seconds(0.1, 300),
        lambda _: 20.0,
        "0.1 to 300 s",
        "longest silence inside a body; one that takes longer must have brought 1 KB/s",
    ),
    Setting(
        "keep_alive_s",
        seconds(1, 3600),
        lambda _: 75.0,
        "1 to 3600 s",
        "how long an idle connection stays open",
    ),
)


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def contradictions(values: dict[str, Any]) -> list[str]:
    """What is wrong with settings that are each right. `values`: those that were set, and `host`."""
    found = []
    auth, host = values.get("auth"), values["host"]
    if auth is None and not is_loopback(host):
        found.append(
            f"host = {host}: others can reach this address, and without auth each of them can run functions. "
            'Hint: auth = "sigv4" or "token" (and tls_cert); auth = "none" if something else keeps others out'
        )
    for way, key in (("sigv4", "auth_keys_file"), ("token", "auth_token_file")):
        if auth == way and values.get(key) is None:
            found.append(f'auth = "{way}" is set without {key}. Hint: set it, a file of mode 0600')
        if auth is None and values.get(key) is not None:
            other = ', or "none" where only function URLs ask for keys' if way == "sigv4" else ""
            found.append(f'{key} is set without auth. Hint: auth = "{way}"{other}')
    for one, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if values.get(one) is not None and values.get(other) is None:
            found.append(f"{one} is set without {other}. Hint: set both")
    return found
