"""Owns the question what this process may do here: "is root" has more than one meaning.

Root of the host, root of a container, root of a user namespace of our own (`userns`) and an ordinary user
differ in what the kernel lets them do. So nobody asks for uid 0: each asks for what it needs.
"""

from __future__ import annotations

import os
from pathlib import Path

CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN = 6, 7, 21
"""linux/capability.h"""
INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""PROC_USER_INIT_INO of linux/proc_ns.h: the same since Linux 3.8."""


def has(*capabilities: int) -> bool:
    """Whether they are in effect, in whatever user namespace we are in."""
    held = int(_field("/proc/self/status", "CapEff"), 16)
    return all(held >> capability & 1 for capability in capabilities)


def may_mount() -> bool:
    """Whether mount namespaces of our own can be made and mounted in."""
    return has(CAP_SYS_ADMIN)


def may_change_uid() -> bool:
    """Whether processes of ours can become other users: where one uid is mapped there are none."""
    return has(CAP_SETUID, CAP_SETGID) and sum(map(len, mapped())) > 1


def of_the_host() -> bool:
    """Whether our capabilities are the host's own: devices, loop mounts, nftables of the host."""
    own = os.stat("/proc/self/ns/user").st_ino
    return own == INITIAL_USER_NAMESPACE and may_mount()


def owns_files() -> bool:
    """Whether the root folder is ours, as it is for the root of a host or a container.

    In a user namespace of an ordinary user it shows as nobody's.
    """
    return os.geteuid() == 0 and os.stat("/").st_uid == 0


def mapped() -> list[range]:
    """The uids that there are in our user namespace (user_namespaces(7))."""
    return [range(inside, inside + count) for inside, _, count in _lines()]


def host_uid(uid: int | None = None) -> int:
    """What a uid (None: our own) is called outside of our user namespace."""
    uid = os.getuid() if uid is None else uid
    for inside, outside, count in _lines():
        if uid in range(inside, inside + count):
            return outside + uid - inside
    return uid


def drops_groups() -> bool:
    """Whether setgroups(2) is allowed here; where a user mapped one gid alone it is not."""
    try:
        return Path("/proc/self/setgroups").read_text().strip() != "deny"
    except FileNotFoundError:  # a kernel without user namespaces
        return True


def _lines() -> list[tuple[int, int, int]]:
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return [(int(a), int(b), int(count)) for a, b, count in (line.split() for line in lines)]


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return "0"
