"""Owns immutable folders made of layers: several folders and zips merged, in order, into one /opt.

A merged folder is named after what went in, made beside its place and published by one rename:
whoever finds it finds it whole, and a second server making the same one does no harm.

    LayerProblem        a layer that cannot be used: which one, why, and how to mend it
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from rootfs.fingerprint import fingerprint

MAX_LAYERS = 5
MAX_UNZIPPED = 262_144_000
"""Bytes; AWS's bound for code and layers (SPEC 10.6)."""
MAX_ENTRIES = 200_000
MAX_DEPTH = 100
"""Folders in one another."""
CHUNK = 1024 * 1024
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


class LayerProblem(Exception):
    """A layer cannot be used; the message names it."""


class LayerStore:
    """Keeps merged layers under `folder` (made if missing). Holds nothing open."""

    def __init__(self, folder: Path, *, limit: int = MAX_UNZIPPED) -> None:
        self.folder = folder
        self.limit = limit
        self._digests: dict[tuple[str, int, int, int], str] = {}

    def opt(self, layers: Sequence[Path]) -> Path | None:
        """The folder to be bound at /opt; None if there are no layers. Raises LayerProblem.

        One layer that is a folder is used where it is. Blocks while it extracts: up to seconds for
        a large zip that was not seen before, some stats otherwise.
        """
        if not layers:
            return None
        if len(layers) > MAX_LAYERS:
            raise LayerProblem(f"Cannot reference more than {MAX_LAYERS} layers.")
        key = hashlib.sha256()
        for layer in layers:
            key.update(self._key(layer).encode() + b"\0")
        if len(layers) == 1 and layers[0].is_dir():
            return layers[0]
        place = self.folder / key.hexdigest()[:32]
        if not place.is_dir():
            self._publish(layers, place)
        return place

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

    def _publish(self, layers: Sequence[Path], place: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder))
        try:
            budget = self.limit
            for layer in layers:
                budget -= self._put(layer, work, budget)
            work.chmod(0o755)
            try:
                work.rename(place)
            except OSError:
                if not place.is_dir():  # otherwise another server was faster
                    raise
        except OSError as exc:
            raise LayerProblem(
                f"cannot merge layers in {self.folder}: {exc.strerror or exc}"
            ) from exc
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _put(self, layer: Path, work: Path, budget: int) -> int:
        try:
            if layer.is_dir():
                return copy_tree(layer, work)
            return unzip(layer, work, budget)
        except ZipTooLarge as exc:
            raise LayerProblem(self._too_large(layer)) from exc

    def _too_large(self, layer: Path) -> str:
        return f"{layer}: layers must be smaller than {self.limit} bytes together, unzipped"


class ZipTooLarge(Exception):
    """More bytes unzipped than there may be."""


def copy_tree(source: Path, target: Path) -> int:
    """Lay a folder over `target`; returns bytes copied. Links stay links, all become readable."""
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
                shutil.copyfile(origin, place)
                place.chmod(_mode(info.st_mode))
                size += info.st_size
            else:
                raise LayerProblem(f"{origin}: is neither file, folder nor link")
    return size


def unzip(archive: Path, target: Path, limit: int, *, root: str = "/opt/") -> int:
    """Lay a zip over `target`; returns bytes written. Refuses everything that would leave `target`.

    `root` is where functions see it: absolute links may lead there. Raises LayerProblem, ZipTooLarge.

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
                size += _extract(opened, member, target, archive, limit - size, root)
    except BROKEN as exc:
        raise LayerProblem(
            f"{archive}: Could not unzip the file ({exc}). Hint: zip it again"
        ) from exc
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
    root: str,
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
            root,
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


def _link(to: str, place: Path, target: Path, archive: Path, root: str) -> None:
    """Relative links within the layer and absolute ones into `root` are what layers use."""
    inside = target / to.removeprefix(root) if to.startswith(root) else place.parent / to
    resolved = Path(os.path.normpath(inside))
    if (
        not to
        or (os.path.isabs(to) and not to.startswith(root))
        or not resolved.is_relative_to(target)
    ):
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
