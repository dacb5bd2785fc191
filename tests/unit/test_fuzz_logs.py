"""Whatever a function writes to its log pipes: lines, bounded in length and memory, and never an exception."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtimeapi import rapi
from sandbox import logs
from sandbox.logs import TAIL_BYTES, Frame, FrameSplitter, LineSplitter, Tail
from tests.machines import effort

MAX_LINE = 300
"""Instead of 256 KB: what is found is easier to read, and more is tried."""
HEADER = struct.Struct(">IIQ")
SPLITS = st.lists(st.integers(1, 200), max_size=8)
LENGTHS = st.sampled_from([0, 1, 5, MAX_LINE, MAX_LINE + 1, 0x7FFFFFFF, 0xFFFFFFFF])
KINDS = st.sampled_from([0xA55A0001, 0xA55A0002, 0xA55A000F, 0xA55A00FF, 0xA55B0001, 0])
LYING = st.builds(
    lambda kind, length, text: HEADER.pack(kind, length, 0) + text,
    KINDS,
    LENGTHS,
    st.binary(max_size=40),
)
HONEST = st.binary(max_size=60).map(lambda text: HEADER.pack(0xA55A0003, len(text), 9) + text)
LONG = st.sampled_from([b"x" * MAX_LINE, b"\n" * 500, b"x" * (MAX_LINE - 1) + b"\n", b"\xff" * 3])
ANYTHING = st.lists(LYING | HONEST | LONG | st.binary(max_size=40), max_size=6).map(b"".join)


@pytest.fixture(scope="module", autouse=True)
def short_lines() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "MAX_LINE", MAX_LINE)
        yield


def pieces(data: bytes, splits: list[int]) -> list[bytes]:
    found = []
    for size in splits:
        found.append(data[:size])
        data = data[size:]
    return [*found, data]


def plain(text: bytes) -> str:
    return text.decode("utf-8", "replace").replace("\0", "\ufffd").removesuffix("\r")


@effort(200)
@given(ANYTHING, SPLITS)
@example(b"x" * (MAX_LINE + 5) + b"\n", [])
@example(b"x" * MAX_LINE + b"\n", [1])
def test_lines_do_not_depend_on_reads(data: bytes, splits: list[int]) -> None:
    whole, piecewise = LineSplitter(), LineSplitter()
    expected = whole.feed(data) + whole.flush()
    found = [line for piece in pieces(data, splits) for line in piecewise.feed(piece)]
    assert found + piecewise.flush() == expected
    assert all(len(line) <= MAX_LINE for line in expected)
    if max(map(len, data.split(b"\n"))) <= MAX_LINE:
        lines = data.split(b"\n")
        assert expected == [plain(line) for line in (lines if lines[-1] else lines[:-1])]


@effort(100)
@given(st.lists(st.binary(max_size=60), max_size=8), SPLITS)
def test_frames_come_out_whole_whatever_the_reads(texts: list[bytes], splits: list[int]) -> None:
    data = b"".join(HEADER.pack(0xA55A0003, len(text), 9) + text for text in texts)
    splitter = FrameSplitter()
    found = [event for piece in pieces(data, splits) for event in splitter.feed(piece)]
    expected = [plain(text).removesuffix("\n") for text in texts]
    assert [event.text for event in found + splitter.flush()] == expected


@effort(200)
@given(ANYTHING, SPLITS)
def test_what_is_no_frame_is_a_line(data: bytes, splits: list[int]) -> None:
    splitter = FrameSplitter()
    found = []
    for piece in pieces(data, splits):
        found += splitter.feed(piece)
        # A frame that is believed, and an unfinished line.
        assert len(splitter._rest) <= HEADER.size + MAX_LINE + len(piece)
        assert len(splitter._plain._rest) <= MAX_LINE
    found += splitter.flush()
    assert sum(len(event.text) for event in found) <= len(data)
    assert all(len(event.text) <= MAX_LINE for event in found)
    # Whatever came before, a frame by itself is one again.
    assert splitter.feed(HEADER.pack(0xA55A0003, 5, 9) + b"hello") == [Frame("hello", "", 9e-6)]


@effort(50)
@given(st.lists(st.text(max_size=9000), max_size=20))
def test_a_tail_is_the_end_of_the_log(lines: list[str]) -> None:
    tail = Tail()
    for line in lines:
        tail.add(line)
    everything = "".join(line + "\n" for line in lines).encode()
    assert len(tail.read()) <= TAIL_BYTES
    assert everything.endswith(tail.read())


@effort(100)
@given(
    st.binary(max_size=100)
    | st.sampled_from(
        [b"[" * 10_000, b'{"errorMessage":"\\ud800"}', b'{"stackTrace":[1]}', b"9" * 5000]
    )
)
def test_any_error_body_has_a_form_for_the_caller(body: bytes) -> None:
    _, told = rapi.without_cause(body)
    assert told
