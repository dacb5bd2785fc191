"""Owns turning a caller's request into an Invocation: headers, limits, JSON (SPEC 3.1, 3.3, 3.8).

The payload stays the caller's bytes; it is only looked at, to refuse what is not JSON as AWS does.
The order of checks is AWS's as far as it is known: shapes, names, existence, payload (SPEC 3.8).
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NoReturn, Protocol
from uuid import UUID

import trio

from runtimeapi.arns import FunctionRef, enum_violations, parse_function_name
from runtimeapi.bodies import BodyTooLarge, StreamedBody, read_all
from runtimeapi.ports import BodyTruncated, Functions
from sandbox.errors import FunctionNotFound, InvalidRequest
from sandbox.function import FunctionVersion
from sandbox.ids import token
from sandbox.invocation import ChunkSink, Invocation, new_request_id

INVOCATION_TYPES = ("Event", "RequestResponse", "DryRun")
STREAMING_TYPES = ("RequestResponse", "DryRun")
LOG_TYPES = ("None", "Tail")
"""In the order of AWS's model, which is the order its messages print."""
MAX_CLIENT_CONTEXT = 3583
"""Bytes of the base64 text (SPEC 3.1)."""
BODY_TOTAL_S = 300.0
"""Longest time a whole request body may take; silence is bounded by `FaceConfig.body_timeout_s`."""

CHECKED_INLINE = 64 * 1024
"""Bytes of JSON that are looked through in the event loop (0.3 ms at worst); more are left to a thread."""
MOST_VALUES = 100_000
"""JSON values, by commas and brackets, that Python's scanner is left alone with: 50 ms."""
LONGEST_WORD = 16
"""Characters, and more, of what is no value where it is cut short: a literal, an escape."""
NOT_JSON = "Could not parse request body into json: Could not parse payload into json: "

_ROOT = re.compile(r"1-[0-9a-fA-F]{8}-[0-9a-fA-F]{24}")
_TRACE = re.compile(r"[\x20-\x7e]{1,512}")


