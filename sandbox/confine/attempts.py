"""Owns trying in a child what cannot be undone, such as leaving a namespace."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable


def attempt(action: Callable[[], None]) -> str:
    """What went wrong with `action` in a fork of ours; empty if nothing did."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(read) as said:
        pid = child(action, write)
        os.close(write)
        text = said.read()
    _, status = os.waitpid(pid, 0)
    return text or ("" if status == 0 else f"the attempt ended with {status:#x}")


def child(action: Callable[[], None], write: int) -> int:
    """A fork that does `action` and ends, and writes to `write` what went wrong. Returns its pid."""
    with warnings.catch_warnings():
        # Of threads there may be those of the log: the fork uses nothing that they could hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    try:
        action()
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        os.write(write, f"{exc.strerror}{where}".encode())
    else:
        os._exit(0)
    finally:
        os._exit(1)
