"""A folder as a deployment package."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from rootfs.codestore import CodeStore
from rootfs.packing import pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "fn"
    (folder / "lib" / "empty").mkdir(parents=True)
    (folder / "index.py").write_text("# code")
    (folder / "bootstrap").write_text("#!/bin/sh")
    (folder / "bootstrap").chmod(0o755)
    (folder / "lib" / "link").symlink_to("../index.py")
    return folder


def test_the_package_is_the_contents(folder: Path, tmp_path: Path) -> None:
    written = io.BytesIO()
    packed = pack(folder, written)
    assert packed == pack(folder)
    assert packed.size == len(written.getvalue())
    store = CodeStore(tmp_path / "store")
    kept = store.put(written.getvalue())
    assert (kept.tree, kept.sha256, kept.size) == (packed.tree, packed.sha256, packed.size)
    tree = store.tree(kept.tree)
    assert not subprocess.run(["diff", "-r", "--no-dereference", folder, tree]).returncode
    assert stat.S_IMODE((tree / "bootstrap").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "index.py").stat().st_mode) == 0o644
    assert os.readlink(tree / "lib" / "link") == "../index.py"
    assert pack(tree).sha256 == packed.sha256


def test_times_do_not_count_and_contents_do(folder: Path) -> None:
    before = pack(folder)
    os.utime(folder / "index.py", (2e9, 2e9))
    touched = pack(folder)
    assert touched.sha256 == before.sha256
    assert touched.modified == 2e9
    (folder / "index.py").write_text("# kode")
    assert pack(folder).sha256 != before.sha256


def test_byte_code_does_not_count(folder: Path) -> None:
    before = pack(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "index.pyc").write_bytes(b"x")
    assert pack(folder).sha256 == before.sha256


def test_what_cannot_be_read_is_told(folder: Path) -> None:
    os.mkfifo(folder / "pipe")  # neither file nor link: it is not waited for
    written = io.BytesIO()
    pack(folder, written)
    assert "pipe" not in zipfile.ZipFile(written).namelist()
    (folder / os.fsdecode(b"\xff")).touch()
    with pytest.raises(ValueError, match="surrogates"):
        pack(folder)
    with pytest.raises(FileNotFoundError):
        pack(folder / "none")
