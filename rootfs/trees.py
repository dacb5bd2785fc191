"""Owns immutable folders made of layers: several folders and zips merged, in order, into one /opt.

A merged folder is named after what went in, made beside its place and published by one rename:
whoever finds it finds it whole, and a second server making the same one does no harm.

    LayerProblem        a layer that cannot be used: which one, why, and how to mend it
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import shutil
import stat
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from rootfs.fingerprint import fingerprint
from rootfs.publishing import publish, sync_tree

MAX_LAYERS = 5
MAX_UNZIPPED = 262_144_000
"""Bytes; AWS's bound for code and layers (SPEC 10.6)."""
MAX_ENTRIES = 200_000
MAX_DEPTH = 100
"""Folders in one another."""
CHUNK = 1024 * 1024
MAKING, GONE = ".making-", ".gone-"
KEPT_S = 300.0
"""A merged folder that was asked for is not removed for so long, however little it is used: who asked may be
about to use it."""
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression that Python does not have
    RuntimeError,  # encrypted
    ValueError,  # a name that is no UTF-8, or a position that is none
    OverflowError,
)
"""What zipfile and the decompressors raise for archives that are not as they should be."""


NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""The file system has no file of such a name: the archive's fault, not the disk's."""


class LayerProblem(Exception):
    """A layer cannot be used; the message names it."""


class LayerStore:
    """Keeps merged layers under `folder` (made if missing). Holds nothing open."""

    def __init__(self, folder: Path, *, limit: int = MAX_UNZIPPED) -> None:
        self.folder = folder
        self.limit = limit
        self._digests: dict[tuple[str, int, int, int], str] = {}
        self._asked: dict[str, float] = {}
        """Names of merged folders -> when they were last asked for."""
        self._making: set[Path] = set()
        self._lock = threading.Lock()

    def opt(self, layers: Sequence[Path]) -> Path | None:
        """The folder to be bound at /opt; None if there are no layers. Raises LayerProblem.

        One layer that is a folder is used where it is. Blocks while it extracts: up to seconds for
        a large zip that was not seen before, some stats otherwise.
        """
        if not layers:
            return None
        if len(layers) > MAX_LAYERS:
            raise LayerProblem(f"Cannot reference more than {MAX_LAYERS} layers.")
        keys = [self._key(layer) for layer in layers]
        if len(layers) == 1 and layers[0].is_dir():
            return layers[0]
        return self._merged(keys, layers, link=False)

    def merge(self, trees: Sequence[Path]) -> Path | None:
        """`opt` of folders whose content their names stand for (`codestore.py`): nothing is read that is there."""
        if len(trees) < 2:
            return trees[0] if trees else None
        return self._merged([f"tree {tree.name}" for tree in trees], trees, link=True)

    def _merged(self, keys: Sequence[str], layers: Sequence[Path], *, link: bool) -> Path:
        digest = hashlib.sha256()
        for key in keys:
            digest.update(key.encode() + b"\0")
        place = self.folder / digest.hexdigest()[:32]
        with self._lock:
            self._asked[place.name] = time.monotonic()
            there = place.is_dir()
        if not there:
            self._publish(layers, place, link=link)
        return place

    def sweep(self, used: Collection[str]) -> int:
        """Remove merged folders whose names are not in `used`, and what a killed server left half made or half
        removed; returns how many. No other server may be using the folder. Blocks."""
        graves = []
        with self._lock:
            for place in list(self.folder.iterdir()) if self.folder.is_dir() else []:
                if place.name.startswith((MAKING, GONE)):
                    if place not in self._making:
                        graves.append(place)
                elif place.name not in used and not self._wanted(place.name):
                    # The name goes first: half a folder must never be found under it.
                    grave = Path(tempfile.mkdtemp(prefix=GONE, dir=self.folder))
                    place.rename(grave / place.name)
                    graves.append(grave)
        for grave in graves:
            shutil.rmtree(grave, ignore_errors=True)
        return len(graves)

    def _wanted(self, name: str) -> bool:
        asked = self._asked.get(name)
        if asked is not None and time.monotonic() - asked < KEPT_S:
            return True
        self._asked.pop(name, None)
        return False

    def _key(self, layer: Path) -> str:
        try:
            info = layer.stat()
            if stat.S_ISDIR(info.st_mode):
                found = fingerprint(layer)
                if found.size > self.limit:
                    raise LayerProblem(self._too_large(layer))
                return f"folder {layer} {found.digest}"
            return f"zip {self._digest(layer, info)}"
        except FileNotFoundError as exc:
            raise LayerProblem(f"{layer}: there is no such folder or zip file") from exc
        except OSError as exc:
            raise LayerProblem(
                f"{layer}: cannot be read: {exc.strerror}. Hint: chmod -R a+rX {layer}"
            ) from exc

    def _digest(self, layer: Path, info: os.stat_result) -> str:
        """SHA-256 of a zip, remembered while the file looks untouched."""
        looks = (str(layer), info.st_mtime_ns, info.st_size, info.st_ino)
        if looks not in self._digests:
            with layer.open("rb") as file:
                self._digests[looks] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[looks]

    def _publish(self, layers: Sequence[Path], place: Path, *, link: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock:
                work = Path(tempfile.mkdtemp(prefix=MAKING, dir=self.folder))
                self._making.add(work)
        except OSError as exc:
            raise self._cannot(exc) from exc
        try:
            budget = self.limit
            for layer in layers:
                budget -= self._put(layer, work, budget, link=link)
            work.chmod(0o755)
            sync_tree(work)
            publish(work, place)
        except OSError as exc:
            raise self._cannot(exc) from exc
        finally:
            shutil.rmtree(work, ignore_errors=True)
            self._making.discard(work)

    def _cannot(self, exc: OSError) -> LayerProblem:
        return LayerProblem(f"cannot merge layers in {self.folder}: {exc.strerror or exc}")

    def _put(self, layer: Path, work: Path, budget: int, *, link: bool) -> int:
        try:
            if layer.is_dir():
                return copy_tree(layer, work, link=link)
            return unzip(layer, work, budget)
        except ZipTooLarge as exc:
            raise LayerProblem(self._too_large(layer)) from exc

    def _too_large(self, layer: Path) -> str:
        return f"{layer}: layers must be smaller than {self.limit} bytes together, unzipped"


class ZipTooLarge(Exception):
    """More bytes unzipped than there may be."""


def copy_tree(source: Path, target: Path, *, link: bool = False) -> int:
    """Lay a folder over `target`; returns bytes copied. Links stay links, all become readable.

    `link`: the source never changes and all in it is readable, so its files may be the same files.
    """
    size = 0
    for folder, names, files in os.walk(source):
        into = target / Path(folder).relative_to(source)
        _folder(into)
        for name in [*files, *(n for n in names if os.path.islink(f"{folder}/{n}"))]:
            origin, place = Path(folder, name), into / name
            info = origin.lstat()
            if stat.S_ISLNK(info.st_mode):
                _clear(place)
                place.symlink_to(os.readlink(origin))
            elif stat.S_ISREG(info.st_mode):
                _clear(place)
                if not (link and _linked(origin, place)):
                    shutil.copyfile(origin, place)
                    place.chmod(_mode(info.st_mode))
                size += info.st_size
            else:
                raise LayerProblem(f"{origin}: is neither file, folder nor link")
    return size


def _linked(origin: Path, place: Path) -> bool:
    """Not on every file system, nor as often as one likes (EMLINK)."""
    with suppress(OSError):
        os.link(origin, place)
        return True
    return False


def unzip(archive: Path, target: Path, limit: int, *, roots: tuple[str, ...] = ("/opt/",)) -> int:
    """Lay a zip over `target`; returns bytes written. Refuses everything that would leave `target`.

    `roots` are where functions see it: absolute links may lead there. Raises LayerProblem, ZipTooLarge.

    Names are checked, and no entry is ever written through a symbolic link, so the order of entries
    cannot be used to climb out. Sizes are counted while writing and entries before they are read: a header may lie.
    """
    size = 0
    try:
        # Without this it would be read whole, at ten times its size, before anything can be counted.
        if archive.stat().st_size > 2 * MAX_UNZIPPED or _entries(archive) > MAX_ENTRIES:
            raise LayerProblem(
                f"{archive}: has more than {MAX_ENTRIES} entries, or more than {2 * MAX_UNZIPPED} bytes"
            )
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                size += _extract(opened, member, target, archive, limit - size, roots)
    except BROKEN as exc:
        raise LayerProblem(
            f"{archive}: Could not unzip the file ({exc}). Hint: zip it again"
        ) from exc
    except OSError as exc:
        if exc.errno not in NO_NAME:
            raise
        raise LayerProblem(f"{archive}: {exc.strerror}") from exc
    return size


def _entries(archive: Path) -> int:
    """How often the signature of a central directory's entry stands in the file: no fewer than it has entries."""
    count, rest = 0, b""
    with archive.open("rb") as file:
        while chunk := file.read(CHUNK):
            count += (rest + chunk).count(b"PK\1\2")
            rest = chunk[-3:]
    return count


