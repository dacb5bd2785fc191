from __future__ import annotations

import os
import struct
import tracemalloc
from contextlib import aclosing
from sys import getsizeof

import pytest
import trio
import trio.testing

from sandbox.logpipes import (
    BURST,
    DRAIN_DEBT,
    RATE,
    READ_SIZE,
    TOLD_LINE_COST,
    Budget,
    LogPipes,
)
from sandbox.logs import (
    FOLLOWER_BYTES,
    KEPT_BYTES,
    MAX_LINE,
    MOST_KEPT_BYTES,
    TAIL_BYTES,
    Frame,
    FrameSplitter,
    LineSplitter,
    LogBook,
    Tail,
    init_report_line,
)


def frame(text: bytes, kind: int = 0xA55A000F) -> bytes:
    return struct.pack(">IIQ", kind, len(text), 1) + text


def test_lines_are_cut_at_newlines_whatever_the_reads() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == ["one"]
    assert splitter.feed(b"o\n\nthree") == ["two", ""]
    assert splitter.flush() == ["three"]
    assert splitter.flush() == []


def test_an_endless_line_is_cut() -> None:
    splitter = LineSplitter()
    lines = splitter.feed(b"x" * (2 * MAX_LINE + 5))
    assert [len(line) for line in lines] == [MAX_LINE, MAX_LINE]
    assert splitter.flush() == ["x" * 5]


def test_bad_utf8_and_nul_do_no_harm() -> None:
    assert LineSplitter().feed(b"\xff\x00\n") == ["\ufffd\ufffd"]


def test_frames_keep_their_newlines_and_arrive_split() -> None:
    splitter = FrameSplitter()
    data = frame(b"a\nb\n") + frame(b"c")
    events: list[Frame] = []
    for byte in data:
        events += splitter.feed(bytes([byte]))
    assert [event.text for event in events] == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (0xA55A0003, ""),
        (0xA55A0003 | 0x04, "TRACE"),
        (0xA55A0002 | 0x0C, "INFO"),
        (0xA55A0002 | 0x14, "ERROR"),
        (0xA55A0003 | 0x18, "FATAL"),
        (0xA55A0003 | 0x1C, ""),
    ],
)
def test_a_frame_says_its_level_and_its_time(kind: int, level: str) -> None:
    head = struct.pack(">IIQ", kind, 1, 1_665_532_800_123_456)
    assert FrameSplitter().feed(head + b"x") == [Frame("x", level, 1_665_532_800.123456)]


def test_what_is_no_frame_is_plain_text() -> None:
    splitter = FrameSplitter()
    assert splitter.feed(b"I found descriptor 62\nhello") == [Frame("I found descriptor 62")]
    assert splitter.flush() == [Frame("hello")]


def test_a_frames_length_is_not_believed() -> None:
    splitter = FrameSplitter()
    splitter.feed(struct.pack(">IIQ", 0xA55A0003, 0xFFFFFFFF, 1) + b"x" * 100)
    assert splitter.flush()


def test_tail_keeps_the_last_4096_bytes() -> None:
    tail = Tail()
    for number in range(20_000):
        tail.add(f"line {number}")
    kept = tail.read()
    assert len(kept) == TAIL_BYTES
    assert kept.endswith(b"line 19999\n")


def test_logbook_is_bounded() -> None:
    book = LogBook()
    for _ in range(3000):
        book.write("f", "x" * 1000)
    assert sum(map(len, book.lines("f"))) <= 1024 * 1024
    assert book.lines("g") == []


async def test_followers_get_lines_and_never_hold_up_the_writer() -> None:
    book = LogBook()
    async with aclosing(book.follow("f")) as lines:
        book.write("g", "not this")
        book.write("f", "this")
        for _ in range(10_000):
            book.write("f", "flood")
        assert await anext(lines) == "this"
    book.write("f", "nobody follows any more")


async def test_a_follower_that_lags_behind_holds_so_much_and_no_more() -> None:
    """1,000 lines of a megabyte each (256 KB, one letter of which is beyond Unicode's first plane)."""
    book = LogBook()
    line = "x" * (MAX_LINE - 4) + "\U0001f600"
    most = FOLLOWER_BYTES // getsizeof(line)
    async with aclosing(book.follow("f")) as lines:
        for number in range(20):
            book.write("f", f"{number:02d}{line[2:]}")
        for number in range(most):
            assert (await anext(lines)).startswith(f"{number:02d}")
        book.write("f", "room again")
        assert await anext(lines) == "room again"


def test_init_report_line() -> None:
    assert init_report_line(9999.98, "init", "timeout") == (
        "INIT_REPORT Init Duration: 9999.98 ms\tPhase: init\tStatus: timeout"
    )


async def test_pipes_are_drained_at_once_and_flushed_at_the_end() -> None:
    lines: list[str] = []
    ends = [os.pipe() for _ in range(3)]
    for read, _ in ends:
        os.set_blocking(read, False)
    try:
        with LogPipes((ends[0][0], ends[1][0]), ends[2][0], lines.append) as pipes:
            os.write(ends[0][1], b"out\n")
            os.write(ends[1][1], b"err\n")
            os.write(ends[2][1], frame(b"framed\nevent"))
            pipes.drain()
            assert lines == ["out", "err", "framed\nevent"]
            os.write(ends[0][1], b"unfinished")
        assert lines[3:] == ["unfinished"]
    finally:
        for pair in ends:
            for fd in pair:
                os.close(fd)


