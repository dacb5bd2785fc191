"""Fakes for the rooms below the scheduler: a sandbox without a process, a runtime that is a task."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import trio

from sandbox.confine.spec import (
    ConfineError,
    Exit,
    Program,
    ProgramNotStarted,
    RefusedCall,
    SandboxSpec,
    Usage,
)
from sandbox.environment import Environment
from sandbox.function import LATEST, FunctionVersion
from sandbox.invocation import Invocation, new_request_id
from sandbox.lifecycle import Refused
from sandbox.logs import LogBook
from sandbox.surroundings import Surroundings

REGION, ACCOUNT = "us-east-1", "123456789012"
Runtime = Callable[["Environment", "FakeSandbox"], Awaitable[None]]


def make_function(name: str = "f", **changes: Any) -> FunctionVersion:
    values: dict[str, Any] = {
        "name": name,
        "runtime": "python3.11",
        "handler": "handler.handler",
        "code": Path("/nowhere"),
        "revision": "1",
        "timeout_s": 3,
        "idle_timeout_s": 30.0,
    }
    return FunctionVersion(**{**values, **changes})


def make_invocation(
    function: FunctionVersion, payload: bytes = b"{}", **changes: Any
) -> Invocation:
    return Invocation(
        function=function,
        payload=payload,
        invoked_arn=changes.pop("invoked_arn", function.qualified_arn(REGION, ACCOUNT)),
        request_id=changes.pop("request_id", new_request_id()),
        **changes,
    )


def find_any(name: str, qualifier: str | None) -> FunctionVersion:
    """Every function there could be."""
    return make_function(name, version=qualifier or LATEST)


class Body:
    """A ResponseBody of given chunks; `fault` is raised instead of ending."""

    def __init__(
        self,
        *chunks: bytes,
        trailers: Mapping[str, str] | None = None,
        fault: Exception | None = None,
    ) -> None:
        self.chunks = chunks
        self.trailers: Mapping[str, str] = trailers or {}
        self.fault = fault

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._left = list(self.chunks)
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._left:
            return self._left.pop(0)
        if self.fault:
            raise self.fault
        raise StopAsyncIteration


class FakeCompanion:
    """A Companion whose process does what `end` says."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.output, self.write_output = _pipe()
        self.signals: list[int] = []
        self._exit: Exit | None = None
        self._ended = trio.Event()

    def end(self, exit_: Exit) -> None:
        if self._exit is None:
            self._exit = exit_
            self._ended.set()

    async def wait(self) -> Exit:
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    async def signal(self, number: int) -> None:
        await trio.lowlevel.checkpoint()
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.end(Exit(signal=number))

    def close(self) -> None:
        os.close(self.output)
        os.close(self.write_output)


