"""Owns the contenders as processes: each server lives as long as its `with`.

lambox()     `lambox serve` on a folder of functions, state in a temp folder
emulator()   AWS's Runtime Interface Emulator around one function
floor()      what a server costs at least: floors.c, echo.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import EVENT

MEMORY_BUDGET_MB = 1 << 20
"""Functions have 1769 MB (a whole core); 200 of them at once are not to be throttled for that."""
IDLE_S = 600
"""No environment is to end of old age while it is measured."""
STOP_PATIENCE_S = 60
EMULATOR = "emulator"
ROOT = Path(__file__).resolve().parent.parent
LAMBOX = [sys.executable, "-m", "lambox"]


@dataclass(frozen=True, slots=True)
class Variant:
    """lambox with extra arguments for `serve`."""

    who: str
    args: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Variant:
        return cls(f"lambox {text}".strip(), tuple(shlex.split(text)))


@dataclass(frozen=True, slots=True)
class Server:
    who: str
    port: int
    process: subprocess.Popen[Any]
    started_s: float = 0
    """From the start of the process to its ready line."""

    def path(self, function: str) -> str:
        """The emulator knows one function, under this name."""
        name = "function" if self.who == EMULATOR else function
        return f"/2015-03-31/functions/{name}/invocations"

    def environments(self) -> list[dict[str, Any]]:
        """lambox only: one row per live environment."""
        url = f"http://127.0.0.1:{self.port}/_lambox/environments"
        with urllib.request.urlopen(url, timeout=30) as reply:
            rows: list[dict[str, Any]] = json.load(reply)
        return rows

    def settled(self, count: int, patience_s: float = 15) -> list[dict[str, Any]]:
        """The environments, once `count` of them are idle and stand still; or what there is by then."""
        end = time.monotonic() + patience_s
        while True:
            rows = self.environments()
            still = [row for row in rows if row["state"] == "frozen"]
            if len(still) >= count or time.monotonic() > end:
                return still or rows
            time.sleep(0.1)


@contextlib.contextmanager
def lambox(variant: Variant, functions: Path, temp: Path, **settings: str) -> Iterator[Server]:
    """Ready when entered. Raises RuntimeError with the end of its log if it does not get ready."""
    state, log = temp / f"state-{time.monotonic_ns()}", temp / "lambox.log"
    env = {
        **{name: text for name, text in os.environ.items() if not name.startswith("LAMBOX_")},
        # As it comes, unless the caller asks for something else.
        **{name: os.environ[name] for name in ("LAMBOX_DEFAULT_NETWORK",) if name in os.environ},
        "PYTHONPATH": str(ROOT),  # this checkout's lambox, whichever is installed
        "LAMBOX_STATE": str(state),
        "LAMBOX_MEMORY_BUDGET_MB": str(MEMORY_BUDGET_MB),
        "LAMBOX_DEFAULT_MEMORY_SIZE": "1769",
        "LAMBOX_DEFAULT_IDLE_TIMEOUT": str(IDLE_S),
        "LAMBOX_GRACE_S": "0",
        **settings,
    }
    command = [*LAMBOX, "serve", "--functions", str(functions), "--port", "0", *variant.args]
    began = time.perf_counter()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=temp, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env
        )
    with _ended(process):
        assert process.stdout is not None
        line = process.stdout.readline()
        took = time.perf_counter() - began
        if "http://" not in line:
            raise RuntimeError(f"{shlex.join(command)} is not ready:\n{_tail(log)}")
        yield Server(variant.who, int(line.rsplit(":", 1)[1]), process, took)


@contextlib.contextmanager
def emulator(binary: Path, code: Path, temp: Path) -> Iterator[Server]:
    """Started, but perhaps not listening yet. It and its runtime are killed on leaving."""
    client = Path(sys.prefix, "share", "lambox", f"python3.{sys.version_info.minor}")
    common = client.with_name("common")
    port, api = free_port(), free_port()
    argv = [str(binary), "--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    argv += ["--runtime-api-address", f"127.0.0.1:{api}"]
    argv += [sys.executable, "-m", "awslambdaric", "handler.handler"]
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{client}:{common}:{code}",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": "15",
    }
    with (temp / "emulator.log").open("w") as log:
        process = subprocess.Popen(
            argv, cwd=code, stdout=log, stderr=log, env=env, start_new_session=True
        )
    try:
        yield Server(EMULATOR, port, process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def floor(who: str, argv: Sequence[str]) -> Iterator[Server]:
    """A program that prints its port and ends with its standard input, so never outlives us."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with _ended(process):
        assert process.stdout is not None
        yield Server(who, int(process.stdout.readline()), process)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


def first_answer(server: Server, function: str, patience_s: float = 20) -> None:
    """Knock until the server listens, and wait for its answer. Raises RuntimeError or OSError."""
    request = (
        f"POST {server.path(function)} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Length: {len(EVENT)}\r\n\r\n{EVENT}"
    )
    end = time.monotonic() + patience_s
    while True:
        try:
            with socket.create_connection(("127.0.0.1", server.port), timeout=patience_s) as peer:
                peer.sendall(request.encode())
                if not peer.recv(65536).startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"{server.who} did not answer with 200")
                return
        except ConnectionRefusedError:
            if time.monotonic() > end or server.process.poll() is not None:
                raise
            time.sleep(0.0005)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
