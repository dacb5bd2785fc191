"""A FUSE file system that answers until it is told to stand still: what a dead NFS server or sshfs looks like.

The protocol is linux/fuse.h's, version 7.31, as far as reading a flat folder of files needs it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sandbox.confine import mounts

IN = struct.Struct("=IIQQIIIHH")
OUT = struct.Struct("=IiQ")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 25, 26, 27, 28, 29, 36, 42
ROOT = 1


class Fuse:
    """Made by `mounted`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._names = list(files)
        self._contents = list(files.values())
        self._going = threading.Event()
        self._going.set()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def stand_still(self) -> None:
        """From the next request on nothing is answered, and whoever asks waits."""
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    def _serve(self) -> None:
        while True:
            # One request is taken and kept while it stands still: the kernel can only wait for that one.
            try:
                request = os.read(self.fd, 1 << 20)
            except OSError as exc:
                if exc.errno == errno.ENOENT:
                    continue
                return  # unmounted
            self._going.wait()
            header = IN.unpack_from(request)
            opcode, unique, node = header[1:4]
            if opcode in (FORGET, INTERRUPT, BATCH_FORGET):
                continue
            answer = self._answer(opcode, node, request[IN.size :])
            error, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.write(self.fd, OUT.pack(OUT.size + len(body), error, unique) + body)
            except OSError as exc:
                if exc.errno != errno.ENOENT:  # the asker was killed meanwhile
                    return

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        if opcode == INIT:
            return struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 65536, 1, 0, 0, 0)
        if opcode == LOOKUP:
            name = body.rstrip(b"\0").decode()
            if name not in self._names:
                return errno.ENOENT
            node = ROOT + 1 + self._names.index(name)
            return struct.pack("=QQQQII", node, 0, 0, 0, 0, 0) + self._attr(node)
        if opcode == GETATTR:
            return struct.pack("=QII", 0, 0, 0) + self._attr(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("=QII", 0, 0, 0)
        if opcode == READ:
            offset, size = struct.unpack_from("=QI", body, 8)
            return self._contents[node - ROOT - 1][offset : offset + size]
        if opcode == READDIR:
            (offset,) = struct.unpack_from("=Q", body, 8)
            return b"".join(self._entries()[offset:])
        if opcode in (FLUSH, RELEASE, RELEASEDIR):
            return b""
        return errno.ENOSYS

    def _entries(self) -> list[bytes]:
        found = []
        for number, name in enumerate(self._names, 1):
            entry = struct.pack("=QQII", ROOT + number, number, len(name), stat.S_IFREG >> 12)
            entry += name.encode()
            found.append(entry + b"\0" * (-len(entry) % 8))
        return found

    def _attr(self, node: int) -> bytes:
        folder = node == ROOT
        size = 0 if folder else len(self._contents[node - ROOT - 1])
        mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644
        return ATTR.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextmanager
def mounted(place: Path, files: Mapping[str, bytes]) -> Iterator[Fuse]:
    """`files` at `place`, which is made. Nothing is cached by the kernel: every look asks."""
    place.mkdir(parents=True)
    fuse = Fuse(files)
    options = f"fd={fuse.fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    mounts.mount("fuse-standin", str(place), "fuse", 0, options)
    try:
        fuse.thread.start()
        yield fuse
    finally:
        fuse.go_on()
        mounts.unmount(str(place))
        # Whatever still has it mounted gets ENOTCONN.
        os.close(fuse.fd)
