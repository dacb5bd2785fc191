"""Processes: what the host itself needs for a fork, a bubblewrap and a Python."""

from __future__ import annotations

import os
import subprocess
import sys

from bench.stage import Stage
from bench.workshop import compiled

HOST = "host"
BWRAP = "bwrap + true"
BWRAP_PYTHON = "bwrap + python3 -I -S -c pass"
NAMESPACES = [
    "bwrap",
    "--unshare-user",
    "--unshare-ipc",
    "--unshare-pid",
    "--unshare-uts",
    "--unshare-cgroup",
    "--unshare-net",
    "--die-with-parent",
    "--new-session",
    "--disable-userns",
    *("--ro-bind", "/", "/"),
    *("--proc", "/proc"),
    *("--dev", "/dev"),
]
"""The namespaces of an environment, on the plainest root there is."""


def processes(stage: Stage) -> None:
    count = stage.sizes.spawns
    # Not sys.executable: a venv's is a link that may lead through a version manager's script.
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", "pass"]
    stage.add("fork + exit + wait", HOST, _timed("fork", count * 10), ("p50", "p90"))
    spawned = [
        ("python3 -I -S -c pass", python),
        (BWRAP, [*NAMESPACES, "/bin/true"]),
        (BWRAP_PYTHON, [*NAMESPACES, *python]),
    ]
    for measure, command in spawned:
        stage.add(measure, HOST, _timed("spawn", count, *command), ("p50", "p90"))


def _timed(how: str, count: int, *command: str) -> list[float]:
    """Raises RuntimeError: the host cannot do it."""
    done = subprocess.run(
        [str(compiled("floors")), how, str(count), *command], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command) or how}: {done.stderr}")
    return [float(line) / 1000 for line in done.stdout.splitlines()]
