"""Owns a folder as a deployment package: one zip, the same bytes for the same content on every host.

Names are sorted, times are left out, nothing is compressed: so its SHA-256 is that of the content, and costs no more
than reading it. What `fingerprint` does not look at (byte code, .git) is not in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import zipfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rootfs.fingerprint import walk

UNIX = 3
"""create_system of entries whose modes and links count (APPNOTE.TXT 4.4.2)."""
EPOCH = (1980, 1, 1, 0, 0, 0)


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Packed:
    """A folder's package as it was when it was read."""

    tree: str
    """SHA-256 of the zip, in hex."""
    sha256: str
    """The same in base64, as AWS's CodeSha256."""
    size: int
    """Bytes of the zip."""
    modified: float
    """When the newest of its files was written; seconds since the epoch."""


class _Nothing:
    def write(self, data: bytes, /) -> int:
        return len(data)


class _Stream:
    """What zipfile writes to: it cannot seek, so that a file and nothing at all get the same bytes."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        self.size += len(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def pack(folder: Path, sink: _Sink | None = None) -> Packed:
    """Write `folder` as a zip to `sink`, or nowhere. Blocks while it reads all of it. Raises OSError,
    and ValueError for a file whose name is no UTF-8."""
    stream = _Stream(sink or _Nothing())
    modified = 0.0
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, info in walk(folder):
            if not stat.S_ISDIR(info.st_mode):
                modified = max(modified, info.st_mtime)
            if name:
                _add(archive, folder / name, name, info)
    digest = stream.digest
    return Packed(
        digest.hexdigest(),
        b64encode(digest.digest()).decode(),
        stream.size,
        modified or folder.stat().st_mtime,
    )


def _add(archive: zipfile.ZipFile, path: Path, name: str, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        archive.writestr(_entry(name + "/", stat.S_IFDIR | 0o755), b"")
    elif stat.S_ISLNK(info.st_mode):
        archive.writestr(_entry(name, stat.S_IFLNK | 0o777), os.fsencode(os.readlink(path)))
    elif stat.S_ISREG(info.st_mode):
        mode = 0o755 if info.st_mode & 0o111 else 0o644
        entry = _entry(name, stat.S_IFREG | mode)
        entry.file_size = info.st_size  # otherwise zipfile would not expect more than 2 GiB
        with path.open("rb") as source, archive.open(entry, "w") as target:
            shutil.copyfileobj(source, target, 1024 * 1024)


def _entry(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system = UNIX
    entry.external_attr = mode << 16
    return entry
