"""Owns log bytes: from an environment's pipes to bounded lines, and the lines that are kept.

Nothing a function writes can grow without bound here: a line is cut at MAX_LINE, a frame's
announced length is not believed beyond that, an invocation keeps its last 4 KB for the tail, and a
function keeps KEPT_BYTES of lines, all together MOST_KEPT_BYTES.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from sys import getsizeof
from typing import NamedTuple

import trio

MAX_LINE = 256 * 1024
"""Bytes of one log event, as CloudWatch has it."""
TAIL_BYTES = 4096
"""Bytes of a log tail (SPEC 4.6)."""
KEPT_BYTES = 1024 * 1024
"""Memory that the lines kept per function for `lambox logs` take: a short line is some 50 bytes to Python."""
MOST_KEPT_BYTES = 64 * 1024 * 1024
"""Of all functions together, those that are gone too. Beyond it the lines of the one that wrote longest ago go."""
FOLLOWER_LINES = 1000
"""Lines a follower may lag behind; further ones are dropped for it."""
FOLLOWER_BYTES = 4 * 1024 * 1024
"""Memory that these may take: a line is up to a megabyte."""

_FRAME = struct.Struct(">IIQ")
_FRAME_MAGIC = 0xA55A0000
_FRAME_MAGIC_MASK = 0xFFFFFF00
_FRAME_LEVELS = {
    0x04: "TRACE",
    0x08: "DEBUG",
    0x0C: "INFO",
    0x10: "WARN",
    0x14: "ERROR",
    0x18: "FATAL",
}
_FRAME_LEVEL_MASK = 0x1C


class Frame(NamedTuple):
    """One log event as its runtime framed it."""

    text: str
    level: str = ""
    """TRACE to FATAL; empty where the frame does not say."""
    at: float | None = None
    """Unix seconds, as the runtime says; None: it does not."""


class LineSplitter:
    """Bytes of a plain pipe -> lines. A line longer than MAX_LINE becomes several."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[str]:
        self._rest += data
        lines: list[str] = []
        if b"\n" in data:
            *whole, rest = self._rest.split(b"\n")
            for line in whole:
                # Of one read: no longer than what was left of the last one and READ_SIZE together.
                while len(line) > MAX_LINE:
                    lines.append(_text(line[:MAX_LINE]))
                    del line[:MAX_LINE]
                lines.append(_text(line))
            self._rest = rest
        while len(self._rest) > MAX_LINE:
            lines.append(_text(self._rest[:MAX_LINE]))
            del self._rest[:MAX_LINE]
        return lines

    def flush(self) -> list[str]:
        """The unfinished line, if any: the writer is gone or the invocation is over."""
        rest, self._rest = self._rest, bytearray()
        return [_text(rest)] if rest else []


class FrameSplitter:
    """Bytes of descriptor 62 (SPEC 4.3) -> log events, which may hold newlines.

    Bytes that are no frame are a function's own writes: they come out as plain lines.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._plain = LineSplitter()

    def feed(self, data: bytes) -> list[Frame]:
        self._rest += data
        events: list[Frame] = []
        while len(self._rest) >= _FRAME.size:
            kind, length, at_us = _FRAME.unpack_from(self._rest)
            if kind & _FRAME_MAGIC_MASK != _FRAME_MAGIC or length > MAX_LINE:
                rest, self._rest = bytes(self._rest), bytearray()
                return events + [Frame(line) for line in self._plain.feed(rest)]
            end = _FRAME.size + length
            if len(self._rest) < end:
                break
            text = _text(self._rest[_FRAME.size : end]).removesuffix("\n")
            level = _FRAME_LEVELS.get(kind & _FRAME_LEVEL_MASK, "")
            events.append(Frame(text, level, at_us / 1e6))
            del self._rest[:end]
        return events

    def flush(self) -> list[Frame]:
        rest, self._rest = bytes(self._rest), bytearray()
        return [Frame(line) for line in self._plain.feed(rest) + self._plain.flush()]


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", "replace").replace("\x00", "\ufffd").removesuffix("\r")


class Tail:
    """The last TAIL_BYTES of one invocation's log."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, line: str) -> None:
        self._bytes += line[-TAIL_BYTES:].encode() + b"\n"
        if len(self._bytes) > 16 * TAIL_BYTES:
            del self._bytes[:-TAIL_BYTES]

    def read(self) -> bytes:
        return bytes(self._bytes[-TAIL_BYTES:])


