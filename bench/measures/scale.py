"""What a warm invocation costs when there is much else: functions that are known, environments that idle."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import psutil

from bench import examples, observe
from bench.servers import Server
from bench.stage import Stage, pause

PARTS = 5
MAKERS = 4
"""Clients that make idle environments."""


def functions_measure(count: int) -> str:
    return f"warm, {count} function{'s'[: count != 1]} known"


def idle_measure(count: int) -> str:
    return f"warm, {count} idle environment{'s'[: count != 1]}"


def making_measure(count: int) -> str:
    return f"making {count} idle environments"


def _fill(count: int, folder: Path) -> None:
    examples.write(folder, "python", count)


def known_functions(stage: Stage) -> None:
    """Servers with few and with many functions, at the same time, asked in turn."""
    for variant in stage.in_turn(stage.variants):
        with contextlib.ExitStack() as stack:
            servers = []
            for count in (1, *stage.sizes.grown):
                functions = stage.functions(f"known-{count}", functools.partial(_fill, count))
                server = stack.enter_context(stage.lambox(variant, functions))
                servers.append((functions_measure(count), server))
            _compare(stage, servers)


def idle_environments(stage: Stage) -> None:
    """A server with one environment, and one for each larger number, at the same time, asked in turn."""
    most = max(stage.sizes.grown)
    functions = stage.functions("idle", lambda folder: examples.write(folder, "python", most))
    for variant in stage.in_turn(stage.variants):
        with contextlib.ExitStack() as stack:
            servers = []
            for count in (1, *stage.sizes.grown):
                server = stack.enter_context(stage.lambox(variant, functions))
                if count > 1:
                    _make(stage, server, count)
                servers.append((idle_measure(count), server))
            _compare(stage, servers)


def _make(stage: Stage, server: Server, count: int) -> None:
    before = psutil.virtual_memory().available
    answers = stage.load(server, "python-%d", count=count, clients=MAKERS)
    alive = len(server.settled(count, 30))
    took_mb = (before - psutil.virtual_memory().available) / observe.MB
    errors = answers.errors + max(0, count - alive)
    measure = making_measure(count)
    stage.add(measure, server.who, [answers.seconds], unit="s", errors=errors)
    stage.add(f"{measure}: host memory", server.who, [took_mb / count], unit="MB each")


def _compare(stage: Stage, servers: list[tuple[str, Server]]) -> None:
    for _, server in servers:
        stage.ask(server, "python-0", count=50)
    pause(0.3)
    for part in range(PARTS):
        turn = part % len(servers)
        for measure, server in servers[turn:] + servers[:turn]:
            cpu, count = observe.cpu_s(server.process.pid), stage.sizes.grown_warm
            answers = stage.load(server, "python-0", count=count)
            cpu = observe.cpu_s(server.process.pid) - cpu
            stage.add(measure, server.who, answers.latencies, ("p50",), errors=answers.errors)
            stage.add(f"{measure}: supervisor's CPU", server.who, [cpu / count * 1000])
