"""Owns looking at processes from outside: which belong to an environment, what they hold, when they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

KIB = 1024
MB = 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)
PIDFD_SEND_SIGNAL = 424  # asm-generic/unistd.h; the same on x86_64


def members(ids: Collection[str]) -> dict[str, list[int]]:
    """Processes by environment: an environment's id is a folder in the path of its cgroup."""
    found: dict[str, list[int]] = {id_: [] for id_ in ids}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            text = Path("/proc", entry, "cgroup").read_text()
            folders = {folder for line in text.splitlines() for folder in line.split("/")}
            for id_ in folders & found.keys():
                found[id_].append(int(entry))
    return found


def helpers(supervisor: int, environments: Iterable[Iterable[int]]) -> list[int]:
    """Descendants of the supervisor that belong to no environment: a zygote, a keeper."""
    inside = {pid for pids in environments for pid in pids}
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
    """Sum over processes; those that have ended meanwhile hold nothing."""
    pss = private = 0
    for pid in pids:
        with contextlib.suppress(OSError):
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
