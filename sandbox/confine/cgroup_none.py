"""Owns what can be done where no cgroup can be made and `allow_weaker` says to go on without.

Memory is watched: four times a second a tree's shares of pages are added up, and a tree above its limit is
killed; between two looks it may take more. A limit per process (setrlimit) would not hold a tree. Pids and CPU
are not limited, and there is no freezing: SIGSTOP would be seen by the function, and by its parent's waitpid.

A tree is told by descent from bwrap, and from the zygote's fork where there is one: in its pid namespace every
orphan goes to pid 1, so none gets out.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress

import psutil
import trio

from sandbox.confine import strays
from sandbox.confine.aside import aside_or_here
from sandbox.confine.spec import ConfineError, Limits

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.25


class WatchedGroup:
    """Implements `cgroup.Cgroup`."""

    def __init__(self, tree: WatchedTree, name: str, limits: Limits) -> None:
        self._tree = tree
        self.name = name
        self._limit = limits.memory_bytes
        self._tops: set[int] = set()
        self._seen: dict[int, str] = {}
        """Start time by pid, of bwrap and whatever was found below it."""
        self._looking = threading.Lock()
        """`check` runs in a thread of its own."""
        self._peak = 0
        self._oom_kills = 0

    @property
    def procs(self) -> list[str]:
        return []

    @property
    def number(self) -> int | None:
        return None

    def joined(self, pid: int) -> None:
        self._tops.add(pid)
        self._look()

    def _look(self) -> list[int]:
        """Who of the tree lives. What was seen once stays known when its parents are gone."""
        with self._looking:
            for top in self._tops:
                for pid in (top, *strays.descendants(top)):
                    if found := _alive(pid):
                        self._seen.setdefault(pid, found)
            self._seen = {pid: start for pid, start in self._seen.items() if _alive(pid) == start}
            # Those of the dead may become others'.
            self._tops &= self._seen.keys()
            return list(self._seen)

    def limit(self, limits: Limits) -> None:
        self._limit = limits.memory_bytes

    def limit_cpu(self, cores: float) -> None:
        """Not done."""

    def freeze(self) -> None:
        """Not done."""

    def thaw(self) -> None:
        """Not done."""

    def kill(self) -> None:
        for pid in reversed(self._look()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def pids(self) -> list[int]:
        return self._look()

    def memory(self) -> int | None:
        used = sum(map(_memory, self._look()))
        self._peak = max(self._peak, used)
        return used

    def memory_peak(self) -> int | None:
        """The most that was seen."""
        return self._peak or None

    def oom_kills(self) -> int:
        return self._oom_kills

    def cpu_s(self) -> float | None:
        return None

    def check(self) -> None:
        """Kill the tree if it has more than its memory."""
        used = self.memory() or 0
        if used > self._limit and not self._oom_kills:
            log.info("sandbox %s has %d bytes of %d: killed", self.name, used, self._limit)
            self._oom_kills = 1
            self.kill()

    def remove(self) -> bool:
        if self._look():
            return False
        self._tree.groups.discard(self)
        return True

    def describe(self) -> str:
        return f"the tree of sandbox {self.name}"


class WatchedTree:
    """Implements `cgroup.CgroupTree`. Whoever makes one runs `watch`."""

    def __init__(self) -> None:
        self.groups: set[WatchedGroup] = set()

    def create(self, name: str, limits: Limits) -> WatchedGroup:
        if any(group.name == name for group in self.groups):
            raise ConfineError(f"there is a sandbox {name} already")
        group = WatchedGroup(self, name, limits)
        self.groups.add(group)
        return group

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            for group in list(self.groups):
                await aside_or_here(group.check, abandon=False)
            await trio.sleep(LOOK_EVERY_S)

    @property
    def numbered(self) -> bool:
        return False

    def sweep(self) -> list[str]:
        return []

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return "no cgroups: memory watched, pids and cpu not limited"


def _alive(pid: int) -> str | None:
    """Its start time, which with the pid names it for good; None for a zombie as well."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _memory(pid: int) -> int:
    """Its share of the pages it uses; all of them where we may not read the share."""
    with suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
