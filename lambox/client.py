"""Owns the talk of lambox's verbs with a running server, over HTTP or HTTPS.

Unreachable             nobody answers at the endpoint, or it is not lambox
Refused                 the server answered with an error: status, AWS's code, message
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lambox.credentials import Credentials

PROBE_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 930.0
"""A function may take 900 s."""


SHOW_WHO = ("MissingAuthenticationTokenException", "UnrecognizedClientException")
SHOW_WHO_HINT = "\nHint: LAMBOX_AUTH_TOKEN, or the server's auth and auth_keys_file or auth_token_file (--config)"


class Unreachable(Exception):
    """No lambox at this endpoint."""


class Refused(Exception):
    """An error of the server's; the message is for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """What an invocation came back with."""

    payload: bytes
    function_error: str
    """Empty if the function succeeded."""
    log_tail: str


class Server:
    """A running lambox. One connection per question: verbs ask once."""

    def __init__(
        self,
        endpoint: str,
        credentials: Credentials | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`trust`: for https. Raises ValueError for something else than http(s)://HOST:PORT."""
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{endpoint!r} must be like http://127.0.0.1:9000")
        self.endpoint = endpoint.rstrip("/")
        self._host = parts.hostname
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._credentials = credentials
        self._trust = trust

    def is_lambox(self) -> bool:
        try:
            health = self._json("/healthz", PROBE_TIMEOUT_S)
        except (Unreachable, Refused):
            return False
        return isinstance(health, dict) and health.get("status") == "ok" and "version" in health

    def invoke(self, name: str, payload: bytes) -> Answer:
        headers = {"Content-Type": "application/json", "X-Amz-Log-Type": "Tail"}
        path = f"/2015-03-31/functions/{urllib.parse.quote(name, safe='')}/invocations"
        response, body = self._ask("POST", path, CALL_TIMEOUT_S, payload, headers)
        log = base64.b64decode(response.headers.get("X-Amz-Log-Result", ""))
        return Answer(
            body, response.headers.get("X-Amz-Function-Error", ""), log.decode("utf-8", "replace")
        )

    def functions(self) -> list[dict[str, Any]]:
        return self._rows("/_lambox/functions")

    def environments(self) -> list[dict[str, Any]]:
        return self._rows("/_lambox/environments")

    def prepared(self) -> list[dict[str, Any]]:
        return self._rows("/_lambox/prepared")

    def logs(self, name: str | None, *, follow: bool) -> Iterator[str]:
        """Kept lines; with `follow` those to come as well, until the server stops."""
        path = "/_lambox/logs" + (f"/{urllib.parse.quote(name, safe='')}" if name else "")
        connection = self._connection(PROBE_TIMEOUT_S)
        path += "?follow=1" if follow else ""
        try:
            connection.request("GET", path, headers=self._headers("GET", path))
            if follow and connection.sock is not None:
                connection.sock.settimeout(None)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response, response.read())
            for line in response:
                yield line.decode("utf-8", "replace").rstrip("\n")
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(f"{self.endpoint}: {exc or type(exc).__name__}") from exc
        finally:
            connection.close()

    def _rows(self, path: str) -> list[dict[str, Any]]:
        rows = self._json(path, CALL_TIMEOUT_S)
        return rows if isinstance(rows, list) else []

    def _json(self, path: str, timeout_s: float) -> Any:
        _, body = self._ask("GET", path, timeout_s)
        try:
            return json.loads(body)
        except ValueError as exc:
            raise Unreachable(f"{self.endpoint}{path} does not answer as lambox does") from exc

    def _ask(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection(timeout_s)
        try:
            sent = self._headers(method, path, headers or {}, body or b"")
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise Unreachable(f"{self.endpoint}: {exc or type(exc).__name__}") from exc
        finally:
            connection.close()
        if response.status >= 300:
            raise _refusal(response, content)
        return response, content

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._secure:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout_s, context=self._trust
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)

    def _headers(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> dict[str, str]:
        host = f"[{self._host}]" if ":" in self._host else self._host
        sent = {"Host": f"{host}:{self._port}", **(headers or {})}
        if self._credentials is not None:
            sent |= self._credentials.headers(method, path, sent, body)
        return sent


def _refusal(response: http.client.HTTPResponse, body: bytes) -> Refused:
    """AWS's face has the code in a header, lambox's own in the body."""
    message = body.decode("utf-8", "replace")
    code = response.headers.get("x-amzn-ErrorType", "")
    with contextlib.suppress(ValueError, AttributeError):
        fields = json.loads(message)
        said = [fields.get(key) for key in ("message", "Message", "errorMessage")]
        code = code or fields.get("errorType", "")
        message = next(filter(None, said), message)
    if code in SHOW_WHO:
        message += SHOW_WHO_HINT
    return Refused(response.status, code, message)
