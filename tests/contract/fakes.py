"""Stand-ins for the rooms behind the two faces, and the two faces served for real on loopback
sockets.

`LANES` names the ways the same bytes can reach the same functions: the quart apps under hypercorn alone,
and with the fast lane before them. Every test here runs against both.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from runtimeapi.guard import Guard
from runtimeapi.invoke import make_invoke_app
from runtimeapi.lanes import caller_lane, runtime_lane
from runtimeapi.ports import BodyTruncated, Console, ResponseBody
from runtimeapi.rapi import make_rapi_app
from runtimeapi.server import CallerLimits, caller_config, environment_config, running_app
from runtimeapi.sigv4 import SigV4
from sandbox.errors import CallerError, FunctionFailed, FunctionNotFound
from sandbox.extensionhost import ExtensionHost
from sandbox.extensions import Extension
from sandbox.failures import Failure
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.invocation import Invocation, Outcome
from sandbox.lifecycle import NextEvent, Refused
from sandbox.telemetry import Subscription
from sandbox.ticket import Ticket

REGION = "us-east-1"
ACCOUNT = "000000000000"
EXTENSION = "6f3b4f5e-0c1d-4e2f-8a9b-0c1d2e3f4a5b"
REQUEST_ID = "8f9ecd4a-4e4d-4bb4-a0a3-1b1c2d3e4f50"


def function(name: str = "hello", **changes: Any) -> FunctionVersion:
    values: dict[str, Any] = {
        "runtime": "python3.11",
        "handler": "app.handler",
        "code": Path("/nowhere"),
        "revision": "1",
    }
    return FunctionVersion(name=name, **{**values, **changes})


def event(payload: bytes = b'{"n":1}', **changes: Any) -> NextEvent:
    values: dict[str, Any] = {
        "request_id": REQUEST_ID,
        "invocation_id": "nonce-1",
        "deadline_ms": 1_900_000_000_000,
        "invoked_arn": function().arn(REGION, ACCOUNT),
        "trace_id": "Root=1-00000000-000000000000000000000000;Parent=0000000000000000;Sampled=0",
        "client_context": None,
        "cognito_identity": None,
        "content_type": "application/json",
        "payload": payload,
    }
    return NextEvent(**{**values, **changes})


@dataclass
class Posted:
    """One call of respond, error or init_error as the face saw it."""

    call: str
    request_id: str = ""
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    details: dict[str, str | None] = field(default_factory=dict)
    truncated: bool = False


Deliver = Callable[[NextEvent], None]


class Events:
    """Events put in: for whoever has asked, or kept for who will."""

    def __init__(self) -> None:
        self.kept: list[NextEvent] = []
        self.asking: list[Deliver] = []

    def send_nowait(self, event: NextEvent) -> None:
        if self.asking:
            self.asking.pop(0)(event)
        else:
            self.kept.append(event)


class FakeHooks:
    """What extensions tell their environment, kept."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.asked = trio.Event()

    def extensions_ready(self) -> None:
        self.told.append("ready")
        self.asked.set()

    def extension_failed_init(self) -> None:
        self.told.append("failed init")

    def extension_exited(self, extension: Extension, failure: Failure) -> None:
        self.told.append(f"{extension.name} exited")

    def extension_printed(self, extension: Extension, line: str) -> None:
        self.told.append(f"{extension.name}: {line}")


