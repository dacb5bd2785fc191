"""Owns what the model demands of an operation's input, in the words of AWS's ValidationException (SPEC 10.3).

Patterns, ranges and enums are botocore's; where AWS was recorded to print them in another way than the public model
has them, that is in the tables here, each with what was recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from runtimeapi.arns import validation_error

if TYPE_CHECKING:
    from botocore.model import Shape

UNCHECKED = {
    ("CreateFunction", "Runtime"),
    ("UpdateFunctionConfiguration", "Runtime"),
}
"""Members whose own refusal AWS words in another way: left to the operation."""
CLASSIC = {"MemorySize": 10_240, "Timeout": 900, "EphemeralStorageSize": 10_240}
"""Largest values by shape, where the model has those of Lambda Managed Instances (SPEC 5.4)."""
OURS = dict.fromkeys(("DestinationArn", "ResourceArn"), re.compile(r"https?://\S+"))
"""By shape, what goes beside the model's pattern: lambox takes HTTP addresses as destinations and for dead letters."""
MAX_SHOWN = 8 * 1024
"""Characters of a bad value that a message repeats."""

ORDERS = {
    "RecursiveLoop": ("Terminate", "Allow"),
    "InvokeMode": ("RESPONSE_STREAM", "BUFFERED"),
    "EventSourcePosition": ("LATEST", "AT_TIMESTAMP", "TRIM_HORIZON"),
}
"""Enums as AWS prints them, where the model has another order."""
PUBLISHED_FOR = (
    "nodejs20.x", "python3.14", "provided.al2023", "python3.12", "python3.13", "nodejs24.x",
    "nodejs22.x", "java25", "python3.10", "python3.11", "java21", "ruby3.3", "ruby3.4",
    "ruby3.2", "python3.8", "python3.9", "java17", "nodejs16.x", "dotnet10", "dotnet8",
    "java11", "dotnet6", "nodejs18.x", "provided.al2", "java8.al2",
)  # fmt: skip
"""Runtimes that a layer may be published for, as AWS prints them (SPEC 10.6)."""
LISTED_BY = (
    "ruby3.5", "ruby2.6", "dotnetcore1.0", "python3.7", "nodejs8.10", "nasa", "ruby2.7",
    "python2.7-greengrass", "dotnetcore2.0", "python3.8", "java21", "dotnet6", "dotnetcore2.1",
    "python3.9", "java11", "nodejs6.10", "provided", "dotnetcore3.1", "dotnet8", "java25",
    "java17", "nodejs", "nodejs4.3", "java8.al2", "go1.x", "dotnet10", "nodejs20.x", "go1.9",
    "byol", "nodejs10.x", "provided.al2023", "nodejs22.x", "python3.10", "java8", "nodejs12.x",
    "python3.11", "nodejs24.x", "nodejs8.x", "python3.12", "nodejs14.x", "nodejs8.9",
    "nodejs26.x", "python3.13", "python3.14", "nodejs16.x", "python3.15", "provided.al2",
    "nodejs4.3-edge", "nodejs18.x", "ruby3.2", "python3.4", "ruby3.3", "ruby3.4", "ruby2.5",
    "python3.6", "python2.7",
)  # fmt: skip
"""Those that layers may be listed by."""
NEWER = frozenset({"nodejs26.x", "python3.15"})
"""Of the latter, those that may by now be published for: the model has them too."""
PRINTED = {
    "LayerVersionArn": (
        r"(arn:(aws[a-zA-Z-]*)?:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:layer:"
        r"[a-zA-Z0-9-_]+:[0-9]+)|(arn:[a-zA-Z0-9-]+:lambda:::awslayer:[a-zA-Z0-9-_]+)"
    ),
    "TaggableResource": (
        r"arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:"
        r"(function:[a-zA-Z0-9-_]+(:(\$LATEST|[a-zA-Z0-9-_]+))?|layer:([a-zA-Z0-9-_]+)|"
        r"code-signing-config:csc-[a-z0-9]{17}|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-"
        r"[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|capacity-provider:[a-zA-Z0-9-_]+)"
    ),
}
"""Patterns by shape, as AWS prints them; the model's, which is checked, is newer or has other brackets."""
NULLABLE = frozenset({"SecurityGroupId", "SubnetId", "AdditionalVersion"})
"""Members of lists and maps of which AWS's message does not say that they must not be null."""
WHOLE_ENUM = frozenset({"CompatibleRuntimes"})
"""Lists whose message names the enum alone."""
FIRST = {"PublishLayerVersion": ("CompatibleRuntimes", "CompatibleArchitectures")}
"""Members that AWS tells of in another order than the model's."""
_JAVA_CLASSES = r"[\p{L}\p{Z}\p{N}_.:/=+\-@]*"
_SAME_HERE = r"(?:[^\W_]|[ \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]|[_.:/=+\-@])*"


def check(operation: str, shape: Shape, given: Mapping[str, Any]) -> None:
    """Raises CallerError: one ValidationException for all that is wrong."""
    found = list(_structure(shape, given, "", operation))
    if found:
        raise validation_error(found)


