"""Owns telling whether a tree on disk changed: a hash over names, times, sizes and inodes.

Python's byte code and editors' swap files are left out: writing them changes nothing that runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

IGNORED = re.compile(
    r"__pycache__\Z|\.git\Z|\.(hg|svn|mypy_cache|ruff_cache|pytest_cache|idea|vscode|DS_Store)\Z"
    r"|.*\.py[co]\Z|\..*\.sw[a-p]x?\Z|.*~\Z|\.#|#.*#\Z|4913\Z|.*\.tmp\.\d+"
)
"""File names that are nobody's code (`4913` is vim's probe whether it may write here)."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`unreadable`: the first file or folder that other users may not read, None if all may."""

    digest: str
    unreadable: str | None
    size: int
    """Bytes of all regular files."""
    aside: str
    """The same of the one file that was asked for apart; empty if it is not there."""


def ignored(name: str) -> bool:
    return IGNORED.match(name) is not None


def fingerprint(path: Path, *, aside: str | None = None) -> Fingerprint:
    """Of a folder or a file. What vanishes meanwhile counts as absent; OSError if `path` does.

    `aside` names a file right below `path` that the digest leaves out.
    """
    found = hashlib.blake2b(digest_size=16)
    size, apart = 0, ""
    unreadable: str | None = None
    for name, info in _walk(path):
        link = os.fsencode(name)
        if not stat.S_ISDIR(info.st_mode):
            # A folder's own time changes with ignored files in it; its entries tell the rest.
            looks = f"{info.st_mode} {info.st_mtime_ns} {info.st_size} {info.st_ino}"
            if name == aside:
                apart = looks
            else:
                found.update(b"%b\0%b\0" % (link, looks.encode()))
            size += info.st_size
        else:
            found.update(b"%b\0%d\0" % (link, info.st_mode))
        if unreadable is None and not _readable(info.st_mode):
            unreadable = str(path / name) if name else str(path)
    return Fingerprint(found.hexdigest(), unreadable, size, apart)


def folders(path: Path) -> list[str]:
    """`path` and every folder below it that is looked at, for watching."""
    found = [str(path)]
    for name, info in _walk(path):
        if name and stat.S_ISDIR(info.st_mode):
            found.append(f"{path}/{name}")
    return found


def walk(path: Path) -> list[tuple[str, os.stat_result]]:
    """All that counts: (name relative to `path`, lstat), sorted by name; the first is `path` itself as ''."""
    return _walk(path)


def _readable(mode: int) -> bool:
    if stat.S_ISLNK(mode):
        return True
    needed = 0o005 if stat.S_ISDIR(mode) else 0o004
    return mode & needed == needed


def _walk(path: Path) -> list[tuple[str, os.stat_result]]:
    """(name relative to path, lstat), sorted; the first is path itself as ''."""
    found: list[tuple[str, os.stat_result]] = [("", os.stat(path))]
    pending = [""] if stat.S_ISDIR(found[0][1].st_mode) else []
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(f"{path}/{folder}" if folder else path) as entries:
                for entry in entries:
                    if ignored(entry.name):
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append((name, info))
                    if stat.S_ISDIR(info.st_mode):
                        pending.append(name)
        except (FileNotFoundError, NotADirectoryError):
            if not folder:
                raise
        except PermissionError:
            continue  # rootless and not ours: `unreadable` names it
    found.sort(key=lambda item: item[0])
    return found
