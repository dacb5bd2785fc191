"""Owns how many lines a head or the trailers of a body may have, of those that h11 takes apart.

h11 makes objects of every line, in one go: 2 us and 250 bytes of one that may have four bytes. A head is limited to a
megabyte (`server.py`), of which 280,000 lines would be made: half a second of the event loop, 60 MB.
"""

from __future__ import annotations

import h11
from h11._receivebuffer import ReceiveBuffer, blank_line_regex

MOST_LINES = 1000
"""Clients send twenty."""


class Buffer(ReceiveBuffer):
    """What has been read of a connection and not been taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lines_size = 0
        """Bytes of the last head or trailers taken apart; whoever has charged for them sets it to 0."""

    def clear(self) -> None:
        """A connection that has ended is a cycle of objects, which may wait for long to be collected."""
        self._data.clear()

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """h11's. Raises h11.RemoteProtocolError: too many."""
        if self._data.count(b"\n") > MOST_LINES:
            # Others may belong to what comes after.
            end = blank_line_regex.search(self._data)
            if end is None or self._data.count(b"\n", 0, end.end()) > MOST_LINES:
                raise h11.RemoteProtocolError("too many lines", error_status_hint=431)
        before = len(self)
        lines: list[bytearray] | None = super().maybe_extract_lines()
        if lines is not None:
            self.lines_size = before - len(self)
        return lines
