"""Owns random identifiers: request ids, trace ids, nonces.

An invocation needs four of them. The kernel's randomness is asked for by the pageful, since one system
call for each of them (as uuid4 and secrets do it) cost more than making the text.
"""

from __future__ import annotations

import os

_POOL_BYTES = 4096
_VARIANT = "89ab"


class _Pool:
    """Random bytes, each given out once."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def hex(self, count: int) -> str:
        start = self._at
        if start + count > len(self._bytes):
            self._bytes = os.urandom(_POOL_BYTES)
            start = 0
        self._at = start + count
        return self._bytes[start : start + count].hex()

    def drop(self) -> None:
        """A forked child must not give out what its parent gives out."""
        self._bytes = b""
        self._at = 0


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.drop)


def token(count: int) -> str:
    """`count` random bytes (at most a few hundred) in hexadecimal."""
    return _pool.hex(count)


def new_request_id() -> str:
    """A random UUID (RFC 9562, version 4)."""
    text = _pool.hex(16)
    variant = _VARIANT[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
