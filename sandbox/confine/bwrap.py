"""Owns bubblewrap's command line: SandboxSpec -> argv and the descriptors that go with it.

Descriptors are numbered from LOWEST_FD up, clear of 0-2 and of the telemetry pipe's 62.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rootfs.layout import Bind, Dev, Directory, Entry, Proc, Symlink, Text, Tmpfs
from sandbox.confine.spec import IsolationUnavailable, Preparation, SandboxSpec
from sandbox.confine.staging import Bridge

UID, GID = 993, 990
"""sbx_user1051 (SPEC 5.2)."""
INIT_INSIDE = "/run/lambox/init"
LOWEST_FD = 100
ANSWER_LIMIT_S = 10.0
OLDEST = (0, 8, 0)
"""--disable-userns and --size."""


ZYGOTE_CAPABILITIES = (
    "CAP_SYS_ADMIN",  # setns(2)
    "CAP_SYS_CHROOT",  # setns(2) into a mount namespace
    "CAP_SETUID",
    "CAP_SETGID",
)


@dataclass(frozen=True, slots=True)
class Bwrap:
    """A bubblewrap found on this host."""

    path: str
    version: tuple[int, ...]


@functools.cache
def find(path: str = "bwrap") -> Bwrap:
    """Ask bwrap what it is. Raises IsolationUnavailable; 10 ms, once."""
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True, timeout=ANSWER_LIMIT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as exc:
        raise IsolationUnavailable(
            f"bubblewrap cannot be run: {exc}", "apt-get install bubblewrap"
        ) from exc
    words = text.split() or [""]
    version = tuple(int(part) for part in words[-1].split(".") if part.isdigit())
    if version < OLDEST:
        raise IsolationUnavailable(
            f"bubblewrap {words[-1]} is too old, 0.8.0 is needed",
            "apt-get install bubblewrap",
        )
    return Bwrap(shutil.which(path) or path, version)


class Descriptors:
    """The descriptors one bwrap is started with. Closing this closes them in the supervisor."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def __enter__(self) -> Descriptors:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def take(self, fd: int) -> int:
        """Keep `fd` under a number of LOWEST_FD or more; the given number is closed."""
        try:
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_FD)
        finally:
            os.close(fd)
        self.fds.append(high)
        return high

    def data(self, content: bytes) -> int:
        fd = self.take(os.memfd_create("lambox", os.MFD_CLOEXEC))
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


def command(
    spec: SandboxSpec,
    bwrap: Bwrap,
    init: str,
    control: int,
    fds: Descriptors,
    *,
    seccomp: bytes | None,
    observe: bytes | None = None,
    places: Mapping[str, Bridge],
    parked: int | None = None,
    composed: str | None = None,
) -> list[str]:
    """The whole bwrap command; what it names by number is in `fds`. `places`: sources found elsewhere.

    `seccomp` is loaded by bwrap, `observe` (log mode's filter, in its place) by pid 1, who gets its listener.
    `composed`: where the spec's root stands, but for what each sandbox has for itself, with pid 1's program.
    """
    argv = [
        bwrap.path,
        "--unshare-user",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-uts",
        "--unshare-cgroup",
        *([] if spec.network == "host" else ["--unshare-net"]),
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--disable-userns",
        "--uid",
        str(UID),
        "--gid",
        str(GID),
        "--hostname",
        spec.hostname,
        "--clearenv",
        "--cap-drop",
        "ALL",
    ]

    def bind(source: str, target: str) -> list[str]:
        bridge = places.get(source)
        return ["--ro-bind", bridge.place if bridge else source, target]

    if composed is None:
        for entry in (*spec.root, *spec.late):
            argv += _entry(entry, bind, fds)
        argv += bind(init, INIT_INSIDE)
    else:
        argv += ["--ro-bind", composed, "/"]
        for entry in (*spec.root, *spec.late):
            if entry in spec.late or isinstance(entry, Tmpfs | Proc | Dev):
                argv += _entry(entry, bind, fds)
    if seccomp is not None:
        argv += ["--seccomp", str(fds.data(seccomp))]
    # A host-network sandbox shares 127.0.0.1 with everybody: the kernel picks its port.
    port = "0" if spec.network == "host" else "9001"
    argv += ["--remount-ro", "/", "--chdir", "/", "--"]
    argv += [INIT_INSIDE, "run", str(control), "127.0.0.1", port]
    if parked is not None or observe is not None:
        argv.append(str(-1 if parked is None else parked))
    return argv if observe is None else [*argv, str(fds.data(observe))]


def zygote_command(
    root: tuple[Entry, ...],
    preparation: Preparation,
    numbers: tuple[int, ...],
    bwrap: Bwrap,
    fds: Descriptors,
) -> list[str]:
    """A zygote's command (rootfs/inside/python/zygote.py). It stays root, with what joining takes and no more.

    In the host's pid namespace, since it may only enter those below its own; no network.
    """

    def bind(source: str, target: str) -> list[str]:
        return ["--ro-bind", source, target]

    argv = [bwrap.path, "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    argv += ["--new-session", "--clearenv", "--cap-drop", "ALL"]
    for capability in ZYGOTE_CAPABILITIES:
        argv += ["--cap-add", capability]
    for entry in root:
        argv += _entry(entry, bind, fds)
    for key, value in preparation.env:
        argv += ["--setenv", key, value]
    argv += ["--remount-ro", "/", "--chdir", "/var/task", "--", *preparation.argv, "--zygote"]
    return [*argv, *map(str, numbers), *preparation.preload]


def sources(spec: SandboxSpec, init: str, *, composed: bool = False) -> list[str]:
    """Every host path that `command` binds, but for the `composed` root."""
    entries = spec.late if composed else (*spec.root, *spec.late)
    binds = [entry.source for entry in entries if isinstance(entry, Bind)]
    return binds if composed else [*binds, init]


def _entry(entry: Entry, bind: Callable[[str, str], list[str]], fds: Descriptors) -> list[str]:
    match entry:
        case Bind(source, target):
            return bind(source, target)
        case Tmpfs(target, size, mode):
            return ["--perms", f"{mode:04o}", "--size", str(size), "--tmpfs", target]
        case Symlink(to, target):
            return ["--symlink", to, target]
        case Text(content, target):
            return ["--perms", "0444", "--ro-bind-data", str(fds.data(content.encode())), target]
        case Directory(target):
            return ["--dir", target]
        case Proc(target, files, folders):
            argv = ["--proc", target]
            for path in files:  # bound without its device: not even to be opened
                argv += ["--ro-bind", "/dev/null", path]
            for path in folders:
                argv += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
            return argv
        case Dev(target):
            # Its tmpfs would be a second writable place (with /dev/shm, which AWS has not).
            return ["--dev", target, "--remount-ro", target]
