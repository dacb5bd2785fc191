"""Owns groups on cgroup v1 and on hybrid hosts (kernel Documentation/admin-guide/cgroup-v1/).

One folder per controller. Where the host also has the controller-less v2 tree (systemd's hybrid
layout), a folder there gives cgroup.kill and cgroup.freeze; elsewhere the v1 freezer does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import rootfs.inside
from sandbox.confine import cgroup
from sandbox.confine.cgroup import PERIOD_US
from sandbox.confine.spec import ConfineError, Limits

NEEDED = ("memory", "pids", "cpu")


@dataclass(frozen=True, slots=True)
class Bases:
    """Where our own groups are, per hierarchy: new ones go below and inherit what we are held to."""

    memory: Path
    pids: Path
    cpu: Path
    cpuacct: Path | None
    unified: Path | None
    freezer: Path | None

    def all(self) -> list[Path]:
        every = (self.memory, self.pids, self.cpu, self.cpuacct, self.unified, self.freezer)
        return list(dict.fromkeys(path for path in every if path is not None))


class V1Cgroup:
    def __init__(self, bases: Bases, limits: Limits) -> None:
        """`bases` are the folders of this group itself, in each hierarchy."""
        self._at = bases
        self._peak = cgroup.Gauge(f"{bases.memory}/memory.max_usage_in_bytes")
        made: list[Path] = []
        try:
            for folder in bases.all():
                folder.mkdir()
                made.append(folder)
            self.limit(limits)
        except (ConfineError, OSError) as exc:
            for folder in made:
                folder.rmdir()
            raise ConfineError(f"cannot make a cgroup: {exc}") from exc
        self._number = None if bases.unified is None else bases.unified.stat().st_ino

    @property
    def number(self) -> int | None:
        return self._number

    @property
    def procs(self) -> list[str]:
        return [f"{folder}/cgroup.procs" for folder in self._at.all()]

    def joined(self, pid: int) -> None:
        """Being inside is all it takes."""

    def describe(self) -> str:
        return f"the cgroup {self._at.pids}"

    def limit(self, limits: Limits) -> None:
        folder, memory = self._at.memory, str(limits.memory_bytes)
        names = ["memory.limit_in_bytes"]
        # Memory and swap together: no byte more. Absent without swap accounting.
        if (folder / "memory.memsw.limit_in_bytes").exists():
            names.append("memory.memsw.limit_in_bytes")
        # Neither may pass the other: the larger one goes first.
        if limits.memory_bytes > (cgroup.read_int(f"{folder}/{names[-1]}") or 0):
            names.reverse()
        # What sockets hold counts by itself, and only with a limit; tcp_mem is the whole machine's.
        if (folder / "memory.kmem.tcp.limit_in_bytes").exists():
            names.append("memory.kmem.tcp.limit_in_bytes")
        for name in names:
            cgroup.write(f"{folder}/{name}", memory)
        cgroup.write(f"{self._at.pids}/pids.max", str(limits.pids))

    def limit_cpu(self, cores: float) -> None:
        cgroup.write(f"{self._at.cpu}/cpu.cfs_quota_us", str(max(1000, int(cores * PERIOD_US))))

    def freeze(self) -> None:
        self._freezer("1", "FROZEN")

    def thaw(self) -> None:
        self._freezer("0", "THAWED")

    def _freezer(self, unified: str, v1: str) -> None:
        if self._at.unified is not None:
            cgroup.write(f"{self._at.unified}/cgroup.freeze", unified)
        elif self._at.freezer is not None:
            cgroup.write(f"{self._at.freezer}/freezer.state", v1)

    def kill(self) -> None:
        if self._at.unified is not None and (self._at.unified / "cgroup.kill").exists():
            with contextlib.suppress(ConfineError):
                cgroup.write(f"{self._at.unified}/cgroup.kill", "1")
            return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A process in the v1 freezer dies only when it is let go.
        with contextlib.suppress(ConfineError):
            self.thaw()

    def pids(self) -> list[int]:
        return cgroup.read_pids(f"{self._at.pids}/cgroup.procs")

    def memory(self) -> int | None:
        return cgroup.read_int(f"{self._at.memory}/memory.usage_in_bytes")

    def memory_peak(self) -> int | None:
        return self._peak.read()

    def oom_kills(self) -> int:
        return cgroup.read_field(f"{self._at.memory}/memory.oom_control", "oom_kill") or 0

    def cpu_s(self) -> float | None:
        if self._at.cpuacct is None:
            return None
        used = cgroup.read_int(f"{self._at.cpuacct}/cpuacct.usage")
        return None if used is None else used / 1e9

    def remove(self) -> bool:
        self._peak.close()
        gone = True
        for folder in self._at.all():
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


class V1Tree:
    def __init__(self, bases: Bases) -> None:
        self._bases = bases
        self._name = cgroup.make_own(bases.all())
        self._keeper = _begin_keeper(bases.freezer / self._name) if bases.freezer else None

    @classmethod
    def open(cls) -> V1Tree:
        """Raises ConfineError where controllers are missing or not ours to write."""
        found = mounted(
            Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        )
        missing = [name for name in NEEDED if name not in found]
        if missing:
            raise ConfineError(f"no cgroup v1 hierarchy for {', '.join(missing)}")
        for name in NEEDED:
            if not os.access(found[name], os.W_OK):
                raise ConfineError(f"{found[name]} is not ours to write")
        unified = found.get("")
        if unified is not None and not (unified / "cgroup.freeze").exists():
            # The v2 root itself has no cgroup.freeze; what counts is whether its children have it.
            unified = unified if _children_freeze(unified) else None
        return cls(
            Bases(
                memory=found["memory"],
                pids=found["pids"],
                cpu=found["cpu"],
                cpuacct=found.get("cpuacct"),
                unified=unified,
                freezer=None if unified else found.get("freezer"),
            )
        )

    def create(self, name: str, limits: Limits) -> V1Cgroup:
        def at(base: Path | None) -> Path | None:
            return None if base is None else base / self._name / name

        bases = self._bases
        cgroup.restore([base / self._name for base in bases.all()])
        return V1Cgroup(
            Bases(
                memory=bases.memory / self._name / name,
                pids=bases.pids / self._name / name,
                cpu=bases.cpu / self._name / name,
                cpuacct=at(bases.cpuacct),
                unified=at(bases.unified),
                freezer=at(bases.freezer),
            ),
            limits,
        )

    @property
    def numbered(self) -> bool:
        return self._bases.unified is not None

    def sweep(self) -> list[str]:
        """In every hierarchy: an older server, or one before the v2 tree was there, used others."""
        return cgroup.sweep_folders(sorted({*map(_mount_of, self._bases.all()), *_hierarchies()}))

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.communicate()
        for base in self._bases.all():
            cgroup.remove_tree(base / self._name, patience_s=1.0)

    def describe(self) -> str:
        kind = "hybrid: v1 limits, v2 freezer" if self._bases.unified else "v1"
        return f"cgroup {kind} at {self._bases.memory}"


def _begin_keeper(folder: Path) -> subprocess.Popen[bytes]:
    """A process that thaws our sandboxes when we are gone: PR_SET_PDEATHSIG's SIGKILL reaches a process in
    the v1 freezer, and changes nothing while it is there. It holds no descriptor but its own end of a pipe.
    """
    init = Path(next(iter(rootfs.inside.__path__)), "init")
    return subprocess.Popen(
        [init, "keep", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )


def mounted(mountinfo: str, own: str) -> dict[str, Path]:
    """Controller ("" for the v2 tree) -> the folder of our own group, from two files of /proc/self."""
    ours: dict[str, str] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            ours[name] = path
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, mount = (re.sub(r"\\(\d{3})", _unescape, text) for text in before.split()[3:5])
        if kind == "cgroup2":
            names = [""]
        elif kind == "cgroup":
            names = options.split()[-1].split(",")
        else:
            continue
        for name in names:
            if name not in ours or name in found:
                continue
            # ".." leads out of our cgroup namespace (cgroup_namespaces(7)): what is mounted is all there is.
            inside = os.path.relpath(ours[name], root) if ".." not in root + ours[name] else ".."
            folder = Path(mount, inside) if not inside.startswith("..") else Path(mount)
            if folder.is_dir():
                found[name] = folder
    return found


def _unescape(match: re.Match[str]) -> str:
    """proc_pid_mountinfo(5) writes blanks and the like as octal numbers."""
    return chr(int(match[1], 8))


def _hierarchies() -> list[Path]:
    """Mount points of cgroup v1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(where) for _, where, kind, *_ in mounts if kind == "cgroup"]


def _mount_of(folder: Path) -> Path:
    while not folder.is_mount() and folder != folder.parent:
        folder = folder.parent
    return folder


def _children_freeze(base: Path) -> bool:
    probe = base / f"{cgroup.own_name()}-probe"
    try:
        probe.mkdir()
    except OSError:
        return False
    try:
        return (probe / "cgroup.freeze").exists()
    finally:
        probe.rmdir()