def _structure(shape: Shape, given: Mapping[str, Any], path: str, operation: str = "") -> list[str]:
    found = []
    for name, member in _members(shape, operation):
        where = path + _lower(name)
        if name not in given:
            if name in shape.required_members:
                found.append(_violation("null", where, "Member must not be null", quoted=False))
        elif (operation, name) not in UNCHECKED:
            found += _member(member, given[name], where)
    return found


def _members(shape: Shape, operation: str) -> Iterable[tuple[str, Shape]]:
    first = FIRST.get(operation, ())
    members = shape.members
    yield from ((name, members[name]) for name in first)
    yield from ((name, member) for name, member in members.items() if name not in first)


def _member(shape: Shape, value: Any, where: str) -> list[str]:
    kind = shape.type_name
    if kind == "structure":
        return _structure(shape, value, where + ".")
    found = [_violation(_shown(value), where, words) for words in _broken(shape, value, where)]
    if kind == "list":
        found += _items(shape, value, where)
    elif kind == "map":
        for which, inner, values in (
            ("keys", shape.key, value.keys()),
            ("value", shape.value, value.values()),
        ):
            if any(not _satisfies(inner, item, where) for item in values):
                words = f"Map {which} must satisfy constraint: [{', '.join(_constraints(inner, where))}]"
                found.append(_violation(_shown(value), where, words))
    return found


def _items(shape: Shape, value: Sequence[Any], where: str) -> list[str]:
    member = shape.member
    if member.type_name == "structure" and None not in value:
        return [
            told
            for number, item in enumerate(value, 1)
            for told in _structure(member, item, f"{where}.{number}.member.")
        ]
    if all(_satisfies(member, item, where) for item in value):
        return []
    words = f"Member must satisfy constraint: [{', '.join(_constraints(member, where))}]"
    if shape.name in WHOLE_ENUM:
        words = _enum(member, where)
    return [_violation(_shown(value), where, words)]


def _satisfies(shape: Shape, value: Any, where: str) -> bool:
    """All the way down."""
    if value is None or _broken(shape, value, where):
        return False
    if shape.type_name == "list":
        return all(_satisfies(shape.member, item, where) for item in value)
    return True


def _broken(shape: Shape, value: Any, where: str) -> list[str]:
    """Constraints of the shape's own that the value does not satisfy, as AWS words them."""
    rules = shape.metadata
    found: list[str] = []
    if shape.type_name in ("string", "list", "map", "blob"):
        size, what = len(value), "length"
    elif shape.type_name in ("integer", "long", "float", "double"):
        size, what = value, "value"
    else:
        return found
    if "enum" in rules and value not in _allowed(shape, where):
        found.append(_enum(shape, where))
    ours = shape.name in OURS and OURS[shape.name].fullmatch(value)
    if "pattern" in rules and not ours and not compiled(rules["pattern"]).fullmatch(value):
        found.append(_pattern(shape))
    most = CLASSIC.get(shape.name, rules.get("max"))
    if most is not None and size > most:
        found.append(f"Member must have {what} less than or equal to {most}")
    if "min" in rules and size < rules["min"]:
        found.append(f"Member must have {what} greater than or equal to {rules['min']}")
    return found


def _constraints(shape: Shape, where: str) -> list[str]:
    """All a shape asks for, in AWS's order, as messages about lists and maps show them."""
    rules = shape.metadata
    what = "length" if shape.type_name in ("string", "list", "map") else "value"
    found = []
    if "max" in rules:
        found.append(f"Member must have {what} less than or equal to {rules['max']}")
    if "min" in rules:
        found.append(f"Member must have {what} greater than or equal to {rules['min']}")
    if "pattern" in rules:
        found.append(_pattern(shape))
    if "enum" in rules:
        found.append(_enum(shape, where))
    return found if shape.name in NULLABLE else [*found, "Member must not be null"]


def _allowed(shape: Shape, where: str) -> Sequence[str]:
    known: Sequence[str] = shape.metadata["enum"]
    if where == "compatibleRuntime":
        return [*known, *LISTED_BY]
    if where == "compatibleRuntimes":
        old = set(LISTED_BY) - set(PUBLISHED_FOR) - NEWER
        return [one for one in known if one not in old]
    return known


def _enum(shape: Shape, where: str) -> str:
    printed: Sequence[str] = ORDERS.get(shape.name, shape.metadata["enum"])
    if where == "compatibleRuntime":
        printed = LISTED_BY
    elif where == "compatibleRuntimes":
        printed = PUBLISHED_FOR
    return f"Member must satisfy enum value set: [{', '.join(printed)}]"


def _pattern(shape: Shape) -> str:
    printed = PRINTED.get(shape.name, shape.metadata["pattern"])
    return f"Member must satisfy regular expression pattern: {printed}"


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of the model's, which is one of Java's. Raises re.error."""
    if _JAVA_CLASSES in pattern:  # letters of all alphabets
        return re.compile(pattern.replace(_JAVA_CLASSES, _SAME_HERE))
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
