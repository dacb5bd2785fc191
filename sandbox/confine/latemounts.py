"""Owns getting hold of a function's folders for a launch, without waiting for a file system that does not answer.

Whoever walks to a path on a dead NFS server or FUSE daemon stands still until that comes back, and cannot be
called off. So a thread of its own walks; a launch waits for it for LIMIT_S, and while one is standing there
no other is sent after it. The one thread that starts sandboxes gets copies of the mounts, as descriptors.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import trio

from rootfs.layout import Bind
from sandbox.confine import mounts

LIMIT_S = 2.0
MOST_THREADS = 256
T = TypeVar("T")


class Folders:
    """What one launcher's launches go through."""

    def __init__(self) -> None:
        self._standing: dict[str, int] = {}
        """Paths that threads have been standing at for longer than LIMIT_S, and how many do."""
        self._lock = threading.Lock()
        self._limiter = trio.CapacityLimiter(MOST_THREADS)

    @asynccontextmanager
    async def copied(self, binds: Sequence[Bind]) -> AsyncIterator[list[tuple[int, str]]]:
        """(descriptor of a read-only copy, where it is to be) for each. Raises OSError naming the path."""
        trees: list[int] = []
        try:
            if binds:
                trees = await self.reach([bind.source for bind in binds], _copy, _close)
            yield [(tree, bind.target) for tree, bind in zip(trees, binds, strict=True)]
        finally:
            _close(trees)

    async def reach(
        self,
        sources: Sequence[str],
        walk: Callable[[Sequence[str]], T],
        undo: Callable[[T], Any] = lambda _: None,
    ) -> T:
        """What `walk(sources)` returns, called in a thread. `undo` is called with what comes too late.

        Raises what it raises, and OSError(ETIMEDOUT) where a file system does not answer.
        """
        for source in sources:
            if source in self._standing:
                raise _silence(source)
        errand = _Errand(walk, undo)
        try:
            with trio.fail_after(LIMIT_S):
                await trio.to_thread.run_sync(
                    errand.run, sources, abandon_on_cancel=True, limiter=self._limiter
                )
        except trio.TooSlowError as exc:
            errand.give_up(lambda path: self._stand(path, +1), lambda path: self._stand(path, -1))
            raise _silence(errand.at) from exc
        except trio.Cancelled:
            errand.give_up()
            raise
        result: T = errand.result
        return result

    def _stand(self, path: str, change: int) -> None:
        """Called in the thread too, when it is through at last."""
        with self._lock:
            self._standing[path] = self._standing.get(path, 0) + change
            if not self._standing[path]:
                del self._standing[path]


class _Errand:
    """One walk; whether somebody still waits for it is settled under a lock."""

    result: Any

    def __init__(self, walk: Callable[[Sequence[str]], Any], undo: Callable[[Any], Any]) -> None:
        self._walk = walk
        self._undo = undo
        self._lock = threading.Lock()
        self._done = False
        self._on_end: Callable[[], None] | None = None
        """Set when nobody waits any more."""
        self.at = ""
        """Where it stands."""

    def run(self, sources: Sequence[str]) -> None:
        try:
            for source in sources:
                self.at = source
                with suppress(OSError):
                    os.stat(source)
            self.result = self._walk(sources)
        finally:
            with self._lock:
                self._done = True
                if self._on_end is not None:
                    self._forget()
                    self._on_end()

    def give_up(
        self,
        if_it_stands: Callable[[str], None] = lambda path: None,
        on_end: Callable[[str], None] = lambda path: None,
    ) -> None:
        """Nobody waits any more. If it still walks, one is called now, the other when it is through."""
        with self._lock:
            if self._done:
                self._forget()
            else:
                at = self.at
                self._on_end = lambda: on_end(at)
                if_it_stands(at)

    def _forget(self) -> None:
        if hasattr(self, "result"):
            self._undo(self.result)


def _silence(source: str) -> OSError:
    return OSError(errno.ETIMEDOUT, "its file system does not answer", source)


def _copy(sources: Sequence[str]) -> list[int]:
    trees: list[int] = []
    try:
        for source in sources:
            trees.append(mounts.copy_read_only(source))  # noqa: PERF401  those before a failing one
    except OSError:
        _close(trees)
        raise
    return trees


def _close(trees: Sequence[int]) -> None:
    for tree in trees:
        os.close(tree)
