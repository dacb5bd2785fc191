"""Owns deployment packages on disk: each zip as it came, and unpacked, under the SHA-256 of the zip.

    FOLDER/zips/HEX.zip     as it was uploaded
    FOLDER/trees/HEX/       unpacked, read-only to functions

Both are made beside their place, synced, and published by one rename: what has its name is whole, however the
server ended. Immutable, so a package that many versions use is there once. Nobody but lambox may enter FOLDER:
functions see a tree by the mount they are given.

    BadPackage          the zip cannot be used; the message says why
      Empty             there is nothing in it
      TooLarge          it is larger unzipped than it may be
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from rootfs.publishing import publish, sync_file, sync_tree
from rootfs.trees import CHUNK, MAX_UNZIPPED, LayerProblem, ZipTooLarge, unzip

MAKING = ".making-"
GONE = ".gone-"
MOUNTED_AT = ("/var/task/", "/opt/")
"""Where functions see a tree: links in it may lead there. The same zip may be code and layer."""


class BadPackage(Exception):
    """The message says what is wrong with the zip."""


class Empty(BadPackage):
    pass


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
    unzipped: int
    """Bytes of its files."""


class Hold:
    """What is put through it stays in the store until it ends, whoever refers to it. Made by `CodeStore.hold`."""

    def __init__(self, store: CodeStore) -> None:
        self._store = store
        self.names: list[str] = []

    def put(self, source: bytes | BinaryIO) -> Package:
        """Keep a zip, unpacked too; a file is read from its beginning. Raises BadPackage, OSError."""
        return self._store.put(source, hold=self)


class CodeStore:
    """Keeps packages under `folder` (made if missing). Holds nothing open; all methods but `hold` block."""

    def __init__(self, folder: Path, *, limit: int = MAX_UNZIPPED) -> None:
        self.folder = folder
        self.trees = folder / "trees"
        self.limit = limit
        self.on_release: Callable[[], None] = lambda: None
        """Called where a hold ends that held something: nothing may refer to it."""
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()
        """Whoever looks whether a package is there, in order to use it, and whoever takes one away."""

    def tree(self, name: str) -> Path:
        """Where the unpacked package is (whether it is or not)."""
        return self.trees / name

    def zip(self, name: str) -> Path:
        return self.folder / "zips" / f"{name}.zip"

    def has(self, name: str) -> bool:
        return self.tree(name).is_dir() and self.zip(name).is_file()

    def missing(self, names: Collection[str]) -> list[str]:
        """Which of these packages are not there."""
        return sorted(name for name in names if not self.has(name))

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Around `put` and the commit of what refers to the package."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self._release(hold)
            if hold.names:
                self.on_release()

    def _release(self, hold: Hold) -> None:
        with self._lock:
            self._held.subtract(hold.names)
            self._held += Counter()  # forgets those at 0

    def scratch(self) -> BinaryIO:
        """A file without a name on the store's disk, for a zip on its way. Raises OSError."""
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._made()))

    def check(self, source: bytes | BinaryIO) -> Package:
        """What `put` would give, with nothing kept. Raises BadPackage, OSError."""
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=self._made()) as work:
            archive = Path(work, "zip")
            digest, size = _write(source, archive)
            return _package(digest, size, self._unpack(archive, Path(work, "tree")))

    def put(
        self, source: bytes | BinaryIO, *, may_be_empty: bool = False, hold: Hold | None = None
    ) -> Package:
        """The same as `Hold.put`, for who has nobody beside him that throws away. Raises BadPackage, OSError."""
        if hold is None:
            own = Hold(self)
            try:
                return self.put(source, may_be_empty=may_be_empty, hold=own)
            finally:
                self._release(own)
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=self._made()) as work:
            archive, tree = Path(work, "zip"), Path(work, "tree")
            digest, size = _write(source, archive)
            name = digest.hex()
            with self._lock:
                self._held[name] += 1
                hold.names.append(name)
                there = self.has(name)
            if there:
                return _package(digest, size, _size(self.tree(name)))
            unzipped = self._unpack(archive, tree, may_be_empty)
            sync_file(archive)
            sync_tree(tree)
            publish(archive, self.zip(name))
            publish(tree, self.tree(name))
        return _package(digest, size, unzipped)

    def restore(self, name: str) -> None:
        """Unpack a zip anew whose tree is not there, such as after a backup without trees.

        Raises BadPackage, OSError.
        """
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=self._made()) as work:
            tree = Path(work, "tree")
            with self.zip(name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != name:
                    raise BadPackage(f"{self.zip(name)}: is damaged: its SHA-256 is another one")
            self._unpack(self.zip(name), tree, True)
            sync_tree(tree)
            publish(tree, self.tree(name))

    def _unpack(self, archive: Path, tree: Path, may_be_empty: bool = False) -> int:
        tree.mkdir()
        tree.chmod(0o755)  # whatever the umask says
        try:
            # AWS's limit is the first size that is too large (SPEC 10.6).
            size = unzip(archive, tree, self.limit - 1, roots=MOUNTED_AT)
        except ZipTooLarge as exc:
            raise TooLarge(f"Unzipped size must be smaller than {self.limit} bytes") from exc
        except LayerProblem as exc:
            if archive.stat().st_size == 0:
                raise Empty("there is nothing in it") from exc
            raise BadPackage(str(exc)) from exc
        if not may_be_empty and not any(tree.iterdir()):
            raise Empty("there is nothing in it")
        return size

    def _made(self) -> Path:
        for folder in (self.folder, self.folder / "zips", self.trees):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder

    def recover(self) -> None:
        """At the start, before anything is put: away with what a killed server left half made or half removed."""
        for prefix in (MAKING, GONE):
            for path in self.folder.glob(f"{prefix}*"):
                shutil.rmtree(path, ignore_errors=True)

    def retire(self, used: Collection[str]) -> list[Path]:
        """Take away the names of packages that are neither in `used` nor held. Returns what is to be `destroy`ed.

        Quick: half a tree must never be found under its name, so the name goes first.
        """
        gone = []
        with self._lock:
            for place, name in self._stored():
                if name not in used and not self._held[name]:
                    grave = Path(tempfile.mkdtemp(prefix=GONE, dir=self.folder)) / place.name
                    place.rename(grave)
                    gone.append(grave.parent)
        return gone

    def _stored(self) -> Iterator[tuple[Path, str]]:
        """Trees first: a zip alone is no package, and `restore` needs one."""
        for place in list(self.folder.glob("trees/*")):
            yield place, place.name
        for place in list(self.folder.glob("zips/*.zip")):
            yield place, place.stem

    def destroy(self, graves: Collection[Path]) -> None:
        for grave in graves:
            shutil.rmtree(grave, ignore_errors=True)


def _write(source: bytes | BinaryIO, archive: Path) -> tuple[bytes, int]:
    """SHA-256 and size of what was written."""
    digest, size = hashlib.sha256(), 0
    with archive.open("xb") as file:
        for chunk in _chunks(source):
            digest.update(chunk)
            size += file.write(chunk)
    return digest.digest(), size


def _chunks(source: bytes | BinaryIO) -> Iterator[bytes | memoryview]:
    if isinstance(source, bytes):
        yield from (memoryview(source)[at : at + CHUNK] for at in range(0, len(source), CHUNK))
        return
    source.seek(0)
    while chunk := source.read(CHUNK):
        yield chunk


def _package(digest: bytes, size: int, unzipped: int) -> Package:
    return Package(digest.hex(), base64.b64encode(digest).decode(), size, unzipped)


def _size(tree: Path) -> int:
    """Bytes of its files, as `unzip` counted them."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(tree)
        for name in names
        if not os.path.islink(os.path.join(folder, name))
    )
