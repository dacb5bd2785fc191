"""Owns what is measured, in order: name -> a function that runs one round of it.

A measure opens servers of its own, so that no round inherits environments of another.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.measures import bursts, cold, floors, kill, memory, scale, throughput, warm
from bench.stage import Stage

MEASURES: dict[str, Callable[[Stage], None]] = {
    "floors": floors.processes,
    "start": cold.supervisor,
    "cold": cold.first_invocations,
    "warm": warm.sequential,
    "throughput": throughput.clients,
    "payload": warm.payloads,
    "sleepers": bursts.sleepers,
    "burst": bursts.bursts,
    "kill": kill.deadlines,
    "memory": memory.idle_environments,
    "functions": scale.known_functions,
    "idle": scale.idle_environments,
}
