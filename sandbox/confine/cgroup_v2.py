"""Owns groups on cgroup v2 (kernel Documentation/admin-guide/cgroup-v2.rst).

Processes may stand in leaves only ("no internal processes"), the true root excepted. So the folder of
a supervisor's groups goes where controllers are on or can be put on: for root the top of the mount
(in a container its processes first move to a leaf `init`, as Docker-in-Docker does), for a user the nearest
delegated ancestor.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from sandbox.confine import cgroup
from sandbox.confine.cgroup import PERIOD_US
from sandbox.confine.spec import ConfineError, Limits

MOUNT = Path("/sys/fs/cgroup")
NEEDED = ("memory", "pids", "cpu")


class V2Cgroup:
    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = str(folder)
        folder.mkdir()
        try:
            self._set("memory.max", str(limits.memory_bytes))
            self._set("pids.max", str(limits.pids))
            # Absent without swap accounting: then there is no swap to keep it from either.
            if (folder / "memory.swap.max").exists():
                self._set("memory.swap.max", "0")
            # All or none: a runtime whose helper was killed would hang until its deadline.
            self._set("memory.oom.group", "1")
        except ConfineError:
            folder.rmdir()
            raise

    def _set(self, name: str, value: str) -> None:
        cgroup.write(f"{self._folder}/{name}", value)

    @property
    def procs(self) -> list[str]:
        return [f"{self._folder}/cgroup.procs"]

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
        return cgroup.read_int(f"{self._folder}/memory.peak")

    def oom_kills(self) -> int:
        return cgroup.read_field(f"{self._folder}/memory.events", "oom_kill") or 0

    def cpu_s(self) -> float | None:
        used = cgroup.read_field(f"{self._folder}/cpu.stat", "usage_usec")
        return None if used is None else used / 1e6

    def remove(self) -> bool:
        try:
            os.rmdir(self._folder)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class V2Tree:
    def __init__(self, base: Path) -> None:
        self._base = base
        self._folder = base / cgroup.own_name()
        self._folder.mkdir(exist_ok=True)
        cgroup.write(f"{self._folder}/cgroup.subtree_control", _plus(NEEDED))

    @classmethod
    def open(cls) -> V2Tree:
        """Raises ConfineError where this is no cgroup v2 host or nothing of it is ours."""
        if not (MOUNT / "cgroup.controllers").exists():
            raise ConfineError(f"{MOUNT} is no cgroup v2 mount")
        problems = []
        for base in _candidates():
            try:
                _enable(base)
                return cls(base)
            except (ConfineError, OSError) as exc:
                problems.append(str(exc))
        raise ConfineError("; ".join(problems) or "no cgroup of ours")

    def create(self, name: str, limits: Limits) -> V2Cgroup:
        try:
            return V2Cgroup(self._folder / name, limits)
        except OSError as exc:
            raise ConfineError(
                f"cannot make the cgroup {self._folder / name}: {exc.strerror}"
            ) from exc

    def sweep(self) -> list[str]:
        return cgroup.sweep_folders([MOUNT])

    def close(self) -> None:
        cgroup.remove_tree(self._folder, patience_s=1.0)

    def describe(self) -> str:
        return f"cgroup v2 at {self._base}"


def _plus(names: tuple[str, ...]) -> str:
    return " ".join(f"+{name}" for name in names)


def _own() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return MOUNT / line[3:].strip().lstrip("/")
    return MOUNT


def _candidates() -> list[Path]:
    own = _own()
    # From ours upwards; paths of a foreign cgroup namespace ("/../..") do not lead anywhere.
    line = [own, *own.parents] if own.is_dir() and ".." not in own.parts else [MOUNT]
    line = [folder for folder in line if folder == MOUNT or MOUNT in folder.parents]
    if os.geteuid() == 0:
        return [MOUNT, *(folder for folder in line if folder != MOUNT)]
    # The nearest first, but our own last: it holds processes, ours among them.
    return [*line[1:], line[0]]


def _enable(base: Path) -> None:
    """Let children of `base` have the controllers. Raises ConfineError or OSError."""
    if not os.access(base, os.W_OK) or not os.access(base / "cgroup.procs", os.W_OK):
        raise ConfineError(f"{base} is not ours to write")
    offered = (base / "cgroup.controllers").read_text().split()
    missing = [name for name in NEEDED if name not in offered]
    if missing:
        raise ConfineError(f"{base} has no {', '.join(missing)} controller")
    control = base / "cgroup.subtree_control"
    if set(NEEDED) <= set(control.read_text().split()):
        return
    try:
        control.write_text(_plus(NEEDED))
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        _clear(base)
        control.write_text(_plus(NEEDED))


def _clear(base: Path) -> None:
    """Move the processes of `base` to a leaf below it."""
    leaf = base / "init"
    leaf.mkdir(exist_ok=True)
    for pid in cgroup.read_pids(str(base / "cgroup.procs")):
        with contextlib.suppress(ProcessLookupError):
            (leaf / "cgroup.procs").write_text(str(pid))
