"""Owns looking through the tree of processes by descent, and reaping children nobody else will wait for.

Those are orphans out of a sandbox that died while it was made; we are their subreaper. A stray is told from
everything we started ourselves by its pid namespace: it is a direct child of ours that lives in a namespace
below ours, and a sandbox's pid 1 is bwrap's child as long as all is well.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil


class Strays:
    """What one launcher may reap."""

    def __init__(self) -> None:
        self.waited_for: set[int] = set()
        """Forks of zygotes. Orphaned, they look like strays, and may be running functions."""

    def reap(self, known: Collection[int] = ()) -> int:
        """Kill the strays there are, reap the dead ones. Returns how many are still dying.

        `known`: pids that are strays if they are our children, wherever they live.
        """
        dying = 0
        for pid in children(os.getpid()):
            if pid in self.waited_for or (
                pid not in known and namespaces(pid) <= namespaces("self")
            ):
                continue
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                    dying += 1
        return dying


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, the nearest first."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def children(pid: int) -> list[int]:
    """Zombies too. The file needs CONFIG_PROC_CHILDREN, without which all of /proc is read."""
    if not os.path.exists("/proc/thread-self/children"):
        with suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def is_inside(pid: int, bwrap: int) -> bool:
    """Whether `pid` lives in a sandbox, as a fork of the zygote that `bwrap` holds (or held, if it is dead:
    then its forks are ours). True of what is gone: nobody can be hurt by that."""
    parent, levels = _place(pid)
    if parent is None:
        return True
    return levels > namespaces("self") and parent in (os.getpid(), *children(bwrap))


def namespaces(pid: int | str) -> int:
    """How many pid namespaces, from ours downwards, know the process (NSpid of proc_pid_status(5))."""
    return _place(pid)[1]


def _place(pid: int | str) -> tuple[int | None, int]:
    """Its parent, and `namespaces`."""
    parent = None
    with suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("PPid:"):
                parent = int(line.split()[1])
            elif line.startswith("NSpid:"):
                return parent, len(line.split()) - 1
    return parent, 0
