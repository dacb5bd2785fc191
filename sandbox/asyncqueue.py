"""Owns accepted Event invocations: run later, retried as AWS does, written down at a clean stop.

SPEC 8.1: a function error is retried twice, after one and two more minutes; a throttle or a fault of
ours goes back to the queue with a growing delay until the event is six hours old. What has not ended
when the node stops is written to one file (fsynced, renamed into place) and taken up at the next
start; that file goes only when all its events have ended, so an event may run twice but is not lost.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from sandbox.errors import CallerError, FunctionNotFound, PlatformFault
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome

log = logging.getLogger(__name__)
MAX_AGE_S = 6 * 3600.0
RETRY_DELAYS_S = (60.0, 120.0)
"""Before the second and the third attempt after function errors."""
BACKOFF_FIRST_S, BACKOFF_MOST_S = 1.0, 300.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """One event in the queue. Times are Unix seconds, so that they mean something after a restart."""

    invocation: Invocation
    accepted_at: float
    attempts: int = 0
    """Attempts that ended in a function error."""


class AsyncQueue:
    """Runs accepted events, at most `concurrency` at once."""

    def __init__(
        self,
        invoke: Callable[[Invocation], Awaitable[Outcome]],
        find: Callable[[str], FunctionVersion],
        spool: Path,
        nursery: trio.Nursery,
        *,
        wall: Callable[[], float],
        concurrency: int,
    ) -> None:
        self._invoke = invoke
        self._find = find
        self._spool = spool
        self._nursery = nursery
        self._wall = wall
        self._slots = trio.CapacityLimiter(concurrency)
        self._open: dict[str, Accepted] = {}
        self._inherited: set[str] = set()
        self._settled = trio.Event()

    def __len__(self) -> int:
        return len(self._open)

    async def accept(self, invocation: Invocation) -> None:
        """Take an event. Once this returned, it ends in a result, in its retries, or in the file."""
        await trio.lowlevel.checkpoint()
        self._take(Accepted(invocation, self._wall()))

    def _take(self, accepted: Accepted) -> None:
        key = f"{accepted.invocation.request_id}/{len(self._open)}/{accepted.accepted_at}"
        self._open[key] = accepted
        self._nursery.start_soon(self._run, key)

    async def _run(self, key: str) -> None:
        backoff = BACKOFF_FIRST_S
        while True:
            accepted = self._open[key]
            delay: float | None
            try:
                async with self._slots:
                    outcome = await self._invoke(self._refreshed(accepted.invocation))
            except FunctionNotFound as exc:
                self._give_up(accepted, f"the function is gone: {exc}")
                delay = None
            except (CallerError, PlatformFault) as exc:
                log.info("event %s waits: %s", accepted.invocation.request_id, exc)
                delay, backoff = backoff, min(BACKOFF_MOST_S, backoff * 2)
            else:
                delay = self._after(key, accepted, outcome)
            if delay is not None and self._wall() + delay - accepted.accepted_at > MAX_AGE_S:
                self._give_up(accepted, "it is older than six hours")
                delay = None
            if delay is None:
                self._ended(key)
                return
            await trio.sleep(delay)

    def _after(self, key: str, accepted: Accepted, outcome: Outcome) -> float | None:
        """Seconds until the next attempt, or None when the event has ended."""
        if outcome.status == "success":
            return None
        if accepted.attempts >= len(RETRY_DELAYS_S):
            self._give_up(accepted, f"its retries are used up: {outcome.error_type}")
            return None
        self._open[key] = replace(accepted, attempts=accepted.attempts + 1)
        return RETRY_DELAYS_S[accepted.attempts]

    def _refreshed(self, invocation: Invocation) -> Invocation:
        """SPEC 7: queued events run on the new code."""
        return replace(invocation, function=self._find(invocation.function.name))

    def _give_up(self, accepted: Accepted, why: str) -> None:
        log.error(
            "event %s of %s is dropped, %s; payload: %r",
            accepted.invocation.request_id,
            accepted.invocation.function.name,
            why,
            accepted.invocation.payload[:1024],
        )

    def _ended(self, key: str) -> None:
        del self._open[key]
        self._inherited.discard(key)
        if not self._inherited and self._spool.exists():
            self._spool.unlink(missing_ok=True)
        if not self._open:
            self._settled.set()
            self._settled = trio.Event()

    async def settle(self) -> None:
        """Returns when every accepted event has ended (events between retries count as open)."""
        while self._open:
            await self._settled.wait()

    # --- across a restart

    def write_down(self) -> int:
        """Write what is open to the spool file, durably. Returns how many events that were."""
        if not self._open:
            return 0
        # Payloads are the functions' own business: not for other users of the host.
        self._spool.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._spool.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            for accepted in self._open.values():
                file.write(json.dumps(_to_json(accepted)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._spool)
        folder = os.open(self._spool.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return len(self._open)

    def take_up(self) -> int:
        """Take up what an earlier stop wrote down. Returns how many events that were."""
        try:
            lines = self._spool.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return 0
        before = set(self._open)
        for number, line in enumerate(lines, 1):
            try:
                self._take(_from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as exc:
                log.error(
                    "%s:%d: no event can be read: %s: %s", self._spool, number, exc, line[:1024]
                )
        self._inherited = set(self._open) - before
        return len(self._inherited)


def _to_json(accepted: Accepted) -> dict[str, Any]:
    invocation = accepted.invocation
    return {
        "function": invocation.function.name,
        "payload": base64.b64encode(invocation.payload).decode(),
        "invoked_arn": invocation.invoked_arn,
        "request_id": invocation.request_id,
        "content_type": invocation.content_type,
        "trace_id": invocation.trace_id,
        "accepted_at": accepted.accepted_at,
        "attempts": accepted.attempts,
    }


def _from_json(row: dict[str, Any]) -> Accepted:
    return Accepted(
        Invocation(
            # Only the name matters: what the function is now is looked up before each attempt.
            function=FunctionVersion(row["function"], "", "", Path(), ""),
            payload=base64.b64decode(row["payload"]),
            invoked_arn=row["invoked_arn"],
            request_id=row["request_id"],
            content_type=row["content_type"],
            trace_id=row["trace_id"],
            kind="Event",
        ),
        accepted_at=float(row["accepted_at"]),
        attempts=int(row["attempts"]),
    )


@asynccontextmanager
async def open_queue(
    invoke: Callable[[Invocation], Awaitable[Outcome]],
    find: Callable[[str], FunctionVersion],
    spool: Path,
    *,
    wall: Callable[[], float],
    concurrency: int,
) -> AsyncIterator[AsyncQueue]:
    """A queue that takes up the spool file at once and writes down what is open when it is left."""
    async with trio.open_nursery() as nursery:
        queue = AsyncQueue(invoke, find, spool, nursery, wall=wall, concurrency=concurrency)
        taken = queue.take_up()
        if taken:
            log.warning("%d accepted events from before the last stop are run now", taken)
        try:
            yield queue
        finally:
            left = queue.write_down()
            if left:
                log.warning("%d accepted events are written to %s for the next start", left, spool)
            nursery.cancel_scope.cancel()
