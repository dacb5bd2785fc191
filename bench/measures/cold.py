"""Starts: of the supervisor, and of environments at a function's first invocation."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from bench import examples, servers
from bench.load import HELLO
from bench.servers import Server
from bench.stage import Stage, pause

START = "supervisor start"
UNPAUSED = "cold Python hello, no pause between"
STATS = ("p50", "p90")
PAUSE_S = 0.1
FOR_EMULATOR = ("python", "boto3")
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
    """Each copy of a function is invoked once; for the emulator: process start to first answer.

    Contenders take turns, with a pause after each turn. Without a pause in between, lambox is measured on
    its own: sandboxes that were made ahead run out.
    """
    kinds = [kind for kind in KINDS if kind != "node" or examples.has_node()]
    if "node" not in kinds:
        stage.record.note("no Node.js on this host")

    def fill(folder: Path) -> None:
        for kind in kinds:
            examples.write(folder, kind, 1 + 2 * _count(stage, kind))

    functions = stage.functions("cold", fill)
    with contextlib.ExitStack() as opened:
        running = [
            opened.enter_context(stage.lambox(variant, functions)) for variant in stage.variants
        ]
        for kind in kinds:
            for server in running:
                # Copy 0 is not counted: it may be the first to read a runtime from the disk.
                stage.load(server, f"{kind}-0", count=1, expected=KINDS[kind][1])
            for number in range(_count(stage, kind)):
                pause(PAUSE_S)
                for server in stage.in_turn(running):
                    _invoke(stage, server, kind, 1 + number, 1, measure_of(kind))
                if kind in FOR_EMULATOR:
                    _emulator(stage, kind)
        pause(1)
        count = _count(stage, "python")
        for server in stage.in_turn(running):
            _invoke(stage, server, "python", 1 + count, count, UNPAUSED)


def _count(stage: Stage, kind: str) -> int:
    return stage.sizes.cold if kind == "python" else stage.sizes.cold_slow


def _invoke(stage: Stage, server: Server, kind: str, first: int, count: int, measure: str) -> None:
    answers = stage.load(server, f"{kind}-%d", count=count, first=first, expected=KINDS[kind][1])
    stage.add(measure, server.who, answers.latencies, STATS, errors=answers.errors)


def _emulator(stage: Stage, kind: str) -> None:
    began = time.perf_counter()
    with stage.emulator(kind) as emulator:
        if emulator is None:
            return
        servers.first_answer(emulator, f"{kind}-0")
        took = time.perf_counter() - began
    stage.add(measure_of(kind), emulator.who, [took * 1000], STATS)
