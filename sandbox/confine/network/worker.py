"""Owns a thread that does what it is told, in the namespaces it is in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import trio

T = TypeVar("T")


class Worker:
    """It begins in its maker's namespaces. Stop it: it ends with what it was told before."""

    def __init__(self, name: str) -> None:
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
        self._orders = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when it has ended. May be called again."""
        self._orders.put(None)
        self._thread.join()

    def do(self, action: Callable[[], T]) -> T:
        """Wait for it, blocking. Raises what `action` raises."""
        future: Future[T] = Future()
        self._orders.put((action, future))
        return future.result()

    async def call(self, action: Callable[[], T]) -> T:
        """Wait for it in trio. Shielded: what has begun is not forgotten. Raises what `action` raises."""
        future: Future[T] = Future()
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def tell(_: Future[T]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        future.add_done_callback(tell)
        self._orders.put((action, future))
        with trio.CancelScope(shield=True):
            await done.wait()
        return future.result()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            action, future = order
            try:
                result = action()
            except Exception as exc:  # the thread must live: others depend on it
                future.set_exception(exc)
            else:
                future.set_result(result)
            del order, action, future
