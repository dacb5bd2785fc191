"""rootfs.trees: layers merged in order, and zips that may not leave their place."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from rootfs.trees import LayerProblem, LayerStore


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        place = path / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return path


def archive(path: Path, *members: tuple[str, str, int]) -> Path:
    """Members are (name, content, st_mode)."""
    with zipfile.ZipFile(path, "w") as opened:
        for name, content, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            opened.writestr(info, content)
    return path


FILE = stat.S_IFREG | 0o600
LINK = stat.S_IFLNK | 0o777


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "state")


def test_no_layers_no_opt(store: LayerStore) -> None:
    assert store.opt(()) is None


def test_one_folder_is_used_in_place(store: LayerStore, tmp_path: Path) -> None:
    layer = folder(tmp_path / "a", x="1")
    assert store.opt((layer,)) == layer
    assert not store.folder.exists()


def test_later_layers_overwrite_earlier_ones(store: LayerStore, tmp_path: Path) -> None:
    first = folder(tmp_path / "a", python__x="a", python__only_a="a", bin="file")
    second = archive(tmp_path / "b.zip", ("python/x", "b", FILE), ("bin/tool", "#!", FILE | 0o111))
    third = folder(tmp_path / "c", python__y="c")
    opt = store.opt((first, second, third))
    assert opt is not None
    assert (opt / "python/x").read_text() == "b"
    assert (opt / "python/only_a").read_text() == "a"
    assert (opt / "python/y").read_text() == "c"
    assert (opt / "bin/tool").read_text() == "#!"


def test_everything_is_readable_for_all(store: LayerStore, tmp_path: Path) -> None:
    layer = archive(tmp_path / "a.zip", ("d/x", "1", FILE), ("tool", "1", FILE | 0o100))
    opt = store.opt((layer,))
    assert opt is not None
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (opt, *opt.rglob("*"))}
    assert modes == {opt.name: 0o755, "d": 0o755, "x": 0o644, "tool": 0o755}


def test_the_same_layers_are_merged_once_and_changed_ones_anew(
    store: LayerStore, tmp_path: Path
) -> None:
    layers = (folder(tmp_path / "a", x="1"), folder(tmp_path / "b", y="1"))
    first = store.opt(layers)
    assert store.opt(layers) == first
    folder(tmp_path / "a", x="changed")
    second = store.opt(layers)
    assert second != first
    assert first is not None
    assert (first / "x").read_text() == "1"


def test_a_zip_is_known_by_its_content(store: LayerStore, tmp_path: Path) -> None:
    first = archive(tmp_path / "a.zip", ("x", "1", FILE))
    place = store.opt((first,))
    copy = tmp_path / "copy.zip"
    copy.write_bytes(first.read_bytes())
    assert store.opt((copy,)) == place
    assert len(list(store.folder.iterdir())) == 1


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..\\x", "a/.."])
def test_names_that_leave_the_layer_are_refused(
    store: LayerStore, tmp_path: Path, name: str
) -> None:
    layer = archive(tmp_path / "a.zip", (name, "evil", FILE))
    with pytest.raises(LayerProblem, match="points outside of the layer"):
        store.opt((layer,))
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("to", ["/etc", "../../etc", "..", "/opt/../etc", ""])
def test_links_that_leave_the_layer_are_refused(store: LayerStore, tmp_path: Path, to: str) -> None:
    layer = archive(tmp_path / "a.zip", ("link", to, LINK))
    with pytest.raises(LayerProblem, match="points outside of the layer"):
        store.opt((layer,))


def test_links_within_the_layer_are_kept(store: LayerStore, tmp_path: Path) -> None:
    layer = archive(
        tmp_path / "a.zip", ("lib/x.1", "1", FILE), ("lib/x", "x.1", LINK), ("y", "/opt/lib", LINK)
    )
    opt = store.opt((layer,))
    assert opt is not None
    assert os.readlink(opt / "lib/x") == "x.1"
    assert os.readlink(opt / "y") == "/opt/lib"


def test_nothing_is_written_through_a_link(store: LayerStore, tmp_path: Path) -> None:
    layer = archive(tmp_path / "a.zip", ("d/keep", "", FILE), ("l", "d", LINK), ("l/x", "1", FILE))
    with pytest.raises(LayerProblem, match="through a link"):
        store.opt((layer,))


def test_a_later_layer_replaces_a_link_not_its_target(store: LayerStore, tmp_path: Path) -> None:
    outside = folder(tmp_path / "outside", secret="untouched")
    first = folder(tmp_path / "a", x="1")
    (first / "link").symlink_to(outside / "secret")
    (first / "dir").symlink_to(outside)
    second = folder(tmp_path / "b", link="new", dir__secret="new")
    opt = store.opt((first, second))
    assert opt is not None
    assert (outside / "secret").read_text() == "untouched"
    assert (opt / "link").read_text() == "new"
    assert (opt / "dir/secret").read_text() == "new"


def test_devices_are_refused(store: LayerStore, tmp_path: Path) -> None:
    layer = archive(tmp_path / "a.zip", ("null", "", stat.S_IFCHR | 0o666))
    with pytest.raises(LayerProblem, match="neither file, folder nor link"):
        store.opt((layer,))


def test_a_fifo_in_a_folder_is_refused(store: LayerStore, tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a", x="1"), folder(tmp_path / "b", y="1")
    os.mkfifo(first / "pipe")
    with pytest.raises(LayerProblem, match="neither file, folder nor link"):
        store.opt((first, second))


def test_the_unzipped_size_is_bounded_over_all_layers(tmp_path: Path) -> None:
    store = LayerStore(tmp_path / "state", limit=1000)
    first = archive(tmp_path / "a.zip", ("x", "1" * 600, FILE))
    second = archive(tmp_path / "b.zip", ("y", "2" * 600, FILE))
    assert store.opt((first,)) is not None
    with pytest.raises(LayerProblem, match="smaller than 1000 bytes"):
        store.opt((first, second))
    assert not [p for p in store.folder.iterdir() if p.name.startswith(".")]


def test_a_layer_that_is_no_zip_is_told(store: LayerStore, tmp_path: Path) -> None:
    layer = tmp_path / "a.zip"
    layer.write_text("not a zip")
    with pytest.raises(LayerProblem, match=r"a\.zip: Could not unzip"):
        store.opt((layer,))


def test_a_missing_layer_is_told(store: LayerStore, tmp_path: Path) -> None:
    with pytest.raises(LayerProblem, match="no such folder or zip"):
        store.opt((tmp_path / "nowhere",))


def test_more_than_five_layers_are_refused(store: LayerStore, tmp_path: Path) -> None:
    with pytest.raises(LayerProblem, match="Cannot reference more than 5 layers"):
        store.opt((tmp_path,) * 6)
