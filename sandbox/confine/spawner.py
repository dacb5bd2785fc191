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
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from sandbox.confine.staging import Bridge, Stage


@dataclass(frozen=True, slots=True)
class Started:
    """A process and the descriptor that stands for it; closing `fd` is the caller's."""

    process: subprocess.Popen[bytes]
    fd: int


@dataclass
class _Order:
    argv: Sequence[str]
    fds: Sequence[int]
    stdout: int
    stderr: int
    bridges: Collection[Bridge]
    token: trio.lowlevel.TrioToken
    done: trio.Event = field(default_factory=trio.Event)
    started: Started | None = None
    fault: Exception | None = None


class Spawner:
    """Starts processes with fork(2)'s cost off the event loop. Close it after the last of them has ended."""

    def __init__(self, *, stage: bool) -> None:
        """`stage`: bridge sources that bwrap's unprivileged uid may not walk to (needs CAP_SYS_ADMIN)."""
        self._orders: queue.SimpleQueue[_Order | Collection[Bridge] | None] = queue.SimpleQueue()
        self._stage_wanted = stage
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
        order = _Order(argv, fds, stdout, stderr, bridges, trio.lowlevel.current_trio_token())
        self._orders.put(order)
        # Shielded: a process that starts while its starter is being cancelled must not be lost.
        with trio.CancelScope(shield=True):
            await order.done.wait()
        if order.fault is not None:
            raise order.fault
        assert order.started is not None
        return order.started

    def take_down(self, bridges: Collection[Bridge]) -> None:
        """The launch is over, the sandbox has mounts of its own."""
        if bridges:
            self._orders.put(bridges)

    def _work(self) -> None:
        stage: Stage | None = None
        refused: OSError | None = None
        if self._stage_wanted:
            try:
                stage = Stage()
            except OSError as exc:
                refused = exc
        while (order := self._orders.get()) is not None:
            if not isinstance(order, _Order):
                for bridge in order:
                    if stage is not None:
                        stage.remove(bridge)
                continue
            try:
                if order.bridges and stage is None:
                    paths = ", ".join(bridge.source for bridge in order.bridges)
                    raise OSError(errno.EACCES, f"sandboxes may not walk to {paths} ({refused})")
                for bridge in order.bridges:
                    assert stage is not None
                    stage.put(bridge)
                order.started = self._start(order)
            except Exception as exc:  # whatever it is: without this thread every sandbox dies
                order.fault = exc
            with suppress(trio.RunFinishedError):
                order.token.run_sync_soon(order.done.set)

    def _start(self, order: _Order) -> Started:
        process = subprocess.Popen(
            order.argv,
            stdin=subprocess.DEVNULL,
            stdout=order.stdout,
            stderr=order.stderr,
            pass_fds=order.fds,
            env={},
        )
        try:
            return Started(process, os.pidfd_open(process.pid))
        except OSError:
            process.kill()
            process.wait()
            raise
