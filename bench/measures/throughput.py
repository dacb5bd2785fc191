"""Many clients at once on one function, each asking again as soon as it has its answer."""

from __future__ import annotations

from bench import load, servers
from bench.load import Load
from bench.servers import EMULATOR, Server
from bench.stage import Stage, pause

CLIENTS = (1, 4, 16, 64)
UNIT = "/s"
WARM_UP_S = 0.6


def measure_of(clients: int) -> str:
    return f"throughput, {clients} client{'s'[: clients != 1]}"


def clients(stage: Stage) -> None:
    with stage.everybody(stage.hello()) as contenders:
        for count in CLIENTS:
            for server in stage.in_turn(contenders):
                if server.who != EMULATOR or count == 1:
                    _level(stage, server, count)
                    pause(0.1)
    _crowded_emulator(stage)


def _level(stage: Stage, server: Server, count: int) -> None:
    """So many clients, once the environments they need have been made."""
    if server.who.startswith("lambox"):
        stage.load(server, "python-0", clients=count, burst=True)
        stage.load(server, "python-0", clients=count, seconds=WARM_UP_S)
    answers = stage.load(server, "python-0", clients=count, seconds=stage.sizes.throughput_s)
    stage.add(measure_of(count), server.who, [answers.per_second], unit=UNIT, errors=answers.errors)


def _crowded_emulator(stage: Stage) -> None:
    """It serves one invocation at a time, and is known to crash on several: told, no figure."""
    with stage.emulator() as emulator:
        if emulator is None:
            return
        servers.first_answer(emulator, "python-0")
        answers = load.run(
            Load(emulator.port, emulator.path(""), clients=4, seconds=0.5, timeout_s=3)
        )
        status = emulator.process.poll()
        ended = "" if status is None else f"; it ended with status {status}"
        stage.record.note(
            f"emulator with 4 clients, round {stage.round + 1}: {len(answers.latencies)} answers, "
            f"{answers.errors} errors{(answers.errors and f' ({answers.first_error[:80]})') or ''}{ended}"
        )
