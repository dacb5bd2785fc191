"""Which sources an unprivileged uid cannot walk to. What mounts them instead: tests/system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.confine import staging
from sandbox.confine.staging import Bridge


@pytest.fixture
def open_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that anybody can walk to, whatever stands above it on this host."""
    real = os.stat

    def stat(path: str) -> os.stat_result:
        found = real(path)
        above = str(path) == "/" or str(tmp_path).startswith(str(path) + "/")
        return os.stat_result((found.st_mode | 0o001, *found[1:])) if above else found

    tmp_path.chmod(0o755)
    monkeypatch.setattr(os, "stat", stat)
    yield tmp_path
    monkeypatch.undo()


def test_what_everybody_can_walk_to_needs_no_bridge(open_path: Path) -> None:
    (open_path / "code").mkdir(mode=0o700)  # its own mode is its owner's affair
    assert staging.walkable(str(open_path / "code"))
    assert staging.bridges([str(open_path / "code"), "/"], "name") == {}


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o754])
def test_one_closed_folder_above_is_enough(open_path: Path, mode: int) -> None:
    closed = open_path / "closed"
    (closed / "a/b").mkdir(parents=True)
    closed.chmod(mode)
    for path in (closed / "a", closed / "a/b"):
        assert not staging.walkable(str(path))
    closed.chmod(0o711)
    assert staging.walkable(str(closed / "a/b"))


def test_every_source_has_a_place_of_its_own(open_path: Path) -> None:
    closed = open_path / "closed"
    closed.mkdir()
    for name in ("one", "two"):
        (closed / name).mkdir()
    closed.chmod(0o700)
    one, two = str(closed / "one"), str(closed / "two")
    first = staging.bridges([one, two, one, "/usr"], "first")
    second = staging.bridges([one], "second")
    assert list(first) == [one, two]
    assert len({bridge.place for bridge in (*first.values(), *second.values())}) == 3
    assert first[one].source == one


def test_a_link_into_a_closed_folder_is_followed(open_path: Path) -> None:
    closed = open_path / "closed"
    (closed / "code").mkdir(parents=True)
    closed.chmod(0o700)
    link = open_path / "link"
    link.symlink_to(closed / "code")
    assert staging.bridges([str(link)], "n") == {
        str(link): Bridge(str(closed / "code"), f"{staging.STAGE}/lambox-n/0")
    }


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        staging.bridges(["/nowhere/at/all"], "n")
    assert caught.value.filename == "/nowhere/at/all"
