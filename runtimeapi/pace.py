"""Owns what one environment may make lambox do for nothing: a debt that is paid off with time.

A request that is refused costs a runtime 20 us and lambox up to 1 ms, a connection 0.1 ms; the CPU share holds the
former alone. So each of them is charged, and whoever is in debt is read, and accepted from, later. A runtime
that does what it is there for is never charged for it, however fast, but for errors with causes of a megabyte
and more, for bodies in more than 20,000 chunks per second, and where it asks for an event that it has already.
"""

from __future__ import annotations

import trio

REFUSAL = 1.0
CONNECTION = 0.1
"""A bootstrap that runs curl opens two per invocation."""
CAUSE_BYTE = 1e-4
"""A byte of an error with its cause, which is JSON that lambox has to read: up to 0.1 us."""
HEAD_BYTE = 1e-4
"""A byte of a head or of trailers beyond the first FREE_HEAD."""
FREE_HEAD = 16 * 1024
PIECE = 0.005
"""A chunk of a chunked body, which may have a single byte, or what one read brought of another: 5 us."""
CREDIT = 100.0
PAID_PER_S = 100.0


class Pace:
    def __init__(self) -> None:
        self._debt = 0.0
        self._at = trio.current_time()

    def charge(self, what: float) -> None:
        self._pay()
        self._debt += what

    @property
    def wait_s(self) -> float:
        """How long nothing more should be done for it."""
        if self._debt <= CREDIT:
            return 0.0
        self._pay()
        return max(0.0, (self._debt - CREDIT) / PAID_PER_S)

    async def rest(self) -> None:
        """As long as there is a debt now; what others of the same environment run up meanwhile is theirs."""
        if wait_s := self.wait_s:
            await trio.sleep(wait_s)

    def _pay(self) -> None:
        now = trio.current_time()
        self._debt = max(0.0, self._debt - (now - self._at) * PAID_PER_S)
        self._at = now
