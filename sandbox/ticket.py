"""Owns the hand-over between a waiting caller and whatever ends its invocation."""

from __future__ import annotations

import trio

from sandbox.invocation import Invocation, Outcome


class Ticket:
    """One accepted invocation. It ends exactly once: with an Outcome or with an exception of ours."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.dispatched = False
        self._done = trio.Event()
        self._outcome: Outcome | None = None
        self._fault: Exception | None = None

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def resolve(self, outcome: Outcome) -> None:
        assert not self.done, "an invocation ends once"
        self._outcome = outcome
        self._done.set()

    def fail(self, fault: Exception) -> None:
        assert not self.done, "an invocation ends once"
        self._fault = fault
        self._done.set()

    async def wait(self) -> Outcome:
        await self._done.wait()
        if self._fault is not None:
            raise self._fault
        assert self._outcome is not None
        return self._outcome
