"""Owns how many large bodies and heads one environment may have gathered at a time: they are the supervisor's memory.

A runtime sends one at a time, and there is one response; but each of its 64 connections might send 6 MB of an error,
or a megabyte of a head, and never the last byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import trio

SMALL = 256 * 1024
"""Bytes of a body that need no place."""
SMALL_HEAD = 64 * 1024
"""The same of a head, or of trailers."""
LARGE_AT_ONCE = 2
"""The second is for a connection that is opened while lambox has not seen the end of the one before."""
PLACE_KEY = "lambox.place"
"""Where a connection's state carries its Place."""


def make_room() -> trio.CapacityLimiter:
    """One environment's."""
    return trio.CapacityLimiter(LARGE_AT_ONCE)


class Place:
    """What one connection holds of its environment's room. Leave it when the request is over, and at its end."""

    __slots__ = ("_held", "_room")

    def __init__(self, room: trio.CapacityLimiter) -> None:
        self._room = room
        self._held = False

    def take(self) -> bool:
        """Whether it is held now."""
        if not self._held:
            try:
                self._room.acquire_on_behalf_of_nowait(self)
            except trio.WouldBlock:
                return False
            self._held = True
        return True

    async def wait(self) -> None:
        if not self.take():
            await self._room.acquire_on_behalf_of(self)
            self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._room.release_on_behalf_of(self)


def place_of(state: Mapping[str, object]) -> Place | None:
    """None on a connection of callers."""
    return cast("Place | None", state.get(PLACE_KEY))
