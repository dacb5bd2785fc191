"""Owns loop devices: a file, which may have no name, becomes a block device until nobody uses that any more.

The ioctls of linux/loop.h. LOOP_CONFIGURE is Linux 5.8's; what a device is for (late mounts) needs 5.12.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass

CONTROL = "/dev/loop-control"
LOOP_CTL_GET_FREE, LOOP_CONFIGURE, LOOP_GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C05
LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO = 4, 16
LOOP_MAJOR = 7
INFO = struct.Struct("=5Q4I64s64s32s2Q")
"""struct loop_info64"""
CONFIG = struct.Struct(f"=2I{INFO.size}s64s")
"""struct loop_config"""
NAME_FIELD = 9
TRIES = 64
"""Between asking for a free number and taking it, any other process may have taken it."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A device that holds its file. `close` lets go of it, unless a file system is mounted from it."""

    path: str
    fd: int
    made: bool = False
    """The node at `path` was made by us, and is removed by `close`."""

    def close(self) -> None:
        os.close(self.fd)
        if self.made:
            os.unlink(self.path)


def bind(image: int, name: str, *, block: int, folder: str) -> Loop:
    """Put the file `image` behind a free device with blocks of `block` bytes. Raises OSError.

    `name` (63 bytes at most) is what LOOP_GET_STATUS64 says of it. Direct I/O, where the file's own file
    system has it (otherwise the kernel does without): its pages are not cached twice.
    `folder`: where a node may be made for a number that /dev has none for, as in a container.
    """
    info = INFO.pack(
        *[0] * 8, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, name.encode(), *[b""] * 2, 0, 0
    )
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            try:
                number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, CONTROL) from exc
            device = _open(number, folder)
            try:
                fcntl.ioctl(device.fd, LOOP_CONFIGURE, CONFIG.pack(image, block, info, b""))
            except OSError as exc:
                device.close()
                if exc.errno != errno.EBUSY:
                    raise OSError(exc.errno, exc.strerror, device.path) from exc
            else:
                return device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "others are faster at taking each free loop device", CONTROL)


def _open(number: int, folder: str) -> Loop:
    path = f"/dev/loop{number}"
    flags = os.O_RDWR | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        return Loop(path, os.open(path, flags))
    # Other threads may be after the same number: each removes its own.
    path = f"{folder}/loop{number}-{os.getpid()}-{threading.get_native_id()}"
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(LOOP_MAJOR, number))
    try:
        return Loop(path, os.open(path, flags), made=True)
    except OSError:
        os.unlink(path)
        raise


def named() -> dict[str, str]:
    """Of every device that holds a file: its path and the name it was given. Devices we may not open lack."""
    found = {}
    for entry in os.scandir("/sys/block"):
        if entry.name.startswith("loop") and os.path.exists(f"{entry.path}/loop/backing_file"):
            with suppress(OSError):
                found[f"/dev/{entry.name}"] = _name(f"/dev/{entry.name}")
    return found


def _name(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = INFO.unpack(fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(INFO.size)))
    finally:
        os.close(fd)
    return bytes(info[NAME_FIELD]).rstrip(b"\0").decode("utf-8", "replace")
