"""Owns recognising what hosts do to sandboxes, and the one command that mends each."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sandbox.confine import cgroup
from sandbox.confine.attempts import attempt

SYSCTL = Path("/proc/sys")
CONTAINER_MEND = (
    "docker run --privileged ... (in a container; or --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined)"
)


@dataclass(frozen=True, slots=True)
class Switch:
    """A kernel setting that forbids user namespaces."""

    path: str
    forbids: Callable[[int], bool]
    mend: str
    certain: bool = True
    """Whether it forbids by itself; AppArmor's has exceptions, which only a try shows."""


SWITCHES = (
    Switch(
        "user/max_user_namespaces",
        lambda value: value == 0,
        "sysctl -w user.max_user_namespaces=15000",
    ),
    Switch(
        "kernel/unprivileged_userns_clone",
        lambda value: value == 0,
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    Switch(
        "kernel/apparmor_restrict_unprivileged_userns",
        lambda value: value != 0,
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        certain=False,
    ),
)


def forbidding(sysctl: Path = SYSCTL) -> Iterator[tuple[Switch, str]]:
    """The switches that forbid user namespaces here, and what they say."""
    for switch in SWITCHES:
        value = cgroup.read_int(str(sysctl / switch.path))
        if value is not None and switch.forbids(value):
            yield switch, f"{switch.path.replace('/', '.')} = {value}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps this host from making sandboxes, and the one command that mends it."""

    cause: str
    mend: str


KINDS = {
    "user": 0,
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""CLONE_NEW* of linux/sched.h, each tried in a new user namespace, as bwrap does."""
CLONE_NEWUSER = 0x10000000
FULL = os.strerror(errno.ENOSPC)


def refusals(uid: int | None = None) -> dict[str, str]:
    """The kinds of namespaces that cannot be had, and what the kernel says. `uid`: tried as that user."""
    libc = ctypes.CDLL(None, use_errno=True)

    def leave(flag: int) -> None:
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        if libc.unshare(CLONE_NEWUSER | flag):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    said = {kind: attempt(partial(leave, flag)) for kind, flag in KINDS.items()}
    return {kind: text for kind, text in said.items() if text}


def explain(
    said: str, refused: Mapping[str, str] | None = None, *, proc: Path = Path("/proc")
) -> Trouble:
    """Why a sandbox could not be made. `said`: the words of bwrap or the kernel; `refused`: `refusals()`."""
    for switch, found in forbidding(proc / "sys"):
        if switch.certain:
            return Trouble(f"forbidden by {found}", switch.mend)
    full = [kind for kind, text in (refused or {}).items() if text == FULL]
    if full or FULL in said:
        names = [f"user.max_{kind}_namespaces" for kind in full or ("user",)]
        # One that is full fills those after it: the first is it.
        return Trouble(
            f"the host counts namespaces, and no more are allowed ({names[0]}); those of zombies count",
            f"sysctl -w {names[0]}=15000",
        )
    if "proc" in said and (covered := _covered(proc)):
        return Trouble(
            f"parts of /proc are covered, as containers do ({covered[0]})",
            "docker run --security-opt systempaths=unconfined ...",
        )
    for switch, found in forbidding(proc / "sys"):
        return Trouble(f"AppArmor lets only programs with a profile ({found})", switch.mend)
    profile = _text(proc / "self/attr/current")
    # "NAME (enforce)" is AppArmor's; other security modules write theirs into the same file.
    if profile.endswith(" (enforce)"):
        return Trouble(
            f"the AppArmor profile {profile} holds us",
            "docker run --security-opt apparmor=unconfined ...",
        )
    if "\nSeccomp:\t2" in _text(proc / "self/status"):
        return Trouble(
            "a seccomp filter holds us, as a container's does",
            "docker run --security-opt seccomp=unconfined ...",
        )
    return Trouble("the host does not say why", CONTAINER_MEND)


def _covered(proc: Path) -> list[str]:
    """Mounts below /proc: the kernel lets nobody mount a whole one then (mount_too_revealing)."""
    lines = [line.split() for line in _text(proc / "self/mountinfo").splitlines()]
    allowed = "/proc/sys/fs/binfmt_misc"
    return [line[4] for line in lines if line[4].startswith("/proc/") and line[4] != allowed]


def _text(path: Path) -> str:
    try:
        return path.read_text().rstrip("\0\n")
    except OSError:
        return ""


def unreaped(patience_s: float = 1.0) -> str:
    """The name of the process that orphans go to, if it has not reaped one for so long; else empty."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read) as said:

        def leave_an_orphan() -> None:
            if pid := os.fork():
                os.write(write, f"{pid}".encode())
                os._exit(0)

        attempt(leave_an_orphan)
        os.close(write)
        orphan = int(said.read())
    end = time.monotonic() + patience_s
    while parent := _parent(orphan):
        if time.monotonic() >= end:
            return f"{_text(Path(f'/proc/{parent}/comm'))} (pid {parent})"
        time.sleep(0.01)
    return ""


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def zombies() -> dict[int, int]:
    """How many zombies each process has left unreaped that has any."""
    found: Counter[int] = Counter()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found[int(parent)] += state == "Z"
    return {parent: count for parent, count in found.items() if count}
