"""Owns what a handler's result becomes as an HTTP response (SPEC 9.3). Pure.

What cannot be a response is 502, as on AWS, and why is told in the log: a header that would break the
connection or add a header of its own (CR, LF, NUL) never gets as far as a socket.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from runtimeapi.replies import to_json
from runtimeapi.urls.event import HOP_BY_HOP
from runtimeapi.urls.prelude import CONTENT_TYPE, BadPrelude, split
from sandbox.invocation import Outcome

JSON = "application/json"
NOT_THE_FUNCTIONS = HOP_BY_HOP | {"content-length", "date", "x-amzn-requestid", "x-amzn-trace-id"}
"""Headers that are this server's to say; a function's are left out."""
MOST_HEADERS = 200
MAX_HEADERS = 64 * 1024
"""Bytes of all names and values: more than browsers and proxies take."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SPACE = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')

Headers = list[tuple[str, str]]


class BadResponse(Exception):
    """Not a response: what is wrong with it."""


@dataclass(frozen=True, slots=True)
class UrlAnswer:
    status: int
    headers: Headers
    """In the order they are written; several Set-Cookie."""
    body: bytes

    def has(self, name: str) -> bool:
        return any(one.lower() == name for one, _ in self.headers)


def from_outcome(outcome: Outcome) -> UrlAnswer:
    """Of a function that succeeded, buffered. Raises BadResponse. Blocks for large ones: 6 MB take 100 ms."""
    if outcome.content_type == CONTENT_TYPE:
        try:
            head, body = split(outcome.payload)
        except BadPrelude as exc:
            raise BadResponse(str(exc)) from exc
        return from_prelude(head, body)
    try:
        return _from_json(outcome.payload.decode())
    except (ValueError, RecursionError) as exc:
        if outcome.content_type.partition(";")[0] not in (JSON, ""):
            # A function that streams, collected: bytes of whatever kind.
            return UrlAnswer(200, [("content-type", _value(outcome.content_type))], outcome.payload)
        raise BadResponse("it is not JSON") from exc


def _from_json(text: str) -> UrlAnswer:
    # Numbers keep their digits: they are looked at for a statusCode only.
    result = json.loads(text, parse_int=_Number, parse_float=_Number)
    if isinstance(result, dict) and "statusCode" in result:
        return _described(result)
    if isinstance(result, str) and not isinstance(result, _Number):
        return UrlAnswer(200, [("content-type", JSON)], _bytes(result))
    return UrlAnswer(200, [("content-type", JSON)], _bytes(_SPACE.sub(r"\1", text)))


def from_prelude(head: bytes, body: bytes = b"") -> UrlAnswer:
    """Of a streamed response: the JSON before the delimiter, and what of the body is here. Raises BadResponse."""
    try:
        found = json.loads(head or b"{}", parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError) as exc:
        raise BadResponse("its prelude is not JSON") from exc
    if not isinstance(found, dict):
        raise BadResponse("its prelude is no JSON object")
    headers = read_headers(found.get("headers"), found.get("cookies"))
    status = _status(found["statusCode"]) if "statusCode" in found else 200
    return _with_type(UrlAnswer(status, headers, body), "application/octet-stream")


class _Number(str):
    """A number as JSON wrote it."""


def _described(result: dict[str, Any]) -> UrlAnswer:
    headers = read_headers(result.get("headers"), result.get("cookies"))
    body = _body(result.get("body"), result.get("isBase64Encoded") is True)
    return _with_type(UrlAnswer(_status(result["statusCode"]), headers, body), JSON)


def _with_type(answer: UrlAnswer, content_type: str) -> UrlAnswer:
    if answer.has("content-type"):
        return answer
    headers = [("content-type", content_type), *answer.headers]
    return UrlAnswer(answer.status, headers, answer.body)


def _status(value: Any) -> int:
    """A number or its digits (SPEC 9.3)."""
    if isinstance(value, str) and re.fullmatch(r"[2-5][0-9]{2}(\.0+)?", value, re.ASCII):
        return int(value[:3])
    raise BadResponse(f"statusCode = {_show(value)}: must be a number from 200 to 599")


def read_headers(headers: Any, cookies: Any) -> Headers:
    """Raises BadResponse."""
    by_name: dict[str, str] = {}
    if headers is not None:
        if not isinstance(headers, dict):
            raise BadResponse("headers must be an object of names and values")
        for name, value in headers.items():
            if value is not None and name.lower() not in NOT_THE_FUNCTIONS:
                by_name[_name(name)] = _value(value)
    found = list(by_name.items())
    if cookies is not None:
        if not isinstance(cookies, list):
            raise BadResponse("cookies must be a list of text")
        found += [("set-cookie", _value(cookie)) for cookie in cookies]
    if len(found) > MOST_HEADERS or sum(len(n) + len(v) for n, v in found) > MAX_HEADERS:
        raise BadResponse(f"more than {MOST_HEADERS} headers, or {MAX_HEADERS} bytes of them")
    return found


def _name(name: str) -> str:
    if _TOKEN.fullmatch(name) is None:
        raise BadResponse(f"{_show(name)} cannot be the name of a header")
    return name.lower()


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise BadResponse(f"{_show(value)} cannot be the value of a header")
    text = str(value).strip(" \t")
    if _CONTROL.search(text) is not None:
        raise BadResponse(f"{_show(value)} cannot be the value of a header: control characters")
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text


def _body(body: Any, encoded: bool) -> bytes:
    if body is None:
        return b""
    if not isinstance(body, str):
        return _bytes(_dumped(body))
    if not encoded:
        return _bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadResponse("isBase64Encoded is true, and body is no base64") from exc


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _dumped(value: Any) -> str:
    """JSON again, numbers as they were written."""
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(_dumped, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_dumped(key)}:{_dumped(item)}" for key, item in value.items())
        return "{" + ",".join(pairs) + "}"
    return to_json(value).decode()


def _show(value: Any) -> str:
    """For the log: one short line."""
    return ascii(str(value) if isinstance(value, _Number) else value)[:80]
