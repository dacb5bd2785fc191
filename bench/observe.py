"""Owns looking at processes from outside: which belong to an environment, what they hold, when they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

KIB = 1024
MB = 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)
PIDFD_SEND_SIGNAL = 424  # asm-generic/unistd.h; the same on x86_64


@dataclass(slots=True)
class Tree:
    """The processes of one sandbox, by what they call themselves."""

    pids: list[int] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def trees(supervisor: int) -> list[Tree]:
    """Every sandbox of a supervisor: each has a cgroup below `lambox-PID-...`.

    Those of functions out of `examples` that call themselves by the function's name are told by it;
    a sandbox made ahead of its function is one too, with names that are no function's.
    """
    found: dict[str, Tree] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            group = re.search(
                rf"/lambox-{supervisor}-[^/\n]*/([^/\n]+)",
                Path("/proc", entry, "cgroup").read_text(),
            )
            if group:
                tree = found.setdefault(group[1], Tree())
                tree.pids.append(int(entry))
                tree.names.add(Path("/proc", entry, "comm").read_text().strip())
    return list(found.values())


def helpers(supervisor: int, sandboxes: Iterable[Tree]) -> list[int]:
    """Descendants of the supervisor that belong to no sandbox: a zygote, a keeper."""
    inside = {pid for tree in sandboxes for pid in tree.pids}
    try:
        below = psutil.Process(supervisor).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process.pid for process in below if process.pid not in inside]


@dataclass(frozen=True, slots=True)
class Held:
    """Memory in MB. PSS: pages shared with others count as a share; private: with nobody."""

    pss: float
    private: float


def memory(pids: Iterable[int]) -> Held:
    """Sum over processes; those that have ended meanwhile hold nothing. Raises PermissionError."""
    pss = private = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name == "Pss":
                    pss += int(rest.split()[0])
                elif name in ("Private_Clean", "Private_Dirty"):
                    private += int(rest.split()[0])
    return Held(pss * KIB / MB, private * KIB / MB)


def cpu_s(pid: int) -> float:
    """Processor time of one process so far, all threads, in steps of 10 ms."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def reaped(pidfd: int) -> bool:
    """Whether the process is not even a zombie any more (its pidfd is readable once it is one)."""
    failed = _libc.syscall(PIDFD_SEND_SIGNAL, pidfd, 0, None, 0)
    return bool(failed)
