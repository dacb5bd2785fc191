"""Owns how callers name functions: names, partial and full ARNs, qualifiers (SPEC 10.3). Pure.

The order of checks is AWS's (SPEC 3.8): shape of name and qualifier, account and region, qualifier
against qualifier. Whether the function exists is asked later, of the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from sandbox.errors import FunctionNotFound, InvalidRequest
from sandbox.function import LATEST

NAME_PATTERN = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?"
    r"(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?"
)
"""The pattern of Get, Invoke and Delete, as AWS prints it in its messages."""
QUALIFIER_PATTERN = r"\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+"
MAX_NAME = 256
MAX_QUALIFIER = 128

_NAME = re.compile(NAME_PATTERN, re.ASCII)
_QUALIFIER = re.compile(QUALIFIER_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A function as a caller named it, in this region and account."""

    name: str
    qualifier: str | None
    """None when the caller gave none; the invoked ARN then has none either (SPEC 1.3)."""
    region: str
    account: str

    @property
    def unqualified_arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:function:{self.name}"

    @property
    def invoked_arn(self) -> str:
        qualifier = f":{self.qualifier}" if self.qualifier else ""
        return self.unqualified_arn + qualifier

    def not_found(self) -> FunctionNotFound:
        """SPEC 3.8: Invoke names `$LATEST` when the caller named no qualifier."""
        qualifier = self.qualifier or LATEST
        return FunctionNotFound(f"Function not found: {self.unqualified_arn}:{qualifier}")


def violation(value: str, field: str, constraint: str) -> str:
    return f"Value '{value}' at '{field}' failed to satisfy constraint: Member must {constraint}"


def enum_violations(value: str, field: str, allowed: Sequence[str]) -> list[str]:
    if value in allowed:
        return []
    return [violation(value, field, f"satisfy enum value set: [{', '.join(allowed)}]")]


@lru_cache(maxsize=1024)
def _well_shaped(name: str, qualifier: str | None) -> bool:
    return not shape_violations(name, qualifier)


def shape_violations(name: str, qualifier: str | None) -> list[str]:
    found = _shape(name, "functionName", _NAME, NAME_PATTERN, MAX_NAME)
    if qualifier is not None:
        found += _shape(qualifier, "qualifier", _QUALIFIER, QUALIFIER_PATTERN, MAX_QUALIFIER)
    return found


def _shape(
    value: str, field: str, compiled: re.Pattern[str], pattern: str, longest: int
) -> list[str]:
    found = []
    if not compiled.fullmatch(value):
        found.append(violation(value, field, f"satisfy regular expression pattern: {pattern}"))
    if len(value) > longest:
        found.append(violation(value, field, f"have length less than or equal to {longest}"))
    if not value:
        found.append(violation(value, field, "have length greater than or equal to 1"))
    return found


def validation_error(violations: Iterable[str]) -> InvalidRequest:
    """SPEC 10.3: `N validation error(s) detected: ...`."""
    found = list(violations)
    plural = "" if len(found) == 1 else "s"
    message = f"{len(found)} validation error{plural} detected: {'; '.join(found)}"
    return InvalidRequest(message, code="ValidationException")


def parse_function_name(
    raw: str,
    qualifier: str | None,
    *,
    region: str,
    account: str,
    other_violations: Iterable[str] = (),
) -> FunctionRef:
    """Name (URL-decoded, from the path) and Qualifier parameter -> who is meant. Raises
    CallerError.

    `other_violations` are those of the request's other members: AWS reports them in one message.
    """
    qualifier = qualifier or None  # `?Qualifier=` is how the models' empty query member arrives
    violations = list(other_violations)
    if violations or not _well_shaped(raw, qualifier):
        raise validation_error([*shape_violations(raw, qualifier), *violations])
    return _resolve(raw, qualifier, region, account)


@lru_cache(maxsize=1024)
def _resolve(raw: str, qualifier: str | None, region: str, account: str) -> FunctionRef:
    match = _NAME.fullmatch(raw)
    assert match is not None
    named_region, named_account = match[3], match[9]
    if named_account and named_account.rstrip(":") != account:
        _foreign_account()
    if named_region and named_region.rstrip(":") != region:
        there = named_region.rstrip(":")
        message = f"Functions from '{there}' are not reachable in this region ('{region}')"
        raise FunctionNotFound(message)
    name, named_qualifier = match[11], match[13]
    if named_qualifier and qualifier and named_qualifier != qualifier:
        raise InvalidRequest(
            "The derived qualifier from the function name does not match the specified qualifier.",
            code="InvalidParameterValueException",
        )
    return FunctionRef(name, qualifier or named_qualifier, region, account)


def _foreign_account() -> NoReturn:
    """AWS says no more than `{"Message":null}` here; an empty message is rendered so
    (`replies.py`)."""
    raise InvalidRequest("", code="AccessDeniedException", status=403)