class _Kept:
    """The last lines of one function; `size` in bytes of memory."""

    __slots__ = ("lines", "size")

    def __init__(self) -> None:
        self.lines: deque[str] = deque()
        self.size = 0


class LogBook:
    """The lines of one node: kept per function, handed to whoever follows.

    `write` never blocks and never fails: it is called between two awaits of the hot path.
    """

    def __init__(self, on_line: Callable[[str, str], None] | None = None) -> None:
        self._kept: dict[str, _Kept] = {}
        self._size = 0
        """Bytes of all of it."""
        self._followers: dict[Follower, str | None] = {}
        self._on_line = on_line

    def write(self, function: str, line: str) -> None:
        kept = self._kept.pop(function, None) or _Kept()
        self._kept[function] = kept  # who wrote last stands last
        before = kept.size
        kept.lines.append(line)
        kept.size += getsizeof(line)
        while kept.size > KEPT_BYTES and len(kept.lines) > 1:
            kept.size -= getsizeof(kept.lines.popleft())
        self._size += kept.size - before
        while self._size > MOST_KEPT_BYTES and len(self._kept) > 1:
            self._size -= self._kept.pop(next(iter(self._kept))).size
        if self._on_line is not None:
            self._on_line(function, line)
        if not self._followers:
            return
        for follower, wanted in self._followers.items():
            if wanted is None or wanted == function:
                follower.offer(line)

    def lines(self, function: str | None = None) -> list[str]:
        """What is kept of one function, or of all (function by function), oldest first."""
        if function is not None:
            kept = self._kept.get(function)
            return list(kept.lines) if kept is not None else []
        return [line for kept in self._kept.values() for line in kept.lines]

    def follow(self, function: str | None = None) -> Follower:
        """Every line from this call on. Close it (aclosing)."""
        follower = Follower(lambda: self._followers.pop(follower, None))
        self._followers[follower] = function
        return follower


class Follower:
    """An async iterator over the lines written since it was made."""

    def __init__(self, forget: Callable[[], object]) -> None:
        self._coming, self._lines = trio.open_memory_channel[str](FOLLOWER_LINES)
        self._held = 0
        self._forget = forget

    def offer(self, line: str) -> None:
        """A slow follower misses lines; the function and the others do not wait."""
        size = getsizeof(line)
        if self._held + size > FOLLOWER_BYTES:
            return
        try:
            self._coming.send_nowait(line)
        except trio.WouldBlock:
            return
        self._held += size

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> str:
        line = await self._lines.receive()
        self._held -= getsizeof(line)
        return line

    async def aclose(self) -> None:
        self._forget()
        await self._lines.aclose()


def start_line(request_id: str, version: str) -> str:
    return f"START RequestId: {request_id} Version: {version}"


def end_line(request_id: str) -> str:
    return f"END RequestId: {request_id}"


def init_start_line(runtime: str) -> str:
    """SPEC 4.1; the version is the interpreter's, as no runtime ARN exists here."""
    return f"INIT_START Runtime Version: {runtime}"


def init_report_line(duration_ms: float, phase: str, status: str, error_type: str = "") -> str:
    line = f"INIT_REPORT Init Duration: {duration_ms:.2f} ms\tPhase: {phase}\tStatus: {status}"
    return f"{line}\tError Type: {error_type}" if error_type else line


def report_line(
    request_id: str,
    status: str,
    duration_ms: float,
    billed_ms: int,
    memory_size_mb: int,
    max_memory_mb: int | None,
    init_ms: float | None,
    error_type: str,
) -> str:
    """SPEC 4.1, with the trailing tab AWS prints. `status` success is not printed."""
    line = (
        f"REPORT RequestId: {request_id}\tDuration: {duration_ms:.2f} ms\t"
        f"Billed Duration: {billed_ms} ms\tMemory Size: {memory_size_mb} MB\t"
    )
    if max_memory_mb is not None:
        line += f"Max Memory Used: {max_memory_mb} MB\t"
    if init_ms is not None:
        line += f"Init Duration: {init_ms:.2f} ms\t"
    if status != "success":
        line += f"Status: {status}"
        if error_type and status != "timeout":
            line += f"\tError Type: {error_type}"
    return line
