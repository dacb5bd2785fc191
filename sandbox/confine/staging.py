"""Owns the way to host folders that an unprivileged bwrap may not walk to, such as code under /root.

Started by root, bwrap runs as a uid that owns nothing, and opens what it mounts by path (its
--ro-bind-fd, too, resolves the descriptor to a path: verified with 0.8.0). So the thread that starts it
has a mount namespace of its own, in which each such source is bound below a fresh tmpfs for as long as a
launch takes. The namespace, and with it every mount, is gone when the thread is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from sandbox.confine.mounts import MS_BIND, MS_NODEV, MS_NOSUID, MS_REC, mount, unmount, unshare

STAGE = next(path for path in ("/sys/kernel", "/run") if os.path.isdir(path))
"""Covered by a tmpfs in the private namespace only: a folder on every host of which nobody binds anything
(functions may well lie in /run, /tmp, /srv or /mnt) and bwrap needs nothing."""


@dataclass(frozen=True, slots=True)
class Bridge:
    """`source` on the host, and where the launch finds it instead."""

    source: str
    place: str


class Stage:
    """Used by one thread only: the namespace is that thread's."""

    def __init__(self) -> None:
        """Raises OSError where the thread may not have a mount namespace of its own."""
        unshare()
        mount("lambox", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")

    def put(self, bridge: Bridge) -> None:
        os.makedirs(os.path.dirname(bridge.place), exist_ok=True)
        if os.path.isdir(bridge.source):
            os.mkdir(bridge.place)
        else:
            os.close(os.open(bridge.place, os.O_CREAT | os.O_CLOEXEC))
        mount(bridge.source, bridge.place, None, MS_BIND | MS_REC)

    def remove(self, bridge: Bridge) -> None:
        with suppress(OSError):
            unmount(bridge.place)
            if os.path.isdir(bridge.place):
                os.rmdir(bridge.place)
            else:
                os.unlink(bridge.place)
            os.rmdir(os.path.dirname(bridge.place))


def walkable(path: str) -> bool:
    """Whether any user can walk to `path`: every folder above it lets others pass."""
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def bridges(sources: list[str], name: str) -> dict[str, Bridge]:
    """The sources that need one. `name` is the sandbox's: places are its own. Raises OSError."""
    found: dict[str, Bridge] = {}
    for source in sources:
        real = os.path.realpath(source)
        try:
            reached = walkable(real)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, source) from exc
        if not reached and source not in found:
            found[source] = Bridge(real, f"{STAGE}/lambox-{name}/{len(found)}")
    return found
