"""Many callers at the same moment: time until the last of them has its answer."""

from __future__ import annotations

from pathlib import Path

from bench import examples
from bench.servers import Server
from bench.stage import Stage, pause

SLEEPERS = 16
SLEEPERS_WARM = "16 sleepers of 100 ms, warm"
SLEEPERS_COLD = "16 sleepers of 100 ms, nothing warm"
BURSTS = (50, 200)


def measure_of(count: int) -> str:
    return f"burst of {count}, nothing warm"


def sleepers(stage: Stage) -> None:
    def fill(folder: Path) -> None:
        examples.write(folder, "sleeper")
        examples.write(folder, "python")

    functions = stage.functions("sleepers", fill)
    for variant in stage.in_turn(stage.variants):
        with stage.lambox(variant, functions) as server:
            _first_start(stage, server)
            _all_at_once(stage, server, "sleeper-0", SLEEPERS, SLEEPERS_COLD)
            for _ in range(5):
                if len(server.settled(SLEEPERS + 1, 2)) > SLEEPERS:
                    break
                stage.load(server, "sleeper-0", clients=SLEEPERS, burst=True)
            for _ in range(stage.sizes.sleeps):
                pause(0.3)  # frozen again
                _all_at_once(stage, server, "sleeper-0", SLEEPERS, SLEEPERS_WARM)


def bursts(stage: Stage) -> None:
    functions = stage.functions("burst", lambda folder: examples.write(folder, "python", 2))
    for count in BURSTS:
        for variant in stage.in_turn(stage.variants):
            with stage.lambox(variant, functions) as server:
                _first_start(stage, server)
                _all_at_once(stage, server, "python-1", count, measure_of(count))
                made = len(server.environments()) - 1
                stage.add(f"burst of {count}: environments made", server.who, [made], unit="")


def _first_start(stage: Stage, server: Server) -> None:
    """One environment of another function, so that the supervisor itself has done it all once."""
    stage.ask(server, "python-0", count=1)
    pause(0.3)


def _all_at_once(stage: Stage, server: Server, function: str, count: int, measure: str) -> None:
    answers = stage.load(server, function, clients=count, burst=True)
    stage.add(measure, server.who, [answers.seconds * 1000], errors=answers.errors)
