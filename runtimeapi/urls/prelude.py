"""Owns the head of a streamed HTTP response: JSON, 8 NUL bytes, then the body (SPEC 2.4). Pure."""

from __future__ import annotations

CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
DELIMITER = b"\0" * 8
MAX_PRELUDE = 64 * 1024
"""Bytes of the JSON: as much as a head of HTTP may have here."""


class BadPrelude(Exception):
    """What the function sent is no head of a response."""


class PreludeReader:
    """Fed with pieces of a stream, however it was cut, until the delimiter has come."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> tuple[bytes, bytes] | None:
        """(the JSON, the body's first bytes), or None: more is needed. Raises BadPrelude."""
        before = len(self._held)
        room = MAX_PRELUDE + len(DELIMITER) - before
        self._held += data[:room]
        at = self._held.find(DELIMITER, max(0, before - len(DELIMITER) + 1))
        if at >= 0:
            return bytes(self._held[:at]), data[at + len(DELIMITER) - before :]
        if len(data) >= room:
            raise BadPrelude(f"its prelude is longer than {MAX_PRELUDE} bytes")
        return None


def split(payload: bytes) -> tuple[bytes, bytes]:
    """The same of a response that was collected. Raises BadPrelude."""
    found = PreludeReader().feed(payload)
    if found is None:
        raise BadPrelude("its prelude has no end")
    return found
