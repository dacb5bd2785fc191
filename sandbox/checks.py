"""Owns the checks that function.toml and lambox.toml have in common: a value, or what it must be.

Wrong       says what the value must be instead; the reader adds file, line, key and value
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], Any]


class Wrong(Exception):
    """What a value must be instead."""


def whole(unit: str, low: int, high: int | None = None) -> Check:
    """A whole number; TOML's true and 1.0 are none."""
    bounds = f"from {low} to {high}" if high is not None else f"of {low} or more"
    must = f"must be a whole number{unit and ' of ' + unit} {bounds}"

    def check(value: Any) -> int:
        if type(value) is not int or value < low or (high is not None and value > high):
            raise Wrong(must)
        return value

    return check


def seconds(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise Wrong(f"must be a number of seconds from {low:g} to {high:g}")
        return float(value)

    return check


def show(value: Any) -> str:
    """A value as a message quotes it."""
    if isinstance(value, dict):
        return "[table]"
    try:
        return shorten(json.dumps(value, default=str, ensure_ascii=False), 80)
    except (
        ValueError
    ):  # Python writes no number of more than 4,300 digits, and reads hexadecimal ones
        return "a number of thousands of digits"


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
