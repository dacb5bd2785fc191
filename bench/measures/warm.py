"""One client, one warm environment: latency, and what the size of the payload does to it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bench import examples, servers
from bench.stage import Stage

WARM = "warm, one after the other"
STATS = ("p50", "p99")
PARTS = 4
"""Contenders take turns this often within a round."""
SIZES = {"1 KB": 1_000, "100 KB": 100_000, "1 MB": 1_000_000, "6 MB": 6_000_000}


def sequential(stage: Stage) -> None:
    with stage.everybody(stage.hello()) as contenders:
        for server in contenders:
            stage.ask(server, "python-0", count=20)
        for _ in range(PARTS):
            for server in stage.in_turn(contenders):
                answers = stage.load(server, "python-0", count=stage.sizes.warm // PARTS)
                stage.add(WARM, server.who, answers.latencies, STATS, errors=answers.errors)


def payloads(stage: Stage) -> None:
    """A JSON text of so many bytes there and back, through the runtime's JSON parser and writer."""
    functions = stage.functions("echo", lambda folder: examples.write(folder, "echo"))
    with contextlib.ExitStack() as stack:
        contenders = [
            stack.enter_context(stage.lambox(variant, functions)) for variant in stage.variants
        ]
        if emulator := stack.enter_context(stage.emulator("echo")):
            contenders.append(emulator)
        for server in contenders:
            servers.first_answer(server, "echo-0")
        for (name, size), count in zip(SIZES.items(), stage.sizes.payloads, strict=True):
            body = _body(stage.temp / f"{size}.json", size)
            for server in stage.in_turn(contenders):
                stage.load(server, "echo-0", count=1, body_file=body)
                answers = stage.load(server, "echo-0", count=count, body_file=body)
                stage.add(
                    f"echo of {name}",
                    server.who,
                    answers.latencies,
                    ("p50",),
                    errors=answers.errors,
                )


def _body(path: Path, size: int) -> Path:
    if not path.exists():
        path.write_text('"' + "a" * (size - 2) + '"')
    return path
