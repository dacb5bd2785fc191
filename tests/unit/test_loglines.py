"""Log lines on their way to standard error: in order, bounded, nobody else's, obeyed by no terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lambox import loglines


def test_log_lines_keep_their_order_and_text() -> None:
    read, write = os.pipe()
    writer = loglines.LineWriter(write)
    for number in range(1000):
        writer.function_line("hello", f"REPORT\t{number}")
    writer.close()
    os.close(write)
    with open(read, encoding="utf-8") as lines:
        assert lines.read().splitlines() == [f"[hello] REPORT\t{n}" for n in range(1000)]


def test_a_function_cannot_speak_as_another_or_as_lambox() -> None:
    read, write = os.pipe()
    writer = loglines.LineWriter(write)
    writer.function_line("hello", "one event\n[other] START RequestId: 1\nlambox: ERROR")
    writer.close()
    os.close(write)
    with open(read, encoding="utf-8") as lines:
        assert [line.split(" ")[0] for line in lines] == ["[hello]"] * 3


def test_a_standing_reader_stops_nobody_and_drops_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loglines, "MOST_BYTES", 100_000)
    read, write = os.pipe()
    writer = loglines.LineWriter(write)
    for _ in range(10_000):
        writer.write("x" * 99)  # the pipe takes 64 KB: none of these may wait
    writer.close(patience_s=0.05)
    with open(read, encoding="utf-8") as lines:
        text = []
        for line in lines:
            text.append(line.rstrip())
            if "dropped" in line:
                break
    os.close(write)
    dropped = int(text[-1].split()[1])
    assert dropped > 0
    assert len(text) - 1 + dropped == 10_000


def test_a_full_disk_costs_log_lines_and_says_how_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing waits for it; once there is room lines come again."""
    monkeypatch.setattr(loglines, "RETRY_S", 0.01)
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = loglines.LineWriter(fd)
    for _ in range(10):
        writer.write("lost")
    while writer._lines or not writer._dropped:
        time.sleep(0.001)
    room = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(room, fd)
    os.close(room)
    writer.write("kept")
    writer.close()
    os.close(fd)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == ["kept", "lambox: 10 log lines dropped, they were not taken"]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("50%\rdone\x08", r"50%\rdone\x08"),
        ("c1 \x9b31m", r"c1 \x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("tab\tand ünïcode \U0001f600 stay", "tab\tand ünïcode \U0001f600 stay"),
    ],
)
def test_a_terminal_is_shown_what_a_function_writes_and_obeys_none_of_it(
    written: str, shown: str
) -> None:
    read, write = os.pipe()
    writer = loglines.LineWriter(write)
    writer.function_line("hello", written)
    writer.close()
    os.close(write)
    with open(read, encoding="utf-8", newline="\n") as lines:
        assert lines.read() == f"[hello] {shown}\n"
