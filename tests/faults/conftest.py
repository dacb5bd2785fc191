"""Servers of the system tests, for faults that take seconds each: `make faults`."""

from __future__ import annotations

from tests.system.conftest import functions, nothing_is_left, shared, start

__all__ = ["functions", "nothing_is_left", "shared", "start"]
