"""The store of packages: whole or not there, once, and as long as something refers to it."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import stat
import struct
import threading
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootfs.codestore import BadPackage, CodeStore, Empty, TooLarge
from rootfs.trees import LayerProblem, LayerStore
from tests.state_crash import assert_whole, kill_again_and_again
from tests.tinydisk import tiny_disk


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    return CodeStore(tmp_path / "code", limit=100_000)


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return written.getvalue()


FILE = stat.S_IFREG | 0o644
CODE = zipped(("index.py", b"code", FILE), ("d/bootstrap", b"#!", stat.S_IFREG | 0o700))


def stored(store: CodeStore) -> list[str]:
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.glob("*/*"))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_what_was_put_is_there_for_functions_and_for_nobody_else(
    store: CodeStore, umask: int
) -> None:
    before = os.umask(umask)
    try:
        package = store.put(CODE)
    finally:
        os.umask(before)
    assert package.tree == hashlib.sha256(CODE).hexdigest()
    assert package.sha256 == b64encode(hashlib.sha256(CODE).digest()).decode()
    assert (package.size, package.unzipped) == (len(CODE), 6)
    assert store.zip(package.tree).read_bytes() == CODE
    tree = store.tree(package.tree)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tree, *tree.rglob("*")]}
    assert modes == {tree.name: 0o755, "index.py": 0o644, "d": 0o755, "bootstrap": 0o755}
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert [path for path in store.folder.iterdir() if path.name.startswith(".")] == []


def test_the_same_package_is_there_once_and_says_the_same_of_itself(store: CodeStore) -> None:
    assert store.put(CODE) == store.put(io.BytesIO(CODE)) == store.check(CODE)
    assert len(stored(store)) == 2


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", Empty),
        (zipped(), Empty),
        (b"no zip", BadPackage),
        (CODE[:-30], BadPackage),
        (zipped(("../x", b"x", FILE)), BadPackage),
        (zipped(("x" * 300, b"x", FILE)), BadPackage),
        (zipped(("null", b"", stat.S_IFCHR | 0o666)), BadPackage),
        (zipped(("a" * 9, b"\0" * 100_000, FILE)), TooLarge),
        (zipped(*((str(n), b"\0" * 10_000, FILE) for n in range(11))), TooLarge),
    ],
)
def test_what_cannot_be_used_leaves_nothing(
    store: CodeStore, data: bytes, error: type[BadPackage]
) -> None:
    for use in (store.put, store.check):
        with pytest.raises(BadPackage) as refused:
            use(data)
        assert type(refused.value) is error
    assert stored(store) == []
    assert sorted(path.name for path in store.folder.iterdir()) == ["trees", "zips"]


def test_one_byte_less_than_the_limit_is_taken(store: CodeStore) -> None:
    assert store.put(zipped(("a", b"\0" * 99_999, FILE))).unzipped == 99_999


def test_archives_that_are_odd_and_well(store: CodeStore) -> None:
    prefixed = b"#!/bin/sh\nexec unzip $0\n" + CODE
    windows = zipped(("d\\x.py", b"x", 0))
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w") as archive, archive.open("z64", "w", force_zip64=True) as file:
        file.write(b"zip64")
    old = CODE.replace(b"index.py", "indéx.".encode("cp437").ljust(8, b"y"))  # no UTF-8
    for data, name in [
        (prefixed, "d/bootstrap"),
        (windows, "d/x.py"),
        (large.getvalue(), "z64"),
        (old, "d/bootstrap"),
    ]:
        assert (store.tree(store.put(data).tree) / name).is_file()


def test_a_header_that_lies_about_sizes_is_not_believed(store: CodeStore) -> None:
    data = bytearray(zipped(("bomb", b"\0" * 300_000, FILE)))
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    with pytest.raises(BadPackage):
        store.put(bytes(data))
    assert stored(store) == []


def test_what_is_held_or_used_stays(store: CodeStore) -> None:
    other = zipped(("other", b"", FILE))
    with store.hold() as hold:
        held, used = hold.put(CODE).tree, store.put(other).tree
        store.destroy(store.retire([used]))
        assert store.missing([held, used]) == []
    store.destroy(store.retire([used]))
    assert store.missing([held, used]) == [held]
    assert stored(store) == sorted([f"trees/{used}", f"zips/{used}.zip"])


def test_a_sweep_never_takes_what_somebody_is_putting(store: CodeStore) -> None:
    """put() finds the tree there, sweep removes it, the record is committed: that must not be."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            store.destroy(store.retire([]))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(30):
            with store.hold() as hold:
                name = hold.put(CODE).tree
                assert store.has(name)
                assert (store.tree(name) / "index.py").read_bytes() == b"code"
    finally:
        stop.set()
        sweeper.join()


