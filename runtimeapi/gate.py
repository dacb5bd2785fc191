"""Owns which requests the fast lane serves: heads of a few shapes, every byte of which is beyond doubt. Pure.

What is accepted here is a subset of what h11 accepts, with the same meaning; whatever else a peer may send
(other methods and paths, HTTP/1.0, chunked bodies, Expect, upgrades, folded lines, bare line feeds,
spaces where none belong, a second Content-Length or Host, percent signs and queries but those that boto3
writes qualifiers with) is not judged here at all: `head` answers None, and hypercorn gets the connection with
every byte read so far. So there is one judge of odd requests, and nothing can be read in two ways by two lanes.

Measured against httptools, which the design had in mind: 1.8 to 2.0 us a head there, here 2.6 us for a header
block that was seen before (most clients send the same one again; a bounded cache of a pure function) and 6.5 us for
a new one. httptools accepts much that h11 refuses or reads differently, so it would need these checks as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from runtimeapi.heads import MOST_LINES
from runtimeapi.sigv4 import RequestHead, grouped

MAX_HEAD = 64 * 1024
"""Bytes of a request line and its headers; above it hypercorn decides."""
CACHED_BLOCK = 1024
"""Bytes of a header block that is looked up; longer ones (signed requests) never come twice."""

Kind = Literal["invoke", "friendly", "next", "response", "error"]

_NAME = rb"([A-Za-z0-9_-]{1,64})(?:(?::|%3A)((?:\$|%24)LATEST|[A-Za-z0-9_-]{1,128}))?"
_CALLER = re.compile(
    rb"POST /(?:2015-03-31/functions/%b/invocations|invoke/%b)"
    rb"(?:\?Qualifier=((?:\$|%%24)LATEST|[A-Za-z0-9_-]{1,128}))? HTTP/1\.1\r\n" % (_NAME, _NAME)
)
"""Function and qualifier, whole or as boto3 encodes them: it writes `%3A` for a colon and `%24` for a dollar."""
_NEXT = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n"
_POST = re.compile(
    rb"POST /2018-06-01/runtime/invocation/([A-Za-z0-9-]{1,64})/(response|error) HTTP/1\.1\r\n"
)
_VALUE = rb"(?:[!-~](?:[ -~]*[!-~])?)?"
_BLOCK = re.compile(rb"(?:[A-Za-z0-9-]{1,64}: ?%b\r\n)+" % _VALUE)
_FIELDS = re.compile(rb"([A-Za-z0-9-]{1,64}): ?(%b)\r\n" % _VALUE)
_NONCE = re.compile(rb"(?<=\n)lambda-runtime-invocation-id: ([0-9a-f-]{36})\r\n")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,9}")
_HOST = re.compile(
    r"(?:(?:[A-Za-z0-9-]{1,63}\.){0,8}[A-Za-z0-9-]{1,63}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)

_LEFT_TO_HYPERCORN = frozenset(
    {"transfer-encoding", "expect", "upgrade", "http2-settings", "origin", "sec-fetch-site"}
)
"""What frames a request in another way, and what browsers add (`guard.py`)."""
_ONCE = frozenset(
    {
        "host",
        "connection",
        "content-length",
        "content-type",
        "x-amz-invocation-type",
        "x-amz-log-type",
        "x-amz-client-context",
        "x-amzn-requestid",
        "x-amzn-trace-id",
        "lambda-runtime-invocation-id",
        "lambda-runtime-function-response-mode",
        "lambda-runtime-function-error-type",
    }
)
"""What is looked at; of two of these with one name it would have to be said which counts."""


@dataclass(frozen=True, slots=True)
class Head:
    """One request that the fast lane may serve, up to its body."""

    kind: Kind
    name: str
    """The function's name (`name:qualifier` where the path says so), or the request id; empty for `next`."""
    length: int
    fields: Mapping[str, str]
    """Of the headers in `_ONCE`, lower-case names; those without a value are left out."""
    qualifier: str | None = None
    """Of the query."""


