"""rootfs.answering: who asks a file system that does not answer waits for a moment only."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootfs.answering import HURRY_S, Answering, _Questions, look_at

PATIENCE_S = 0.2


class Hanging:
    """Paths that begin with /dead are looked at for ever, until `revive`."""

    def __init__(self) -> None:
        self.looks: list[Path] = []
        self._alive = threading.Event()

    def look(self, path: Path) -> None:
        self.looks.append(path)
        if str(path).startswith("/dead"):
            self._alive.wait()

    def revive(self) -> None:
        self._alive.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.revive()
    for thread in threading.enumerate():
        if thread.name == "lambox-answering":
            thread.join(5)


def test_what_answers_is_not_silent(hanging: Hanging) -> None:
    assert Answering(hanging.look).silent([Path("/a"), Path("/b")]) == set()
    assert hanging.looks == [Path("/a"), Path("/b")]


def test_one_that_hangs_is_named_and_the_others_are_still_asked(hanging: Hanging) -> None:
    answering = Answering(hanging.look, PATIENCE_S)
    paths = [Path("/a"), Path("/dead/1"), Path("/b"), Path("/dead/2"), Path("/c")]
    began = time.monotonic()
    assert answering.silent(paths) == {Path("/dead/1"), Path("/dead/2")}
    assert time.monotonic() - began < PATIENCE_S + HURRY_S + 1
    assert sorted(hanging.looks) == sorted(paths)


def test_many_that_hang_are_not_waited_for_one_after_the_other(hanging: Hanging) -> None:
    dead = {Path(f"/dead/{number}") for number in range(60)}
    well = {Path(f"/well/{number}") for number in range(60)}
    began = time.monotonic()
    assert Answering(hanging.look, PATIENCE_S).silent(sorted(dead | well)) == dead
    assert time.monotonic() - began < len(dead) * HURRY_S / 3
    assert set(hanging.looks) == dead | well


def test_who_answers_at_the_last_moment_has_answered() -> None:
    """The thread is through with all, but has not said so yet, when the patience ends."""
    questions = _Questions([Path("/a"), Path("/b")], lambda path: None)
    assert questions.over.wait(5)
    questions.over.clear()
    assert questions.silent(ends_at=0.0) is None
    assert questions.unasked == []


def test_nobody_is_asked_twice_at_a_time_and_who_comes_back_is_told(hanging: Hanging) -> None:
    answering = Answering(hanging.look, PATIENCE_S)
    dead = Path("/dead")
    assert answering.silent([dead]) == {dead}
    began = time.monotonic()
    for _ in range(100):
        assert answering.silent([dead]) == {dead}
    assert time.monotonic() - began < PATIENCE_S
    assert hanging.looks == [dead]
    hanging.revive()
    while answering.silent([dead]):
        time.sleep(0.001)
    assert len(hanging.looks) == 2


def test_missing_and_refused_are_answers(tmp_path: Path) -> None:
    def refuses(path: Path) -> None:
        raise PermissionError

    assert Answering().silent([tmp_path / "missing", tmp_path]) == set()
    assert Answering(refuses).silent([tmp_path]) == set()


def test_no_thread_to_be_had_is_no_silence(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Answering(hanging.look).silent([Path("/dead")]) == set()


def test_a_look_reads_what_will_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        look_at(tmp_path)
    (tmp_path / "function.toml").write_text("")
    look_at(tmp_path)
    look_at(tmp_path / "function.toml")
