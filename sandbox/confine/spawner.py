"""Owns the one thread that starts processes, and its mount namespace (`staging`).

PR_SET_PDEATHSIG (and so bwrap's --die-with-parent) follows the *thread* that forked: started from a
worker thread that ends, a sandbox would die with it. This thread lives as long as the launcher.
"""

from __future__ import annotations

import errno
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from rootfs.layout import Entry
from sandbox.confine import mounts
from sandbox.confine.staging import Bridge, Stage


@dataclass(frozen=True, slots=True)
class Started:
    """A process and the descriptor that stands for it; closing `fd` is the caller's."""

    process: subprocess.Popen[bytes]
    fd: int


@dataclass
class _Order:
    action: Callable[[], Any]
    token: trio.lowlevel.TrioToken
    done: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    fault: Exception | None = None


class Spawner:
    """Starts processes and attaches mounts off the event loop. Close it after the last process has ended."""

    def __init__(self, *, stage: bool) -> None:
        """`stage`: bridge sources that bwrap's unprivileged uid may not walk to (needs CAP_SYS_ADMIN)."""
        self._orders: queue.SimpleQueue[_Order | Callable[[Stage], None] | None] = (
            queue.SimpleQueue()
        )
        self.staged = stage
        """Whether there may be a stage; what asks for one that is not to be had gets an OSError."""
        self._stage: Stage | None = None
        self._refused: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="lambox-spawner", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; whatever it started and is still alive dies with it."""
        self._orders.put(None)
        self._thread.join()

    async def spawn(
        self,
        argv: Sequence[str],
        fds: Sequence[int],
        stdout: int,
        stderr: int,
        bridges: Collection[Bridge] = (),
    ) -> Started:
        """stdin is /dev/null, `fds` keep their numbers, all else is closed. Raises OSError or ValueError."""

        def action() -> Started:
            self._bridge(bridges)
            return _start(argv, fds, stdout, stderr)

        started: Started = await self._order(action)
        return started

    async def attach(
        self,
        pidfd: int,
        trees: Sequence[tuple[int, str]],
        new: Sequence[tuple[int, str]] = (),
        owner: int = -1,
    ) -> None:
        """`mounts.attach` for both; `owner`: uid and gid of the `new` ones, -1: as they are.

        Raises OSError, also where this host gives us no mount namespace.
        """

        def action() -> None:
            if self._stage is None:
                raise self._refused or OSError(errno.EPERM, "no mount namespace of our own")
            for fd, _ in new:
                os.chown(f"/proc/self/fd/{fd}", owner, owner)
            mounts.attach(pidfd, [*trees, *new])

        await self._order(action)

    async def compose(self, entries: Sequence[Entry]) -> str:
        """`Stage.compose`. Raises OSError or OutOfOrder."""

        def action() -> str:
            if self._stage is None:
                raise self._refused or OSError(errno.EPERM, "no mount namespace of our own")
            return self._stage.compose(entries)

        place: str = await self._order(action)
        return place

    def take_down(self, bridges: Collection[Bridge]) -> None:
        """The launch is over, the sandbox has mounts of its own."""
        if bridges:
            self._orders.put(lambda stage: stage.remove(bridges))

    def dismantle(self, place: str) -> None:
        """What `compose` has made is not used any more; who has mounted it keeps it."""
        self._orders.put(lambda stage: stage.dismantle(place))

    async def _order(self, action: Callable[[], Any]) -> Any:
        order = _Order(action, trio.lowlevel.current_trio_token())
        self._orders.put(order)
        # Shielded: a process that starts while its starter is being cancelled must not be lost.
        with trio.CancelScope(shield=True):
            await order.done.wait()
        if order.fault is not None:
            raise order.fault
        return order.result

    def _work(self) -> None:
        if self.staged:
            try:
                self._stage = Stage()
            except OSError as exc:
                self._refused = exc
        while (order := self._orders.get()) is not None:
            if not isinstance(order, _Order):
                if self._stage is not None:
                    order(self._stage)
                continue
            try:
                order.result = order.action()
            except Exception as exc:  # whatever it is: without this thread every sandbox dies
                order.fault = exc
            with suppress(trio.RunFinishedError):
                order.token.run_sync_soon(order.done.set)

    def _bridge(self, bridges: Collection[Bridge]) -> None:
        if bridges and self._stage is None:
            paths = ", ".join(bridge.source for bridge in bridges)
            raise OSError(errno.EACCES, f"sandboxes may not walk to {paths} ({self._refused})")
        for bridge in bridges:
            assert self._stage is not None
            self._stage.put(bridge)


def _start(argv: Sequence[str], fds: Sequence[int], stdout: int, stderr: int) -> Started:
    # A group of its own: who presses Ctrl-C means the supervisor, which has a grace period to keep.
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=fds,
        env={},
        process_group=0,
    )
    try:
        return Started(process, os.pidfd_open(process.pid))
    except OSError:
        process.kill()
        process.wait()
        raise
