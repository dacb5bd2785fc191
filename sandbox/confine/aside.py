"""Owns what has to be done at the end even when no thread can be had for it."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def aside_or_here(call: Callable[[], object]) -> None:
    """In a thread; on the event loop where the kernel gives no thread (EAGAIN), rather than not at all."""
    try:
        await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    except RuntimeError as exc:
        if "start new thread" not in str(exc):
            raise
        call()
