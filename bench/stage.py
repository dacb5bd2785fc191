"""Owns what every measure works with: contenders, sizes, temp folder, the record of one run."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from bench import examples, load, servers
from bench.figures import Record
from bench.load import Answers, Load
from bench.servers import Server, Variant
from bench.workshop import compiled

One = TypeVar("One")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each measure one round does."""

    cold: int
    cold_slow: int
    """boto3, Node.js, bash."""
    spawns: int
    warm: int
    throughput_s: float
    payloads: tuple[int, ...]
    sleeps: int
    kills: int
    memory: int
    grown: tuple[int, ...]
    """Functions known and idle environments, to compare with one."""
    grown_warm: int


QUICK = Sizes(12, 4, 20, 300, 0.7, (40, 30, 15, 4), 5, 8, 10, (50,), 300)
FULL = Sizes(30, 12, 60, 2000, 3.0, (300, 200, 100, 20), 20, 20, 30, (50, 500), 600)


@dataclass(slots=True)
class Stage:
    temp: Path
    sizes: Sizes
    variants: tuple[Variant, ...]
    emulator_binary: Path | None
    record: Record = field(default_factory=Record)
    round: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Spent on each measure so far."""

    def in_turn(self, contenders: Sequence[One]) -> list[One]:
        """Another one goes first in each round."""
        turn = self.round % len(contenders)
        return [*contenders[turn:], *contenders[:turn]]

    def functions(self, name: str, fill: Callable[[Path], object]) -> Path:
        """A folder of functions, made in the first round that asks for it."""
        folder = self.temp / "functions" / name
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            folder.parent.chmod(0o755)
            fill(folder)
        return folder

    def hello(self) -> Path:
        return self.functions("hello", lambda folder: examples.write(folder, "python"))

    @contextlib.contextmanager
    def lambox(self, variant: Variant, functions: Path, **settings: str) -> Iterator[Server]:
        with servers.lambox(variant, functions, self.temp, **settings) as server:
            yield server

    @contextlib.contextmanager
    def emulator(self, kind: str = "python") -> Iterator[Server | None]:
        """None where there is no emulator."""
        if self.emulator_binary is None:
            yield None
            return
        code = self.functions(f"emulator-{kind}", lambda folder: examples.write(folder, kind))
        with servers.emulator(self.emulator_binary, code / f"{kind}-0", self.temp) as server:
            yield server

    @contextlib.contextmanager
    def everybody(self, functions: Path) -> Iterator[list[Server]]:
        """All who can answer a hello, warm, at the same time; lambox's variants first."""
        with contextlib.ExitStack() as stack:
            running = [
                stack.enter_context(self.lambox(variant, functions)) for variant in self.variants
            ]
            if emulator := stack.enter_context(self.emulator()):
                running.append(emulator)
            parser = "httptools" if find_spec("httptools") else "a few lines of Python"
            self.record.note(f"trio echo: parsed by {parser}")
            echo = [sys.executable, str(Path(__file__).with_name("echo.py"))]
            running.append(stack.enter_context(servers.floor("trio echo", echo)))
            running.append(
                stack.enter_context(servers.floor("C echo", [str(compiled("floors")), "serve"]))
            )
            for server in running:
                servers.first_answer(server, "python-0")
            yield running

    def load(self, server: Server, function: str, **how: object) -> Answers:
        """Load on one function (`how`: fields of Load). Errors are counted, and the first one is noted."""
        answers = load.run(Load(port=server.port, path=server.path(function), **how))  # type: ignore[arg-type]
        if answers.errors:
            self.record.note(f"{server.who}, {function}: first error: {answers.first_error}")
        return answers

    def ask(self, server: Server, function: str, **how: object) -> Answers:
        """As `load`, where anything but a right answer makes what follows worthless."""
        answers = self.load(server, function, **how)
        if answers.errors:
            raise RuntimeError(f"{server.who}, {function}: {answers.first_error}")
        return answers

    def add(
        self,
        measure: str,
        who: str,
        samples: list[float],
        stats: tuple[str, ...] = ("median",),
        *,
        unit: str = "ms",
        errors: int = 0,
    ) -> None:
        self.record.add(
            measure, who, samples, round_=self.round, unit=unit, stats=stats, errors=errors
        )


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """A folder that sandboxes of other uids can read into; removed with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="bench-lambox-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pause(seconds: float) -> None:
    """Let what was just ended be cleared away by the kernel before the next thing is timed."""
    time.sleep(seconds)