class FakeEnvironment:
    """A RuntimeFace: hands out the events put in, keeps what is posted, refuses on demand.

    Its extensions are real, but for their processes.
    """

    metadata_token = "the token"
    event_is_out = False
    zone_id = "use1-az1"

    def __init__(self) -> None:
        self.hooks = FakeHooks()
        self.extensions = ExtensionHost(function(extensions=("file",)), self.hooks, account=ACCOUNT)
        self.put = Events()
        self.posted: list[Posted] = []
        self.subscriptions: list[tuple[str, Subscription]] = []
        self.refusal: Exception | None = None
        self.limit: int | None = None
        self.parked = trio.Event()
        self.abandoned = trio.Event()
        self.arrived, self.chunks = trio.open_memory_channel[bytes](math.inf)
        self._done, self.done = trio.open_memory_channel[Posted](math.inf)
        self.may_read = trio.Event()
        self.may_read.set()

    def extension_name(self, identifier: str | None) -> str:
        self._maybe_refuse()
        if identifier != EXTENSION:
            raise Refused(
                403, "Extension.UnknownExtensionIdentifier", f"Unknown extension {identifier}"
            )
        return "agent"

    def subscribe(self, extension: str, subscription: Subscription) -> None:
        self.subscriptions.append((extension, subscription))

    async def next(self) -> NextEvent:
        send, receive = trio.open_memory_channel[NextEvent](1)
        event = self.ask_next(send.send_nowait)
        if event is not None:
            return event
        try:
            return await receive.receive()
        finally:
            self.forget_next(send.send_nowait)

    def ask_next(self, deliver: Deliver) -> NextEvent | None:
        self._maybe_refuse()
        self.parked.set()
        if self.put.kept:
            return self.put.kept.pop(0)
        self.put.asking.append(deliver)
        return None

    def forget_next(self, deliver: Deliver) -> None:
        if deliver in self.put.asking:
            self.put.asking.remove(deliver)
            self.abandoned.set()

    async def respond(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        response_mode: str | None,
        content_type: str | None,
        body: ResponseBody,
    ) -> None:
        self._maybe_refuse()
        post = Posted("response", request_id, details={"invocation_id": invocation_id})
        post.details |= {"response_mode": response_mode, "content_type": content_type}
        self.posted.append(post)
        await self.may_read.wait()
        try:
            async for chunk in body:
                post.chunks.append(chunk)
                self.arrived.send_nowait(chunk)
                if self.limit is not None and sum(map(len, post.chunks)) > self.limit:
                    raise Refused(413, "RequestEntityTooLarge", "Exceeded <the> limit")
        except BodyTruncated:
            post.truncated = True
            raise
        post.body = b"".join(post.chunks)
        post.trailers = dict(body.trailers)
        self._done.send_nowait(post)

    def take_response(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None:
        self._maybe_refuse()
        post = Posted("response", request_id, body, [body], details={"response_mode": None})
        post.details |= {"invocation_id": invocation_id, "content_type": content_type}
        self.posted.append(post)
        if self.limit is not None and len(body) > self.limit:
            raise Refused(413, "RequestEntityTooLarge", "Exceeded <the> limit")
        self._done.send_nowait(post)

    def finish_turn(self) -> None:
        pass

    async def error(self, request_id: str, *, body: bytes, **details: str | None) -> None:
        self.take_error(request_id, body=body, **details)

    def take_error(self, request_id: str, *, body: bytes, **details: str | None) -> None:
        self._maybe_refuse()
        self.posted.append(Posted("error", request_id, body, details=dict(details)))
        self._done.send_nowait(self.posted[-1])

    async def init_error(self, *, error_type: str | None, body: bytes) -> None:
        self._maybe_refuse()
        self.posted.append(Posted("init_error", body=body, details={"error_type": error_type}))
        self._done.send_nowait(self.posted[-1])

    def _maybe_refuse(self) -> None:
        if self.refusal is not None:
            raise self.refusal


class FakeFunctions:
    def __init__(self, *found: FunctionVersion | BrokenFunction) -> None:
        self.found = {one.name: one for one in found}
        self.qualifiers = {"1": "1", "2": "2", "blue": "2"}
        self.refusal: CallerError | None = None
        self.refreshed = 0
        self.resolved = trio.Event()
        """Somebody has asked for one."""

    @property
    def generation(self) -> object:
        return tuple(self.found.items())

    def refresh(self) -> None:
        self.refreshed += 1

    def resolve(self, name: str, qualifier: str | None) -> FunctionVersion:
        """`qualifiers` says what else than $LATEST a qualifier means; `refusal` is raised instead."""
        self.resolved.set()
        one = self.found.get(name)
        if one is None:
            raise FunctionNotFound(name)
        if isinstance(one, BrokenFunction):
            raise FunctionFailed(one.problem)
        if self.refusal is not None:
            raise self.refusal
        if qualifier in (None, "$LATEST"):
            return one
        version = self.qualifiers.get(qualifier)
        if version is None:
            raise FunctionNotFound(name)
        return replace(one, version=version)

    def all(self) -> list[FunctionVersion | BrokenFunction]:
        return list(self.found.values())

    def live(self) -> list[FunctionVersion]:
        return [one for one in self.found.values() if isinstance(one, FunctionVersion)]


Behaviour = Callable[[Invocation], Awaitable[Outcome]]


async def echo(invocation: Invocation) -> Outcome:
    return Outcome(
        "success",
        invocation.payload,
        log_tail=b"START\nEND\n",
        duration_ms=1.5,
        executed_version=invocation.function.version,
    )


class FakeInvoker:
    """The scheduler: does what `behaviour` does, remembers what it was asked."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None
        self.behaviour: Behaviour = echo
        self.invoked: list[Invocation] = []
        self.accepted: list[Invocation] = []
        self.refusal: CallerError | None = None
        self._running: dict[int, trio.CancelScope] = {}

    async def invoke(self, invocation: Invocation) -> Outcome:
        self.invoked.append(invocation)
        return await self.behaviour(invocation)

    def submit(self, invocation: Invocation, on_end: Callable[[], None]) -> Ticket:
        assert self.nursery is not None
        ticket = Ticket(invocation, on_end)
        scope = self._running[id(ticket)] = trio.CancelScope()
        self.nursery.start_soon(self._run, ticket, scope)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        scope = self._running.get(id(ticket))
        if scope is not None:
            scope.cancel()

    async def _run(self, ticket: Ticket, scope: trio.CancelScope) -> None:
        try:
            with scope:
                try:
                    outcome = await self.invoke(ticket.invocation)
                except Exception as exc:
                    ticket.fail(exc)
                else:
                    ticket.resolve(outcome)
        finally:
            del self._running[id(ticket)]

    async def accept(self, invocation: Invocation) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.accepted.append(invocation)


class FakeLogs:
    def __init__(self) -> None:
        self.kept = ["START RequestId: 1", "hello", "END RequestId: 1"]
        self.put, self.coming = trio.open_memory_channel[str](100)

    def console(self) -> Console:
        return Console(
            environments=lambda: [{"id": "1", "function": "hello", "state": "ready"}],
            log_lines=lambda name: self.kept if name in {None, "hello"} else [],
            follow_logs=lambda name: self.coming,
        )


@dataclass
class Callers:
    """The face towards callers, served."""

    address: tuple[str, int]
    functions: FakeFunctions
    invoker: FakeInvoker
    logs: FakeLogs

    @property
    def url(self) -> str:
        return f"http://{self.address[0]}:{self.address[1]}"


@dataclass
class Environments:
    """The face towards environments, served: one socket and one RuntimeFace each."""

    faces: list[FakeEnvironment]
    addresses: list[tuple[str, int]]


def listening() -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(100)
    return sock


@asynccontextmanager
async def callers(
    *,
    fast: bool,
    guard: Guard | None = None,
    limits: CallerLimits | None = None,
    secure: Callable[[], ssl.SSLContext] | None = None,
    more: Sequence[FunctionVersion] = (),
    url_keys: SigV4 | None = None,
) -> AsyncIterator[Callers]:
    broken = BrokenFunction("broken", Path("/nowhere"), "broken/function.toml:1: memory: mend it")
    functions = FakeFunctions(function(), function("dotted.name"), broken, *more)
    invoker, logs, sock = FakeInvoker(), FakeLogs(), listening()
    app = make_invoke_app(
        functions,
        invoker,
        logs.console(),
        region=REGION,
        account=ACCOUNT,
        guard=guard,
        url_keys=url_keys,
    )
    served_at = Callers(sock.getsockname(), functions, invoker, logs)
    lane = caller_lane(functions, invoker, region=REGION, account=ACCOUNT, guard=guard)
    config = caller_config(limits or CallerLimits())
    async with (
        running_app(app, config, lane if fast else None) as served,
        trio.open_nursery() as nursery,
    ):
        invoker.nursery = nursery
        await nursery.start(partial(served.serve, secure=secure), sock, {})
        yield served_at
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def environments(count: int = 1, *, fast: bool) -> AsyncIterator[Environments]:
    faces = [FakeEnvironment() for _ in range(count)]
    sockets = [listening() for _ in faces]
    addresses = [sock.getsockname() for sock in sockets]
    async with (
        running_app(
            make_rapi_app(), environment_config(), runtime_lane if fast else None
        ) as served,
        trio.open_nursery() as nursery,
    ):
        for face, sock in zip(faces, sockets, strict=True):
            await nursery.start(served.serve, sock, {"environment": face})
        yield Environments(faces, addresses)
        nursery.cancel_scope.cancel()


quart_callers = partial(callers, fast=False)
quart_environments = partial(environments, fast=False)
LANES = {
    "quart": (quart_callers, quart_environments),
    "fast": (partial(callers, fast=True), partial(environments, fast=True)),
}
