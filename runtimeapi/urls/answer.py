"""Owns what a handler's result becomes as an HTTP response (SPEC 9.3). Pure.

What cannot be a response is 502, as on AWS, and why is told in the log: a header that would break the
connection or add a header of its own (CR, LF, NUL) never gets as far as a socket.

A function may return 6 MB of whatever makes a parser slow, and a thread that parses in C keeps the interpreter to
itself: so only the members that count are looked at (msgspec passes over the rest at 300 MB/s; `json.loads` of 3
million numbers holds everybody up for 200 ms), and of a body no more is done than to unescape it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from runtimeapi.replies import to_json
from runtimeapi.urls.event import HOP_BY_HOP
from runtimeapi.urls.prelude import CONTENT_TYPE, BadPrelude, split
from sandbox.invocation import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = "application/json"
NOT_THE_FUNCTIONS = HOP_BY_HOP | {"content-length", "date", "x-amzn-requestid", "x-amzn-trace-id"}
"""Headers that are this server's to say; a function's are left out."""
MOST_HEADERS = 200
MAX_HEADERS = 64 * 1024
"""Bytes of all names and values: more than browsers and proxies take."""
MAX_TOLD = 128 * 1024
"""Bytes of the JSON of headers or cookies."""
TOUCHED = 256 * 1024
"""Bytes of a result whose white space is taken out, as AWS does; larger ones keep it."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

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
    """Of a function that succeeded, buffered. Raises BadResponse. Blocks for large ones: 6 MB take 50 ms."""
    if outcome.content_type == CONTENT_TYPE:
        try:
            head, body = split(outcome.payload)
        except BadPrelude as exc:
            raise BadResponse(str(exc)) from exc
        return from_prelude(head, body)
    try:
        return _from_json(outcome.payload)
    except (ValueError, RecursionError) as exc:
        if outcome.content_type.partition(";")[0] not in (JSON, ""):
            # A function that streams, collected: bytes of whatever kind.
            return UrlAnswer(200, [("content-type", _value(outcome.content_type))], outcome.payload)
        raise BadResponse("it is not JSON") from exc


def from_prelude(head: bytes, body: bytes = b"") -> UrlAnswer:
    """Of a streamed response: the JSON before the delimiter, and what of the body is here. Raises BadResponse."""
    try:
        found = _members(_compact(head or b"{}"))
    except (ValueError, RecursionError) as exc:
        raise BadResponse("its prelude is no JSON object") from exc
    status = _status(found.status) if found.status else 200
    headers = read_headers(found.headers, found.cookies)
    return _with_type(UrlAnswer(status, headers, body), "application/octet-stream")


def _from_json(payload: bytes) -> UrlAnswer:
    """Raises BadResponse, ValueError, RecursionError: it is no JSON."""
    if payload.lstrip()[:1] == b'"':
        return UrlAnswer(200, [("content-type", JSON)], _bytes(_string(payload)))
    payload = _compact(payload)
    if payload[:1] == b"{":
        found = _members(payload)
        if found.status:
            headers = read_headers(found.headers, found.cookies)
            body = _body(found.body, encoded=found.encoded == b"true")
            return _with_type(UrlAnswer(_status(found.status), headers, body), JSON)
    return UrlAnswer(200, [("content-type", JSON)], payload)


class _Members(NamedTuple):
    """Of a result, each as JSON; empty: it is not there."""

    status: bytes
    headers: bytes
    cookies: bytes
    body: bytes
    encoded: bytes


@cache
def _decoders() -> tuple[Callable[[bytes], Any], ...]:
    import msgspec  # here: 8 ms at start that few servers need

    names = ("statusCode", "headers", "cookies", "body", "isBase64Encoded")
    empty = msgspec.Raw(b"")
    result = msgspec.defstruct("Result", [(name, msgspec.Raw, empty) for name in names])
    types: tuple[Any, ...] = (result, msgspec.Raw, str, dict[str, msgspec.Raw], list[msgspec.Raw])
    return tuple(msgspec.json.Decoder(one).decode for one in types)


