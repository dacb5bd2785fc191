"""rootfs.trees against archives and folders made to do harm: each is refused, or lies where its name says."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootfs import trees
from rootfs.trees import LayerProblem, LayerStore

FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LayerStore]:
    """Afterwards nothing is beside it, and nothing half made in it."""
    (tmp_path / "outside").write_text("untouched")
    yield LayerStore(tmp_path / "state", limit=8 * MIB)
    assert (tmp_path / "outside").read_text() == "untouched"
    assert sorted(p.name for p in tmp_path.iterdir()) in (
        ["layer.zip", "outside", "state"],
        ["layer.zip", "outside"],
    )
    if (tmp_path / "state").exists():
        assert not [p for p in (tmp_path / "state").iterdir() if p.name.startswith(".")]


def layer(tmp_path: Path, *members: tuple[str, bytes, int]) -> Path:
    path = tmp_path / "layer.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            opened.writestr(info, content)
    return path


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("../outside", b"x", FILE)], "outside of the layer"),
        ([("a/../../outside", b"x", FILE)], "outside of the layer"),
        ([("/etc/cron.d/x", b"x", FILE)], "outside of the layer"),
        ([("//etc/x", b"x", FILE)], "outside of the layer"),
        ([("..\\outside", b"x", FILE)], "outside of the layer"),
        ([("\\etc\\x", b"x", FILE)], "outside of the layer"),
        ([("a", b"../../..", LINK)], "outside of the layer"),
        ([("a", b"/etc/shadow", LINK)], "outside of the layer"),
        ([("a", b"/optional", LINK)], "outside of the layer"),
        ([("a", b"/opt/../etc/shadow", LINK)], "outside of the layer"),
        ([("a", b"x" * 5000, LINK)], "outside of the layer"),
        ([("d/a", b".", LINK), ("d/a/x", b"x", FILE)], "through a link"),
        ([("l", b"d", LINK), ("l/", b"", stat.S_IFDIR | 0o755)], "through a link"),
        ([("d/up", b"..", LINK), ("d/up/up/x", b"x", FILE)], "through a link"),
        ([("null", b"", stat.S_IFCHR | 0o666)], "neither file, folder nor link"),
        ([("disk", b"", stat.S_IFBLK | 0o666)], "neither file, folder nor link"),
        ([("pipe", b"", stat.S_IFIFO | 0o666)], "neither file, folder nor link"),
        ([("socket", b"", stat.S_IFSOCK | 0o666)], "neither file, folder nor link"),
        ([("a/" * 101 + "x", b"x", FILE)], "more than 100 folders deep"),
        ([("x" * 300, b"x", FILE)], "File name too long"),
        ([("bomb", b"\0" * 9 * MIB, FILE)], "smaller than 8388608 bytes"),
        ([(f"{n}", b"\0" * MIB, FILE) for n in range(9)], "smaller than 8388608 bytes"),
    ],
)
def test_refused(
    store: LayerStore, tmp_path: Path, members: list[tuple[str, bytes, int]], why: str
) -> None:
    with pytest.raises(LayerProblem, match=why):
        store.opt((layer(tmp_path, *members),))


def test_names_that_differ_in_case_or_normal_form_are_different_files(
    store: LayerStore, tmp_path: Path
) -> None:
    names = [
        "README",
        "readme",
        "caf\u00e9",
        "cafe\u0301",
        "a\u202eb",
        " ",
        "con",
        "x\ny",
        "-rf",
        "~",
    ]
    opt = store.opt((layer(tmp_path, *((name, name.encode(), FILE) for name in names)),))
    assert opt is not None
    assert {path.name: path.read_text() for path in opt.iterdir()} == {n: n for n in names}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_names_that_come_twice_the_last_one_counts(store: LayerStore, tmp_path: Path) -> None:
    """Whatever it is: a file over a link replaces the link, a file over a folder the folder."""
    opt = store.opt(
        (
            layer(
                tmp_path,
                ("a", b"first", FILE), ("a", b"second", FILE),
                ("l", b"a", LINK), ("l", b"third", FILE),
                ("d/x", b"x", FILE), ("d", b"fourth", FILE),
                ("f", b"x", FILE), ("f/y", b"fifth", FILE),
            ),
        )
    )  # fmt: skip
    assert opt is not None
    found = {str(p.relative_to(opt)): p.read_text() for p in opt.rglob("*") if p.is_file()}
    assert found == {"a": "second", "l": "third", "d": "fourth", "f/y": "fifth"}
    assert not (opt / "l").is_symlink()


def test_no_bit_but_executable_survives(store: LayerStore, tmp_path: Path) -> None:
    modes = (0o6755, 0o1777, 0o4711, 0o2644, 0o000)
    members = [(f"{mode:o}", b"", stat.S_IFREG | mode) for mode in modes]
    opt = store.opt((layer(tmp_path, *members),))
    assert opt is not None
    found = [stat.S_IMODE((opt / f"{mode:o}").stat().st_mode) for mode in modes]
    assert found == [0o755, 0o755, 0o755, 0o644, 0o644]
    assert all(path.stat().st_uid == os.getuid() for path in opt.iterdir())


def overlapping(count: int) -> bytes:
    """`count` entries that all are the same MiB of zeroes (after D. Fifield's "better zip bomb")."""
    content = bytes(MIB)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    fields = (20, 0, 8, 0, 33, zlib.crc32(content), len(packed), len(content), 1, 0)
    local = b"PK\3\4" + struct.pack("<HHHHHIIIHH", *fields) + b"x" + packed
    entry = b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, *fields, 0, 0, 0, FILE << 16, 0) + b"x"
    central = entry * count
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, min(count, 65535), min(count, 65535),
                      len(central), len(local), 0)  # fmt: skip
    return local + central + end


