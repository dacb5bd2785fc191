"""Owns what has to be done even when no thread can be had for it."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def aside_or_here(call: Callable[[], object], *, abandon: bool = True) -> None:
    """In a thread; on the event loop where the kernel gives no thread (EAGAIN), rather than not at all.

    `abandon`: who is cancelled does not wait for its end.
    """
    try:
        await trio.to_thread.run_sync(call, abandon_on_cancel=abandon)
    except RuntimeError as exc:
        if "start new thread" not in str(exc):
            raise
        call()
