"""Owns serving: one quart-trio app, opened once, on as many listening sockets as there are.

hypercorn's `worker_serve` ties the lifespan of an app to one fixed set of sockets. Here the two are
apart: `running_app` opens the app, `ServedApp.serve` adds a socket for as long as it runs. Every
environment has a socket of its own, and the `state` given with it is how a request knows its
environment (`request.scope["state"]["environment"]`): nothing in the request can choose another.
"""

from __future__ import annotations

import logging
import socket
import ssl
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from math import inf

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import EventWrapper, WorkerContext
from hypercorn.typing import ASGIFramework
from hypercorn.utils import LifespanTimeoutError

from runtimeapi.connection import PACE_KEY, FaceConfig, FaceConnection
from runtimeapi.doorway import Accepted, Doorway, shake_hands
from runtimeapi.hub import Hub
from runtimeapi.pace import Pace
from runtimeapi.room import (
    CALLERS_LARGE_AT_ONCE,
    LARGE_AT_ONCE,
    PATIENT_S,
    PLACE_KEY,
    Place,
    Room,
)
from runtimeapi.wire import FastConnection, Lane

log = logging.getLogger("lambox.http")

MAX_HEADER_BYTES = 1024 * 1024 + 64 * 1024
"""Request line and headers: Lambda-Runtime-Function-XRay-Error-Cause alone reaches 1 MiB (SPEC 1.1,
3.3)."""
ENVIRONMENT_CONNECTIONS = 64
"""Of one environment to its Runtime API; runtimes have one, extensions one or two each."""
APP_SHUTDOWN_S = 5.0


def _base_config() -> FaceConfig:
    config = FaceConfig()
    config.errorlog = log
    config.accesslog = None
    config.include_server_header = False
    config.include_date_header = False
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.keep_alive_max_requests = sys.maxsize
    return config


def environment_config() -> FaceConfig:
    """Towards environments: no time limits at all, since a frozen one neither reads nor writes for hours (SPEC
    1.1). What it holds costs a bounded number of connections, and what it does for nothing is charged."""
    config = _base_config()
    config.keep_alive_timeout = inf
    config.max_connections = ENVIRONMENT_CONNECTIONS
    config.large_at_once = LARGE_AT_ONCE
    config.holds_back = True
    config.paced = True
    return config


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """What callers are held to; the defaults are those of the settings with these names.

    `large_bodies` and `patience_s`, which are no settings: `room.py`.
    """

    max_connections: int = 1024
    max_header_bytes: int = 64 * 1024
    header_timeout_s: float = 20.0
    body_timeout_s: float = 20.0
    keep_alive_s: float = 75.0
    large_bodies: int = CALLERS_LARGE_AT_ONCE
    patience_s: float = PATIENT_S


def caller_config(limits: CallerLimits = CallerLimits()) -> FaceConfig:
    """Towards callers: limits on silence and slowness, none on how long an invocation takes."""
    config = _base_config()
    config.include_date_header = True
    config.one_framing = True
    config.h11_max_incomplete_size = limits.max_header_bytes
    config.max_connections = limits.max_connections
    config.large_at_once = limits.large_bodies
    config.patience_s = limits.patience_s
    config.header_timeout_s = limits.header_timeout_s
    config.keep_alive_timeout = limits.keep_alive_s
    config.body_timeout_s = limits.body_timeout_s
    config.body_bytes_per_s = 1024
    config.send_timeout_s = 60.0
    return config


class _TlsConfig(Config):
    @property
    def ssl_enabled(self) -> bool:
        """Already without a certificate."""
        return True


def tls_context() -> ssl.SSLContext:
    """hypercorn's, without HTTP/2; the certificate is still to be loaded."""
    config = _TlsConfig()
    config.alpn_protocols = ["http/1.1"]
    context = config.create_ssl_context()
    assert context is not None
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


