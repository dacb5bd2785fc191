"""Owns the picture for docs/performance.md: an SVG of bars, for light and dark pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.figures import Record
from bench.measures import cold, floors, throughput, warm
from bench.report import number
from bench.servers import EMULATOR

WIDTH, BAR, GAP, LEFT, RIGHT = 640, 16, 6, 190, 90
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-weight: 600 }
  .ours { fill: #0969da } .theirs { fill: #bf8700 } .floor { fill: #8c959f }
  .range { stroke: #24292f; stroke-width: 1 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .ours { fill: #4493f8 } .theirs { fill: #d29922 } .floor { fill: #6e7681 }
    .range { stroke: #e6edf3 }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    kind: str
    """ours, theirs or floor"""
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    bars: tuple[Bar, ...]


def panels(record: Record, variants: Sequence[str]) -> list[Panel]:
    """What of the record is shown; panels and bars without figures are left out."""
    hello = cold.measure_of("python")

    def bars(measure: str, stat: str, *others: tuple[str, str, str]) -> tuple[Bar, ...]:
        asked = [(who, measure, who, "ours") for who in variants]
        asked.append(("AWS's emulator", measure, EMULATOR, "theirs"))
        asked += [(label, of, who, "floor") for label, of, who in others]
        found = []
        for label, of, who, kind in asked:
            if figure := record.figure(of, who, stat):
                found.append(Bar(label, kind, figure.value, figure.min, figure.max))
        return tuple(found)

    sixteen = throughput.measure_of(16)
    made = [
        Panel(
            "Cold: first answer of a Python hello, p50",
            "ms",
            bars(hello, "p50", (floors.BWRAP_PYTHON, floors.BWRAP_PYTHON, floors.HOST)),
        ),
        Panel(
            "Warm: one invocation after the other, p50",
            "ms",
            bars(warm.WARM, "p50", ("trio echo server", warm.WARM, "trio echo")),
        ),
        Panel(
            "Throughput: invocations per second (16 clients; the emulator: 1)",
            "/s",
            (
                *bars(sixteen, "median"),
                *(bar for bar in bars(throughput.measure_of(1), "median") if bar.kind == "theirs"),
                *(
                    bar
                    for bar in bars(sixteen, "median", ("trio echo server", sixteen, "trio echo"))
                    if bar.kind == "floor"
                ),
            ),
        ),
    ]
    return [panel for panel in made if panel.bars]


def svg(shown: Sequence[Panel], caption: str) -> str:
    y = 0
    parts: list[str] = []
    for panel in shown:
        y += 24
        parts.append(f'<text class="title" x="8" y="{y}">{escape(panel.title)}</text>')
        y += 10
        scale = (WIDTH - LEFT - RIGHT) / max(bar.high for bar in panel.bars)
        for bar in panel.bars:
            parts += _bar(bar, y, scale, panel.unit)
            y += BAR + GAP
    y += 20
    parts.append(f'<text x="8" y="{y}" opacity="0.7">{escape(caption)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" '
            f'width="{WIDTH}" height="{y + 10}" role="img">',
            f"<style>{STYLE}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _bar(bar: Bar, y: int, scale: float, unit: str) -> list[str]:
    """Label, bar, a thin line from the lowest to the highest round, value."""
    base, middle = y + BAR - 4, y + BAR / 2
    low, high = LEFT + bar.low * scale, LEFT + bar.high * scale
    label = bar.label if len(bar.label) < 30 else bar.label[:28] + "…"
    return [
        f'<text x="{LEFT - 8}" y="{base}" text-anchor="end">{escape(label)}</text>',
        f'<rect class="{bar.kind}" x="{LEFT}" y="{y}" width="{bar.value * scale:.1f}" '
        f'height="{BAR}" rx="2"/>',
        f'<path class="range" d="M{low:.1f} {middle}H{high:.1f}"/>',
        f'<text x="{high + 6:.1f}" y="{base}">{number(bar.value)} {escape(unit)}</text>',
    ]
