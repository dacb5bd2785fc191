"""Owns turning a request into an operation's input: from path, query, headers and JSON, checked against the model.

What does not fit is told in one ValidationException, as AWS does (SPEC 10.3); what has the wrong JSON type in a
SerializationException. Members that the model does not know are dropped, as AWS does.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from runtimeapi.arns import validation_error
from sandbox.errors import InvalidRequest

if TYPE_CHECKING:
    from botocore.model import OperationModel, Shape

Input = dict[str, Any]
"""botocore's member names; blobs are bytes. What was not sent is not in it."""

UNCHECKED = {("CreateFunction", "Runtime"), ("UpdateFunctionConfiguration", "Runtime")}
"""Members whose own refusal AWS words in another way: left to the operation."""
CLASSIC = {"MemorySize": 10_240, "Timeout": 900, "EphemeralStorageSize": 10_240}
"""Shapes whose largest value in the model is that of Lambda Managed Instances (SPEC 5.4)."""
MAX_SHOWN = 8 * 1024
"""Characters of a bad value that a message repeats."""


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
            value: Any = labels.get(wire)
        elif place == "querystring":
            value = _from_query(member, query.get(wire))
        elif place == "header":
            value = _from_text(member, headers.get(wire.lower()))
        else:
            value = _typed(member, document.get(wire), name)
        if value is not None:
            given[name] = value
    _check(operation, shape, given)
    return given


def _document(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise _serialization("Could not parse request body into json: " + str(exc)) from exc
    if not isinstance(found, dict):
        raise _serialization("Could not parse request body into json: it is no JSON object")
    return found


def _from_query(shape: Shape, values: Sequence[str] | None) -> Any:
    if not values:
        return None
    if shape.type_name == "list":
        return list(values)
    return _from_text(shape, values[0])


def _from_text(shape: Shape, text: str | None) -> Any:
    if text is None or shape.type_name == "string":
        return text or None
    if shape.type_name in ("integer", "long"):
        try:
            return int(text)
        except ValueError as exc:
            raise _serialization(f"{text} can not be converted to an Integer") from exc
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
        return {key: _typed(shape.value, item, name) for key, item in value.items()}
    return _SCALARS.get(kind, _any)(value, name)


def _any(value: Any, name: str) -> Any:
    return value


def _string(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)  # AWS's reader takes numbers for strings
    _expect(value, str, name)
    return str(value)


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise _serialization(f"{_kind(value)} can not be converted to an Integer")
    return int(value)


def _float(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _serialization(f"{_kind(value)} can not be converted to a Double")
    return float(value)


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _serialization(f"{_kind(value)} can not be converted to a Boolean")
    return value


def _blob(value: Any, name: str) -> bytes:
    _expect(value, str, name)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _serialization(f"{name} is no valid base64") from exc


_SCALARS: dict[str, Callable[[Any, str], Any]] = {
    "string": _string,
    "integer": _integer,
    "long": _integer,
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


# -- constraints


def _check(operation: OperationModel, shape: Shape, given: Input) -> None:
    found = list(_structure(shape, given, "", operation.name))
    if found:
        raise validation_error(found)


def _structure(shape: Shape, given: Mapping[str, Any], path: str, operation: str = "") -> list[str]:
    found = []
    for name, member in shape.members.items():
        where = path + _lower(name)
        if name not in given:
            if name in shape.required_members:
                found.append(_violation("null", where, "Member must not be null", quoted=False))
        elif (operation, name) not in UNCHECKED:
            found += _member(member, given[name], where)
    return found


def _member(shape: Shape, value: Any, where: str) -> list[str]:
    kind = shape.type_name
    if kind == "structure":
        return _structure(shape, value, where + ".")
    found = [_violation(_shown(value), where, words) for words in _broken(shape, value)]
    if kind == "list":
        member = shape.member
        if member.type_name == "structure":
            for number, item in enumerate(value, 1):
                found += _structure(member, item or {}, f"{where}.{number}.member.")
        elif any(item is None or _broken(member, item) for item in value):
            words = f"Member must satisfy constraint: [{', '.join(_constraints(member))}]"
            found.append(_violation(_shown(value), where, words))
    elif kind == "map":
        for which, inner, values in (
            ("keys", shape.key, value.keys()),
            ("value", shape.value, value.values()),
        ):
            if any(item is None or _broken(inner, item) for item in values):
                rules = _constraints(inner)
                if which == "keys":
                    rules.pop()  # what can be no null anyway
                words = f"Map {which} must satisfy constraint: [{', '.join(rules)}]"
                found.append(_violation(_shown(value), where, words))
    return found


def _broken(shape: Shape, value: Any) -> list[str]:
    """Constraints of the shape's own that the value does not satisfy, as AWS words them."""
    rules = shape.metadata
    found: list[str] = []
    if shape.type_name in ("string", "list", "map", "blob"):
        size, what = len(value), "length"
    elif shape.type_name in ("integer", "long", "float", "double"):
        size, what = value, "value"
    else:
        return found
    most = CLASSIC.get(shape.name, rules.get("max"))
    if most is not None and size > most:
        found.append(f"Member must have {what} less than or equal to {most}")
    if "min" in rules and size < rules["min"]:
        found.append(f"Member must have {what} greater than or equal to {rules['min']}")
    if "pattern" in rules and not _compiled(rules["pattern"]).fullmatch(value):
        found.append(f"Member must satisfy regular expression pattern: {rules['pattern']}")
    if "enum" in rules and value not in rules["enum"]:
        found.append(_enum(rules["enum"]))
    return found


def _constraints(shape: Shape) -> list[str]:
    """All a shape asks for, in AWS's order, as messages about lists and maps show them."""
    rules = shape.metadata
    what = "length" if shape.type_name in ("string", "list", "map") else "value"
    found = []
    if "max" in rules:
        found.append(f"Member must have {what} less than or equal to {rules['max']}")
    if "min" in rules:
        found.append(f"Member must have {what} greater than or equal to {rules['min']}")
    if "pattern" in rules:
        found.append(f"Member must satisfy regular expression pattern: {rules['pattern']}")
    if "enum" in rules:
        found.append(_enum(rules["enum"]))
    return [*found, "Member must not be null"]


def _enum(values: Sequence[str]) -> str:
    return f"Member must satisfy enum value set: [{', '.join(values)}]"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


def _violation(value: str, where: str, words: str, *, quoted: bool = True) -> str:
    shown = f"'{value}'" if quoted else value
    return f"Value {shown} at '{where}' failed to satisfy constraint: {words}"


def _shown(value: Any) -> str:
    """As Java prints it: [a, b] and {k=v}."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return "java.nio.HeapByteBuffer"
    return "null" if value is None else str(value)[:MAX_SHOWN]


def _lower(name: str) -> str:
    """FunctionName -> functionName, KMSKeyArn -> kMSKeyArn, as AWS's messages have it."""
    return name[:1].lower() + name[1:]
