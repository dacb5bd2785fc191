"""Owns how many large bodies may be on their way at a time, and who yields when there are more of them.

What has been gathered of a body is the supervisor's memory, and its last byte may never come: of a caller's, who may
take his time on each of 1,024 connections, or of a runtime's, which sends one at a time, and there is one response;
but each of its 64 connections might send 6 MB of an error, or a megabyte of a head.

So a large one needs a place. Where all are taken it waits, and is not read meanwhile, or is refused (`spool.py`). A
holder that is still sending, and has had the room's patience, yields: the slowest of them, and only to somebody
who is there for its place. Environments have patience without end: all they keep waiting is themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import cast

import trio

SMALL = 256 * 1024
"""Bytes of a body that need no place."""
SMALL_HEAD = 64 * 1024
"""The same of an environment's head, or of trailers."""
LARGE_AT_ONCE = 2
"""Of an environment. The second is for a connection that is opened while lambox has not seen the end of the one
before."""
CALLERS_LARGE_AT_ONCE = 32
PATIENT_S = 5.0
"""What a sender has before it may have to yield."""
PLACE_KEY = "lambox.place"
"""Where a connection's state carries its Place."""


class Room:
    """So many places. Who waits for one gets it in turn."""

    def __init__(self, places: int, patience_s: float = PATIENT_S) -> None:
        self._places = places
        self._patience_s = patience_s
        self._held: set[Place] = set()
        self._waiting: dict[Place, trio.Event] = {}

    def __repr__(self) -> str:
        return f"<Room {len(self._held)} of {self._places} held, {len(self._waiting)} waiting>"

    def enter(self, place: Place) -> bool:
        """Whether there was one free, which means that nobody waits."""
        if len(self._held) >= self._places:
            return False
        self._held.add(place)
        return True

    async def wait(self, place: Place) -> None:
        came = self._waiting[place] = trio.Event()
        try:
            while not came.is_set():
                # Who has a place later than now has to have its time later than this.
                now = trio.current_time()
                first = min((one.began_at for one in self._held if one.yields), default=now)
                with trio.move_on_at(min(first, now) + self._patience_s):
                    await came.wait()
                if not came.is_set() and self.send_one_away():
                    self._call_next()
        finally:
            self._waiting.pop(place, None)

    def send_one_away(self) -> bool:
        """The slowest of those that have had their time."""
        now = trio.current_time()
        # The same sum as above: by another, rounded differently, who woke up at its end might find nobody.
        patient = [
            one for one in self._held if one.yields and one.began_at + self._patience_s <= now
        ]
        if not patient:
            return False
        slowest = min(patient, key=lambda one: one.rate(now))
        self._held.discard(slowest)
        slowest.cut()
        return True

    def leave(self, place: Place) -> None:
        self._held.discard(place)
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting and len(self._held) < self._places:
            place = next(iter(self._waiting))
            self._held.add(place)
            place.given()
            self._waiting.pop(place).set()


class Place:
    """What one connection, or one body, holds of a room. Leave it when the body is here or given up, and at the
    connection's end."""

    __slots__ = ("_held", "_room", "_scope", "began_at", "received", "sent_away")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held = False
        self._scope: trio.CancelScope | None = None
        self.began_at = inf
        self.received = 0
        """Bytes of the body that is on its way: its reader counts them."""
        self.sent_away = False
        """The last `arriving` ended because somebody else needed the place."""

    def take(self) -> bool:
        """Whether it is held now."""
        if not self._held:
            self._held = self._room.enter(self)
        return self._held

    def take_anyones(self) -> bool:
        """The same, with somebody else's if need be."""
        return self.take() or (self._room.send_one_away() and self.take())

    async def wait(self) -> None:
        if not self.take():
            await self._room.wait(self)

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._room.leave(self)

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """The body is read in here; to yield ends the block, with `sent_away`. The place is left to its holder."""
        self.sent_away, self.received = False, 0
        self.began_at = trio.current_time()
        with trio.CancelScope() as self._scope:
            try:
                yield
            finally:
                self._scope = None

    # -- the room's side

    @property
    def yields(self) -> bool:
        return self._scope is not None

    def rate(self, now: float) -> float:
        """Bytes per second."""
        return self.received / max(now - self.began_at, 1e-6)

    def given(self) -> None:
        """How long it waited is not held against it."""
        self._held, self.began_at = True, trio.current_time()

    def cut(self) -> None:
        assert self._scope is not None
        self._held, self.sent_away = False, True
        self._scope.cancel()


def place_of(state: Mapping[str, object]) -> Place | None:
    """None where a connection is served without a socket of its own."""
    return cast("Place | None", state.get(PLACE_KEY))
