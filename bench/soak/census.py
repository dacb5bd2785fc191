"""Owns counting what a server holds on the host, and whether that grows from one quiet point to the next."""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from bench import observe
from bench.observe import KIB, MB

TOLERATED: Mapping[str, float] = {"rss_mb": 1.0, "pss_mb": 1.0}
"""Growth per quiet point that is still none; of everything else half a piece is too much."""
SMALLEST: Mapping[str, float] = {"rss_mb": 4.0, "pss_mb": 4.0}
"""And over all quiet points: a heap takes pages and gives few back."""
LIMIT_S = 30.0
NO_LEAK = ("task AsyncQueue._run", "task Child.reap")
"""Events between two attempts wait for minutes, quiet or not. And the forks of a zygote that was killed are waited
for one by one, as long as their sandboxes stand ready."""


def census(pid: int, port: int) -> dict[str, float]:
    """Kind -> how many (or MB), now. The server has to be quiet for it to mean something."""
    found: Counter[str] = Counter()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found["fd " + _kind(os.readlink(f"/proc/{pid}/fd/{fd}"))] += 1
    below = psutil.Process(pid).children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.Error):
            found["processes"] += 1
            if process.status() == psutil.STATUS_ZOMBIE and not _sandboxed(pid, process.ppid()):
                found["zombies"] += 1
    spaces = set()
    for process in below:
        with contextlib.suppress(OSError):
            spaces.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    found["network namespaces"] = len(spaces)
    found["threads"] = len(os.listdir(f"/proc/{pid}/task"))
    for name, count in get(port, "/_lambox/supervisor")["tasks"].items():
        found["task " + ".".join(name.split(".")[-2:])] += count
    found["cgroups"] = len(_groups(pid))
    found["mounts"] = len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    found["links"] = len(os.listdir("/sys/class/net"))
    found["loop devices"] = _loops()
    for folder in ("/tmp", "/run", "/dev/shm"):
        found["temp files"] += sum(1 for name in os.listdir(folder) if name.startswith("lambox"))
    return {**found, **_memory(pid)}


def get(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=LIMIT_S) as reply:
        return json.load(reply)


def least(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Kind -> the least of all counts; what one of them lacks was not there."""
    kinds = set().union(*counts)
    return {kind: min(count.get(kind, 0.0) for count in counts) for kind in kinds}


def growth(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Kind -> growth per quiet point, of those that grow: the median of all pairs' slopes (Theil-Sen), where all
    of the second half is above the first. So that one odd point says nothing."""
    grown = {}
    for kind in sorted(set().union(*points).difference(NO_LEAK)):
        row = [point.get(kind, 0.0) for point in points]
        slope = statistics.median(
            (row[j] - row[i]) / (j - i) for i in range(len(row)) for j in range(i + 1, len(row))
        )
        tolerated = TOLERATED.get(kind, 0.5)
        half = len(row) // 2
        if (
            slope > tolerated
            and min(row[half:]) > max(row[:half])
            and row[-1] - row[0] > SMALLEST.get(kind, 0.0)
        ):
            grown[kind] = slope
    return grown


def traces(pid: int) -> list[str]:
    """What is left of a server that has ended: processes in its groups, the groups, mounts."""
    found = [f"cgroup {name}" for name in _groups(pid)]
    for tree in observe.trees(pid):
        found += [f"process {inside} {sorted(tree.names)}" for inside in tree.pids]
    mark = f"lambox-{pid}-"
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return found + [f"mount {line}" for line in mounts if mark in line]


def _kind(target: str) -> str:
    kind = re.sub(r":\[\d+\]$", "", target)
    return "files" if kind.startswith("/") and not kind.startswith("/dev/") else kind


def _sandboxed(server: int, pid: int) -> bool:
    """A child that ended in a frozen sandbox is reaped when that is thawed."""
    with contextlib.suppress(OSError):
        return f"/lambox-{server}-" in Path(f"/proc/{pid}/cgroup").read_text()
    return False


def _groups(pid: int) -> list[str]:
    """Folders of this server's, those of its sandboxes among them."""
    mine = re.compile(rf"lambox-{pid}-")
    found = []
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{top}/{name}" for name in folders if mine.match(name) or mine.search(top)]
        folders[:] = [name for name in folders if mine.match(name) or "lambox-" not in name]
    return found


def _loops() -> int:
    found = 0
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found += "lambox" in path.read_text()
    return found


def _memory(pid: int) -> dict[str, float]:
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[f"{name.lower()}_mb"] = round(int(rest.split()[0]) * KIB / MB, 2)
    return found
