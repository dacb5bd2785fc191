"""Owns the hand-over between a waiting caller and whatever ends its invocation."""

from __future__ import annotations

from collections.abc import Callable

import trio

from sandbox.invocation import Invocation, Outcome


class Ticket:
    """One accepted invocation. It ends exactly once: with an Outcome or with an exception of ours.

    `on_end` is called at that moment, in the middle of the work of whoever ended it: it must be quick,
    raise nothing, and ask nothing of the scheduler. `wait` is for those who can wait a turn of the loop.
    """

    __slots__ = (
        "_fault",
        "_on_end",
        "_outcome",
        "_woken",
        "dispatched",
        "done",
        "invocation",
        "queued_at",
    )

    def __init__(self, invocation: Invocation, on_end: Callable[[], None] | None = None) -> None:
        self.invocation = invocation
        self.queued_at = trio.current_time()
        self.dispatched = False
        self.done = False
        self._on_end = on_end
        self._woken: trio.Event | None = None
        self._outcome: Outcome | None = None
        self._fault: Exception | None = None

    def resolve(self, outcome: Outcome) -> None:
        assert not self.done, "an invocation ends once"
        self._outcome = outcome
        self._end()

    def fail(self, fault: Exception) -> None:
        assert not self.done, "an invocation ends once"
        self._fault = fault
        self._end()

    def _end(self) -> None:
        self.done = True
        if self._woken is not None:
            self._woken.set()
        if self._on_end is not None:
            self._on_end()

    def result(self) -> Outcome:
        """Raises what it failed with. Only once it is done."""
        if self._fault is not None:
            raise self._fault
        assert self._outcome is not None
        return self._outcome

    async def wait(self) -> Outcome:
        if self._woken is None:
            self._woken = trio.Event()
            if self.done:
                self._woken.set()
        await self._woken.wait()
        return self.result()
