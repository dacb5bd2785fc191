"""Owns the way of log lines to standard error: a bounded queue and one thread that writes.

Whoever reads our standard error may be slow or stand still (a pipe into a paged `less`): the event
loop must not wait for it. Lines beyond the bound, or that a full disk does not take, are dropped and counted,
the count is told.

What a function writes is shown, never obeyed: it cannot move a terminal's cursor, rename its window, nor
write a line that looks like another function's or like lambox's own.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
import time
from collections import deque
from sys import getsizeof

MOST_BYTES = 4 * 1024 * 1024
"""Memory that lines waiting to be written may take."""
BATCH = 256
RETRY_S = 1.0
PAUSE_S = 0.02
"""Between two looks at the queue while lines come: woken for each line, the thread would take the interpreter
from the event loop three times per invocation."""


COMMANDING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""What a terminal obeys: C0 and C1 but for tab and line feed, line separators, changes of direction."""


def harmless(text: str) -> str:
    """`text` with what a terminal would obey spelled out: `\\x1b[2J`."""
    if COMMANDING.search(text) is None:
        return text
    return COMMANDING.sub(lambda found: ascii(found[0])[1:-1], text)


class LineWriter:
    """Writes lines to a descriptor from a thread of its own. `write` never blocks."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lines: deque[str] = deque()
        self._size = 0
        self._dropped = 0
        self._telling = 0
        """How many dropped lines the batch in hand tells of, which is then all it does."""
        self._closing = threading.Event()
        self._waiting = False
        """The thread waits for a line; else it looks by itself within PAUSE_S."""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="loglines", daemon=True)
        self._thread.start()

    def function_line(self, function: str, line: str) -> None:
        """Each line of an event says whose it is: a function must not be able to speak as another, or as lambox."""
        mark = f"[{function}] "
        self.write(mark + line.replace("\n", "\n" + mark))

    def write(self, line: str) -> None:
        with self._changed:
            if self._size + getsizeof(line) > MOST_BYTES and self._lines:
                self._dropped += 1
                return
            self._lines.append(line)
            self._size += getsizeof(line)
            if self._waiting:
                self._changed.notify()

    def close(self, patience_s: float = 1.0) -> None:
        """Write what is left, but wait for a standing reader no longer than `patience_s`."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while batch := self._next():
            text = harmless("".join(line + "\n" for line in batch))
            # os.write, not sys.stderr: a thread that hangs in its lock would hang our exit too.
            last_try = self._closing.is_set()
            data = memoryview(text.encode("utf-8", "replace"))
            try:
                while data:
                    try:
                        data = data[os.write(self._fd, data) :]
                    except BlockingIOError:
                        time.sleep(0.01)
            except OSError as exc:
                if exc.errno in (errno.EPIPE, errno.EBADF):
                    return  # Nobody reads any more, and there is no other place to say so.
                # A full disk, for one: there will be room again.
                with self._changed:
                    self._dropped += self._telling or len(batch)
                if last_try:
                    return
                self._closing.wait(RETRY_S)
            if not self._lines:
                self._closing.wait(PAUSE_S)

    def _next(self) -> list[str]:
        """Lines to write; none when closed and empty."""
        with self._changed:
            while not self._lines and not self._dropped and not self._closing.is_set():
                self._waiting = True
                self._changed.wait()
                self._waiting = False
            batch = [self._lines.popleft() for _ in range(min(BATCH, len(self._lines)))]
            self._size -= sum(map(getsizeof, batch))
            self._telling = 0
            if self._dropped and not batch:
                batch.append(f"lambox: {self._dropped} log lines dropped, they were not taken")
                self._telling, self._dropped = self._dropped, 0
            return batch


class LineHandler(logging.Handler):
    """Python's logging through a LineWriter."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(logging.Formatter("lambox: %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.write(self.format(record))
