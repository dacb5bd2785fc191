"""Owns groups on cgroup v2 (kernel Documentation/admin-guide/cgroup-v2.rst).

Processes may stand in leaves only ("no internal processes"), the true root excepted. So the folder of
a supervisor's groups goes where controllers are on or can be put on (`bases`): for root mostly the top of
the mount, for a user the nearest delegated ancestor. In a container there is only the folder that holds
its processes: those move to a leaf `init`, as Docker-in-Docker does, and back at the end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

import psutil

from sandbox.confine import cgroup
from sandbox.confine.cgroup import PERIOD_US
from sandbox.confine.spec import ConfineError, Limits

MOUNT = Path("/sys/fs/cgroup")
NEEDED = ("memory", "pids", "cpu")
LEAF = "init"
MOST_MOVES = 10
"""Rounds of moving processes out of the way: they may fork meanwhile."""


class V2Cgroup:
    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = str(folder)
        self._peak = cgroup.Gauge(f"{folder}/memory.peak")
        folder.mkdir()
        try:
            self.limit(limits)
            # Absent without swap accounting: then there is no swap to keep it from either.
            if (folder / "memory.swap.max").exists():
                self._set("memory.swap.max", "0")
            # All or none: a runtime whose helper was killed would hang until its deadline.
            self._set("memory.oom.group", "1")
        except ConfineError:
            folder.rmdir()
            raise
        self._number = folder.stat().st_ino

    @property
    def number(self) -> int | None:
        return self._number

    def _set(self, name: str, value: str) -> None:
        cgroup.write(f"{self._folder}/{name}", value)

    @property
    def procs(self) -> list[str]:
        return [f"{self._folder}/cgroup.procs"]

    def joined(self, pid: int) -> None:
        """Being inside is all it takes."""

    def describe(self) -> str:
        return f"the cgroup {self._folder}"

    def limit(self, limits: Limits) -> None:
        self._set("memory.max", str(limits.memory_bytes))
        self._set("pids.max", str(limits.pids))

    def limit_cpu(self, cores: float) -> None:
        self._set("cpu.max", f"{max(1000, int(cores * PERIOD_US))} {PERIOD_US}")

    def freeze(self) -> None:
        self._set("cgroup.freeze", "1")

    def thaw(self) -> None:
        self._set("cgroup.freeze", "0")

    def kill(self) -> None:
        """cgroup.kill is Linux 5.14's; it reaches frozen processes as well."""
        with contextlib.suppress(ConfineError):
            self._set("cgroup.kill", "1")

    def pids(self) -> list[int]:
        return cgroup.read_pids(f"{self._folder}/cgroup.procs")

    def memory(self) -> int | None:
        return cgroup.read_int(f"{self._folder}/memory.current")

    def memory_peak(self) -> int | None:
        """memory.peak is Linux 5.19's."""
        return self._peak.read()

    def oom_kills(self) -> int:
        return cgroup.read_field(f"{self._folder}/memory.events", "oom_kill") or 0

    def cpu_s(self) -> float | None:
        used = cgroup.read_field(f"{self._folder}/cpu.stat", "usage_usec")
        return None if used is None else used / 1e6

    def remove(self) -> bool:
        self._peak.close()
        try:
            os.rmdir(self._folder)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class V2Tree:
    def __init__(self, base: Path, *, cleared: bool = False) -> None:
        """`cleared`: the processes of `base` were moved to a leaf, and go back at `close`."""
        self._base = base
        self._cleared = cleared
        self._folder = base / cgroup.make_own([base])
        try:
            cgroup.write(f"{self._folder}/cgroup.subtree_control", _signed("+"))
        except ConfineError:
            self.close()
            raise

    @classmethod
    def open(cls) -> V2Tree:
        """Raises ConfineError where this is no cgroup v2 host or nothing of it is ours."""
        if not (MOUNT / "cgroup.controllers").exists():
            raise ConfineError(f"{MOUNT} is no cgroup v2 mount")
        problems: dict[str, None] = {}
        for base, move in bases(_own(), root=os.access(MOUNT, os.W_OK)):
            try:
                cleared = _enable(base, move=move)
                return cls(base, cleared=cleared)
            except (ConfineError, OSError) as exc:
                problems[str(exc)] = None
        raise ConfineError("; ".join(problems) or "no cgroup of ours")

    def create(self, name: str, limits: Limits) -> V2Cgroup:
        try:
            if cgroup.restore([self._folder]):
                cgroup.write(f"{self._folder}/cgroup.subtree_control", _signed("+"))
            return V2Cgroup(self._folder / name, limits)
        except OSError as exc:
            raise ConfineError(
                f"cannot make the cgroup {self._folder / name}: {exc.strerror}"
            ) from exc

    @property
    def numbered(self) -> bool:
        return True

    def sweep(self) -> list[str]:
        return cgroup.sweep_folders([MOUNT])

    def close(self) -> None:
        cgroup.remove_tree(self._folder, patience_s=1.0)
        if self._cleared:
            _put_back(self._base)

    def describe(self) -> str:
        return f"cgroup v2 at {self._base}"


