"""Owns the arithmetic: samples by round -> figures with their spread. Pure.

Series    every sample of one measure of one contender, round by round
Figure    one statistic of a series: over all samples, and its min, median and max over the rounds
Record    all series of a run
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


def percentile(samples: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was measured, never one between two. Raises ValueError if empty."""
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(0, rank - 1)]


def statistic(samples: Sequence[float], name: str) -> float:
    """`p50`, `p99` and so on; `median` for figures of which a round has one."""
    return statistics.median(samples) if name == "median" else percentile(samples, float(name[1:]))


@dataclass(frozen=True, slots=True)
class Figure:
    """One cell of the table. `min`, `median`, `max`: of the same statistic, taken round by round."""

    measure: str
    who: str
    stat: str
    unit: str
    value: float
    min: float
    median: float
    max: float
    samples: int
    rounds: tuple[float, ...]
    errors: int


@dataclass(slots=True)
class Series:
    measure: str
    who: str
    unit: str
    stats: tuple[str, ...]
    rounds: dict[int, list[float]] = field(default_factory=dict)
    errors: int = 0

    def figure(self, stat: str) -> Figure | None:
        """None where no sample is: everything failed."""
        filled = [samples for samples in self.rounds.values() if samples]
        if not filled:
            return None
        each = [statistic(samples, stat) for samples in filled]
        pooled = [sample for samples in filled for sample in samples]
        return Figure(
            self.measure,
            self.who,
            stat,
            self.unit,
            statistic(pooled, stat),
            min(each),
            statistics.median(each),
            max(each),
            len(pooled),
            tuple(each),
            self.errors,
        )


class Record:
    """Everything measured in a run, and remarks about it."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        self.notes: dict[str, None] = {}
        """Remarks, each once, in the order they were first made."""
        self.absent: dict[str, str] = {}
        """Contender -> why it is not available."""
        self.given_up: list[str] = []
        """Measures that could not be taken, with the reason."""

    def add(
        self,
        measure: str,
        who: str,
        samples: Iterable[float],
        *,
        round_: int,
        unit: str = "ms",
        stats: tuple[str, ...] = ("median",),
        errors: int = 0,
    ) -> None:
        series = self._series.setdefault((measure, who), Series(measure, who, unit, stats))
        series.rounds.setdefault(round_, []).extend(samples)
        series.errors += errors

    def note(self, text: str) -> None:
        self.notes[text] = None

    def figure(self, measure: str, who: str, stat: str = "median") -> Figure | None:
        series = self._series.get((measure, who))
        return series.figure(stat) if series else None

    def figures(self) -> list[Figure]:
        return [
            figure
            for series in self._series.values()
            for stat in series.stats
            if (figure := series.figure(stat)) is not None
        ]

    def failures(self) -> list[Series]:
        return [series for series in self._series.values() if series.errors]

    def rows(self) -> list[tuple[str, str, str]]:
        """(measure, statistic, unit) in the order of measuring."""
        rows: dict[tuple[str, str, str], None] = {}
        for series in self._series.values():
            rows.update(dict.fromkeys((series.measure, stat, series.unit) for stat in series.stats))
        return list(rows)

    def contenders(self) -> list[str]:
        return list(dict.fromkeys([*(who for _, who in self._series), *self.absent]))

    def as_json(self) -> list[dict[str, object]]:
        return [dataclasses.asdict(figure) for figure in self.figures()]
