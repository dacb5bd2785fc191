"""Owns event filtering: patterns of FilterCriteria, in EventBridge's language.

A pattern is an object; each leaf is a list of what the value may be: a string, a number, true, false, null, or
one of {"prefix"}, {"suffix"}, {"equals-ignore-case"}, {"wildcard"}, {"anything-but"}, {"numeric"}, {"exists"}.
Keys of an object must all match, one of a list is enough, and "$or" holds alternatives. Pure.

https://docs.aws.amazon.com/lambda/latest/dg/invocation-eventfiltering.html (syntax), with-sqs-filtering.html
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Pattern = Mapping[str, Any]
MAX_PATTERN = 4096
"""Characters of one pattern."""
MAX_DEPTH = 32
_ABSENT = object()
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class BadPattern(ValueError):
    """It is no pattern."""


def parse(text: str) -> Pattern:
    """Raises BadPattern."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not found:
            raise BadPattern("a pattern is an object")
        _check(found, 0)
    except (ValueError, RecursionError) as exc:
        raise BadPattern(str(exc)) from exc
    return found


def _check(pattern: Pattern, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadPattern("too deep")
    for key, wanted in pattern.items():
        if key == "$or":
            if not isinstance(wanted, list) or len(wanted) < 2:
                raise BadPattern("$or is a list of patterns")
            for one in wanted:
                if not isinstance(one, dict) or not one:
                    raise BadPattern("$or is a list of patterns")
                _check(one, depth + 1)
        elif isinstance(wanted, dict):
            if not wanted:
                raise BadPattern(f"{key}: an empty object")
            _check(wanted, depth + 1)
        elif isinstance(wanted, list) and wanted:
            for rule in wanted:
                _rule(rule)
        else:
            raise BadPattern(f"{key}: must be a list of what the value may be")


def _rule(rule: Any) -> None:
    if isinstance(rule, list):
        raise BadPattern("a list in a list")
    if not isinstance(rule, dict):
        return
    if len(rule) != 1:
        raise BadPattern("one comparison at a time")
    ((name, wanted),) = rule.items()
    check = _CHECKS.get(name)
    if check is None or not check(wanted):
        raise BadPattern(f"{name} cannot be {wanted!r}")


def _is_text(wanted: Any) -> bool:
    return isinstance(wanted, str)


def _is_affix(wanted: Any) -> bool:
    return _is_text(wanted) or (
        isinstance(wanted, dict)
        and wanted.keys() == {"equals-ignore-case"}
        and _is_text(wanted["equals-ignore-case"])
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_range(wanted: Any) -> bool:
    return (
        isinstance(wanted, list)
        and len(wanted) in (2, 4)
        and all(_is_text(sign) and sign in _COMPARE for sign in wanted[::2])
        and all(map(_is_number, wanted[1::2]))
    )


def _is_excluded(wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return len(wanted) == 1 and all(
            name in ("prefix", "suffix", "equals-ignore-case", "wildcard")
            and (_is_text(one) or (isinstance(one, list) and one and all(map(_is_text, one))))
            for name, one in wanted.items()
        )
    values = wanted if isinstance(wanted, list) else [wanted]
    return bool(values) and all(_is_text(one) or _is_number(one) for one in values)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "prefix": _is_affix,
    "suffix": _is_affix,
    "equals-ignore-case": _is_text,
    "wildcard": lambda wanted: _is_text(wanted) and "**" not in wanted,
    "anything-but": _is_excluded,
    "numeric": _is_range,
    "exists": lambda wanted: isinstance(wanted, bool),
}


def matches(patterns: Sequence[Pattern], event: Mapping[str, Any]) -> bool:
    """One pattern is enough; none at all takes everything."""
    return not patterns or any(_all(pattern, event) for pattern in patterns)


def _all(pattern: Pattern, event: Any) -> bool:
    for key, wanted in pattern.items():
        if key == "$or":
            if not any(_all(one, event) for one in wanted):
                return False
            continue
        value = event.get(key, _ABSENT) if isinstance(event, Mapping) else _ABSENT
        if isinstance(wanted, Mapping):
            if not _all(wanted, value):
                return False
        elif not _any(wanted, value):
            return False
    return True


def _any(rules: Sequence[Any], value: Any) -> bool:
    # A list in an event has what one of its items has.
    values = value if isinstance(value, list) and value else [value]
    return any(_one(rule, one) for rule in rules for one in values)


def _one(rule: Any, value: Any) -> bool:
    if not isinstance(rule, dict):
        return value is not _ABSENT and type(value) is not dict and _equal(rule, value)
    ((name, wanted),) = rule.items()
    if name == "exists":
        return (value is not _ABSENT and not isinstance(value, dict)) is wanted
    if value is _ABSENT:
        return False
    if name == "anything-but":
        return not _excluded(wanted, value)
    if name == "numeric":
        return _is_number(value) and all(
            _COMPARE[sign](value, bound)
            for sign, bound in zip(wanted[::2], wanted[1::2], strict=True)
        )
    return _is_text(value) and _like(name, wanted, value)


def _equal(wanted: Any, value: Any) -> bool:
    """Python takes True for 1."""
    return isinstance(wanted, bool) == isinstance(value, bool) and bool(wanted == value)


def _excluded(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, dict):
        ((name, texts),) = wanted.items()
        found = texts if isinstance(texts, list) else [texts]
        return _is_text(value) and any(_like(name, one, value) for one in found)
    found = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(one, value) for one in found)


def _like(name: str, wanted: Any, value: str) -> bool:
    if isinstance(wanted, dict):
        wanted, value = wanted["equals-ignore-case"].lower(), value.lower()
    if name == "prefix":
        return value.startswith(wanted)
    if name == "suffix":
        return value.endswith(wanted)
    if name == "equals-ignore-case":
        return value.lower() == str(wanted).lower()
    return _wildcard(wanted, value)


def _wildcard(wanted: str, value: str) -> bool:
    """`*` is any number of characters, `\\*` an asterisk. In linear time: leftmost piece after piece."""
    pieces = [
        piece.replace("\\*", "*").replace("\\\\", "\\") for piece in re.split(r"(?<!\\)\*", wanted)
    ]
    if len(pieces) == 1:
        return value == pieces[0]
    if not value.startswith(pieces[0]):
        return False
    at = len(pieces[0])
    for piece in pieces[1:-1]:
        found = value.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return value.endswith(pieces[-1]) and len(value) - len(pieces[-1]) >= at
