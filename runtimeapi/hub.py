"""Owns waiting for the fast lane's sockets: one task for all of them, which calls instead of waking tasks.

trio arms a socket anew for every wait (an epoll_ctl(2)), and each readable one costs a turn of a task: two
thirds of a request that is answered in 30 us. Here sockets stay in an epoll(7) set of our own, level-triggered,
of which trio waits for one thing: that something in it is readable.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

MOST_AT_ONCE = 64
"""Sockets served in one turn; then every other task of the process comes first."""


class Hub:
    """`run` is its task. Callbacks are called in it: they must not raise, and must not block."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self.turn = 0
        """Counts what `run` was woken for; all it calls in one turn had something to read before that began."""

    def close(self) -> None:
        """Whoever watches must have stopped."""
        self._epoll.close()

    def watch(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call it whenever `fd` is readable (or has ended), until `forget`. Raises OSError."""
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = on_readable

    def forget(self, fd: int) -> None:
        """Before the descriptor is closed, or while nothing is to be read from it."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    async def run(self) -> None:
        poll, callbacks = self._epoll.poll, self._callbacks
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            readable = poll(0, MOST_AT_ONCE)
            self.turn += 1
            for fd, _ in readable:
                # One that an earlier callback of this turn has forgotten is not there any more.
                on_readable = callbacks.get(fd)
                if on_readable is not None:
                    on_readable()
