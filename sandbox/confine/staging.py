"""Owns the way to host folders that an unprivileged bwrap may not walk to, such as code under /root.

Started by root, bwrap runs as a uid that owns nothing, and opens what it mounts by path (its
--ro-bind-fd, too, resolves the descriptor to a path: verified with 0.8.0). So the thread that starts it
has a mount namespace of its own, in which each such source is bound below a fresh tmpfs for as long as a
launch takes. The namespace, and with it every mount, is gone when the thread is.

The same thread keeps the roots that many sandboxes have in common, put together once: bwrap then binds one
folder instead of forty, which halves what a sandbox costs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rootfs.layout import Bind, Dev, Directory, Entry, Proc, Symlink, Text, Tmpfs
from sandbox.confine.mounts import (
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_REC,
    copy_read_only,
    mount,
    move,
    set_read_only,
    unmount,
    unshare,
)

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

        self._roots = 0

    def compose(self, entries: Sequence[Entry]) -> str:
        """Where the root made of `entries` stands, read-only as a whole. Raises OSError, OutOfOrder.

        What is each sandbox's own (Tmpfs, Proc, Dev) is an empty folder there.
        """
        fixed = [entry for entry in entries if not isinstance(entry, Tmpfs | Proc | Dev)]
        own = [entry.target for entry in entries if isinstance(entry, Tmpfs | Proc | Dev)]
        if any(f"{one.target}/".startswith(f"{target}/") for one in fixed for target in own):
            raise OutOfOrder
        self._roots += 1
        place = f"{STAGE}/lambox-root-{self._roots}"
        os.mkdir(place)
        mount("lambox", place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
        try:
            for entry in fixed:
                _compose(place, entry)
            for target in own:
                _folders(place, target)
            fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
            try:
                set_read_only(fd, place)
            finally:
                os.close(fd)
        except OSError:
            self.dismantle(place)
            raise
        return place

    def put(self, bridge: Bridge) -> None:
        os.makedirs(os.path.dirname(bridge.place), exist_ok=True)
        if os.path.isdir(bridge.source):
            os.mkdir(bridge.place)
        else:
            os.close(os.open(bridge.place, os.O_CREAT | os.O_CLOEXEC))
        mount(bridge.source, bridge.place, None, MS_BIND | MS_REC)

    def dismantle(self, place: str) -> None:
        """Take apart what `compose` has put together there."""
        with suppress(OSError):
            unmount(place)
            os.rmdir(place)

    def remove(self, bridges: Collection[Bridge]) -> None:
        for bridge in bridges:
            with suppress(OSError):
                unmount(bridge.place)
                if os.path.isdir(bridge.place):
                    os.rmdir(bridge.place)
                else:
                    os.unlink(bridge.place)
                os.rmdir(os.path.dirname(bridge.place))


class OutOfOrder(Exception):
    """An entry stands on something that every sandbox has for itself: this root cannot be shared."""


def _compose(place: str, entry: Entry) -> None:
    path = place + entry.target
    match entry:
        case Bind(source, target):
            tree = copy_read_only(source)
            try:
                if os.path.isdir(source):
                    _folders(place, target)
                else:
                    _folders(place, os.path.dirname(target))
                    if not os.path.lexists(path):
                        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
                move(tree, path)
            finally:
                os.close(tree)
        case Symlink(to, target):
            _folders(place, os.path.dirname(target))
            os.symlink(to, path)
        case Text(content, target):
            _folders(place, os.path.dirname(target))
            with open(path, "x") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o444)
        case Directory(target):
            _folders(place, target)


def _folders(place: str, target: str) -> None:
    """mkdir -p, whatever the umask."""
    path = place
    for name in target.strip("/").split("/"):
        path = f"{path}/{name}"
        if name and not os.path.isdir(path):
            os.mkdir(path)
            os.chmod(path, 0o755)


def walkable(path: str) -> bool:
    """Whether any user can walk to `path`: every folder above it lets others pass."""
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def bridges(sources: Sequence[str], name: str) -> dict[str, Bridge]:
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