def _members(payload: bytes) -> _Members:
    """Raises ValueError, RecursionError."""
    found = _decoders()[0](payload)
    names = ("statusCode", "headers", "cookies", "body", "isBase64Encoded")
    return _Members(*(bytes(getattr(found, name)) for name in names))


def _string(raw: bytes) -> str:
    try:
        found: str = _decoders()[2](raw)
    except ValueError:
        found = json.loads(raw)
    return found


def _compact(payload: bytes) -> bytes:
    """Numbers keep their digits, strings their escapes. Raises ValueError, RecursionError: it is no JSON."""
    import msgspec

    if len(payload) > TOUCHED:
        _decoders()[1](payload)
        return payload.strip()
    try:
        return msgspec.json.format(payload, indent=-1)
    except ValueError:
        # Half of a surrogate pair, escaped, is JSON to AWS and to Python.
        return to_json(json.loads(payload))


def _with_type(answer: UrlAnswer, content_type: str) -> UrlAnswer:
    if answer.has("content-type"):
        return answer
    headers = [("content-type", content_type), *answer.headers]
    return UrlAnswer(answer.status, headers, answer.body)


def _status(raw: bytes) -> int:
    """A number or its digits (SPEC 9.3)."""
    match = re.fullmatch(rb'"?([2-5][0-9]{2})(\.0+)?"?', raw)
    if match is None or raw.startswith(b'"') != raw.endswith(b'"'):
        raise BadResponse(f"statusCode = {_show(raw)}: must be a number from 200 to 599")
    return int(match[1])


def read_headers(headers: bytes, cookies: bytes) -> Headers:
    """Both as JSON, or empty. Raises BadResponse."""
    if len(headers) > MAX_TOLD or len(cookies) > MAX_TOLD:
        raise BadResponse(f"more than {MAX_TOLD} bytes of headers")
    *_, read_object, read_list = _decoders()
    by_name: dict[str, str] = {}
    if headers not in (b"", b"null"):
        try:
            told = read_object(headers)
        except ValueError as exc:
            raise BadResponse("headers must be an object of names and values") from exc
        for name, value in told.items():
            raw = bytes(value)
            if raw != b"null" and name.lower() not in NOT_THE_FUNCTIONS:
                by_name[_name(name)] = _value(_scalar(raw))
    found = list(by_name.items())
    if cookies not in (b"", b"null"):
        try:
            values = read_list(cookies)
        except ValueError as exc:
            raise BadResponse("cookies must be a list of text") from exc
        found += [("set-cookie", _value(_scalar(bytes(value)))) for value in values]
    if len(found) > MOST_HEADERS or sum(len(n) + len(v) for n, v in found) > MAX_HEADERS:
        raise BadResponse(f"more than {MOST_HEADERS} headers, or {MAX_HEADERS} bytes of them")
    return found


def _name(name: str) -> str:
    if _TOKEN.fullmatch(name) is None:
        raise BadResponse(f"{_show(name)} cannot be the name of a header")
    return name.lower()


def _scalar(raw: bytes) -> str:
    """Text, or a number, true or false as JSON writes them. Raises BadResponse."""
    if raw[:1] in (b"[", b"{", b"n"):
        raise BadResponse(f"{_show(raw)} cannot be the value of a header")
    return _string(raw) if raw[:1] == b'"' else raw.decode()


def _value(value: str) -> str:
    text = value.strip(" \t")
    if _CONTROL.search(text) is not None:
        raise BadResponse(f"{_show(value)} cannot be the value of a header: control characters")
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text


def _body(raw: bytes, *, encoded: bool) -> bytes:
    if raw in (b"", b"null"):
        return b""
    if raw[:1] != b'"':
        return raw
    text = _string(raw)
    if not encoded:
        return _bytes(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadResponse("isBase64Encoded is true, and body is no base64") from exc


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _show(value: bytes | str) -> str:
    """For the log: one short line."""
    return ascii(value.decode("latin-1") if isinstance(value, bytes) else value)[:80]