def test_an_overlapping_bomb_is_counted_as_it_is_written(store: LayerStore, tmp_path: Path) -> None:
    (tmp_path / "layer.zip").write_bytes(overlapping(60_000))
    assert (tmp_path / "layer.zip").stat().st_size < 3 * MIB  # for 60 GB
    with pytest.raises(LayerProblem, match=r"smaller than 8388608 bytes|Could not unzip"):
        store.opt((tmp_path / "layer.zip",))


def test_too_many_entries_are_refused_before_they_are_read(
    store: LayerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layer.zip").write_bytes(overlapping(trees.MAX_ENTRIES + 1))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(LayerProblem, match="more than 200000 entries"):
        store.opt((tmp_path / "layer.zip",))


def test_an_archive_in_an_archive_is_a_file(store: LayerStore, tmp_path: Path) -> None:
    """As in 42.zip: nothing is unpacked that nobody asked for."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("bomb", bytes(20 * MIB))
    opt = store.opt((layer(tmp_path, ("inner.zip", inner.getvalue(), FILE)),))
    assert opt is not None
    assert os.listdir(opt) == ["inner.zip"]


def test_an_encrypted_one_is_told(store: LayerStore, tmp_path: Path) -> None:
    path = layer(tmp_path, ("x", b"x", FILE))
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(LayerProblem, match="Could not unzip"):
        store.opt((path,))


def test_damage_anywhere_is_a_layer_problem_or_does_not_matter(
    store: LayerStore, tmp_path: Path
) -> None:
    path = tmp_path / "layer.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for name, kind in (("a/x", 8), ("b\u00fc", 12), ("c", 14), ("d", 0)):
            opened.writestr(name, b"content " * 50, kind)
        info = zipfile.ZipInfo("link")
        info.external_attr = LINK << 16
        opened.writestr(info, "a/x")
    whole, chance = path.read_bytes(), random.Random(4)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 5))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
        try:
            store.opt((path,))
        except LayerProblem:
            refused += 1
    assert refused > 100
