"""Owns the description of one confined process tree: what it sees, what it may use, how it ended.

ConfineError                 the host could not do what was asked (ours or the host's fault)
  IsolationUnavailable       a piece of isolation this host refuses; carries the remedy
  ProgramNotStarted          the sandbox stands, but exec of the program failed (errno)
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from rootfs.layout import Entry, Late
from sandbox.confine.calls import Family

if TYPE_CHECKING:
    import trio  # `lambox --help` comes by here, and does not wait for it

MIB = 1024 * 1024
MOST_ERRNO = 4095
"""linux/err.h"""
MOST_STATUS = 0xFFFF
"""A wait status has 16 bits (wait(2))."""


class ConfineError(Exception):
    """The host could not make, hold or end a sandbox."""


class IsolationUnavailable(ConfineError):
    """A piece of isolation that this host refuses. `remedy` is the one command that mends it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}\nHint: {remedy}" if remedy else message)
        self.remedy = remedy


class ProgramNotStarted(ConfineError):
    """execve(2) of the program failed inside the sandbox; `errno` says why."""

    def __init__(self, program: str, errno: int, reason: str) -> None:
        super().__init__(f"cannot execute {program}: {reason}")
        self.program = program
        self.errno = errno


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use. `cpu_cores` is a share of cores, as AWS gives memory/1769."""

    memory_bytes: int = 128 * MIB
    cpu_cores: float = 1.0
    pids: int = 1024
    nofile: int = 1024


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a runtime is brought, without a function, to the point before it would load one.

    It is told its function over a socket (the protocol stands in rootfs/inside/python/zygote.py).
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    forks: bool
    """True: one process of it lives outside (the zygote) and forks itself into every sandbox.
    False: each sandbox's pid 1 executes it."""
    preload: tuple[str, ...] = ()
    """Modules that a zygote loads besides the runtime's client."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """Everything a launcher needs to make one sandbox. Nothing of Lambda is in here.

    But for `name`, `late` and `limits`, sandboxes with equal specs are interchangeable until they start.
    """

    name: str
    """Unique among live sandboxes; names the cgroup: [a-z0-9-]+, at most 64 characters."""
    root: tuple[Entry, ...]
    limits: Limits = field(default_factory=Limits)
    network: Literal["none", "nat", "host"] = "none"
    hostname: str = "sandbox"
    late: tuple[Late, ...] = ()
    """Code, layers and /tmp, on folders that `root` has: may be mounted when the sandbox stands already."""
    preparation: Preparation | None = None
    calls: Family = "provided"
    """Whose system calls it may make (`confine.calls`)."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is executed inside: absolute or PATH-searched argv[0], the whole environment, cwd."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str = "/var/task"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a sandbox's program ended, from wait status and counters, never guessed.

    Exactly one of `code` and `signal` is set, except where pid 1 was killed and could not report: by us
    (then `killed` is true), or by the kernel with the whole group (then `oom_kills` is not 0).
    `oom_kills` is the cgroup's counter of out-of-memory kills.
    """

    code: int | None = None
    signal: int | None = None
    oom_kills: int = 0
    killed: bool = False
    cpu_s: float = 0.0

    def describe(self) -> str:
        """As Go prints a wait status, which is AWS's form (SPEC 3.4): `exit status 1`, `signal: killed`."""
        if self.code is not None:
            return f"exit status {self.code}"
        if self.signal is None:
            return "signal: killed"
        names = {
            signal.SIGKILL: "killed",
            signal.SIGSEGV: "segmentation fault",
            signal.SIGABRT: "aborted",
            signal.SIGTERM: "terminated",
            signal.SIGBUS: "bus error",
            signal.SIGINT: "interrupt",
            signal.SIGHUP: "hangup",
            signal.SIGQUIT: "quit",
            signal.SIGILL: "illegal instruction",
            signal.SIGFPE: "floating point exception",
            signal.SIGPIPE: "broken pipe",
            signal.SIGALRM: "alarm clock",
            signal.SIGTRAP: "trace/breakpoint trap",
            signal.SIGSYS: "bad system call",
            signal.SIGUSR1: "user defined signal 1",
            signal.SIGUSR2: "user defined signal 2",
        }
        try:
            return f"signal: {names[signal.Signals(self.signal)]}"
        except (KeyError, ValueError):
            return f"signal: signal {self.signal}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox uses now. `None` where the host keeps no such account."""

    memory_bytes: int | None
    memory_peak_bytes: int | None
    cpu_s: float | None


