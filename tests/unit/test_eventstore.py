"""Accepted events on disk: durable, one server's at a time, honest about a disk that takes no more."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.eventstore import EventStore, StoreProblem

TOP = str(Path(__file__).resolve().parents[2])


@contextlib.contextmanager
def store(folder: Path) -> Iterator[EventStore]:
    opened = EventStore(folder, "key")
    try:
        yield opened
    finally:
        opened.close()


def test_nothing_is_made_for_nothing(tmp_path: Path) -> None:
    with store(tmp_path / "events") as events:
        assert events.take_up() == {}
    assert not (tmp_path / "events").exists()


def test_what_was_put_is_there_at_the_next_start_and_what_was_dropped_is_not(
    tmp_path: Path,
) -> None:
    with store(tmp_path / "events") as events:
        events.commit({"a": "1", "b": "2"}, sync=True)
        events.commit({"b": "3", "c": "4"}, ["a"], sync=False)
    with store(tmp_path / "events") as events:
        assert events.take_up() == {"b": "3", "c": "4"}
        events.commit({}, ["b", "c"], sync=False)
    with store(tmp_path / "events") as events:
        assert events.take_up() == {}


def test_payloads_are_for_nobody_else(tmp_path: Path) -> None:
    with store(tmp_path / "events") as events:
        events.commit({"a": "1"}, sync=True)
        modes = [stat.S_IMODE(one.stat().st_mode) for one in (tmp_path / "events").iterdir()]
        assert modes
        assert set(modes) == {0o600}
        assert stat.S_IMODE((tmp_path / "events").stat().st_mode) == 0o700


def test_a_living_servers_events_are_its_own(tmp_path: Path) -> None:
    with store(tmp_path) as first, store(tmp_path) as second, store(tmp_path) as third:
        first.commit({"a": "1"}, sync=True)
        assert second.take_up() == {}
        second.commit({"b": "2"}, sync=True)
        first.close()
        assert third.take_up() == {"a": "1"}
        second.close()
    with store(tmp_path) as last:
        assert last.take_up() == {"a": "1", "b": "2"}


def test_several_files_of_the_dead_become_one(tmp_path: Path) -> None:
    with store(tmp_path) as first, store(tmp_path) as second:
        first.commit({"a": "1"}, sync=True)
        second.commit({"b": "2"}, sync=True)
    with store(tmp_path) as last:
        assert last.take_up() == {"a": "1", "b": "2"}
        last.commit({}, ["a", "b"], sync=True)
    with store(tmp_path) as last:
        assert last.take_up() == {}


def test_other_folders_events_are_left_alone(tmp_path: Path) -> None:
    other = EventStore(tmp_path, "other")
    other.commit({"a": "1"}, sync=True)
    other.close()
    with store(tmp_path) as events:
        assert events.take_up() == {}


def test_a_killed_server_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from sandbox.eventstore import EventStore\n"
        "events = EventStore(Path(sys.argv[1]), 'key')\n"
        "for n in range(50): events.commit({str(n): 'x' * 1000}, sync=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": TOP}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    with store(tmp_path) as events:
        assert set(events.take_up()) == {str(number) for number in range(50)}


def test_what_is_no_database_is_put_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key-0.db").write_bytes(b"no database at all, but events perhaps\n" * 100)
    with store(tmp_path) as events:
        assert events.take_up() == {}
        events.commit({"a": "1"}, sync=True)
    assert "put aside" in caplog.text
    (aside,) = tmp_path.glob("*.damaged-*")
    assert b"events perhaps" in aside.read_bytes()
    with store(tmp_path) as events:
        assert events.take_up() == {"a": "1"}


@pytest.mark.parametrize("where", ["key-0.db", "key-0.db-wal"])
def test_a_file_cut_short_costs_no_start(tmp_path: Path, where: str) -> None:
    with store(tmp_path) as events:
        events.commit({str(number): "x" * 5000 for number in range(100)}, sync=True)
        whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, content in whole.items():  # as it stood while it was open
        (tmp_path / name).write_bytes(content)
    cut = tmp_path / where
    os.truncate(cut, cut.stat().st_size // 2)
    with store(tmp_path) as events:
        events.take_up()
        events.commit({"new": "1"}, sync=True)
    with store(tmp_path) as events:
        assert events.take_up()["new"] == "1"


@pytest.mark.parametrize("damaged", ["key-0.db", "key-1.db"])
def test_a_damaged_page_costs_what_is_in_it_and_no_other_event(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In our own file, or in one that is taken over."""
    with store(tmp_path) as first, store(tmp_path) as second:
        first.commit({f"a{number}": "x" * 500 for number in range(400)}, sync=True)
        second.commit({f"b{number}": "y" * 500 for number in range(400)}, sync=True)
    path = tmp_path / damaged
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    with store(tmp_path) as events:
        found = events.take_up()
        whole = {key for key, event in found.items() if event in ("x" * 500, "y" * 500)}
        assert len(whole) > 700
        assert "put aside" in caplog.text
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes()[: len(content)] == content
    with store(tmp_path) as events:
        assert events.take_up() == found


def test_a_file_that_cannot_be_read_keeps_no_other_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with store(tmp_path) as first, store(tmp_path) as second:
        first.commit({"a": "1"}, sync=True)
        second.commit({"b": "2"}, sync=True)
    (tmp_path / "key-0a.db").mkdir()
    with store(tmp_path) as events:
        assert events.take_up() == {"a": "1", "b": "2"}
    assert "accepted events are left for the next start" in caplog.text


def test_a_place_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file")
    with (
        store(tmp_path / "events") as events,
        pytest.raises(StoreProblem, match=f"{tmp_path}/events: File exists"),
    ):
        events.commit({"a": "1"}, sync=True)
