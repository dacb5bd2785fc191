"""Owns mount system calls: one thread's own mount namespace, and mounts put into somebody else's.

Late mounts: a copy of a host folder is made here (open_tree(2)), made read-only (mount_setattr(2)), and put
into a sandbox that stands already (setns(2), move_mount(2)). Linux 5.12. ctypes lets go of the GIL meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence

CLONE_NEWNS = 0x20000
"""linux/sched.h"""
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 2, 4, 4096, 16384, 1 << 18, 1 << 19
MNT_DETACH = 2
"""linux/mount.h, sys/mount.h"""
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
"""asm-generic/unistd.h; the same on every architecture since Linux 5.1."""
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
"""linux/fcntl.h, linux/mount.h"""

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, path: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    call = _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    _checked(call, target)


def unmount(target: str) -> None:
    """Lazily (MNT_DETACH): whoever has it mounted elsewhere keeps it."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), target)


def unshare() -> None:
    """A mount namespace of the calling thread's own, which still learns of the host's new mounts."""
    _checked(_libc.unshare(CLONE_NEWNS), "/")
    mount("none", "/", None, MS_REC | MS_SLAVE)


def set_read_only(fd: int, path: str, *, below: bool = True) -> None:
    """The mount that `fd` is the root of becomes read-only, nosuid, nodev and private; `below`: all under it too."""
    wanted = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    attr = _MountAttr(wanted, 0, MS_PRIVATE, 0)
    how = AT_EMPTY_PATH | (AT_RECURSIVE if below else 0)
    size = ctypes.sizeof(attr)
    _checked(_libc.syscall(SYS_MOUNT_SETATTR, fd, b"", how, ctypes.byref(attr), size), path)


def copy_read_only(path: str) -> int:
    """A detached copy of the mounts at `path`: read-only, nosuid, nodev. Closing the descriptor undoes it."""
    fd = _checked(
        _libc.syscall(
            SYS_OPEN_TREE,
            AT_FDCWD,
            os.fsencode(path),
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE,
        ),
        path,
    )
    try:
        set_read_only(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def probe() -> str:
    """Why mounts cannot be attached late on this host; empty if they can."""
    try:
        os.close(copy_read_only("/usr"))
    except OSError as exc:
        return f"open_tree(2) and mount_setattr(2) of Linux 5.12 are not to be had: {exc.strerror}"
    return ""


def attach(pidfd: int, trees: Sequence[tuple[int, str]]) -> None:
    """Put each copy (`copy_read_only`) at its target in the mount namespace of the process `pidfd`.

    For a thread that has called `unshare`. Raises OSError naming the path; nothing is attached by halves
    that matters: the caller gives the sandbox up. The descriptors stay the caller's to close.
    """
    own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/mnt", os.O_RDONLY)
    try:
        _checked(_libc.setns(pidfd, CLONE_NEWNS), "setns")
        try:
            for tree, target in trees:
                move(tree, target)
        finally:
            _checked(_libc.setns(own, CLONE_NEWNS), "setns")
    finally:
        os.close(own)


def move(tree: int, target: str) -> None:
    """Put a copy at `target`; its descriptor is still the caller's to close."""
    call = _libc.syscall(
        SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
    )
    _checked(call, target)
