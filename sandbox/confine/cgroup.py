"""Owns control groups: what holds a sandbox's processes to their limits, counts what they use, ends them.

Two backends behind one small interface: v2 (`cgroup_v2.py`) and v1 (`cgroup_v1.py`, hybrid hosts
included). A supervisor's groups are children of one folder, `lambox-PID-STARTTIME-PIDNS`, so that the next
start can tell a dead supervisor's folder from a living one's (`sweep`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sandbox.confine.spec import ConfineError, IsolationUnavailable, Limits

log = logging.getLogger(__name__)
OWN_FOLDER = re.compile(r"lambox-(\d+)-(\d+)-(\d+)(-\w+)?\Z")
PERIOD_US = 100_000


class Cgroup(Protocol):
    """The group of one sandbox. Reads return None where this host keeps no such account."""

    @property
    def procs(self) -> list[str]:
        """The cgroup.procs files that a process writes "0" into to be inside."""

    @property
    def number(self) -> int | None:
        """Its folder's inode in the v2 tree, as the kernel calls it (`peers`); None where it has none there."""

    def joined(self, pid: int) -> None:
        """A process that wrote itself into `procs`; all that is to be inside descends from such a one."""

    def limit(self, limits: Limits) -> None:
        """Other limits of memory and processes than it was made with."""

    def limit_cpu(self, cores: float) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def kill(self) -> None:
        """SIGKILL to every process inside, frozen ones included."""

    def pids(self) -> list[int]: ...
    def memory(self) -> int | None: ...
    def memory_peak(self) -> int | None: ...
    def oom_kills(self) -> int: ...
    def cpu_s(self) -> float | None: ...
    def remove(self) -> bool:
        """False while a process is still inside."""

    def describe(self) -> str: ...


class CgroupTree(Protocol):
    """Where one supervisor's groups live."""

    def create(self, name: str, limits: Limits) -> Cgroup: ...
    @property
    def numbered(self) -> bool:
        """Whether its groups have a `number`."""

    def sweep(self) -> list[str]:
        """Remove what dead supervisors left. Blocks up to a second. Returns what was removed."""

    def close(self) -> None: ...
    def describe(self) -> str: ...


HOSTS_PIDS = 0xEFFFFFFC
"""Inode of the first pid namespace, which sees all others' processes (PROC_PID_INIT_INO, linux/proc_ns.h)."""


def own_name() -> str:
    pid = os.getpid()
    return f"lambox-{pid}-{start_time(pid)}-{os.stat('/proc/self/ns/pid').st_ino}"


def make_own(bases: Sequence[Path]) -> str:
    """A folder of our own in each of the bases, under one name that is not in use. Raises OSError."""
    for number in itertools.count():
        name = f"{own_name()}-{number}" if number else own_name()
        made: list[Path] = []
        try:
            for base in bases:
                (base / name).mkdir()
                made.append(base / name)
        except FileExistsError:
            # Another tree of this process: nobody else has our pid and start time.
            _remove(made)
        except OSError:
            _remove(made)
            raise
        else:
            break
    return name


def restore(folders: Sequence[Path]) -> bool:
    """Make our own folders again where somebody has removed them (they are empty before the first sandbox).

    Returns whether one was missing. Raises nothing: whoever makes a group below says what is wrong.
    """
    missing = [folder for folder in folders if not folder.is_dir()]
    for folder in missing:
        with contextlib.suppress(OSError):
            folder.mkdir()
            log.warning("%s was removed by somebody, it is made again", folder)
    return bool(missing)


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        folder.rmdir()


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/PID/stat, in clock ticks since boot: with the pid it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def is_orphaned(name: str) -> bool:
    """Whether a folder of this name belonged to a supervisor that is gone.

    One of another pid namespace (a container's) can be judged from the host's own alone: no process is in it.
    """
    match = OWN_FOLDER.match(name)
    if match is None:
        return False
    namespace, ours = int(match[3]), os.stat("/proc/self/ns/pid").st_ino
    if namespace != ours:
        return ours == HOSTS_PIDS and not _has_processes(namespace)
    return start_time(int(match[1])) != match[2]


def _has_processes(namespace: int) -> bool:
    """Whether some process is in this pid namespace; where one may not be looked into, it may be that one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # One number: it is in the host's own namespace. (Everybody may read this, but not look into all.)
            levels = (process / "status").read_text().partition("\nNSpid:")[2].partition("\n")[0]
            if len(levels.split()) > 1 and os.stat(process / "ns/pid").st_ino == namespace:
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        except OSError:
            return True
    return False


class Gauge:
    """One number of a group that is read at every invocation: its file is opened once.

    Resource handling: `close` it before the group is removed; it may be read on, as None.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None
        self._closed = False

    def read(self) -> int | None:
        """None where this host has no such file, or the group is gone."""
        try:
            if self._fd is None:
                if self._closed:
                    return None
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return int(os.pread(self._fd, 32, 0))
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        self._closed = True
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_int(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def read_field(path: str, key: str) -> int | None:
    """Value of a line `key value`, as memory.events and memory.oom_control have them."""
    try:
        with open(path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == key:
                    return int(value)
    except (OSError, ValueError):
        pass
    return None


def write(path: str, value: str) -> None:
    """Raises ConfineError that can be pasted into a shell."""
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError as exc:
        raise ConfineError(
            f"cannot limit a sandbox: echo {value} > {path}: {exc.strerror}"
        ) from exc


def read_pids(path: str) -> list[int]:
    try:
        with open(path) as file:
            return [int(line) for line in file]
    except OSError:
        return []


def remove_tree(folder: Path, *, patience_s: float = 0.0) -> bool:
    """Kill what is in a folder of groups and remove it, children first."""
    end = time.monotonic() + patience_s
    while True:
        for path in sorted(folder.glob("**/cgroup.procs"), key=lambda p: -len(p.parts)):
            for pid in read_pids(str(path)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                freezer = path.parent / "freezer.state"
                if freezer.exists():
                    freezer.write_text("THAWED")
                path.parent.rmdir()
        if not folder.exists():
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.01)


def sweep_folders(mounts: list[Path]) -> list[str]:
    """Look through whole hierarchies: a dead supervisor may have been started in another group."""
    removed = []
    for mount in mounts:
        for top, names, _ in os.walk(mount):
            for name in [name for name in names if name.startswith("lambox-")]:
                names.remove(name)
                folder = Path(top, name)
                if is_orphaned(name) and os.access(top, os.W_OK):
                    if remove_tree(folder, patience_s=1.0):
                        removed.append(str(folder))
                    else:
                        log.warning("a dead server left %s and it cannot be removed", folder)
    return removed


def detect() -> CgroupTree:
    """The tree this host lets us make groups in. Raises IsolationUnavailable."""
    from sandbox.confine.cgroup_v1 import V1Tree
    from sandbox.confine.cgroup_v2 import V2Tree

    problems = []
    for backend in (V2Tree, V1Tree):
        try:
            return backend.open()
        except (ConfineError, OSError) as exc:
            problems.append(str(exc))
    raise IsolationUnavailable(
        "no cgroup can be made here: " + "; ".join(problems),
        "systemd-run --user --scope -p Delegate=yes lambox serve   "
        "(or start as root, or a container with --privileged)",
    )
