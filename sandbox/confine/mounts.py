"""Owns mount system calls: one thread's own mount namespace, and mounts put into somebody else's.

Late mounts: a copy of a host folder is made here (open_tree(2)), made read-only (mount_setattr(2)), and put
into a sandbox that stands already (setns(2), move_mount(2)). Linux 5.12. ctypes lets go of the GIL meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence

CLONE_NEWNS = 0x20000
"""linux/sched.h"""
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 2, 4, 4096, 16384, 1 << 18, 1 << 19
MNT_DETACH = 2
"""linux/mount.h, sys/mount.h"""
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
"""asm-generic/unistd.h; the same on every architecture since Linux 5.1."""
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC = 1, 1
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
"""linux/fcntl.h, linux/mount.h"""
TMPFS_MAGIC, RAMFS_MAGIC = 0x01021994, 0x858458F6
"""linux/magic.h"""

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


def is_memory(path: str) -> bool:
    """Whether `path` is on a file system that has no disk under it (statfs(2)). Raises OSError."""
    told = (ctypes.c_long * 64)()  # f_type is the first word of struct statfs, which has 120 bytes
    _checked(_libc.statfs(os.fsencode(path), told), path)
    return told[0] in (TMPFS_MAGIC, RAMFS_MAGIC)


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


def new_mount(kind: str, source: str, options: Mapping[str, str | None]) -> int:
    """A file system mounted nowhere yet (fsopen(2), fsmount(2)): nosuid, nodev, private.

    An option of None is a flag. Raises OSError naming `source`, with what the kernel says of it. The
    mount goes with its last descriptor (O_PATH), unless `attach` has put it somewhere.
    """
    context = _checked(_libc.syscall(SYS_FSOPEN, kind.encode(), FSOPEN_CLOEXEC), kind)
    try:
        _configure(context, FSCONFIG_SET_STRING, "source", source)
        for key, value in options.items():
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            _configure(context, command, key, value)
        _configure(context, FSCONFIG_CMD_CREATE, None, None)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
        return _checked(_libc.syscall(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes), source)
    except OSError as exc:
        raise OSError(exc.errno, f"{exc.strerror}{_said(context)}", source) from exc
    finally:
        os.close(context)


def _configure(context: int, command: int, key: str | None, value: str | None) -> None:
    words = [None if text is None else text.encode() for text in (key, value)]
    _checked(_libc.syscall(SYS_FSCONFIG, context, command, *words, 0), key or "")


def _said(context: int) -> str:
    try:
        return f" ({os.read(context, 1024).decode('utf-8', 'replace').strip()})"
    except OSError:
        return ""  # the kernel had nothing to say


def probe() -> str:
    """Why mounts cannot be attached late on this host; empty if they can."""
    try:
        os.close(copy_read_only("/usr"))
        os.close(new_mount("tmpfs", "lambox", {}))
    except OSError as exc:
        return f"open_tree(2) and mount_setattr(2) of Linux 5.12 are not to be had: {exc.strerror}"
    return ""


def attach(pidfd: int, trees: Sequence[tuple[int, str]]) -> None:
    """Put each copy (`copy_read_only`, `new_mount`) at its target in the mount namespace of the process `pidfd`.

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
