"""Owns the putting together: builds every part of a node once and opens them in shutdown order.

    way out < launcher < catalog < Lambda API < Runtime API app < scheduler < queue < Invoke API app

What stands further right is closed first: callers are turned away before the queue is written down,
the queue before environments are killed, environments before the launcher lets go of cgroups.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import trio

from lambox.awsclient import AwsClients, Endpoints
from lambox.awssettings import is_server
from lambox.callers import CallersFace
from lambox.config import Config
from lambox.dispatch import Dispatch
from lambox.lambdaapi import LambdaApi, event_sources, open_lambda_api
from lambox.network import WayOut, open_way_out
from rootfs import environ, host, layout
from rootfs.layout import Entry
from rootfs.runtimes import Runtime, Runtimes, discover
from rootfs.trees import LayerStore
from runtimeapi.delivery import courier
from runtimeapi.intake import read_trace_id
from runtimeapi.invoke import make_invoke_app
from runtimeapi.lanes import caller_lane, runtime_lane
from runtimeapi.ports import Console, Functions
from runtimeapi.rapi import ON_HOST_NETWORK, make_rapi_app
from runtimeapi.server import ServedApp, caller_config, environment_config, running_app
from sandbox.asyncqueue import AsyncQueue, Rules, open_queue
from sandbox.catalog import Catalog
from sandbox.confine.launcher import BwrapLauncher, open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.spec import MIB, Limits, Preparation, Program, SandboxSpec
from sandbox.confine.storage import open_storage
from sandbox.environment import Environment
from sandbox.eventstore import EventStore
from sandbox.function import FunctionVersion, Network
from sandbox.invocation import Invocation, Outcome
from sandbox.keepwarm import KeepWarm, idle_limit_s
from sandbox.loggingconfig import DEFAULT_LEVEL
from sandbox.logs import LogBook
from sandbox.planner import Limits as NodeLimits
from sandbox.scheduler import Scheduler, open_scheduler
from sandbox.sources.sources import EventSources
from sandbox.surroundings import ServeRuntimeApi, Surroundings
from sandbox.ticket import Ticket

log = logging.getLogger("lambox")
CORE_MB = 1769
"""Memory that buys one whole core (SPEC 5.4)."""
IMAGES = "tmp"
"""Folder of the state folder in which the files behind /tmp lie, without names."""
LOOK_S = 2.0
"""At the latest after this long all functions are looked at: the news of a change on disk may have gone to an
invocation's own look."""
ASYNC_PER_CORE = 4
"""Event invocations run at once per core, so that a burst of them leaves room for callers who wait."""


