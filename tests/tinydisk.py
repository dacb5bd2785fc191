"""A file system that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tiny_disk(parent: Path, size: str) -> Iterator[Path]:
    """`size`: as mount(8) has it for a tmpfs, "256k"."""
    if os.geteuid() != 0:
        pytest.skip("host: mounting a tmpfs needs root")
    folder = parent / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tiny", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