class HeaderValues(Protocol):
    """Headers, asked by lower-case name."""

    def get(self, key: str, /) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks for, before the function is looked up and the payload read."""

    ref: FunctionRef
    kind: str
    tail: bool
    client_context: str | None
    request_id: str
    trace_id: str

    def invocation(
        self,
        function: FunctionVersion,
        payload: bytes,
        *,
        sink: ChunkSink | None = None,
        memory: bool = False,
    ) -> Invocation:
        """`memory`: the answer tells the peak of it."""
        kind: Literal["RequestResponse", "Event"] = (
            "Event" if self.kind == "Event" else "RequestResponse"
        )
        return Invocation(
            function=function,
            payload=payload,
            invoked_arn=self.ref.invoked_arn,
            request_id=self.request_id,
            # Always this type, whatever the caller's header says: the payload has been checked to
            # be JSON, and the Python runtime client hands over raw bytes for `curl -d`'s form type.
            content_type="application/json",
            client_context=self.client_context if kind == "RequestResponse" else None,
            trace_id=self.trace_id,
            kind=kind,
            sink=sink,
            wants_tail=self.tail,
            wants_memory=memory or self.tail,
        )


def read_ask(
    name: str,
    qualifier: str | None,
    headers: HeaderValues,
    *,
    region: str,
    account: str,
    types: Sequence[str] = INVOCATION_TYPES,
) -> Ask:
    """Raises CallerError."""
    kind = headers.get("x-amz-invocation-type") or "RequestResponse"
    log_type = headers.get("x-amz-log-type") or "None"
    ref = parse_function_name(
        name,
        qualifier,
        region=region,
        account=account,
        other_violations=[
            *enum_violations(kind, "invocationType", types),
            *enum_violations(log_type, "logType", LOG_TYPES),
        ],
    )
    return Ask(
        ref=ref,
        kind=kind,
        tail=log_type == "Tail",
        client_context=read_client_context(headers.get("x-amz-client-context")),
        request_id=read_request_id(headers.get("x-amzn-requestid")),
        trace_id=read_trace_id(headers.get("x-amzn-trace-id")),
    )


def find_function(
    functions: Functions, ref: FunctionRef, *, refresh: bool = True
) -> FunctionVersion:
    """Raises FunctionNotFound with AWS's text, FunctionFailed, or what else `resolve` does.

    `refresh` False: that was done since this request began to arrive.
    """
    if refresh:
        functions.refresh()
    try:
        return functions.resolve(ref.name, ref.qualifier)
    except FunctionNotFound as exc:
        raise ref.not_found() from exc


# -- headers


def read_request_id(supplied: str | None) -> str:
    if not supplied:
        return new_request_id()
    try:
        return str(UUID(supplied))
    except ValueError as exc:
        raise _bad_content(f"Request ID {supplied!r} must be a UUID.") from exc


def read_client_context(encoded: str | None) -> str | None:
    """base64 -> JSON text. A runtime gets it decoded (SPEC 1.3)."""
    if not encoded:
        return None
    if len(encoded) > MAX_CLIENT_CONTEXT:
        raise _bad_content(f"Client context must be no longer than {MAX_CLIENT_CONTEXT} bytes.")
    try:
        text = base64.b64decode(encoded, validate=True).decode()
        if not isinstance(_DECODER.decode(text), dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as exc:
        message = "Client context must be a valid Base64-encoded JSON object."
        raise _bad_content(message) from exc
    return text


def read_trace_id(upstream: str | None) -> str:
    """SPEC 6.6: the caller's Root survives; what is missing is made. Nothing is sampled by lambox
    itself."""
    if not upstream:
        return f"Root=1-{int(time.time()):08x}-{token(12)};Parent={token(8)};Sampled=0"
    fields = _trace_fields(upstream)
    if not _ROOT.fullmatch(fields.get("Root", "")):
        fields = {"Root": f"1-{int(time.time()):08x}-{token(12)}"}
    if "Parent" not in fields:
        fields["Parent"] = token(8)
    fields.setdefault("Sampled", "0")
    return ";".join(f"{key}={value}" for key, value in fields.items())


def _trace_fields(header: str) -> dict[str, str]:
    if not _TRACE.fullmatch(header):
        return {}
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {key: value for key, _, value in pairs if key and value}


# -- payload


async def read_payload(body: StreamedBody, *, limit: int, operation: str) -> bytes:
    """The event, checked to be JSON; an empty body is `{}` (SPEC 3.1)."""
    payload = await read_body(body, limit=limit, operation=operation) or b"{}"
    if len(payload) <= CHECKED_INLINE:
        check_json(payload)
    else:
        await trio.to_thread.run_sync(check_json_aside, payload)
    return payload


async def read_body(body: StreamedBody, *, limit: int, operation: str) -> bytes:
    """All of it, as it was sent. A large one waits for a place, and may have to yield. Raises InvalidRequest."""
    place = body.place
    with trio.move_on_after(BODY_TOTAL_S), nullcontext() if place is None else place.arriving():
        try:
            return await read_all(body, limit, place)
        except BodyTooLarge as exc:
            raise too_large(limit, operation) from exc
        except BodyTruncated as exc:
            raise cut_short() from exc
        finally:
            if place is not None:
                place.leave()
    body.discard()
    if place is not None and place.sent_away:
        raise too_slow(trio.current_time() - place.began_at)
    raise too_slow(BODY_TOTAL_S)


def too_large(limit: int, operation: str) -> InvalidRequest:
    return InvalidRequest(
        f"Request must be smaller than {limit} bytes for the {operation} operation",
        code="RequestTooLargeException",
        status=413,
    )


def cut_short() -> InvalidRequest:
    return _bad_content("The request body ended before it was complete.")


def too_slow(seconds: float) -> InvalidRequest:
    return InvalidRequest(
        f"The request body did not arrive within {seconds:.0f} seconds.",
        code="RequestTimeoutException",
        status=408,
    )


def check_json(payload: bytes) -> None:
    """Raises InvalidRequestContentException, its message made as AWS's Jackson makes it (SPEC
    3.8)."""
    try:
        _DECODER.decode(payload.decode())
    except UnicodeDecodeError as exc:
        _not_json(f"Invalid UTF-8 start byte 0x{payload[exc.start]:02x}", payload, exc.start, exc)
    except json.JSONDecodeError as exc:
        at = len(exc.doc[: exc.pos].encode())
        _not_json(_diagnosis(exc.doc, exc.pos), payload, at, exc)
    except RecursionError as exc:
        _not_json("Document nesting depth exceeds the maximum allowed", payload, 0, exc)


def check_json_aside(payload: bytes) -> None:
    """`check_json` for a thread: Python's scanner keeps the interpreter to itself to the end of a document (0.9 s
    for 6 MB of empty lists), SQLite's lets go of it. Who sends what is no JSON is told why by the former, which
    looks through the first MOST_VALUES.

    Both say yes to the same documents, but for a nesting of more than 1,000, which SQLite takes to 2,000.
    """
    import sqlite3  # here: 3 ms at start that few servers need

    try:
        text = payload.decode()
        with closing(sqlite3.connect(":memory:")) as database:
            # SQLite takes a NUL for the end.
            if "\0" not in text and database.execute("SELECT json_valid(?)", (text,)).fetchone()[0]:
                return
        payload = _beginning(payload)
    except (UnicodeDecodeError, sqlite3.Error):
        pass  # one without json_valid, or no JSON: looked through below
    check_json(payload)


def _beginning(payload: bytes) -> bytes:
    """As much of what is no JSON as shows why. Raises InvalidRequest: MOST_VALUES do not."""
    end = next(islice(re.finditer(rb"[,\[{]", payload), MOST_VALUES, None), None)
    if end is None:
        return payload
    beginning = payload[: end.start()]
    try:
        _DECODER.decode(beginning.decode())
    except json.JSONDecodeError as exc:
        if exc.pos < len(exc.doc) - LONGEST_WORD and not exc.msg.startswith("Unterminated string"):
            return beginning
    except RecursionError:
        return beginning
    raise _bad_content(f"{NOT_JSON}it has too many values to say where it is none")


def _no_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


# Numbers are not converted (`len` stands in): only validity is asked for, and Python refuses integers
# of more than 4,300 digits, which are good JSON. NaN and Infinity, which Python takes, are not.
_DECODER = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_no_constant)


def _diagnosis(text: str, at: int) -> str:
    if at >= len(text):
        return "Unexpected end-of-input"
    char = text[at]
    shown = f"'{char}'" if char.isprintable() else "(CTRL-CHAR"
    code = f" (code {ord(char)})" if char.isprintable() else f", code {ord(char)})"
    return (
        f"Unexpected character ({shown}{code}): expected a valid value (JSON String, Number, "
        "Array, Object or token 'null', 'true' or 'false')"
    )


def _not_json(diagnosis: str, payload: bytes, at: int, cause: Exception) -> NoReturn:
    line = payload.count(b"\n", 0, at) + 1
    column = at - payload.rfind(b"\n", 0, at)
    raise _bad_content(
        f"{NOT_JSON}{diagnosis}\n at [Source: REDACTED "
        "(`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); "
        f"line: {line}, column: {column}]"
    ) from cause


def _bad_content(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="InvalidRequestContentException")
