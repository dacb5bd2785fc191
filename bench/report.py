"""Owns what a run leaves behind: tables on the terminal, JSON, the host it ran on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import reach as reaching
from bench.figures import Figure, Record
from bench.reach import Reach

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 180
COLOURS = {reaching.MET: "green", reaching.BEYOND: "bold green", reaching.MISSED: "red"}


def number(value: float) -> str:
    """Three digits that count: 0.01234 -> 0.012, 12.345 -> 12.3, 1234.5 -> 1234, 12345 -> 12.3k."""
    if value >= 10_000:
        return f"{value / 1000:.1f}k"
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return (
        f"{value:.2g}"
        if value < 0.1
        else f"{value:.3g}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
    )


def cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    text = number(figure.value)
    if len(figure.rounds) > 1:
        text += f" ({number(figure.min)}–{number(figure.max)})"
    return text + (f" {figure.errors} failed" if figure.errors else "")


def figures_table(record: Record) -> Table:
    table = Table(box=SIMPLE_HEAD, title="value over all rounds (lowest–highest round)")
    table.add_column("measure", no_wrap=True)
    table.add_column("unit")
    contenders = record.contenders()
    for who in contenders:
        table.add_column(who, justify="right")
    for measure, stat, unit in record.rows():
        name = measure if stat == "median" else f"{measure}, {stat}"
        cells = [cell(record.figure(measure, who, stat)) for who in contenders]
        table.add_row(name, unit, *cells)
    return table


def reach_table(reach: Sequence[Reach], who: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"reach of {who}")
    for heading in ("target", "limit", "beyond", "measured", "verdict"):
        table.add_column(heading, justify="left" if heading in ("target", "verdict") else "right")
    for one in reach:
        sign = "≥" if one.target.at_least else "≤"
        measured = ""
        if one.value is not None and one.low is not None and one.high is not None:
            measured = f"{number(one.value)} ({number(one.low)}–{number(one.high)})"
        verdict = one.verdict + (f", {one.errors} errors" if one.errors else "")
        table.add_row(
            one.target.name,
            f"{sign} {one.target.limit:g} {one.target.unit}",
            f"{sign} {one.target.beyond:g} {one.target.unit}",
            measured,
            f"[{COLOURS.get(one.verdict, 'dim')}]{verdict}",
        )
    return table


def host() -> dict[str, Any]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_mb": psutil.virtual_memory().total // (1024 * 1024),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def as_json(
    record: Record, reach: Sequence[Reach], about: dict[str, Any], *, seconds: float
) -> dict[str, Any]:
    return {
        "schema": 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "lambox": commit(),
        **about,
        "seconds": round(seconds, 1),
        "absent": record.absent,
        "notes": list(record.notes),
        "given_up": record.given_up,
        "figures": record.as_json(),
        "reach": reaching.as_json(reach),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(result), indent=1, ensure_ascii=False) + "\n")


def _rounded(value: Any) -> Any:
    """Floats to what they are worth."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def show(record: Record, reaches: dict[str, list[Reach]], about: dict[str, Any]) -> None:
    """`reaches`: by variant of lambox."""
    console = Console(width=None if os.isatty(1) else WIDTH, highlight=False)
    at = about["host"]
    console.print(figures_table(record))
    for who, reach in reaches.items():
        console.print(reach_table(reach, who))
    console.print(
        f"{at['cores']} cores ({at['cpu']}), Linux {at['kernel']}, Python {at['python']}, "
        f"load {at['load_at_start']} at the start, nothing pinned; {about['rounds']} rounds"
    )
    console.print(
        "C echo: the generator's own floor. Functions have memory_size 1769 (one core) and the server a "
        "memory budget of 1 TB, else default settings."
    )
    for who, why in record.absent.items():
        console.print(f"{who}: not available: {why}", markup=False)
    for note in record.notes:
        console.print(f"- {note}", markup=False)
    for text in record.given_up:
        console.print(f"GIVEN UP: {text}", markup=False)
    for series in record.failures():
        console.print(f"ERRORS: {series.measure}, {series.who}: {series.errors}", markup=False)
