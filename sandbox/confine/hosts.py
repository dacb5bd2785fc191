"""Owns recognising what a host does to sandboxes, and the one command that mends each.

Looks only; what a look cannot tell, the doctor tries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.confine import cgroup

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


def userns_remedy(said: str, sysctl: Path = SYSCTL) -> str:
    """What mends a refused user namespace. `said`: the kernel's words."""
    for switch, _ in forbidding(sysctl):
        return switch.mend
    if "No space left" in said:
        return "sysctl -w user.max_user_namespaces=15000 user.max_mnt_namespaces=15000"
    return CONTAINER_MEND
