"""Memory of an idle Python environment: bwrap, process 1 and the runtime together."""

from __future__ import annotations

from bench import examples, observe
from bench.stage import Stage

PSS = "PSS per idle environment"
PRIVATE = "private per idle environment"
UNIT = "MB"


def idle_environments(stage: Stage) -> None:
    """Hello functions, one environment each; what the supervisor and its helpers hold is told apart."""
    count = stage.sizes.memory
    functions = stage.functions("memory", lambda folder: examples.write(folder, "python", count))
    for variant in stage.in_turn(stage.variants):
        with stage.lambox(variant, functions) as server:
            stage.ask(server, "python-%d", count=count)
            rows = server.settled(count)
            trees = observe.members({row["id"] for row in rows})
            held = [observe.memory(pids) for pids in trees.values() if pids]
            stage.add(PSS, server.who, [one.pss for one in held], ("p50",), unit=UNIT)
            stage.add(PRIVATE, server.who, [one.private for one in held], ("p50",), unit=UNIT)
            supervisor = server.process.pid
            for name, pids in (
                ("supervisor", [supervisor]),
                ("supervisor's helpers", observe.helpers(supervisor, trees.values())),
            ):
                stage.add(f"PSS of the {name}", server.who, [observe.memory(pids).pss], unit=UNIT)
    stage.record.note(f"memory: PSS with {count} environments that share pages")
