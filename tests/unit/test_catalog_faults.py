"""sandbox.catalog when the host fails: nothing is forgotten, and what passes is read again by itself."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rootfs import trees
from rootfs.answering import Answering
from rootfs.trees import LayerProblem, LayerStore
from sandbox.catalog import RETRY_S, Catalog
from sandbox.errors import FunctionFailed
from tests.unit.test_catalog import RUNTIMES, broken, function, names


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "functions"
    made.mkdir()
    return made


@pytest.fixture(params=["inotify", "stat"])
def open_catalog(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, clock: Clock
) -> Iterator[Callable[..., Catalog]]:
    opened: list[Catalog] = []

    def make(**options: Any) -> Catalog:
        options = {"layers": LayerStore(tmp_path / "state"), "clock": clock, **options}
        catalog = Catalog(folder, RUNTIMES, watch=request.param == "inotify", **options)
        opened.append(catalog)
        return catalog

    yield make
    for catalog in opened:
        catalog.close()


def test_a_full_state_folder_breaks_a_layered_function_until_there_is_room(
    folder: Path,
    tmp_path: Path,
    clock: Clock,
    open_catalog: Callable[..., Catalog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the folder; with nothing changed in the function, it works again within a second."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    full = [True]
    copy_tree = trees.copy_tree

    def copy(source: Path, target: Path, **how: bool) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return copy_tree(source, target, **how)

    monkeypatch.setattr(trees, "copy_tree", copy)
    function(folder, "layered", f'layers = ["{tmp_path}/one", "{tmp_path}/two"]')
    catalog = open_catalog()
    assert f"cannot merge layers in {tmp_path}/state: No space left" in broken(catalog, "layered")
    full[0] = False
    clock.now += RETRY_S
    catalog.refresh()
    assert catalog.get("layered").layers


def test_what_stays_wrong_is_not_tried_at_every_invocation(
    folder: Path, tmp_path: Path, clock: Clock
) -> None:
    tries = []

    class Store(LayerStore):
        def opt(self, layers: object) -> Path | None:
            tries.append(layers)
            raise LayerProblem("no room")

    (tmp_path / "layer").mkdir()
    function(folder, "layered", f'layers = ["{tmp_path}/layer"]')
    with Catalog(folder, RUNTIMES, layers=Store(tmp_path), clock=clock) as catalog:
        for _ in range(100):
            catalog.refresh()
        assert len(tries) == 1
        clock.now += RETRY_S
        catalog.refresh()
        catalog.refresh()
        assert len(tries) == 2


def test_out_of_descriptors_no_function_is_forgotten(
    folder: Path,
    clock: Clock,
    open_catalog: Callable[..., Catalog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Functions that cannot be listed stay; one that cannot be read is broken until it can."""
    function(folder, "kept", "timeout = 5")
    catalog = open_catalog()
    before = catalog.get("kept")
    scandir = os.scandir

    def refuse(path: object = ".") -> object:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        function(folder, "new")
        catalog.refresh()
        assert "kept" in names(catalog)
        catalog.reload()
        assert "kept" in names(catalog)
    assert os.scandir is scandir
    clock.now += RETRY_S
    catalog.refresh()
    assert names(catalog) == ["kept", "new"]
    assert catalog.get("kept").revision == before.revision


def test_a_description_that_cannot_be_read_now_is_read_later(
    folder: Path,
    clock: Clock,
    open_catalog: Callable[..., Catalog],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function(folder, "f", "timeout = 5")
    open_ = os.open

    def refuse(path: Any, *args: Any, **how: Any) -> int:
        if Path(path).name == "function.toml":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return open_(path, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        catalog = open_catalog()
        assert "Too many open files" in broken(catalog, "f")
    clock.now += RETRY_S
    catalog.refresh()
    assert catalog.get("f").timeout_s == 5


class Silence:
    """A look that hangs at the paths it was told."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self._revived = threading.Event()

    def __call__(self, path: Path) -> None:
        if path.name in self.dead:
            self._revived.wait()

    def end(self) -> None:
        self.dead.clear()
        self._revived.set()


@pytest.fixture
def silence() -> Iterator[Silence]:
    silence = Silence()
    yield silence
    silence.end()


def test_a_folder_that_does_not_answer_stops_no_other(
    folder: Path, clock: Clock, silence: Silence, open_catalog: Callable[..., Catalog]
) -> None:
    """At the start: refused with what to do, the others are served; once it answers it is read."""
    function(folder, "dead")
    function(folder, "fine")
    silence.dead = {"dead"}
    catalog = open_catalog(answering=Answering(silence, 0.1))
    assert catalog.get("fine")
    with pytest.raises(FunctionFailed, match="does not answer"):
        catalog.get("dead")
    silence.end()
    while names_broken(catalog):
        clock.now += RETRY_S
        catalog.refresh()
    assert catalog.get("dead")


def test_a_known_folder_that_stops_answering_stays_what_it_was(
    folder: Path, clock: Clock, silence: Silence, open_catalog: Callable[..., Catalog]
) -> None:
    """Warm environments go on; what changed meanwhile is seen once it answers again."""
    function(folder, "dead", code="old")
    catalog = open_catalog(answering=Answering(silence, 0.1))
    before = catalog.get("dead")
    silence.dead = {"dead"}
    function(folder, "dead", code="new code")
    catalog.refresh()
    assert catalog.get("dead") == before
    silence.end()
    while catalog.get("dead") == before:
        clock.now += RETRY_S
        catalog.refresh()


def test_a_layer_that_does_not_answer_breaks_who_needs_it(
    folder: Path,
    tmp_path: Path,
    clock: Clock,
    silence: Silence,
    open_catalog: Callable[..., Catalog],
) -> None:
    (tmp_path / "layer").mkdir()
    function(folder, "layered", f'layers = ["{tmp_path}/layer"]')
    silence.dead = {"layer"}
    catalog = open_catalog(answering=Answering(silence, 0.1))
    assert f"{tmp_path}/layer: its file system does not answer" in broken(catalog, "layered")
    silence.end()
    while names_broken(catalog):
        clock.now += RETRY_S
        catalog.refresh()


def test_the_folder_of_all_functions_may_stop_answering(
    folder: Path, silence: Silence, clock: Clock, open_catalog: Callable[..., Catalog]
) -> None:
    function(folder, "f")
    catalog = open_catalog(answering=Answering(silence, 0.1))
    silence.dead = {"functions"}
    catalog.reload()
    assert names(catalog) == ["f"]


def names_broken(catalog: Catalog) -> list[str]:
    return [one.name for one in catalog.all() if hasattr(one, "problem")]
