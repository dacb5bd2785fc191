"""Owns ext4 file systems in sparse files, each mounted once, nowhere yet, and never used again.

One is made with mkfs.ext4 and measured, per size; of its some ten blocks that are not zero every further one is a
copy, in 1 ms. The file never has a name, the mount and the loop device go with the last descriptor: whatever
kills the supervisor, the kernel takes all of it away.

What "exactly `size` bytes" means: statvfs(3) says `size` bytes are available, one file takes them when written
from front to back, and not one block more. As on any ext4, folders that grow, extended attributes and the
extents of files in many pieces take blocks of their own; inode tables and bitmaps are not paid from `size`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.confine import loops, mounts
from sandbox.confine.spec import MIB, IsolationUnavailable

BLOCK = 4096
INODE_SIZE = 256
BYTES_PER_INODE = 8192
"""65,536 files and folders in 512 MB."""
FEATURES = (
    "none,extent,filetype,dir_index,flex_bg,uninit_bg,extra_isize,large_file,huge_file,dir_nlink,"
    "sparse_super2"
)
"""ext4(5). No journal: nothing in it is to outlive a crash. No checksums: nobody else writes to the file."""
OPTIONS: dict[str, str | None] = {
    "errors": "remount-ro",  # what contradicts itself is written to no further; never "panic"
    "barrier": "0",  # a function's fsync ends here, and is no commit of the host's journal
    "noauto_da_alloc": None,
    "noinit_itable": None,  # zeroes in the background are blocks of a sparse file
    "nodiscard": None,
}
MANY_EXTENTS = 512 * MIB
"""From here on a file has more extents than an inode holds (four of 128 MiB), and a block for them."""
FIT_TRIES = 8
MKFS_LIMIT_S = 20.0
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
PASSING = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EBUSY,
    errno.EAGAIN,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)
"""What may be otherwise in a moment; all else is how this host is."""
NO_DEVICE = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTTY)


@dataclass(frozen=True, slots=True)
class _Template:
    length: int
    blocks: tuple[tuple[int, bytes], ...]
    """Offset and content of what is not zero."""


class Images:
    """Makes them; for any thread. Holds nothing open."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder`: on a disk; made, for root alone, when first needed. `name` is told to the loop devices."""
        self._folder = str(folder)
        self._name = name
        self._templates: dict[int, _Template] = {}
        self._fitting = threading.Lock()

    def make(self, size: int) -> int:
        """A mount (nosuid, nodev) for `size` bytes, whose root is 01777 and empty.

        Raises OSError, or IsolationUnavailable where mkfs.ext4 or a disk is lacking. Closing the
        descriptor gives all of it back; that may have to write first what has not been written.
        """
        template = self._templates.get(size)
        if template is None:
            with self._fitting:
                template = self._templates.get(size) or self._fit(size)
                self._templates[size] = template
        self._check_room(size)
        image = self._file()
        try:
            _write(image, template)
            return self._mount(image)
        finally:
            os.close(image)

    def _check_room(self, size: int) -> None:
        room = os.statvfs(self._folder)
        if room.f_bavail * room.f_frsize < size:
            free = f"{room.f_bavail * room.f_frsize // MIB} MB are free, not {size // MIB}"
            raise OSError(errno.ENOSPC, free, self._folder)

    def _fit(self, size: int) -> _Template:
        """What the kernel and mkfs.ext4 keep for themselves differs between versions: so it is looked at."""
        self._make_folder()
        wanted = size // BLOCK + (size >= MANY_EXTENTS)
        inodes = max(size // BYTES_PER_INODE, 64)
        total = _total(wanted, inodes)
        found: dict[int, _Template] = {}
        for _ in range(FIT_TRIES):
            template, available = self._try(total, inodes)
            if available >= wanted:
                found[available] = template
            if available == wanted:
                break
            total += wanted - available
        if not found:
            raise OSError(errno.EINVAL, f"no ext4 of {size} bytes can be made", self._folder)
        return found[min(found)]

    def _try(self, total: int, inodes: int) -> tuple[_Template, int]:
        """An empty file system of `total` blocks, and how many of them can be written."""
        image = self._file()
        try:
            _write(image, _mkfs(total, inodes))
            fd = self._mount(image)
            try:
                with suppress(FileNotFoundError):
                    os.rmdir("lost+found", dir_fd=fd)
                os.chmod(f"/proc/self/fd/{fd}", 0o1777)
                available = os.statvfs(fd).f_bavail
            finally:
                os.close(fd)
            return _read(image), available
        finally:
            os.close(image)

    def _mount(self, image: int) -> int:
        device = loops.bind(image, self._name, block=BLOCK, folder=self._folder)
        try:
            return mounts.new_mount("ext4", device.path, OPTIONS)
        finally:
            device.close()

    def _make_folder(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        if mounts.is_memory(self._folder):
            raise IsolationUnavailable(
                f"{self._folder} is itself in memory", "lambox serve --state FOLDER_ON_A_DISK"
            )

    def _file(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._folder, flags | os.O_TMPFILE, 0o600)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
        # No O_TMPFILE there (overlayfs before Linux 6.2). Killed between these two lines, an empty file stays.
        fd, path = tempfile.mkstemp(prefix="image-", dir=self._folder)
        os.unlink(path)
        return fd


def _total(wanted: int, inodes: int) -> int:
    """How many blocks are probably to be asked for, so that `wanted` can be written (ext4's disk layout)."""
    total = wanted
    for _ in range(FIT_TRIES):
        groups = -(-total // (8 * BLOCK))
        tables = groups * -(-inodes // (groups * (BLOCK // INODE_SIZE)))
        # Two bitmaps a group; superblock, group descriptors, the root folder; what the kernel keeps for extents.
        total = wanted + tables + 2 * groups + 3 + min(total // 50, 4096)
    return total


def _mkfs(total: int, inodes: int) -> _Template:
    """In memory: it writes some 100 KB."""
    program = shutil.which("mkfs.ext4", path=PATH)
    if program is None:
        raise IsolationUnavailable("mkfs.ext4 is not installed", "apt-get install e2fsprogs")
    fd = os.memfd_create("lambox", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, total * BLOCK)
        argv = [
            program,
            "-q",
            "-F",
            "-b",
            str(BLOCK),
            "-I",
            str(INODE_SIZE),
            "-N",
            str(inodes),
            "-m",
            "0",
        ]
        # Without a UUID udev makes no /dev/disk/by-uuid links, which would all be the same.
        argv += ["-U", "clear", "-O", FEATURES]
        argv += ["-E", "nodiscard,lazy_itable_init=1,num_backup_sb=0"]
        done = subprocess.run(
            [*argv, f"/proc/self/fd/{fd}", str(total)],
            pass_fds=[fd],
            env={"MKE2FS_CONFIG": "/dev/null"},  # the host's defaults are none of ours
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MKFS_LIMIT_S,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise OSError(errno.EIO, f"exit status {done.returncode}: {said}", program)
        return _read(fd)
    except subprocess.SubprocessError as exc:
        raise OSError(errno.EIO, str(exc), program) from exc
    finally:
        os.close(fd)


def _read(fd: int) -> _Template:
    length, end = os.fstat(fd).st_size, 0
    blocks: list[tuple[int, bytes]] = []
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            return _Template(length, tuple(blocks))
        end = os.lseek(fd, start, os.SEEK_HOLE)
        for at in range(start - start % BLOCK, end, BLOCK):
            content = os.pread(fd, BLOCK, at)
            if content.strip(b"\0"):
                blocks.append((at, content))


def _write(fd: int, template: _Template) -> None:
    os.ftruncate(fd, template.length)
    for at, content in template.blocks:
        os.pwrite(fd, content, at)


def refusal(exc: OSError) -> IsolationUnavailable:
    """What keeps this host from having a /tmp on disk, with the mend."""
    said = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)
    if exc.filename == loops.CONTROL and exc.errno in NO_DEVICE:
        return IsolationUnavailable(f"there are no loop devices ({said})", "modprobe loop")
    if exc.errno == errno.ENODEV:
        return IsolationUnavailable(f"this kernel has no ext4 ({said})", "modprobe ext4")
    if exc.errno in (errno.EPERM, errno.EACCES):
        mend = "sudo lambox serve (in a container: docker run --privileged ...)"
        return IsolationUnavailable(said, mend)
    return IsolationUnavailable(said, "lambox serve --tmp memory")
