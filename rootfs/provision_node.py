"""Owns `<venv>/share/lambox/nodejsN.x`: AWS's client for Node.js, where npm can bring it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def provision(support: Path, say: Callable[[str], None]) -> None:
    """Best effort: lambox's own client stands in wherever this fails, and the reason is written down."""
