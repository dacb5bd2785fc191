"""Owns what all environments of a node share: who launches, serves and records them, and their common limits."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from sandbox.confine.spec import Launcher, Program, SandboxSpec
from sandbox.function import FunctionVersion
from sandbox.logs import LogBook
from sandbox.telemetry import Courier, Destination

MOST_FAILED = 32
"""Environments that failed or timed out and are given the time of their Shutdown phase at the same time: it lasts
2 s, in which they use memory beyond what is in flight. Others are killed at once."""

MakeCourier = Callable[[Destination, Callable[[int], Awaitable[trio.SocketStream]]], Courier]
"""(destination, how to connect to a port inside) -> who takes telemetry there."""
ServeRuntimeApi = Callable[..., Awaitable[None]]
"""async (listener, environment, *, task_status): the Runtime API, until cancelled."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all environments of a node share."""

    launcher: Launcher
    prepare: Callable[[FunctionVersion, str, bool], tuple[SandboxSpec, Program]]
    """(function, environment id, whether provisioned) -> what to launch and what to run in it."""
    serve: ServeRuntimeApi
    logbook: LogBook
    init_timeout_s: float = 10.0
    freeze_delay_s: float = 0.1
    max_age_s: float = 7200.0
    wall: Callable[[], float] = time.time
    """Unix time in seconds, for the deadline a runtime is told."""
    idle_limit: Callable[[FunctionVersion], float] = lambda function: function.idle_timeout_s
    """For how many seconds from now an environment may be idle."""
    courier: MakeCourier | None = None
    """None: nobody can subscribe to telemetry."""
    account: str = ""
    """AWS account id, for extensions that ask for it."""
    zone_id: str = ""
    """Of the availability zone, as the metadata endpoint tells it (SPEC 1.9)."""
    failed: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MOST_FAILED))
    """Holds the environments that failed and are being shut down."""
    told_calls: set[tuple[str, str]] = field(default_factory=set)
    """(function, system call) of log mode: what has been told is not told by each environment."""