class Kitchen:
    """Turns a function version into what to launch and what to run in it."""

    def __init__(self, config: Config, runtimes: Runtimes, resolv_conf: str = "") -> None:
        """`resolv_conf`: of functions that are not on the host's network."""
        self._region = config.region
        self._runtimes = runtimes
        self._host = host.scan()
        self._preload = config.preload
        self._log_mode = config.seccomp == "log"
        self._resolv_conf = resolv_conf
        self._roots: dict[tuple[str, str], tuple[Entry, ...]] = {}
        self._specs: dict[tuple[str, str], tuple[FunctionVersion, SandboxSpec]] = {}
        """By function and version, of those that `specs` was asked for last."""

    def prepare(
        self, function: FunctionVersion, id_: str, provisioned: bool = False
    ) -> tuple[SandboxSpec, Program]:
        runtime = self._runtimes.resolve(function.runtime)
        opt = function.layers[0] if function.layers else None
        env = self._environment(runtime, function, provisioned)
        argv = environ.command(runtime, environment=env, code=function.code, opt=opt)
        spec = SandboxSpec(
            name=id_,
            root=self._root(runtime, function.network),
            limits=Limits(
                memory_bytes=function.memory_mb * MIB, cpu_cores=function.memory_mb / CORE_MB
            ),
            network=function.network,
            late=layout.late(
                str(function.code), str(opt) if opt else None, function.ephemeral_storage_mb * MIB
            ),
            preparation=self._preparation(runtime, env, function),
            calls=runtime.family,
        )
        return spec, Program(argv=argv, env=env)

    def specs(self, live: Iterable[FunctionVersion]) -> list[SandboxSpec]:
        """What environments of these would be launched as, without a name.

        Made anew for what has changed alone: each takes 0.1 ms, and there may be thousands.
        """
        before, self._specs = self._specs, {}
        for one in live:
            known = before.get((one.name, one.version))
            if known is None or known[0] != one:
                known = one, self.prepare(one, "")[0]
            self._specs[one.name, one.version] = known
        return [spec for _, spec in self._specs.values()]

    def _environment(
        self, runtime: Runtime, function: FunctionVersion, provisioned: bool
    ) -> dict[str, str]:
        day = time.strftime("%Y/%m/%d", time.gmtime())
        return environ.function_environment(
            runtime,
            name=function.name,
            handler=function.handler,
            memory_mb=function.memory_mb,
            version=function.version,
            region=self._region,
            log_group=function.log_group or "",
            log_stream=f"{day}/[{function.version}]{secrets.token_hex(16)}",
            log_level=(function.application_log_level or DEFAULT_LEVEL)
            if function.log_format == "JSON"
            else "",
            initialization_type="provisioned-concurrency" if provisioned else "on-demand",
            user=function.environment,
        )

    def _root(self, runtime: Runtime, network: Network) -> tuple[Entry, ...]:
        names = host.resolv_conf() if network == "host" else self._resolv_conf
        key = runtime.identifier, names
        if key not in self._roots:
            self._roots[key] = layout.plan(runtime, host=self._host, resolv_conf=names)
        return self._roots[key]

    def _preparation(
        self, runtime: Runtime, env: dict[str, str], function: FunctionVersion
    ) -> Preparation | None:
        if function.extensions and self._log_mode:
            return None  # where a fork comes in, pid 1 has the other filter, and so would they
        prepared = environ.preparation(runtime, env)
        if prepared is None:
            return None
        argv, env = prepared
        forks = runtime.family == "python"
        return Preparation(argv, tuple(env.items()), forks, self._preload if forks else ())


