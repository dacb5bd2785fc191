"""Owns running the load generator (load.c): arguments in, latencies out."""

from __future__ import annotations

import array
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.workshop import compiled

EVENT = '{"n": 1}'
HELLO = '{"hello": {"n": 1}}'
"""What every hello answers to EVENT."""
PATIENCE_S = 300


@dataclass(frozen=True, slots=True)
class Load:
    """What to ask for. One of `count`, `seconds` and `burst` says how much."""

    port: int
    path: str
    clients: int = 1
    count: int | None = None
    seconds: float | None = None
    burst: bool = False
    """All clients connect at once and send one request each."""
    first: int = 0
    """%d in the path counts from here."""
    body: str = EVENT
    body_file: Path | None = None
    """Sent in place of `body`; the answer has to be the same."""
    expected: str | None = HELLO
    timeout_s: float = 60

    def argv(self) -> list[str]:
        words = [str(compiled("load")), "-p", str(self.port), "-u", self.path]
        words += ["-c", str(self.clients), "-s", str(self.first), "-t", str(self.timeout_s)]
        if self.burst:
            words += ["-b"]
        elif self.count is not None:
            words += ["-n", str(self.count)]
        else:
            words += ["-d", str(self.seconds)]
        if self.body_file:
            return [*words, "-f", str(self.body_file), "-E"]
        return [*words, "-B", self.body, *(["-e", self.expected] if self.expected else [])]


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back. Latencies are in milliseconds, in the order of the answers."""

    latencies: list[float]
    errors: int
    first_error: str
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds


def run(load: Load) -> Answers:
    """Returns when all is answered. Raises RuntimeError if the generator itself fails."""
    with tempfile.NamedTemporaryFile(prefix="bench-lambox-") as out:
        done = subprocess.run(
            [*load.argv(), "-o", out.name], capture_output=True, text=True, timeout=PATIENCE_S
        )
        if done.returncode:
            raise RuntimeError(f"the load generator: {done.stderr}")
        told = json.loads(done.stdout)
        latencies = array.array("d", Path(out.name).read_bytes())
    return Answers(
        [us / 1000 for us in latencies], told["errors"], told["first_error"], told["seconds"]
    )


@contextlib.contextmanager
def in_background(load: Load) -> Iterator[None]:
    """The load runs meanwhile; it is ended on leaving, or ends by itself."""
    process = subprocess.Popen(load.argv(), stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()
