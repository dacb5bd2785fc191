"""Starts: of the supervisor, and of environments at a function's first invocation."""

from __future__ import annotations

import time
from pathlib import Path

from bench import examples, servers
from bench.load import HELLO
from bench.servers import Server
from bench.stage import Stage, pause

START = "supervisor start"
STATS = ("p50", "p90")
KINDS = {
    "python": ("Python hello", HELLO),
    "boto3": ("Python + boto3", HELLO),
    "node": ("Node.js hello", examples.NODE_HELLO),
    "bash": ("bash bootstrap", examples.BASH_HELLO),
}


def measure_of(kind: str) -> str:
    return f"cold {KINDS[kind][0]}"


def supervisor(stage: Stage) -> None:
    """`lambox serve` from its start to its ready line, with one function."""
    for variant in stage.variants:
        for _ in range(2):
            with stage.lambox(variant, stage.hello()) as server:
                stage.add(START, server.who, [server.started_s * 1000])


def first_invocations(stage: Stage) -> None:
    """Each copy of a function is invoked once; for the emulator: process start to first answer."""
    kinds = [kind for kind in KINDS if kind != "node" or examples.has_node()]
    if "node" not in kinds:
        stage.record.note("no Node.js on this host")

    def fill(folder: Path) -> None:
        for kind in kinds:
            examples.write(folder, kind, _count(stage, kind) + 1)

    functions = stage.functions("cold", fill)
    for variant in stage.in_turn(stage.variants):
        with stage.lambox(variant, functions) as server:
            for kind in kinds:
                _copies(stage, server, kind)
    for kind in ("python", "boto3"):
        for _ in range(_count(stage, kind)):
            began = time.perf_counter()
            with stage.emulator(kind) as emulator:
                if emulator is None:
                    return
                servers.first_answer(emulator, f"{kind}-0")
                took = time.perf_counter() - began
            stage.add(measure_of(kind), emulator.who, [took * 1000], STATS)


def _count(stage: Stage, kind: str) -> int:
    return stage.sizes.cold if kind == "python" else stage.sizes.cold_slow


def _copies(stage: Stage, server: Server, kind: str) -> None:
    expected = KINDS[kind][1]
    # Copy 0 is not counted: it may be the first to read a runtime from the disk.
    stage.load(server, f"{kind}-0", count=1, expected=expected)
    pause(0.2)
    answers = stage.load(
        server, f"{kind}-%d", count=_count(stage, kind), first=1, expected=expected
    )
    stage.add(measure_of(kind), server.who, answers.latencies, STATS, errors=answers.errors)
