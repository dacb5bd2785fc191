"""Owns an environment's log pipes: reads them as they fill, and at once when an answer needs it.

A function that floods its log is slowed by its own pipe: reading is paced by a token bucket, so
neither memory nor the event loop's time goes to it without bound.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

from sandbox.logs import Frame, FrameSplitter, LineSplitter

READ_SIZE = 4 * 1024
"""Bytes taken in one go: they may be 1,400 lines, which take 3 to 30 ms."""
DRAIN_READS = 16
"""Reads per pipe of one `drain`: a pipe holds 64 KiB, a flood refills it meanwhile."""
DRAIN_DEBT = 512 * 1024
"""Bytes beyond its budget that a `drain` still takes; a flood's next lines come after END and REPORT."""
BURST = 1024 * 1024
"""Bytes read at full speed before pacing begins."""
RATE = 4 * 1024 * 1024
"""Bytes per second after that."""
LINE_COST = 128
"""What a line costs at least: a flood of empty lines is a flood."""
TOLD_LINE_COST = 512
"""The same where subscribers of telemetry get it too: 3 us of the event loop instead of 1."""

READ_COST = 1024
"""What a read costs at least: from a pipe in packet mode (O_DIRECT, pipe(2)) comes one byte at a time."""


class Budget:
    """What may be read of the pipes that share it: a token bucket."""

    def __init__(self) -> None:
        self.line_cost = LINE_COST
        self._credit = float(BURST)
        self._credited_at = trio.current_time()

    def spend(self, size: int, lines: int) -> None:
        """A read of so many bytes, in which so many lines came to their end."""
        self._credit -= max(size, self.line_cost * lines, READ_COST)

    @property
    def debt(self) -> float:
        """Bytes; below 0 there is credit."""
        now = trio.current_time()
        self._credit = min(BURST, self._credit + (now - self._credited_at) * RATE)
        self._credited_at = now
        return -self._credit

    async def pace(self) -> None:
        if (debt := self.debt) > 0:
            await trio.sleep(debt / RATE)


class LogPipes:
    """Non-blocking read ends; duplicates of the sandbox's, so that their owner may close his any time."""

    def __init__(
        self,
        plain: Sequence[int],
        framed: int | None,
        on_line: Callable[[str], None],
        on_frame: Callable[[Frame], None] | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`framed`: the descriptor that is 62 inside. Without `on_frame` its events are lines too.

        `budget`: of other pipes, which these share.
        """
        self._pipes: dict[int, LineSplitter | FrameSplitter] = {}
        for fd in plain:
            self._pipes[os.dup(fd)] = LineSplitter()
        if framed is not None:
            self._pipes[os.dup(framed)] = FrameSplitter()
        self._on_frame = on_frame or (lambda frame: on_line(frame.text))
        # Most invocations print nothing: one poll(2) finds that out for all pipes.
        self._filled = select.poll()
        for fd in self._pipes:
            self._filled.register(fd, select.POLLIN)
        self.budget = budget or Budget()
        self._on_line = on_line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drain()
        for fd, splitter in self._pipes.items():
            self._tell(splitter.flush())
            os.close(fd)
        self._pipes.clear()
        self._filled = select.poll()

    async def read(self) -> None:
        """Read all pipes until they end or this is cancelled."""
        async with trio.open_nursery() as nursery:
            for fd in self._pipes:
                nursery.start_soon(self._read_one, fd)

    async def _read_one(self, fd: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(fd)
            if self._take(fd) == 0:
                return
            await self.budget.pace()

    def drain(self) -> None:
        """Take what has been written up to now, without waiting."""
        for fd, _ in self._filled.poll(0):
            for _ in range(DRAIN_READS):
                # Less than asked for: that was all of it.
                if self.budget.debt > DRAIN_DEBT or (self._take(fd) or 0) < READ_SIZE:
                    break

    def _take(self, fd: int) -> int | None:
        """Bytes taken; 0 at the end of the pipe, None when it is empty for now."""
        try:
            data = os.read(fd, READ_SIZE)
        except BlockingIOError:
            return None
        if not data:
            with suppress(KeyError):
                self._filled.unregister(fd)
        lines = self._pipes[fd].feed(data)
        self._tell(lines)
        self.budget.spend(len(data), len(lines))
        return len(data)

    def _tell(self, lines: Sequence[str | Frame]) -> None:
        for line in lines:
            if isinstance(line, str):
                self._on_line(line)
            else:
                self._on_frame(line)