class RefusedCall(Protocol):
    """A kind of system call that the filter refuses, or would refuse, as log mode met it."""

    @property
    def name(self) -> str: ...

    def line(self) -> str:
        """For a log, when it is first met."""

    def total(self) -> str:
        """For a log, when the sandbox is gone: how often it was met."""


class Companion(Protocol):
    """A process beside the program of a sandbox: in the same namespaces and groups, as the same user."""

    @property
    def output(self) -> int:
        """Read end (non-blocking) of its standard output and error. Owned by the sandbox."""

    async def wait(self) -> Exit:
        """Until it has ended by itself, or with the sandbox."""

    async def signal(self, number: int) -> None:
        """To its process group, if it lives. Raises ConfineError."""


class Sandbox(Protocol):
    """One live sandbox, made and not yet running its program.

    Resource handling: whoever got it from `Launcher.launch` must end with `await kill()` (shielded),
    which closes the listener and all descriptors. `kill` may be called any number of times and
    from any state; it returns only when the whole tree is reaped and its cgroup is gone.
    """

    @property
    def name(self) -> str: ...
    @property
    def listener(self) -> socket.socket:
        """Listening TCP socket made inside the sandbox's network namespace; non-blocking."""

    @property
    def address(self) -> str:
        """What the program inside is told in AWS_LAMBDA_RUNTIME_API: `127.0.0.1:9001`."""

    @property
    def stdout(self) -> int:
        """Read end (non-blocking) of the program's standard output. Owned by the sandbox."""

    @property
    def stderr(self) -> int: ...
    @property
    def telemetry(self) -> int:
        """Read end of the pipe that is descriptor 62 inside (`_LAMBDA_TELEMETRY_LOG_FD`)."""

    @property
    def tmp(self) -> Literal["disk", "memory"]:
        """Where what is written into /tmp lies; in memory it counts as the sandbox's."""

    def admits(self, peer: tuple[str, int]) -> bool:
        """Whether a connection to the listener from `peer` comes from inside this sandbox.

        Always true with a network namespace of its own. On the host's network the peer's uid tells it, or,
        without a uid of its own, the cgroup the peer's socket was made in. Raises OSError.
        """

    async def start(self, program: Program) -> None:
        """Execute `program` inside; returns when execve succeeded. Raises ProgramNotStarted."""

    async def dial(self, port: int) -> trio.SocketStream:
        """A TCP connection to 127.0.0.1:`port` as a process inside makes one, and as it alone could.

        Waits while the sandbox is frozen. Raises OSError (nobody listens), ConfineError (it has ended).
        """

    async def start_companion(self, program: Program) -> Companion:
        """Execute a further program, before or after `start`; returns when execve succeeded.

        From then on the end of the program is not the end of the sandbox: `kill` is. Raises
        ProgramNotStarted or ConfineError.
        """

    async def signal(self, number: int) -> None:
        """To the process group of the program, if it lives. Raises ConfineError."""

    def settle(self) -> None:
        """Init is over: the CPU share holds from now on (until then there is none, as on AWS)."""

    async def wait(self) -> Exit:
        """Wait until the program has ended by itself (or was killed). Does not clean up."""

    async def kill(self) -> Exit:
        """SIGKILL the whole tree from the host, reap it, remove the cgroup, close everything."""

    def freeze(self) -> None:
        """Let every process of the tree stand still (cgroup freezer). No-op where there is none."""

    def thaw(self) -> None: ...
    def usage(self) -> Usage: ...
    def peak_memory(self) -> int | None:
        """Bytes. Read at every invocation: one system call at most."""

    def oom_kills(self) -> int: ...
    def refused(self, tell: Callable[[RefusedCall], None] | None = None) -> Sequence[RefusedCall]:
        """Log mode: the system calls met up to now. `tell` is told of each kind once, of those to come too."""


class Launcher(Protocol):
    """Makes sandboxes. `describe()` says in one line how they are isolated here."""

    async def launch(self, spec: SandboxSpec) -> Sandbox:
        """Returns when the listener stands and the tree is in its cgroup. Raises ConfineError."""

    def describe(self) -> str: ...
