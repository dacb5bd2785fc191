"""Owns what one setting of a server is, and the checks that several of them share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.checks import Check, Wrong

PREFIX = "LAMBOX_"
Default = Callable[[Mapping[str, str]], Any]


def path(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Wrong("must be the path of a folder")
    return Path(os.path.expanduser(value))


def file(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Wrong("must be the path of a file")
    return Path(os.path.expanduser(value))


def switch(value: Any) -> bool:
    if type(value) is not bool:
        raise Wrong("must be true or false")
    return value


def matching(pattern: str, must: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise Wrong(must)
        return value

    return check


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting; file key, variable and flag have its name."""

    name: str
    check: Check
    default: Default
    allowed: str
    doc: str
    shown: str = ""
    """The default in words, where it depends on the host."""
    is_text: bool = False
    """A variable's or flag's characters are the value; else they are a number or a list."""
    is_list: bool = False

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Its flag has no value: --NAME or --no-NAME."""
        return self.check is switch

    @property
    def metavar(self) -> str:
        if self.check in (path, file):
            return "DIR" if self.check is path else "FILE"
        return "TEXT" if self.is_text or self.is_list else "N"

    @property
    def default_text(self) -> str:
        return self.shown or str(self.default({}))
