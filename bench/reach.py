"""Owns the targets, and whether a run reached them. Pure.

A target compares one figure with a limit, or the ratio of two figures, taken round by round (the
machine is shared: what disturbs a round disturbs both sides of it). Met needs that nothing failed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from bench.figures import Record
from bench.measures import bursts, cold, floors, kill, memory, scale, throughput, warm
from bench.servers import EMULATOR

OURS = "lambox"
MISSED, MET, BEYOND, UNKNOWN = "missed", "met", "beyond", "not measured"
Place = tuple[str, str, str]
"""measure, contender, statistic"""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    limit: float
    beyond: float
    of: Place
    over: Place | None = None
    """The divisor, where the target is a ratio."""
    at_least: bool = False
    unit: str = ""

    def reached(self, value: float, limit: float) -> bool:
        return value >= limit if self.at_least else value <= limit


@dataclass(frozen=True, slots=True)
class Reach:
    """How one target fared. `low` and `high`: the same over single rounds."""

    target: Target
    verdict: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    errors: int = 0


def evaluate(target: Target, record: Record) -> Reach:
    figure = record.figure(*target.of)
    divisor = record.figure(*target.over) if target.over else None
    if figure is None or (target.over and divisor is None):
        return Reach(target, UNKNOWN)
    if divisor is None:
        value, each = figure.value, figure.rounds
    else:
        each = tuple(a / b for a, b in zip(figure.rounds, divisor.rounds, strict=False))
        value = statistics.median(each)
    verdict = MISSED
    if not figure.errors and target.reached(value, target.limit):
        verdict = BEYOND if target.reached(value, target.beyond) else MET
    return Reach(target, verdict, value, min(each), max(each), figure.errors)


def targets(who: str = OURS, grown: int = 500) -> list[Target]:
    """`grown`: how many functions and idle environments are compared with one."""
    hello = (cold.measure_of("python"), who, "p50")
    spawn = (floors.BWRAP_PYTHON, floors.HOST, "p50")
    one_client = (throughput.measure_of(1), EMULATOR, "median")

    def at(measure: str, stat: str = "median") -> Place:
        return (measure, who, stat)

    found = [
        Target("cold hello / bwrap + python3", 0.6, 0.3, hello, spawn, unit="x"),
        Target("cold hello / emulator's", 0.2, 0.1, hello, (hello[0], EMULATOR, "p50"), unit="x"),
        Target(
            "warm / emulator's",
            0.9,
            0.7,
            at(warm.WARM, "p50"),
            (warm.WARM, EMULATOR, "p50"),
            unit="x",
        ),
        *(
            Target(
                f"throughput, {count} clients / emulator's with 1",
                3,
                5,
                at(throughput.measure_of(count)),
                one_client,
                at_least=True,
                unit="x",
            )
            for count in (16, 64)
        ),
        Target(bursts.SLEEPERS_WARM, 130, 115, at(bursts.SLEEPERS_WARM), unit="ms"),
        Target(bursts.SLEEPERS_COLD, 250, 160, at(bursts.SLEEPERS_COLD), unit="ms"),
        Target(bursts.measure_of(50), 400, 250, at(bursts.measure_of(50)), unit="ms"),
    ]
    for when in kill.WHEN:
        for what, limit, beyond in (("caller answered", 50, 10), ("tree gone and reaped", 100, 30)):
            measure = kill.measure_of(what, when)
            found.append(Target(f"{measure}, p99", limit, beyond, at(measure, "p99"), unit="ms"))
    known, idle = scale.functions_measure, scale.idle_measure
    return [
        *found,
        Target(memory.PRIVATE, 5, 2, at(memory.PRIVATE, "p50"), unit="MB"),
        Target(memory.PSS, 6, 3, at(memory.PSS, "p50"), unit="MB"),
        Target(
            f"{idle(grown)} / 1", 1.3, 1.0, at(idle(grown), "p50"), at(idle(1), "p50"), unit="x"
        ),
        Target(
            f"{known(grown)} / 1", 1.1, 1.0, at(known(grown), "p50"), at(known(1), "p50"), unit="x"
        ),
        Target(cold.START, 600, 300, at(cold.START), unit="ms"),
    ]


def evaluate_all(record: Record, who: str = OURS, grown: int = 500) -> list[Reach]:
    return [evaluate(target, record) for target in targets(who, grown)]


def as_json(reach: Iterable[Reach]) -> list[dict[str, object]]:
    return [
        {
            "target": one.target.name,
            "limit": one.target.limit,
            "beyond": one.target.beyond,
            "at_least": one.target.at_least,
            "unit": one.target.unit,
            "value": one.value,
            "low": one.low,
            "high": one.high,
            "errors": one.errors,
            "verdict": one.verdict,
        }
        for one in reach
    ]
