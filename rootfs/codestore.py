"""Owns deployment packages on disk: each zip as it came, and unpacked, under the SHA-256 of the zip.

    FOLDER/zips/HEX.zip     as it was uploaded
    FOLDER/trees/HEX/       unpacked, read-only to functions

Both are made beside their place, synced, and published by one rename: what has its name is whole, however the
server ended. Immutable, so a package that many versions use is there once.

    BadPackage          the zip cannot be used; the message says why
    TooLarge            it is larger unzipped than it may be
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rootfs.trees import MAX_UNZIPPED, LayerProblem, ZipTooLarge, unzip

MAKING = ".making-"


class BadPackage(Exception):
    """The message says what is wrong with the zip."""


class TooLarge(BadPackage):
    pass


@dataclass(frozen=True, slots=True)
class Package:
    """One stored deployment package."""

    tree: str
    """SHA-256 of the zip in hex."""
    sha256: str
    """The same in base64, as AWS's CodeSha256."""
    size: int
    """Bytes of the zip."""


class CodeStore:
    """Keeps packages under `folder` (made if missing). Holds nothing open; all methods block."""

    def __init__(self, folder: Path, *, limit: int = MAX_UNZIPPED) -> None:
        self.folder = folder
        self.limit = limit

    def tree(self, name: str) -> Path:
        """Where the unpacked package is (whether it is or not)."""
        return self.folder / "trees" / name

    def zip(self, name: str) -> Path:
        return self.folder / "zips" / f"{name}.zip"

    def check(self, data: bytes) -> Package:
        """What `put` would give, with nothing kept. Raises BadPackage."""
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=self._made()) as work:
            archive = Path(work, "zip")
            archive.write_bytes(data)
            self._unpack(archive, Path(work, "tree"))
        return describe(data)

    def put(self, data: bytes) -> Package:
        """Keep a zip, unpacked too. Raises BadPackage, OSError."""
        package = describe(data)
        if self.tree(package.tree).is_dir() and self.zip(package.tree).is_file():
            return package
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=self._made()) as work:
            archive, tree = Path(work, "zip"), Path(work, "tree")
            with archive.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._unpack(archive, tree)
            _sync_tree(tree)
            _publish(archive, self.zip(package.tree))
            _publish(tree, self.tree(package.tree))
        return package

    def _unpack(self, archive: Path, tree: Path) -> None:
        tree.mkdir(mode=0o755)
        try:
            unzip(archive, tree, self.limit, root="/var/task/")
        except ZipTooLarge as exc:
            raise TooLarge(f"Unzipped size must be smaller than {self.limit} bytes") from exc
        except LayerProblem as exc:
            raise BadPackage(str(exc)) from exc

    def _made(self) -> Path:
        for name in ("zips", "trees"):
            (self.folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        return self.folder

    def sweep(self, used: Collection[str]) -> int:
        """Remove what is not named in `used`, and what a killed server left half made. Returns how many went."""
        gone = 0
        if not self.folder.is_dir():
            return 0
        for path in self.folder.glob(f"{MAKING}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "trees").glob("*"):
            if path.name not in used:
                # Renamed first: half a tree must never be found under its name.
                grave = self.folder / f"{MAKING}{path.name}"
                path.rename(grave)
                shutil.rmtree(grave, ignore_errors=True)
                gone += 1
        for path in (self.folder / "zips").glob("*.zip"):
            if path.stem not in used:
                path.unlink(missing_ok=True)
        return gone


def describe(data: bytes) -> Package:
    digest = hashlib.sha256(data)
    return Package(digest.hexdigest(), base64.b64encode(digest.digest()).decode(), len(data))


def _publish(made: Path, place: Path) -> None:
    try:
        made.rename(place)
    except OSError:
        if not place.exists():  # otherwise another request was faster
            raise
    fd = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_tree(tree: Path) -> None:
    """One syncfs(2) costs what the disk has to write; thousands of fsync(2) cost a journal commit each."""
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs", str(tree))
    finally:
        os.close(fd)
