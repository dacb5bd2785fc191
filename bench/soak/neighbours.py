"""Owns measuring what a well-behaved function notices of hogs beside it.

Each hog is two invocations of a function that has the right to a whole core, so both hogs together could have
the whole of a two-core host. Quiet and hogged windows alternate, so that the machine's own noise is in both. What
is quiet is told by all pairs: one that was disturbed must not allow its hog more, and is measured again.
"""

from __future__ import annotations

import json
import statistics
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from bench.soak.caller import Caller, Unanswered
from bench.soak.census import get
from bench.soak.functions import Written

CALLERS, EVERY_S = 4, 0.05
"""80 requests per second."""
SETTLE_S = 0.3
"""From a hog's start until it counts."""
GONE_LIMIT_S, GONE_LOOK_S, CLEAR_S = 15.0, 0.1, 1.0
"""Until a hog's environments are no more (3 s for a fork bomb), and from then until the next quiet window."""
FACTOR, FLOOR_MS, CAP_MS = 10.0, 250.0, 1000.0
"""p99 beside a hog: at most the larger of FACTOR times the usual quiet one and FLOOR_MS, and never more than CAP_MS.
With all cores taken by hogs, a turn of the supervisor and one of the function each wait for a scheduler's slice or
more, and the CPU quota makes a function that has used its share wait for the rest of a period of 100 ms; two of
those and some."""
DISTURBED_MS = 100.0
"""A quiet p99 (usually 3 to 10 ms) beyond this is somebody else's doing, or what a hog before it has left."""


@dataclass(slots=True)
class Window:
    """Latencies in ms."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        if not self.latencies:
            return float("inf")
        row = sorted(self.latencies)
        return row[min(len(row) - 1, int(len(row) * share))]

    def figures(self) -> dict[str, float]:
        return {
            "requests": len(self.latencies),
            "failures": len(self.failures),
            "p50_ms": round(self.quantile(0.5), 1),
            "p99_ms": round(self.quantile(0.99), 1),
            "worst_ms": round(self.quantile(1.0), 1),
        }


@dataclass(slots=True)
class Pair:
    quiet: Window = field(default_factory=Window)
    hogged: Window = field(default_factory=Window)
    before: Pair | None = None
    """What was measured first and was disturbed: its failures count, its latencies do not."""

    @property
    def disturbed(self) -> bool:
        return self.quiet.quantile(0.99) > DISTURBED_MS


def usual_ms(pairs: Mapping[str, Pair]) -> float:
    """The quiet p99 of this machine: the middle one of all pairs'."""
    return statistics.median(pair.quiet.quantile(0.99) for pair in pairs.values())


def bound_ms(pairs: Mapping[str, Pair]) -> float:
    return min(max(FACTOR * usual_ms(pairs), FLOOR_MS), CAP_MS)


def problems(pairs: Mapping[str, Pair]) -> Iterator[str]:
    for hog, pair in pairs.items():
        for measured in (pair.before, pair):
            for window in (measured.quiet, measured.hogged) if measured else ():
                for failure in window.failures:
                    yield f"beside a {hog}: {failure}"
        if not (pair.hogged.latencies and pair.quiet.latencies):
            yield f"beside a {hog}: nothing was answered"
            continue
        quiet, hogged = (window.figures()["p99_ms"] for window in (pair.quiet, pair.hogged))
        if pair.disturbed:
            yield (
                f"before a {hog}: p99 {quiet} ms with nobody beside it, "
                f"usual are {usual_ms(pairs):.1f} ms"
            )
        if pair.hogged.quantile(0.99) > (bound := bound_ms(pairs)):
            yield f"beside a {hog}: p99 {hogged} ms, bound {bound:.0f} ms"


async def measure_again(
    port: int, functions: Written, pairs: dict[str, Pair], window_s: float, rounds: int
) -> list[str]:
    """Once, those of `pairs` that were disturbed, whose places the new ones take. Returns whose."""
    again = {hog: Pair(before=pair) for hog, pair in pairs.items() if pair.disturbed}
    for _ in range(rounds):
        await measure(port, functions, again, window_s)
    pairs |= again
    return list(again)


async def measure(port: int, functions: Written, found: dict[str, Pair], window_s: float) -> None:
    """One round: each hog of `found`, whose windows grow."""
    for hog, pair in found.items():
        async with trio.open_nursery() as nursery:
            async with _window(pair.quiet, port, functions.neighbour):
                await trio.sleep(window_s / 2)
            name = functions.small_hog if hog == "memory hog" else functions.hog
            for _ in range(2):
                nursery.start_soon(_invoke, port, name, hog)
            await trio.sleep(SETTLE_S)
            async with _window(pair.hogged, port, functions.neighbour):
                await trio.sleep(window_s)
                # A hog ends at its timeout. To clear a thousand dead processes away takes seconds: neighbours
                # have to live with that too, and it must not be in the next hog's quiet window.
                with trio.move_on_after(GONE_LIMIT_S):
                    while await trio.to_thread.run_sync(_is_there, port, name):  # noqa: ASYNC110  the server tells nobody
                        await trio.sleep(GONE_LOOK_S)
        await trio.sleep(CLEAR_S)


def _is_there(port: int, name: str) -> bool:
    return any(row["function"] == name for row in get(port, "/_lambox/environments"))


@asynccontextmanager
async def _window(window: Window, port: int, name: str) -> AsyncIterator[None]:
    """Callers are at work while the block runs; their last calls are waited for."""
    over = trio.Event()

    async def call(number: int) -> None:
        caller = Caller(port)
        await trio.sleep(number * EVERY_S / CALLERS)
        try:
            while not over.is_set():
                began = trio.current_time()
                await _once(window, caller, name)
                await trio.sleep_until(max(trio.current_time(), began + EVERY_S))
        finally:
            caller.drop()

    async with trio.open_nursery() as nursery:
        for number in range(CALLERS):
            nursery.start_soon(call, number)
        yield
        over.set()


async def _once(window: Window, caller: Caller, name: str) -> None:
    began = trio.current_time()
    try:
        status = await _ask(caller, name, "echo")
    except Unanswered as exc:
        window.failures.append(str(exc))
    else:
        window.latencies.append((trio.current_time() - began) * 1000)
        if status != 200:
            window.failures.append(f"status {status}")


async def _invoke(port: int, name: str, act: str) -> None:
    """The hog's own caller: how that ends is the hog's affair, that it ends is checked."""
    caller = Caller(port)
    try:
        await _ask(caller, name, act)
    finally:
        caller.drop()


async def _ask(caller: Caller, name: str, act: str) -> int:
    event = json.dumps({"id": str(uuid.uuid4()), "act": act}).encode()
    path = f"/2015-03-31/functions/{name}/invocations"
    answer = await caller.ask("POST", path, {}, event)
    return 599 if "x-amz-function-error" in answer.headers else answer.status