def _extract(
    opened: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    target: Path,
    archive: Path,
    limit: int,
    roots: tuple[str, ...],
) -> int:
    mode = member.external_attr >> 16
    place = target.joinpath(*_parts(member.filename, archive))
    if place == target:
        return 0
    for parent in _between(target, place.parent):
        if parent.is_symlink():
            raise LayerProblem(f"{archive}: {member.filename} would be written through a link")
        _folder(parent)
    if member.is_dir() or stat.S_ISDIR(mode):
        if place.is_symlink():
            raise LayerProblem(f"{archive}: {member.filename} would be written through a link")
        _folder(place)
        return 0
    if stat.S_ISLNK(mode):
        _link(
            opened.read(member).decode(errors="surrogateescape") if member.file_size < 4096 else "",
            place,
            target,
            archive,
            roots,
        )
        return 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise LayerProblem(f"{archive}: {member.filename} is neither file, folder nor link")
    _clear(place)
    written = 0
    with opened.open(member) as source, place.open("xb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > limit:
                raise ZipTooLarge
            file.write(chunk)
    place.chmod(_mode(mode))
    return written


def _parts(name: str, archive: Path) -> tuple[str, ...]:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise LayerProblem(f"{archive}: {name!r} points outside of the layer")
    if len(path.parts) > MAX_DEPTH:
        raise LayerProblem(f"{archive}: {name[:80]!r}... is more than {MAX_DEPTH} folders deep")
    return path.parts


def _link(to: str, place: Path, target: Path, archive: Path, roots: tuple[str, ...]) -> None:
    """Relative links within the layer and absolute ones into one of `roots` are what layers use."""
    root = next((one for one in roots if to.startswith(one)), None)
    inside = place.parent / to if root is None else target / to.removeprefix(root)
    resolved = Path(os.path.normpath(inside))
    if not to or (os.path.isabs(to) and root is None) or not resolved.is_relative_to(target):
        raise LayerProblem(
            f"{archive}: link {place.relative_to(target)} -> {to} points outside of the layer"
        )
    _clear(place)
    place.symlink_to(to)


def _between(target: Path, folder: Path) -> Iterator[Path]:
    """target's descendants on the way to `folder`, outermost first."""
    steps = folder.relative_to(target).parts
    for count in range(1, len(steps) + 1):
        yield target.joinpath(*steps[:count])


def _folder(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.chmod(0o755)


def _clear(place: Path) -> None:
    """Make room: a later layer overwrites an earlier one."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _mode(mode: int) -> int:
    return 0o755 if mode & 0o111 else 0o644