def test_what_a_killed_server_left_half_made_goes(store: CodeStore) -> None:
    name = store.put(CODE).tree
    (store.folder / ".making-x/tree").mkdir(parents=True)
    (store.folder / ".gone-x/tree").mkdir(parents=True)
    store.recover()
    assert sorted(path.name for path in store.folder.iterdir()) == ["trees", "zips"]
    assert store.has(name)


def test_a_tree_is_made_again_from_its_zip_unless_that_is_damaged(store: CodeStore) -> None:
    name = store.put(CODE).tree
    shutil.rmtree(store.tree(name))
    store.restore(name)
    assert_whole(store, name)
    shutil.rmtree(store.tree(name))
    store.zip(name).write_bytes(CODE[:-1])
    with pytest.raises(BadPackage, match="is damaged"):
        store.restore(name)
    assert not store.tree(name).exists()
    assert store.put(CODE).tree == name  # and a new upload mends it
    assert_whole(store, name)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with tiny_disk(tmp_path, "256k") as folder:
        yield folder


def test_a_full_disk_refuses_the_package_and_leaves_nothing(tiny: Path) -> None:
    store = CodeStore(tiny)
    kept = store.put(CODE).tree
    for size in (150_000, 200_000, 400_000):  # its tree, its tree, its zip do not fit
        large = zipped(("large", random.Random(size).randbytes(size), FILE))
        with pytest.raises(OSError, match="No space left"):
            store.put(large)
        assert stored(store) == [f"trees/{kept}", f"zips/{kept}.zip"]
    assert_whole(store, kept)


def test_layers_of_the_store_are_merged_without_copying(store: CodeStore, tmp_path: Path) -> None:
    one = store.tree(store.put(zipped(("same", b"1", FILE), ("a", b"1", FILE))).tree)
    two = store.tree(store.put(zipped(("same", b"2", FILE), ("b", b"2", FILE))).tree)
    layers = LayerStore(tmp_path / "layers")
    assert layers.merge([]) is None
    assert layers.merge([one]) == one
    merged = layers.merge([one, two])
    assert merged is not None
    assert {path.name: path.read_text() for path in merged.iterdir()} == {
        "same": "2",
        "a": "1",
        "b": "2",
    }
    assert (merged / "a").stat().st_ino == (one / "a").stat().st_ino
    assert (one / "same").read_text() == "1"
    assert layers.merge([two, one]) != merged
    shutil.rmtree(one)
    assert layers.merge([one, two]) == merged  # nothing is read that is there


def test_merged_layers_go_when_nothing_uses_them(
    store: CodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [store.tree(store.put(zipped((name, b"", FILE))).tree) for name in ("a", "b")]
    layers = LayerStore(tmp_path / "layers")
    merged = layers.merge(trees)
    assert merged is not None
    assert layers.sweep([]) == 0  # it was asked for a moment ago
    again = LayerStore(tmp_path / "layers")
    (again.folder / ".making-x").mkdir()
    assert again.sweep([merged.name]) == 1
    assert [path.name for path in again.folder.iterdir()] == [merged.name]
    assert again.sweep([]) == 1
    assert not merged.exists()


def test_a_layer_store_that_cannot_be_made_says_so(store: CodeStore, tmp_path: Path) -> None:
    trees = [store.tree(store.put(zipped((name, b"", FILE))).tree) for name in ("a", "b")]
    (tmp_path / "file").write_text("")
    with pytest.raises(LayerProblem, match=r"cannot merge layers in .*file"):
        LayerStore(tmp_path / "file").merge(trees)


def test_whenever_it_was_killed_what_is_there_is_whole(tmp_path: Path) -> None:
    """More of them in `make faults`."""
    assert kill_again_and_again(tmp_path, 3, random.Random()) >= 3
