"""Owns ephemeral storage: the file system that is put on a sandbox's /tmp when its function is known.

On disk where the host lets us (`images`): what is written is no memory of the function's, but for the cache,
which the kernel takes back. Else a tmpfs of the same size, whose pages count. Some are kept ready per size.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio

from sandbox.confine import cgroup, mounts
from sandbox.confine.aside import aside_or_here
from sandbox.confine.images import PASSING, Images, refusal
from sandbox.confine.pool import Pool, PoolLimits
from sandbox.confine.spec import MIB, ConfineError, IsolationUnavailable

log = logging.getLogger(__name__)
Medium = Literal["disk", "memory"]
Wanted = Literal["auto", "disk", "memory"]
TAKE_LIMIT_S = 5.0
RELEASE_WAIT_S = 1.0
"""Who lets go of one waits so long at most; what had not been written yet may take longer, and blocks nobody."""
CLOSE_LIMIT_S = 10.0
CLOSERS = 2
MOST_READY = 64
"""Of all sizes together; each is a mount, a loop device and 0.2 MB of the kernel's, 1 ms to make on a quiet host."""
USUAL_SIZE = 512 * MIB


@dataclass(eq=False)
class Tmp:
    """One mount. `fd` stands for it, wherever it is mounted."""

    fd: int
    medium: Medium
    closers: Closers
    gone: trio.Event = field(default_factory=trio.Event)

    async def wait(self) -> None:
        await trio.sleep_forever()  # a mount does not end by itself

    async def kill(self) -> None:
        """Let go of it; whoever has it mounted keeps it until then. Returns after RELEASE_WAIT_S at the latest."""
        self.closers.close(self)
        with trio.move_on_after(RELEASE_WAIT_S) as scope:
            scope.shield = True
            await self.gone.wait()


class Closers:
    """Threads that close mounts: the last user of one waits until what it holds is written."""

    def __init__(self) -> None:
        self.open: set[Tmp] = set()
        self._orders: queue.SimpleQueue[tuple[Tmp, trio.lowlevel.TrioToken] | None]
        self._orders = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def take(self, fd: int, medium: Medium) -> Tmp:
        tmp = Tmp(fd, medium, self)
        self.open.add(tmp)
        return tmp

    def close(self, tmp: Tmp) -> None:
        """Once at most, however often it is asked for."""
        if tmp not in self.open:
            return
        self.open.remove(tmp)
        if len(self._threads) < CLOSERS:
            thread = threading.Thread(target=self._work, name="lambox-tmp", daemon=True)
            with suppress(RuntimeError):  # no thread to be had: those there are do it
                thread.start()
                self._threads.append(thread)
        if not self._threads:
            tmp.gone.set()
            os.close(tmp.fd)
            return
        self._orders.put((tmp, trio.lowlevel.current_trio_token()))

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            tmp, token = order
            with suppress(OSError):
                os.close(tmp.fd)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(tmp.gone.set)

    async def finish(self) -> None:
        """Close all that is open, and wait for it. Raises nothing: what takes too long is logged."""
        for tmp in list(self.open):
            self.close(tmp)
        for _ in self._threads:
            self._orders.put(None)
        with trio.move_on_after(CLOSE_LIMIT_S) as scope:
            for thread in self._threads:
                await aside_or_here(thread.join)
        if scope.cancelled_caught:
            log.error("file systems for /tmp are still being written after %.0f s", CLOSE_LIMIT_S)


class Storage:
    """Hands out mounts for /tmp, where mounts can be put into a sandbox (`mounts.probe`). Made by `open_storage`."""

    def __init__(
        self, images: Images | None, limits: PoolLimits, makers: trio.Nursery, *, required: bool
    ) -> None:
        """`images` None: all are in memory. `required`: none may be. `limits`: how many of a size are kept ready."""
        self._required = required
        self._closers = Closers()
        self._failing = False
        self._pool: Pool[Tmp] | None = None
        if images is not None:

            async def make(size: int) -> Tmp:
                fd = await trio.to_thread.run_sync(images.make, size)
                return self._closers.take(fd, "disk")

            most = max(MOST_READY, limits.most)
            self._pool = Pool(make, lambda _: limits, makers, most_held=most, what="a /tmp")

    def describe(self) -> str:
        return "/tmp on disk" if self._pool else "/tmp in memory"

    def keep(self, sizes: Collection[int]) -> None:
        """Have some of these sizes ready, and in time no others."""
        if self._pool is not None:
            self._pool.keep(sizes)

    def expect(self, size: int) -> None:
        """One will be taken when its sandbox stands: so that both may be made at the same time."""
        if self._pool is not None:
            self._pool.expect(size)

    async def take(self, size: int) -> Tmp:
        """An empty one of `size` bytes; `Tmp.kill` is the caller's. Raises ConfineError.

        Where no disk can be made just now (no loop device is free, the disk is full) it is in memory, unless a disk
        is required.
        """
        if self._pool is not None:
            try:
                with trio.fail_after(TAKE_LIMIT_S):
                    tmp = await self._pool.take(size)
            except trio.TooSlowError:
                self._failed(size, OSError(errno.ETIMEDOUT, "the disk below does not answer"))
            except (OSError, ConfineError) as exc:
                self._failed(size, exc)
            else:
                if self._failing:
                    self._failing = False
                    log.info("/tmp is on disk again")
                return tmp
        options = {"size": str(size), "mode": "1777"}
        try:
            fd = await trio.to_thread.run_sync(mounts.new_mount, "tmpfs", "tmpfs", options)
        except OSError as exc:
            raise ConfineError(f"no /tmp can be made: {exc}") from exc
        return self._closers.take(fd, "memory")

    def _failed(self, size: int, exc: Exception) -> None:
        problem = refusal(exc) if isinstance(exc, OSError) else exc
        said = f"no /tmp of {size // MIB} MB can be made on disk: {problem}"
        if self._required:
            raise ConfineError(said) from exc
        if not self._failing:
            self._failing = True
            log.warning("%s\nUntil that is over, /tmp of new environments is in memory.", said)

    async def close(self) -> None:
        """Let go of all of them."""
        await self._closers.finish()


@asynccontextmanager
async def open_storage(
    wanted: Wanted, folder: Path | None, *, ready: PoolLimits | None = None
) -> AsyncIterator[Storage]:
    """The storage for launchers, which are to be closed earlier; tried out. Leaving lets go of all of it.

    `folder`: for images; None, and all is in memory. `ready`: how many of a size are kept so.
    Raises IsolationUnavailable when a disk is `wanted` and cannot be had.
    """
    images = None
    if folder is not None and wanted != "memory":
        images = Images(folder, cgroup.own_name())
        try:
            await trio.to_thread.run_sync(try_out, images)
        except IsolationUnavailable as exc:
            if wanted == "disk":
                raise
            log.warning("/tmp of environments is in memory, and counts as theirs: %s", exc)
            images = None
    storage = None
    try:
        async with trio.open_nursery() as makers:
            limits = ready or PoolLimits(0, 0)
            storage = Storage(images, limits, makers, required=wanted == "disk")
            yield storage
            makers.cancel_scope.cancel()
    finally:
        if storage is not None:
            with trio.CancelScope(shield=True):
                await storage.close()


def try_out(images: Images) -> None:
    """Raises IsolationUnavailable where no /tmp can be on disk; what may pass by itself is passed over."""
    if reason := mounts.probe():
        raise IsolationUnavailable(reason, "sudo lambox serve")
    try:
        os.close(images.make(USUAL_SIZE))
    except OSError as exc:
        if exc.errno not in PASSING:
            raise refusal(exc) from exc
