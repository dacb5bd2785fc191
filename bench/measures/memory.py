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
    functions = stage.functions("memory", lambda folder: examples.write(folder, "named", count))
    for variant in stage.in_turn(stage.variants):
        with stage.lambox(variant, functions) as server:
            stage.ask(server, "named-%d", count=count)
            server.settled(count)
            supervisor = server.process.pid
            sandboxes = observe.trees(supervisor)
            used = [tree for tree in sandboxes if any("named-" in name for name in tree.names)]
            ahead = [pid for tree in sandboxes if tree not in used for pid in tree.pids]
            held = [observe.memory(tree.pids) for tree in used]
            missing = max(0, count - len(used))
            for measure, samples in (
                (PSS, [one.pss for one in held]),
                (PRIVATE, [one.private for one in held]),
            ):
                stage.add(measure, server.who, samples, ("p50",), unit=UNIT, errors=missing)
            for measure, pids in (
                ("PSS of the supervisor", [supervisor]),
                ("PSS of its helpers (zygote)", observe.helpers(supervisor, sandboxes)),
                ("PSS of all sandboxes made ahead", ahead),
            ):
                stage.add(measure, server.who, [observe.memory(pids).pss], unit=UNIT)
    stage.record.note(f"memory: PSS with {count} environments that share pages")