@dataclass(frozen=True, slots=True)
class _Block:
    length: int | None
    fields: Mapping[str, str]


def caller_head(head: bytes) -> Head | None:
    """`head` ends with the line end of its last header. None: not for the fast lane."""
    match = _CALLER.match(head)
    if match is None:
        return None
    block = _read(head[match.end() :])
    if block is None or block.length is None:
        return None
    if block.fields.get("x-amz-invocation-type", "RequestResponse") != "RequestResponse":
        return None
    if match.lastindex == 1:
        return Head("invoke", match[1].decode(), block.length, block.fields)
    kind: Kind = "invoke" if match[1] else "friendly"
    name, suffix = match[1] or match[3], match[2] or match[4]
    named = f"{name.decode()}:{_plain(suffix)}" if suffix else name.decode()
    qualifier = _plain(match[5]) if match[5] else None
    return Head(kind, named, block.length, block.fields, qualifier)


def _plain(qualifier: bytes) -> str:
    return qualifier.decode().replace("%24", "$")


def runtime_head(head: bytes) -> Head | None:
    if head.startswith(_NEXT):
        block = _read(head[len(_NEXT) :])
        if block is None or block.length is not None:
            return None
        return Head("next", "", 0, block.fields)
    match = _POST.match(head)
    if match is None:
        return None
    rest, nonce = head[match.end() :], _NONCE.search(head, match.end())
    if nonce is not None:
        # One line that is never the same in a block that mostly is.
        start = nonce.start() - match.end()
        rest = rest[:start] + rest[start + len(nonce[0]) :]
    block = _read(rest)
    if block is None or block.length is None:
        return None
    fields = block.fields
    if "lambda-runtime-function-response-mode" in fields:
        return None  # a streamed response is passed on as it arrives
    if nonce is not None:
        if "lambda-runtime-invocation-id" in fields:
            return None
        fields = {**fields, "lambda-runtime-invocation-id": nonce[1].decode()}
    kind: Kind = "response" if match[2] == b"response" else "error"
    return Head(kind, match[1].decode(), block.length, fields)


def signed_head(head: bytes) -> RequestHead:
    """Of a head that was accepted: all of it."""
    line, _, block = head.partition(b"\r\n")
    method, target, _ = line.split(b" ")
    path, _, query = target.partition(b"?")
    return RequestHead(method, path, query, grouped(_FIELDS.findall(block)))


def hopeless(start: bytes, most: int = MAX_HEAD) -> bool:
    """Whether these first bytes of a head, which has not ended yet, cannot become one for this lane.

    h11 answers some beginnings at once (a TLS hello) and ends a head at an empty line of bare line
    feeds as well: such a peer must not be left waiting.
    """
    if start[:6] != b"POST /"[: len(start)] and start[:5] != b"GET /"[: len(start)]:
        return True
    return len(start) > most or start.count(b"\n") != start.count(b"\r\n")


def _read(block: bytes) -> _Block | None:
    return _cached(block) if len(block) <= CACHED_BLOCK else _parse(block)


def _parse(block: bytes) -> _Block | None:
    # Besides: the request line and the empty one.
    if block.count(b"\n") > MOST_LINES - 2 or _BLOCK.fullmatch(block) is None:
        return None
    fields: dict[str, str] = {}
    for raw_name, raw_value in _FIELDS.findall(block):
        name = raw_name.decode().lower()
        if name in _LEFT_TO_HYPERCORN or (name in _ONCE and name in fields):
            return None
        if name in _ONCE:
            fields[name] = raw_value.decode()
    if _HOST.fullmatch(fields.get("host", "")) is None:
        return None
    if fields.get("connection", "keep-alive").lower() != "keep-alive":
        return None
    length = fields.get("content-length")
    if length is not None and _LENGTH.fullmatch(length) is None:
        return None
    return _Block(
        None if length is None else int(length),
        {name: value for name, value in fields.items() if value},
    )


_cached = lru_cache(maxsize=256)(_parse)
