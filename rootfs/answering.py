"""Owns asking whether a file system answers: a dead NFS server or FUSE daemon keeps whoever looks waiting for ever.

A thread looks; who asked waits for it for a moment only. A thread that is kept waiting costs nothing but
itself, and ends when the file system answers again or is unmounted.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 1.0
HURRY_S = 0.1
"""For the others, once one has not answered: they may well be of the same file system."""
MOST_THREADS = 64


class Answering:
    """Remembers who has not answered: nobody is asked twice at a time."""

    def __init__(
        self, look: Callable[[Path], None] | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._look = look or look_at
        self._patience_s = patience_s
        self._asked: dict[Path, _Questions] = {}

    def silent(self, paths: Iterable[Path]) -> set[Path]:
        """Those that do not answer. What is missing or refused has answered."""
        self._asked = {path: one for path, one in self._asked.items() if not one.over.is_set()}
        left = list(paths)
        silent = {path for path in left if path in self._asked}
        left = [path for path in left if path not in silent]
        patience_s = HURRY_S if self._asked else self._patience_s
        threads = 1
        while left:
            ends_at = time.monotonic() + patience_s
            share = -(-len(left) // threads)
            shares = [left[at : at + share] for at in range(0, len(left), share)]
            asked = [_Questions(paths, self._look) for paths in shares]
            left = []
            for questions in asked:
                hung = questions.silent(ends_at)
                if hung is not None:
                    self._asked[hung] = questions
                    silent.add(hung)
                    left += questions.unasked
            # Twice as many each time: what is behind a hundred dead ones is not waited for a hundred times.
            patience_s, threads = HURRY_S, min(2 * threads, MOST_THREADS)
        return silent


class _Questions:
    """One thread's."""

    def __init__(self, paths: list[Path], look: Callable[[Path], None]) -> None:
        self._paths = paths
        self._look = look
        self._given_up = False
        self._at = 0
        """Which it is looking at."""
        self.unasked: list[Path] = []
        """Those behind the silent one."""
        self.over = threading.Event()
        thread = threading.Thread(target=self._run, name="lambox-answering", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: then nobody is asked
            self.over.set()

    def silent(self, ends_at: float) -> Path | None:
        """The one that has not answered by then (time.monotonic), if there is one."""
        if self.over.wait(max(0.0, ends_at - time.monotonic())):
            return None
        self._given_up = True
        at = self._at  # once: the thread may be coming to its end just now
        self.unasked = self._paths[at + 1 :]
        return self._paths[at] if at < len(self._paths) else None

    def _run(self) -> None:
        while self._at < len(self._paths) and not self._given_up:
            with suppress(OSError, ValueError):
                self._look(self._paths[self._at])
            if not self._given_up:
                self._at += 1
        self.over.set()


def look_at(path: Path) -> None:
    """What whoever is to read there will do first. Raises OSError."""
    if not os.path.isdir(path):
        return
    with os.scandir(path) as entries:
        next(entries, None)
    with open(path / "function.toml", "rb") as file:
        file.read(1)