async def test_pipes_of_one_budget_are_paced_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An environment's runtime and its ten extensions have no more than the runtime alone."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    seen: list[tuple[str, float]] = []
    budget = Budget()

    def on_line(line: str) -> None:
        seen.append((line, trio.current_time()))

    try:
        with LogPipes((read,), None, on_line, budget=budget) as pipes:
            budget.spend(BURST + 3 * RATE, 0)  # another's
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipes.read)
                os.write(write, b"first\n")
                await trio.testing.wait_all_tasks_blocked()
                os.write(write, b"second\n")
                await trio.sleep(5)
                nursery.cancel_scope.cancel()
        assert [line for line, _ in seen] == ["first", "second"]
        assert seen[1][1] - began >= 3
    finally:
        os.close(read)
        os.close(write)


async def test_a_flood_is_not_drained_in_one_go(autojump_clock: trio.testing.MockClock) -> None:
    """A flood refills its pipe while it is drained: the event loop was kept for 1.4 s at the end of an invocation."""
    read, write = os.pipe()
    quiet = os.pipe()
    for fd in (read, write, quiet[0]):
        os.set_blocking(fd, False)
    lines: list[str] = []
    size = os.write(write, b"\n" * 65536)
    try:
        with LogPipes((read,), quiet[0], lines.append) as pipes:
            pipes.budget.line_cost = TOLD_LINE_COST
            pipes.drain()
            assert 0 < len(lines) < (BURST + DRAIN_DEBT) / TOLD_LINE_COST + READ_SIZE
            with trio.move_on_after(60):
                await pipes.read()
            assert len(lines) == size
    finally:
        for fd in (read, write, *quiet):
            os.close(fd)


async def test_a_flood_is_paced(autojump_clock: trio.testing.MockClock) -> None:
    read, write = os.pipe()
    quiet = [os.pipe(), os.pipe()]
    for fd in (read, write, quiet[0][0], quiet[1][0]):
        os.set_blocking(fd, False)
    count = 0

    def on_line(line: str) -> None:
        nonlocal count
        count += len(line)

    async def flood() -> None:
        while True:
            try:
                os.write(write, b"y" * 63 + b"\n")
            except BlockingIOError:
                await trio.lowlevel.wait_writable(write)
            await trio.lowlevel.checkpoint()

    try:
        with LogPipes((read, quiet[0][0]), quiet[1][0], on_line) as pipes:
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipes.read)
                nursery.start_soon(flood)
                with trio.move_on_after(2):
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
            assert trio.current_time() - started >= 2
    finally:
        for fd in (read, write, *quiet[0], *quiet[1]):
            os.close(fd)
    # A line costs at least 128 bytes of credit: 1 MiB of burst + 4 MiB/s for two seconds.
    assert count <= (1024 * 1024 + 3 * 4 * 1024 * 1024) / 2


@pytest.mark.parametrize("line", ["", "ab", "x" * 64_000, "\U0001f600" * 1000])
def test_what_is_kept_is_bounded_in_memory_whatever_its_lines_are(line: str) -> None:
    book = LogBook()
    tracemalloc.start()
    try:
        for number in range(4 * KEPT_BYTES // (50 + len(line))):
            book.write("f", f"{line}{number % 10}")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * KEPT_BYTES
    assert book.lines("f")


async def test_a_pipe_in_packet_mode_is_paced_by_reads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """With O_DIRECT a function makes every read of ours bring one byte (pipe(2))."""
    read, write = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
    quiet = [os.pipe(), os.pipe()]
    for fd in (quiet[0][0], quiet[1][0]):
        os.set_blocking(fd, False)
    reads = 0

    async def flood() -> None:
        nonlocal reads
        while True:
            try:
                os.write(write, b"x")
            except BlockingIOError:
                await trio.lowlevel.wait_writable(write)
            else:
                reads += 1
            await trio.lowlevel.checkpoint()

    try:
        with LogPipes((read, quiet[0][0]), quiet[1][0], lambda _: None) as pipes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipes.read)
                nursery.start_soon(flood)
                with trio.move_on_after(1):
                    await trio.sleep_forever()
                nursery.cancel_scope.cancel()
    finally:
        for fd in (read, write, *quiet[0], *quiet[1]):
            os.close(fd)
    # 1 KiB of credit each, of 1 MiB and 4 MiB/s; what is still in the pipe comes on top.
    assert reads <= 5 * 1024 + 32


def test_functions_that_come_and_go_do_not_fill_the_memory() -> None:
    book, line = LogBook(), "x" * 400_000
    for number in range(2 * MOST_KEPT_BYTES // len(line)):
        book.write("often", line)
        book.write(f"f{number}", line)
    assert sum(map(len, book.lines())) <= MOST_KEPT_BYTES
    assert book.lines("f0") == []
    assert book.lines(f"f{number}") == [line]
    assert book.lines("often") != []
