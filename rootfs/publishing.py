"""Owns the last step of what is made beside its place: onto the disk, then under its name by one rename."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def publish(made: Path, place: Path) -> None:
    """`made` is synced. Whoever finds `place` finds it whole; that another was faster does no harm. Raises OSError."""
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise
    sync_folder(place.parent)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Names in it, not what they name."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(tree: Path) -> None:
    """One syncfs(2) costs what the disk has to write; thousands of fsync(2) cost a journal commit each."""
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            raise OSError(ctypes.get_errno(), "syncfs", str(tree))
    finally:
        os.close(fd)