def _signed(sign: str) -> str:
    return " ".join(f"{sign}{name}" for name in NEEDED)


def _own() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return MOUNT / line[3:].strip().lstrip("/")
    return MOUNT


def bases(own: Path, *, root: bool) -> list[tuple[Path, bool]]:
    """Where to try, best first, and whether the processes there may be moved to a leaf.

    `root`: the top of the mount is ours to write.

    What systemd gave us with Delegate=yes is ours to arrange. Else a folder without processes is
    sought: nobody's need be moved there. Moving is the last resort: a container has but one folder.
    """
    # Paths of a foreign cgroup namespace ("/../..") do not lead anywhere.
    line = [own, *own.parents] if own.is_dir() and ".." not in own.parts else [MOUNT]
    line = [folder for folder in line if folder == MOUNT or MOUNT in folder.parents]
    own = line[0]
    given = [folder for folder in line if _delegated(folder)]
    # For a user the nearest first, but our own last: it holds processes, ours among them.
    rest = [MOUNT, *line] if root else [*line[1:], own]
    found = [(own, True)] if own in given and _only_ours(own) else []
    found += [(folder, False) for folder in dict.fromkeys([*given, *rest])]
    return [*found, (own, True)]


def _delegated(folder: Path) -> bool:
    """systemd's mark since 251 (systemd.resource-control(5), Delegate=)."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _only_ours(folder: Path) -> bool:
    us = psutil.Process()
    ours = {us.pid, *(child.pid for child in us.children(recursive=True))}
    return ours.issuperset(cgroup.read_pids(f"{folder}/cgroup.procs"))


def _enable(base: Path, *, move: bool) -> bool:
    """Let children of `base` have the controllers. Returns whether processes were moved for it.

    Raises ConfineError or OSError.
    """
    if not os.access(base, os.W_OK) or not os.access(base / "cgroup.procs", os.W_OK):
        raise ConfineError(f"{base} is not ours to write")
    offered = (base / "cgroup.controllers").read_text().split()
    missing = [name for name in NEEDED if name not in offered]
    if missing:
        raise ConfineError(f"{base} has no {', '.join(missing)} controller")
    control = base / "cgroup.subtree_control"
    if set(NEEDED) <= set(control.read_text().split()):
        return False
    moved = False
    for _ in range(MOST_MOVES):
        try:
            control.write_text(_signed("+"))
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            if not move:
                raise ConfineError(f"{base} holds processes") from exc
            _move(base, base / LEAF)
            moved = True
            # A process that is exiting cannot be moved and does not count for long.
            time.sleep(0.01)
        else:
            return moved
    _put_back(base)
    raise ConfineError(f"{base} holds processes that cannot be moved")


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for pid in cgroup.read_pids(str(source / "cgroup.procs")):
        # 0 stands for processes of other pid namespaces; written, it would mean ourselves.
        if pid:
            with contextlib.suppress(OSError):
                (target / "cgroup.procs").write_text(str(pid))


def _put_back(base: Path) -> None:
    """Undo `_enable`, unless somebody else has built upon it."""
    with contextlib.suppress(OSError):
        (base / "cgroup.subtree_control").write_text(_signed("-"))
        _move(base / LEAF, base)
        (base / LEAF).rmdir()
