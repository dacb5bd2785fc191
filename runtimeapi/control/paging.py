"""Owns Marker, MaxItems and NextMarker: lists in pages that stay right while the list changes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from runtimeapi.control.control import invalid
from runtimeapi.control.parsing import Input

Key = tuple[str, int]
"""Where an item stands: name and number. Sorted, and unlike in one list."""
PAGE = 50
"""Items of ListFunctions and ListVersionsByFunction at a time, whatever MaxItems (SPEC 10.1)."""


def page(keys: Sequence[Key], given: Input, *, most: int = PAGE) -> tuple[list[Key], str | None]:
    """The keys of this page, in their order, and the next one's Marker. Raises CallerError: a strange Marker."""
    marker = given.get("Marker")
    rest = sorted(keys)
    if marker is not None:
        last = _read(marker)
        rest = [key for key in rest if key > last]
    size = min(given.get("MaxItems", most), most)
    shown = rest[:size]
    return shown, _marker(shown[-1]) if len(rest) > size else None


def _marker(key: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _read(marker: str) -> Key:
    try:
        name, number = json.loads(base64.urlsafe_b64decode(marker))
        return str(name), int(number)
    except (ValueError, TypeError) as exc:
        raise invalid("Marker is none that this operation gave as NextMarker.") from exc
