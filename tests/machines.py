"""What hypothesis's state machines need: a trio loop that a rule can step, and how much to try.

A rule is a plain function, so the loop runs in a thread of its own, on a clock that only moves when a rule
says so. After each step every task has come to rest: what a rule asserts does not depend on luck.

`make test` tries few, always the same examples; `make fuzz` sets LAMBOX_FUZZ to how many times as many, at random.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import hypothesis
import trio
import trio.testing

T = TypeVar("T")
FUZZ = int(os.environ.get("LAMBOX_FUZZ", "0"))


def effort(examples: int, steps: int = 30) -> hypothesis.settings:
    """Settings for `examples` examples in `make test`."""
    return hypothesis.settings(
        max_examples=examples * max(1, FUZZ),
        stateful_step_count=steps * (2 if FUZZ else 1),
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


class Loop:
    """`do` runs an async function on the loop and comes back when all tasks are at rest."""

    def __init__(self) -> None:
        self.clock = trio.testing.MockClock()
        self._failure: BaseException | None = None
        started: queue.Queue[trio.lowlevel.TrioToken] = queue.Queue()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        self._token = started.get(timeout=10)

    def _run(self, started: queue.Queue[trio.lowlevel.TrioToken]) -> None:
        async def main() -> None:
            self._stop = trio.Event()
            async with trio.open_nursery() as self.nursery:
                started.put(trio.lowlevel.current_trio_token())
                await self._stop.wait()
                self.nursery.cancel_scope.cancel()

        try:
            trio.run(main, clock=self.clock)
        except BaseException as exc:
            self._failure = exc

    def do(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        async def step() -> T:
            result = await call(*args)
            await trio.testing.wait_all_tasks_blocked()
            return result

        try:
            return trio.from_thread.run(step, trio_token=self._token)
        except (trio.Cancelled, trio.RunFinishedError) as exc:
            raise AssertionError("a task of the loop failed") from (self._failure or exc)

    def jump(self, seconds: float) -> None:
        """Let time pass, stopping at every moment at which something is due."""

        async def pass_on() -> None:
            end = trio.current_time() + seconds
            while True:
                await trio.testing.wait_all_tasks_blocked()
                due = trio.lowlevel.current_statistics().seconds_to_next_deadline
                left = end - trio.current_time()
                if left <= 0:
                    return
                # A deadline that is due is met a moment after it, as on a real clock.
                self.clock.jump(min(left, max(due, 0.0) + 1e-6))

        self.do(pass_on)

    def close(self) -> None:
        """Cancels what runs. Raises what a task failed with."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(lambda: self._stop.set())
        self._thread.join(10)
        assert not self._thread.is_alive(), "the loop does not end"
        if self._failure is not None:
            raise self._failure
