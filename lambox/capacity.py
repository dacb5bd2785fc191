"""Owns how much of the machine is ours: RAM and cores, as cgroups and affinity leave it.

A container's /proc/meminfo tells of the whole host; its limit stands in the cgroup files.
"""

from __future__ import annotations

import os
from pathlib import Path

from sandbox.confine import cgroup, cgroup_v1

MIB = 1024 * 1024


def cores() -> int:
    return len(os.sched_getaffinity(0)) or 1


def memory_mb() -> int:
    """RAM of the host, or what our control group may use of it if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min([total, *_limits()]) // MIB)


def _limits() -> list[int]:
    try:
        own = Path("/proc/self/cgroup").read_text()
        folders = cgroup_v1.mounted(Path("/proc/self/mountinfo").read_text(), own)
    except (OSError, ValueError):
        return []
    limits = []
    if v1 := folders.get("memory"):
        limits.append(cgroup.read_field(f"{v1}/memory.stat", "hierarchical_memory_limit"))
    if v2 := folders.get(""):
        limits += [cgroup.read_int(f"{up}/memory.max") for up in (v2, *v2.parents)]
    return [limit for limit in limits if limit is not None]