class FakeSandbox:
    """A Sandbox whose program is whatever `end` says; remembers what was done to it."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.name = spec.name
        self.spec = spec
        self.address = "127.0.0.1:9001"
        self.listener = socket.socket()
        self.stdout, self.write_stdout = _pipe()
        self.stderr, self.write_stderr = _pipe()
        self.telemetry, self.write_telemetry = _pipe()
        self.tmp: Literal["disk", "memory"] = "memory"
        self.frozen = False
        self.killed = False
        self.settled = False
        self.history: list[str] = []
        self.calls: list[RefusedCall] = []
        """What log mode of system calls has met."""
        self.companions: dict[str, FakeCompanion] = {}
        self.not_executable: dict[str, int] = {}
        """Companion -> errno."""
        self.ignores_sigterm = False
        self.memory_peak = 10 * 1024 * 1024
        self._exit: Exit | None = None
        self._ended = trio.Event()
        self.started = trio.Event()

    async def start(self, program: Program) -> None:
        await trio.lowlevel.checkpoint()
        self.started.set()

    async def start_companion(self, program: Program) -> FakeCompanion:
        await trio.lowlevel.checkpoint()
        name = program.argv[0].rpartition("/")[2]
        if name in self.not_executable:
            raise ProgramNotStarted(program.argv[0], self.not_executable[name], "")
        companion = self.companions[name] = FakeCompanion(program)
        return companion

    async def signal(self, number: int) -> None:
        await trio.lowlevel.checkpoint()
        self.history.append(signal.Signals(number).name)
        if number == signal.SIGKILL or not self.ignores_sigterm:
            self.end(Exit(signal=number))

    def end(self, exit_: Exit) -> None:
        """The program ends by itself."""
        self._exit = exit_
        self._ended.set()

    async def wait(self) -> Exit:
        await self._ended.wait()
        assert self._exit is not None
        return self._exit

    async def kill(self) -> Exit:
        await trio.lowlevel.checkpoint()
        if not self.killed:
            self.killed = True
            self.history.append("kill")
            self.listener.close()
            for companion in self.companions.values():
                companion.end(Exit(killed=True))
                companion.close()
            for fd in (
                self.stdout,
                self.stderr,
                self.telemetry,
                self.write_stdout,
                self.write_stderr,
                self.write_telemetry,
            ):
                os.close(fd)
        return Exit(killed=True)

    def admits(self, peer: tuple[str, int]) -> bool:
        return True

    async def dial(self, port: int) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", port)

    def settle(self) -> None:
        self.settled = True

    def freeze(self) -> None:
        self.frozen = True
        self.history.append("freeze")

    def thaw(self) -> None:
        self.frozen = False
        self.history.append("thaw")

    def usage(self) -> Usage:
        return Usage(self.memory_peak, self.memory_peak, 0.01)

    def peak_memory(self) -> int | None:
        return self.memory_peak

    def oom_kills(self) -> int:
        return 0

    def refused(self, tell: Callable[[RefusedCall], None] | None = None) -> Sequence[RefusedCall]:
        for one in self.calls if tell else ():
            tell(one)
        return self.calls


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    return read, write


class FakeLauncher:
    """Launches FakeSandboxes; `faults` are raised first, one per launch."""

    def __init__(self) -> None:
        self.sandboxes: list[FakeSandbox] = []
        self.faults: list[ConfineError] = []
        self.make: Callable[[SandboxSpec], FakeSandbox] = FakeSandbox
        self.takes_s = 0.0

    async def launch(self, spec: SandboxSpec) -> FakeSandbox:
        await trio.sleep(self.takes_s)
        if self.faults:
            raise self.faults.pop(0)
        sandbox = self.make(spec)
        self.sandboxes.append(sandbox)
        return sandbox

    def describe(self) -> str:
        return "not at all"

    @property
    def alive(self) -> list[FakeSandbox]:
        return [sandbox for sandbox in self.sandboxes if not sandbox.killed]


async def echo(environment: Environment, sandbox: FakeSandbox) -> None:
    """A runtime that answers each event with itself."""
    while True:
        event = await environment.next()
        await respond(environment, event.request_id, Body(event.payload))


async def respond(environment: Environment, request_id: str, body: Body, **how: Any) -> None:
    how = {"invocation_id": None, "response_mode": None, "content_type": None, **how}
    await environment.respond(request_id, body=body, **how)


class World:
    """Surroundings of fakes. `runtime` is run for every environment launched."""

    def __init__(self, runtime: Runtime = echo, **settings: Any) -> None:
        self.launcher = FakeLauncher()
        self.runtime = runtime
        self.extensions: Runtime | None = None
        """What external and internal extensions do, from before the runtime starts."""
        self.lines: list[str] = []
        self.logbook = LogBook(lambda _, line: self.lines.append(line))
        self.surroundings = Surroundings(
            launcher=self.launcher,
            prepare=lambda function, id_, provisioned: (
                SandboxSpec(name=id_, root=()),
                Program(argv=["runtime"], env={"PROVISIONED": str(provisioned)}),
            ),
            serve=self._serve,
            logbook=self.logbook,
            wall=trio.current_time,
            **settings,
        )

    async def _serve(
        self,
        listener: socket.socket,
        environment: Environment,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        sandbox = next(s for s in self.launcher.sandboxes if s.name == environment.id)
        task_status.started()
        async with trio.open_nursery() as nursery:
            if self.extensions is not None:
                nursery.start_soon(self.extensions, environment, sandbox)
            await sandbox.started.wait()
            try:
                await self.runtime(environment, sandbox)
            except Refused:
                await trio.sleep_forever()
