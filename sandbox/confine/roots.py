"""Owns the roots that sandboxes have in common: put together once (`staging`), taken apart when long unused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from rootfs.layout import Entry
from sandbox.confine.staging import OutOfOrder

MOST_ROOTS = 32
"""Each is some forty mounts. One per runtime, size of /tmp and kind of network in use, as a rule a handful."""
Root = tuple[Entry, ...]


class Composer(Protocol):
    """`spawner.Spawner`."""

    async def compose(self, entries: Root) -> str: ...
    def dismantle(self, place: str) -> None: ...


class _Made:
    """`place` None: every sandbox puts this one together for itself."""

    def __init__(self, place: str | None) -> None:
        self.place = place
        self.users = 0


class Roots:
    """What stands of one launcher's, the longest unused first."""

    def __init__(self, composer: Composer, most: int = MOST_ROOTS) -> None:
        self._composer = composer
        self._most = most
        self._made: OrderedDict[Root, _Made] = OrderedDict()
        self._lock = trio.Lock()

    def __len__(self) -> int:
        return len(self._made)

    @asynccontextmanager
    async def use(self, root: Root) -> AsyncIterator[str | None]:
        """Where it stands, for as long as a launch takes: a sandbox that stands has mounts of its own.

        None where that cannot be, and bwrap does it each time.
        """
        made = await self._get(root)
        made.users += 1
        try:
            yield made.place
        finally:
            made.users -= 1
            self._take_apart()

    async def _get(self, root: Root) -> _Made:
        async with self._lock:
            if root not in self._made:
                try:
                    self._made[root] = _Made(await self._composer.compose(root))
                except OutOfOrder:
                    self._made[root] = _Made(None)
                except OSError:
                    # bwrap says what is wrong with it, and it may be mended by the next time.
                    return _Made(None)
            self._made.move_to_end(root)
            return self._made[root]

    def _take_apart(self) -> None:
        for root, made in list(self._made.items()):
            if len(self._made) <= self._most:
                return
            if not made.users:
                del self._made[root]
                if made.place is not None:
                    self._composer.dismantle(made.place)
