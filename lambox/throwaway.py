"""Owns the state folder of `--state :memory:`: a private temporary one, gone when the server is.

    TMPDIR/lambox-memory-UID/       ours alone; locked (flock(2)) while something in it is made or removed
        RANDOM/                     one server's state, locked by it while it lives

What a killed server left is removed by the next one: the kernel has let go of its lock. It is a folder and not memory
alone, since functions have their code from there by a mount; where TMPDIR is a tmpfs nothing of it touches a disk.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox.confine import privilege

NAME = ":memory:"
PREFIX = "lambox-memory-"


def wanted(state: Path) -> bool:
    """Also of a relative path that was made absolute."""
    return state.name == NAME


def place(state: Path) -> Path:
    """The folder in which `state` will be."""
    return Path(tempfile.gettempdir()) if wanted(state) else state


def in_use(parent: Path) -> bool:
    """Whether every folder in it is a living server's (for tests, which look for what is left behind)."""
    if not parent.name.startswith(PREFIX):
        return False
    locks = [_locked(folder, wait=False) for folder in parent.iterdir()]
    for lock in locks:
        if lock is not None:
            os.close(lock)
    return bool(locks) and not any(lock is not None for lock in locks)


@contextmanager
def throwaway_state() -> Iterator[Path]:
    """A fresh folder; removed at the end with all that is in it. Blocks. Raises OSError."""
    with _parent() as parent:
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(dir=parent))
        lock = _locked(folder, wait=False)
    assert lock is not None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with suppress(OSError), _parent() as parent:
            parent.rmdir()  # refused while another server's is in it


@contextmanager
def _parent() -> Iterator[Path]:
    """Made if missing, and locked. Raises OSError."""
    parent = Path(tempfile.gettempdir(), f"{PREFIX}{privilege.host_uid()}")
    while True:
        with suppress(FileExistsError):
            parent.mkdir(mode=0o700)
        try:
            lock = _locked(parent, wait=True)
        except FileNotFoundError:
            continue  # another server has just ended
        assert lock is not None
        found = os.fstat(lock)
        if found.st_nlink > 0:
            break
        os.close(lock)
    try:
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(
                0, "is not a folder of ours alone. Hint: remove it, or set TMPDIR", str(parent)
            )
        yield parent
    finally:
        os.close(lock)


def _sweep(parent: Path) -> None:
    for folder in parent.iterdir():
        lock = _locked(folder, wait=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None: somebody else has it. Links are not followed."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(fd)
        return None
    return fd