class Node:
    """One lambox: functions, environments, and the face towards callers. Made by `open_node`."""

    def __init__(
        self,
        config: Config,
        face: CallersFace,
        api: LambdaApi,
        scheduler: Scheduler,
        queue: AsyncQueue,
        keepwarm: KeepWarm,
        sources: EventSources,
        logbook: LogBook,
        launcher: BwrapLauncher,
        kitchen: Kitchen,
        way_out: WayOut,
    ) -> None:
        self.config = config
        self._face = face
        self.functions = api.functions
        self._control = api.control
        self._garbage = api.garbage
        self.isolation = f"{launcher.describe()}, {way_out.describe()}"
        """How functions are isolated here, in one line."""
        self._scheduler = scheduler
        self._queue = queue
        self._keepwarm = keepwarm
        self._sources = sources
        self._logbook = logbook
        self._launcher = launcher
        self._kitchen = kitchen
        self._told: list[FunctionVersion] = []
        """The versions, as they were last told to those who prepare for them."""
        self._on_host_network: set[str] = set()
        self._stop = trio.Event()

    async def invoke(self, invocation: Invocation) -> Outcome:
        return await self._scheduler.invoke(invocation)

    def submit(self, invocation: Invocation, on_end: Callable[[], None]) -> Ticket:
        return self._scheduler.submit(invocation, on_end)

    def withdraw(self, ticket: Ticket) -> None:
        self._scheduler.withdraw(ticket)

    async def accept(self, invocation: Invocation) -> None:
        await self._queue.accept(invocation)

    @property
    def console(self) -> Console:
        return Console(
            environments=self._scheduler.environments,
            prepared=self._prepared,
            log_lines=self._logbook.lines,
            follow_logs=self._logbook.follow,
        )

    def _prepared(self) -> list[dict[str, Any]]:
        """One row per kind of sandbox that is kept ready, as `lambox ps` shows it."""
        return [
            {
                "program": one.program,
                "network": one.network,
                "ready": one.ready,
                "wanted": one.wanted,
                "memory_mb": round(one.memory_bytes / MIB, 1),
            }
            for one in self._launcher.prepared()
        ]

    async def wind_up(self) -> None:
        """The end of environments whose extensions are told of it, within the grace period."""
        with trio.move_on_after(self.config.grace_s):
            await self._scheduler.wind_up()

    def stop(self) -> None:
        """Let `serve` return: turn new callers away, give running invocations the grace period."""
        self._stop.set()

    def reload(self) -> None:
        """Look at all functions anew; those that have not changed keep their environments."""
        self.functions.reload()
        self._tell_functions()
        log.info("%d functions have been read anew", len(self.functions.all()))

    async def serve(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer callers until `stop`. Started with `http(s)://HOST:PORT`. Raises OSError: no such port."""
        config, face = self.config, self._face
        app = make_invoke_app(
            self.functions,
            self,
            self.console,
            region=config.region,
            account=config.account,
            guard=face.guard,
            control=self._control,
            url_keys=face.url_keys,
        )
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listening = socket.create_server((config.host, config.port), family=family, backlog=1024)
        lane = caller_lane(
            self.functions, self, region=config.region, account=config.account, guard=face.guard
        )
        async with (
            running_app(
                app, caller_config(face.limits), lane if config.fast_lane else None
            ) as served,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(self._serve_callers, served, listening)
            nursery.start_soon(self._watch_functions)
            nursery.start_soon(self._keepwarm.run)
            nursery.start_soon(self._garbage.run, self._scheduler.in_use)
            nursery.start_soon(self._sources.run)
            nursery.start_soon(face.watch)
            port = listening.getsockname()[1]
            name = f"[{config.host}]" if family == socket.AF_INET6 else config.host
            scheme = "https" if face.secure is not None else "http"
            task_status.started(f"{scheme}://{name}:{port}")
            self._tell_functions()
            await self._stop.wait()
            grace_ends = trio.current_time() + config.grace_s
            nursery.cancel_scope.cancel()
        # Callers have their answers or have lost their patience; accepted events may still run.
        with trio.move_on_at(grace_ends):
            await self._scheduler.settle()
            await self._scheduler.wind_up()

    async def _serve_callers(
        self,
        served: ServedApp,
        listening: socket.socket,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        await served.serve(
            listening,
            {},
            grace_s=self.config.grace_s,
            secure=self._face.secure,
            task_status=task_status,
        )

    async def _watch_functions(self) -> None:
        """Idle environments of changed code go when it changes, not when it is next invoked."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self.functions.changed()
            try:
                self.functions.refresh()
                self._tell_functions()
            except Exception:  # of one function: invocations of all others go on
                log.exception("functions have changed, and not everything is told of it")

    def _tell_functions(self) -> None:
        live = list(self.functions.live())
        if live != self._told:
            self._told = live
            self._scheduler.retire_changed(live)
            self._keepwarm.keep(live)
            self._warn_of_host_network(live)
            self._launcher.keep(self._kitchen.specs(live))

    def _warn_of_host_network(self, functions: list[FunctionVersion]) -> None:
        names = {function.name for function in functions if function.network == "host"}
        for name in sorted(names - self._on_host_network):
            log.warning(
                'function %s has network = "host": it reaches whatever this host reaches, '
                "and what listens on its loopback",
                name,
            )
        self._on_host_network = names


@asynccontextmanager
async def open_node(
    config: Config, *, on_line: Callable[[str, str], None] | None = None
) -> AsyncIterator[Node]:
    """A node that owns all it starts: leaving kills and reaps every environment.

    `on_line` gets (function name, line) of every log line; it must not block.
    Raises BadSecretFile, and IsolationUnavailable (with the remedy) where this host cannot isolate as asked.
    """
    face = await trio.to_thread.run_sync(CallersFace, config)
    runtimes = await trio.to_thread.run_sync(discover)
    logbook = LogBook(on_line)
    async with AsyncExitStack() as stack:
        way_out = await stack.enter_async_context(open_way_out(config))
        ready = PoolLimits(config.pool_min, config.pool_max) if config.zygote else None
        storage = await stack.enter_async_context(
            open_storage(config.tmp, config.state / IMAGES, ready=ready)
        )
        launcher = await stack.enter_async_context(
            open_launcher(
                uid_base=config.uid_base,
                uid_count=config.uid_count,
                weaker=config.allow_weaker,
                calls=config.seccomp,
                pool=ready,
                router=way_out.router,
                storage=storage,
            )
        )
        unavailable = {**way_out.unavailable, **launcher.unavailable}
        layers = LayerStore(config.state / "layers")
        catalog = stack.enter_context(
            Catalog(
                config.functions,
                runtimes,
                defaults=way_out.defaults,
                unavailable=unavailable,
                account_concurrency=config.account_concurrency,
                layers=layers,
            )
        )
        clients = AwsClients(_endpoints(config))
        api = await stack.enter_async_context(
            open_lambda_api(
                *(config, catalog, runtimes),
                layers=layers,
                defaults=way_out.defaults,
                unavailable=unavailable,
                clients=clients,
                # The scheduler, below, needs the functions; nobody asks for this before there are callers.
                provisioned=lambda name, version: scheduler.provisioned(
                    api.functions.resolve(name, version)
                ),
            )
        )
        rapi = await stack.enter_async_context(
            running_app(
                make_rapi_app(),
                environment_config(),
                runtime_lane if config.fast_lane else None,
            )
        )
        kitchen = Kitchen(config, runtimes, way_out.resolv_conf)
        scheduler = await stack.enter_async_context(
            open_scheduler(
                Surroundings(
                    launcher=launcher,
                    prepare=kitchen.prepare,
                    serve=_runtime_api(rapi),
                    courier=courier,
                    logbook=logbook,
                    init_timeout_s=config.init_timeout_s,
                    freeze_delay_s=config.freeze_delay_ms / 1000,
                    max_age_s=config.max_environment_age_s,
                    account=config.account,
                    zone_id=environ.zone_id(config.region),
                    idle_limit=lambda function: idle_limit_s(
                        function, datetime.now(UTC), config.max_environment_age_s
                    ),
                ),
                NodeLimits(
                    account_concurrency=config.account_concurrency,
                    memory_budget_mb=config.memory_budget_mb,
                    max_starts=config.max_starts,
                ),
                reserved_total=lambda: api.functions.reserved_total,
                places=launcher.places,
            )
        )
        find = _finder(api.functions)
        queue = await stack.enter_async_context(
            open_queue(
                scheduler.invoke,
                find,
                EventStore(config.state / "events", _key(config)),
                wall=time.time,
                rules=Rules(
                    concurrency=ASYNC_PER_CORE * (os.cpu_count() or 1),
                    retry_s=config.event_retry_s,
                    config=api.functions.event_config,
                    deliver=Dispatch(clients),
                ),
            )
        )
        keepwarm = KeepWarm(
            scheduler.invoke,
            find,
            region=config.region,
            account=config.account,
            now=lambda: datetime.now(UTC),
            accept=queue.accept,
            renew=scheduler.renew,
            max_age_s=config.max_environment_age_s,
            trace_id=lambda: read_trace_id(None),
        )
        sources = event_sources(api, clients, scheduler.invoke, find)
        yield Node(
            config,
            face,
            api,
            scheduler,
            queue,
            keepwarm,
            sources,
            logbook,
            launcher,
            kitchen,
            way_out,
        )


def _runtime_api(rapi: ServedApp) -> ServeRuntimeApi:
    async def serve(
        listener: socket.socket, environment: Environment, *, task_status: trio.TaskStatus[None]
    ) -> None:
        await rapi.serve(
            listener,
            {
                "environment": environment,
                ON_HOST_NETWORK: environment.function.network == "host",
            },
            on_connection=environment.count_connection,
            admits=environment.admits,
            task_status=task_status,
        )

    return serve


def _finder(functions: Functions) -> Callable[[str, str | None], FunctionVersion]:
    """What a name and a qualifier mean now."""

    def find(name: str, qualifier: str | None) -> FunctionVersion:
        functions.refresh()
        return functions.resolve(name, qualifier)

    return find


def _endpoints(config: Config) -> Endpoints:
    common = config.aws_endpoint
    if common is not None and is_server(common, config.host, config.port):
        common = None  # AWS_ENDPOINT_URL as callers of this server have it
    return Endpoints(
        common,
        {
            "sqs": config.endpoint_sqs,
            "sns": config.endpoint_sns,
            "events": config.endpoint_eventbridge,
            "s3": config.endpoint_s3,
        },
    )


def _key(config: Config) -> str:
    """Servers of one folder of functions take over each other's events, others do not."""
    return hashlib.sha256(str(config.functions.absolute()).encode()).hexdigest()[:16]