class ServedApp:
    """An app whose lifespan is open. Made by `running_app`."""

    def __init__(
        self, app: ASGIWrapper, config: FaceConfig, hub: Hub, lane: Lane | None = None
    ) -> None:
        self._app = app
        self._config = config
        self._hub = hub
        self._lane = lane
        self._context = WorkerContext(None)

    async def serve(
        self,
        listening: socket.socket,
        state: Mapping[str, object],
        *,
        grace_s: float = 0.0,
        secure: Callable[[], ssl.SSLContext] | None = None,
        on_connection: Callable[[int], None] = lambda change: None,
        admits: Callable[[tuple[str, int]], bool] = lambda peer: True,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept on `listening` until cancelled; requests see `state` in their scope.

        Cancelling it stops accepting at once, closes idle connections, and gives running requests
        `grace_s` more seconds. Being out of descriptors (EMFILE and the like) is survived: trio
        logs it and tries again every 100 ms.

        With `secure`, which is asked for each connection, all of it is TLS, and the fast lane, which writes
        to descriptors, has no part in it.
        A connection whose peer address `admits` refuses is closed without a word.
        `on_connection` is told +1 for every connection that is opened and -1 when it has ended.

        Resource handling: closes the socket and every connection it accepted.
        """
        config = self._config
        pace = Pace() if config.paced else None
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        doorway = Doorway(listener, config, pace)
        socket_state = {**state, PACE_KEY: pace}
        room = Room(config.large_at_once, config.patience_s)
        context = WorkerContext(None)
        fast: set[FastConnection] = set()

        async def handle(stream: trio.SocketStream) -> None:
            try:
                if not _is_admitted(stream, admits):
                    await trio.aclose_forcefully(stream)
                elif doorway.is_full:
                    await doorway.turn_away(stream, secure=secure is not None)
                else:
                    on_connection(+1)
                    place = Place(room)
                    own_state = {**socket_state, PLACE_KEY: place}
                    try:
                        await self._begin(stream, own_state, context, fast, secure)
                    finally:
                        on_connection(-1)
                        place.leave()
            finally:
                doorway.left()

        async with trio.open_nursery() as nursery:
            hold = _Hold(grace_s)
            nursery.start_soon(hold.run)
            try:
                await trio.serve_listeners(
                    handle,
                    [doorway],
                    handler_nursery=await hold.nursery(),
                    task_status=_Started(task_status),
                )
            finally:
                _set(context.terminated)
                for connection in fast:
                    connection.terminate()
                hold.release()

    async def _begin(
        self,
        stream: trio.SocketStream,
        state: Mapping[str, object],
        context: WorkerContext,
        fast: set[FastConnection],
        secure: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        """The fast lane first, as long as it knows what to do."""
        if secure is not None:
            secured = await shake_hands(stream, secure(), self._config.header_timeout_s)
            if secured is not None:
                await self.serve_connection(secured, state, context=context)
            return
        if self._lane is None:
            await self.serve_connection(stream, state, context=context)
            return
        connection = self._lane(stream, self._config, state)
        fast.add(connection)
        if context.terminated.is_set():
            connection.terminate()
        try:
            already_read = await connection.run(self._hub)
        finally:
            fast.discard(connection)
        if already_read is not None:
            await self.serve_connection(stream, state, already_read=already_read, context=context)

    async def serve_connection(
        self,
        stream: Accepted,
        state: Mapping[str, object],
        *,
        already_read: deque[bytes] | None = None,
        context: WorkerContext | None = None,
    ) -> None:
        """Serve one connection to its end, beginning with bytes that another lane took from it, and keeps no more.

        Resource handling: closes the stream.
        """
        await FaceConnection(
            self._app, self._config, context or self._context, dict(state), stream, already_read
        ).run()


def _is_admitted(stream: trio.SocketStream, admits: Callable[[tuple[str, int]], bool]) -> bool:
    try:
        admitted = admits(stream.socket.getpeername())
        # Had it gone meanwhile, its address could have been another's when `admits` looked.
        stream.socket.getpeername()
    except OSError:
        return False
    return admitted


class _Started:
    """serve_listeners reports its listeners; whoever starts `serve` gets a plain `started()`."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, value: object = None) -> None:
        self._task_status.started()


class _Hold:
    """A nursery for connections that outlives the cancellation of its surroundings by `grace_s`."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._opened = trio.Event()
        self._released = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._connections: trio.Nursery | None = None

    async def run(self) -> None:
        with self._scope:
            async with trio.open_nursery() as self._connections:
                self._opened.set()
                await self._released.wait()

    async def nursery(self) -> trio.Nursery:
        """Not by `nursery.start`: cancelled meanwhile, that would wait for the shielded `run` for ever."""
        await self._opened.wait()
        assert self._connections is not None
        return self._connections

    def release(self) -> None:
        self._released.set()
        self._scope.deadline = trio.current_time() + self._grace_s


def _set(event: object) -> None:
    """hypercorn's `EventWrapper.set` is async in name only; a `finally` must not await."""
    assert isinstance(event, EventWrapper)
    event._event.set()


@asynccontextmanager
async def running_app(
    app: ASGIFramework, config: FaceConfig, lane: Lane | None = None
) -> AsyncIterator[ServedApp]:
    """Open the app (its startup functions, its nursery) and close it on leaving. Serve it inside:

    async with running_app(app, config) as served, trio.open_nursery() as nursery:
        await nursery.start(served.serve, listening_socket, {"environment": environment})

    With a `lane` (`lanes.py`) connections that come in by `serve` begin there; without, all is hypercorn's.
    """
    wrapped = ASGIWrapper(app)
    lifespan = Lifespan(wrapped, config, {})
    # Shielded: the app's own nursery has to outlive the requests of `serve`'s grace, and the app
    # its orderly shutdown, when all of it is cancelled from outside at once.
    lifespan_scope = trio.CancelScope(shield=True)
    reading = trio.CancelScope(shield=True)
    hub = Hub()

    async def live(*, task_status: trio.TaskStatus[None]) -> None:
        with lifespan_scope:
            await lifespan.handle_lifespan(task_status=task_status)

    async def read() -> None:
        with reading:
            await hub.run()

    async with AsyncExitStack() as stack:
        stack.callback(hub.close)
        nursery = await stack.enter_async_context(trio.open_nursery())
        try:
            await nursery.start(live)
            await lifespan.wait_for_startup()
            nursery.start_soon(read)
            yield ServedApp(wrapped, config, hub, lane)
        finally:
            reading.cancel()
            with trio.move_on_after(APP_SHUTDOWN_S, shield=True):
                try:
                    await lifespan.wait_for_shutdown()
                except (LifespanTimeoutError, trio.ClosedResourceError, trio.BrokenResourceError):
                    log.exception("closing the app %s did not go as it should", app)
            lifespan_scope.cancel()


async def serve_app(
    app: ASGIFramework,
    listeners: Sequence[socket.socket],
    config: FaceConfig,
    *,
    state: Mapping[str, object],
    grace_s: float = 0.0,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """One app on a fixed set of listening sockets, until cancelled; `started()` once all accept."""
    async with running_app(app, config) as served, trio.open_nursery() as nursery:
        for listening in listeners:
            await nursery.start(_serve_with_grace, served, listening, state, grace_s)
        task_status.started()


async def _serve_with_grace(
    served: ServedApp,
    listening: socket.socket,
    state: Mapping[str, object],
    grace_s: float,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    await served.serve(listening, state, grace_s=grace_s, task_status=task_status)
