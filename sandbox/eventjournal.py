"""Owns when accepted events go to disk: in batches, one at a time, beside the event loop.

Whoever adds an event waits for the batch it is in; that an event was tried or has ended is written with
the next batch, and again until the disk takes it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import trio

from sandbox.eventstore import StoreProblem

log = logging.getLogger(__name__)
RETRY_S = 1.0
NO_CHANGES: Mapping[str, str | None] = MappingProxyType({})
LAST_WRITE_S = 5.0
"""How long a disk may take for what is unwritten at the end."""

Aside = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs something that blocks."""


async def in_a_thread(call: Callable[[], Any]) -> Any:
    """A disk that hangs does not keep the server from stopping."""
    try:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    except RuntimeError as exc:  # "can't start new thread"
        raise StoreProblem(f"there is nobody to write it: {exc}") from exc


class Store(Protocol):
    """`eventstore.EventStore`."""

    def take_up(self) -> dict[str, str]: ...
    def commit(self, put: Mapping[str, str], drop: Collection[str] = (), *, sync: bool) -> None: ...
    def close(self) -> None: ...


class _Addition:
    def __init__(
        self, event: str, on_written: Callable[[], None], changes: Mapping[str, str | None]
    ) -> None:
        self.event = event
        self.changes = changes
        self.on_written = on_written
        self.done = trio.Event()
        self.problem: StoreProblem | None = None


class Journal:
    """`run` is its task; `finish` ends it, or `abandon`."""

    def __init__(self, store: Store, aside: Aside = in_a_thread) -> None:
        self._store = store
        self._aside = aside
        self._additions: dict[str, _Addition] = {}
        self._pending: dict[str, str | None] = {}
        """What to write besides; None: the event has ended."""
        self._news = trio.Event()
        self._refused = False
        self._finishing = False
        self._finished = trio.Event()
        self._scope = trio.CancelScope(shield=True)

    async def take_up(self) -> dict[str, str]:
        """What earlier servers left. Raises StoreProblem."""
        found: dict[str, str] = await self._aside(self._store.take_up)
        return found

    async def add(
        self,
        key: str,
        event: str,
        on_written: Callable[[], None],
        changes: Mapping[str, str | None] = NO_CHANGES,
    ) -> None:
        """Returns when it is on disk. Raises StoreProblem: then it is not.

        `on_written` is called then even when this was cancelled: the event is in, whoever waits.
        `changes`: other events that become this (None: that have ended) in the same commit, or stay.
        """
        addition = self._additions[key] = _Addition(event, on_written, changes)
        self._news.set()
        await addition.done.wait()
        if addition.problem is not None:
            raise addition.problem

    def change(self, key: str, event: str) -> None:
        self._pending[key] = event
        self._news.set()

    def drop(self, key: str) -> None:
        self._pending[key] = None
        self._news.set()

    async def run(self) -> None:
        """Write until `finish`."""
        with self._scope:
            while not self._finishing or self._additions or (self._pending and not self._refused):
                with trio.move_on_after(RETRY_S if self._refused else math.inf):
                    await self._news.wait()
                await self._write()
            await self._aside(self._store.close)
        self._finished.set()

    async def finish(self) -> None:
        """Write what is unwritten, and let go of the file. Give it LAST_WRITE_S."""
        self._finishing = True
        self._refused = False
        self._news.set()
        await self._finished.wait()

    def abandon(self) -> None:
        """Wait for the disk no longer."""
        self._scope.cancel()

    async def _write(self) -> None:
        self._news = trio.Event()
        additions, self._additions = self._additions, {}
        pending, self._pending = self._pending, {}
        if not additions and not pending:
            return
        changes = dict(pending)
        for one in additions.values():
            changes.update(one.changes)
        put = {key: one.event for key, one in additions.items()}
        put |= {key: event for key, event in changes.items() if event is not None}
        drop = [key for key, event in changes.items() if event is None]
        try:
            await self._aside(partial(self._store.commit, put, drop, sync=bool(additions)))
        except StoreProblem as exc:
            self._pending = pending | self._pending
            for one in additions.values():
                one.problem = exc
            if pending and not self._refused:
                log.error("that events have ended cannot be written: %s", exc)
            self._refused = bool(self._pending)
        else:
            self._refused = False
            for one in additions.values():
                one.on_written()
        for one in additions.values():
            one.done.set()
