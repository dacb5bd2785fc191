"""Owns turning a request into an operation's input: from path, query, headers and JSON, checked against the model.

What does not fit is told in one ValidationException, as AWS does (SPEC 10.3); what has the wrong JSON type in a
SerializationException. Members that the model does not know are dropped, as AWS does.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from runtimeapi.control.constraints import check
from sandbox.errors import InvalidRequest

if TYPE_CHECKING:
    from botocore.model import OperationModel, Shape

Input = dict[str, Any]
"""botocore's member names; blobs are bytes. What was not sent is not in it."""

LARGE = 1024 * 1024
"""Bytes of JSON that are worth a reader of their own."""
MOST_VALUES = 100_000
"""JSON values of a request, by its commas and brackets: each is an object of 60 bytes, made by a reader that lets
nobody else run. Requests have some dozens; packages, which are long, are one."""
PIECE = 1024 * 1024
"""Characters of base64 decoded at a time; a multiple of four."""
INT_MAX, LONG_MAX = 2**31 - 1, 2**63 - 1
_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)


def parse(
    operation: OperationModel,
    labels: Mapping[str, str],
    query: Mapping[str, Sequence[str]],
    headers: Mapping[str, str],
    body: bytes,
) -> Input:
    """Raises CallerError. `headers` by lower-case name. Blocks for a large body: 70 MB take a second."""
    shape = operation.input_shape
    if shape is None:
        return {}
    members: dict[str, Shape] = shape.members
    document = _document(body)
    given: Input = {}
    for name, member in members.items():
        place = member.serialization.get("location")
        wire = member.serialization.get("name", name)
        if place == "uri":
            value: Any = _from_text(member, labels.get(wire))
        elif place == "querystring":
            value = _from_query(member, query.get(wire))
        elif place == "header":
            value = _from_text(member, headers.get(wire.lower()))
        else:
            value = _typed(member, document.get(wire), name)
        if value is not None:
            given[name] = value
    check(operation.name, shape, given)
    return given


def _document(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    if len(body) > MOST_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _serialization("Could not parse request body into json: it has too many values")
    found = _quickly(body) if len(body) > LARGE else None
    if found is not None:
        return found
    try:
        found = json.loads(body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise _serialization("Could not parse request body into json: " + str(exc)) from exc
    if not isinstance(found, dict):
        raise _serialization("Could not parse request body into json: it is no JSON object")
    return found


def _quickly(body: bytes) -> dict[str, Any] | None:
    """An object of megabytes, which is one long string of code: Python's own reader keeps the interpreter to itself
    for 150 ms of 70 MB, this one for 15. None: the other one is to say what is wrong with it."""
    import msgspec

    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _from_query(shape: Shape, values: Sequence[str] | None) -> Any:
    if not values:
        return None
    if shape.type_name == "list":
        return list(values)
    return _from_text(shape, values[0])


def _from_text(shape: Shape, text: str | None) -> Any:
    if not text:  # `?Qualifier=` is how an empty member arrives
        return None
    if shape.type_name == "string":
        return text
    if shape.type_name in ("integer", "long"):
        if not _NUMBER.fullmatch(text):
            raise _serialization("STRING_VALUE can not be converted to an Integer")
        return _in_range(shape.type_name, int(text))
    if shape.type_name == "boolean":
        return text.lower() == "true"
    return text


# -- JSON -> typed members


def _typed(shape: Shape, value: Any, name: str) -> Any:
    """The value as its shape says; None stays None. Raises SerializationException."""
    if value is None:
        return None
    kind = shape.type_name
    if kind == "structure":
        _expect(value, dict, name)
        found = {}
        for key, member in shape.members.items():
            inner = _typed(member, value.get(member.serialization.get("name", key)), key)
            if inner is not None:
                found[key] = inner
        return found
    if kind == "list":
        _expect(value, list, name)
        return [_typed(shape.member, item, name) for item in value]
    if kind == "map":
        _expect(value, dict, name)
        return {_string(key, name): _typed(shape.value, item, name) for key, item in value.items()}
    if kind in ("integer", "long"):
        return _in_range(kind, _integer(value))
    return _SCALARS.get(kind, _any)(value, name)


def _any(value: Any, name: str) -> Any:
    return value


def _string(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)  # AWS's reader takes numbers for strings
    _expect(value, str, name)
    text = str(value)
    # JSON can name half a surrogate pair, which no file, log line or answer can hold.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise _serialization(f"{_kind(value)} can not be converted to an Integer")
    return int(value)  # as Java narrows: 3.7 is 3


def _in_range(kind: str, value: int) -> int:
    most = INT_MAX if kind == "integer" else LONG_MAX
    if not -most - 1 <= value <= most:
        raise _serialization(f"Numeric value ({value}) out of range of {_JAVA[kind]}")
    return value


_JAVA = {"integer": "int", "long": "long"}


def _float(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _serialization(f"{_kind(value)} can not be converted to a Double")
    try:
        return float(value)
    except OverflowError as exc:
        raise _serialization("NUMBER_VALUE can not be converted to a Double") from exc


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _serialization(f"{_kind(value)} can not be converted to a Boolean")
    return value


def _blob(value: Any, name: str) -> bytes:
    _expect(value, str, name)
    try:
        # Piece by piece: others have their turn in between.
        pieces = [
            base64.b64decode(value[at : at + PIECE], validate=True)
            for at in range(0, len(value), PIECE)
        ]
    except (binascii.Error, ValueError) as exc:
        raise _serialization(f"{name} is no valid base64") from exc
    if any(len(piece) != PIECE // 4 * 3 for piece in pieces[:-1]):  # it was padded in the middle
        raise _serialization(f"{name} is no valid base64")
    return b"".join(pieces)


_SCALARS: dict[str, Callable[[Any, str], Any]] = {
    "string": _string,
    "float": _float,
    "double": _float,
    "boolean": _boolean,
    "blob": _blob,
}


def _expect(value: Any, type_: type, name: str) -> None:
    if not isinstance(value, type_):
        raise _serialization(f"{_kind(value)} can not be converted to {_WANTED[type_]}: {name}")


_WANTED: dict[type, str] = {dict: "an Object", list: "a List", str: "a String"}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "TRUE_VALUE" if value else "FALSE_VALUE"
    if isinstance(value, int | float):
        return "NUMBER_VALUE"
    shown: dict[type, str] = {
        str: "STRING_VALUE",
        dict: "START_OF_OBJECT",
        list: "START_OF_ARRAY",
    }
    return shown[type(value)]


def _serialization(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="SerializationException")
