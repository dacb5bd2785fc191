"""Owns noticing changes on disk by inotify: which owners' trees were touched since the last look.

An owner is any name (a function's). Watches are set folder by folder, since inotify knows no trees;
one folder may belong to several owners (a layer used by many functions).

    WatchUnavailable    no inotify here, or its limits are used up; look at the files then
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from array import array
from collections.abc import Iterable
from pathlib import Path

from inotify_simple import Event, INotify, flags  # type: ignore[import-untyped]

from rootfs.fingerprint import folders, ignored

MASK = (
    flags.CREATE | flags.DELETE | flags.MODIFY | flags.CLOSE_WRITE | flags.ATTRIB
    | flags.MOVED_FROM | flags.MOVED_TO | flags.DELETE_SELF | flags.MOVE_SELF
)  # fmt: skip
EVERYTHING = "*"
"""Among the touched: events were lost, every owner must be looked at."""
REMEDY = "sysctl fs.inotify.max_user_watches=1048576 fs.inotify.max_user_instances=1024"


class WatchUnavailable(Exception):
    """inotify cannot be used for this."""


class Watch:
    """Close it; or use it as a context manager."""

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as exc:
            raise WatchUnavailable(
                f"inotify cannot be used: {exc.strerror}. Hint: {REMEDY}"
            ) from exc
        self._fd = int(self._inotify.fileno())
        self._waiting = array("i", [0])
        """Bytes of events to be read. Asked for here: inotify_simple makes ctypes objects for it, each time."""
        self._owners: dict[int, dict[str, str]] = {}
        """watch descriptor -> owner -> the one file name of interest, or '' for all."""

    def close(self) -> None:
        self._inotify.close()
        self._fd = -1
        self._owners.clear()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Readable when `touched` has something to tell."""
        return self._fd

    def add_tree(self, owner: str, path: Path) -> None:
        """Watch a folder and all below it. Raises WatchUnavailable; what vanishes is skipped."""
        try:
            names = folders(path)
        except OSError:
            return
        for name in names:
            self._add(owner, name, "")

    def add_file(self, owner: str, path: Path) -> None:
        """Watch one file, which need not exist, through its folder: editors replace files."""
        self._add(owner, str(path.parent), path.name)

    def add_folder(self, owner: str, path: Path) -> None:
        """Watch a folder alone: what appears in it and goes."""
        self._add(owner, str(path), "")

    def _add(self, owner: str, folder: str, only: str) -> None:
        try:
            descriptor = self._inotify.add_watch(folder, MASK)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return
            raise WatchUnavailable(
                f"cannot watch {folder}: {os.strerror(exc.errno or 0)}. Hint: {REMEDY}"
            ) from exc
        owners = self._owners.setdefault(descriptor, {})
        if owners.get(owner, only) != only:
            only = ""
        owners[owner] = only

    def forget(self, owner: str) -> None:
        """Give up every watch that only this owner needs."""
        for descriptor, owners in list(self._owners.items()):
            if owners.pop(owner, None) is not None and not owners:
                del self._owners[descriptor]
                try:
                    self._inotify.rm_watch(descriptor)
                except OSError:
                    continue  # its folder is gone, and the watch with it

    def touched(self) -> set[str]:
        """Owners with a change since the last call. Never blocks; one ioctl if there is none."""
        fcntl.ioctl(self._fd, termios.FIONREAD, self._waiting)
        if not self._waiting[0]:
            return set()
        return self._owners_of(self._inotify.read(timeout=0))

    def _owners_of(self, events: Iterable[Event]) -> set[str]:
        found: set[str] = set()
        for event in events:
            descriptor, mask, name = event.wd, event.mask, event.name
            if mask & flags.Q_OVERFLOW:
                found.add(EVERYTHING)
                continue
            owners = self._owners.get(descriptor)
            if owners is None or (name and ignored(name)):
                continue
            found.update(
                owner for owner, only in owners.items() if not only or not name or only == name
            )
            if mask & flags.IGNORED:
                self._owners.pop(descriptor, None)
        return found
