"""Stand-ins for the rooms behind the two faces, and the two faces served for real on loopback
sockets.

`LANES` names the ways the same bytes can reach the same functions. There is one so far: the quart
apps under hypercorn. A second lane adds a context manager of the same shape to the table, and every
test here runs against it too.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from runtimeapi.invoke import make_invoke_app
from runtimeapi.ports import BodyTruncated, Console, ResponseBody
from runtimeapi.rapi import make_rapi_app
from runtimeapi.server import caller_config, environment_config, running_app
from sandbox.errors import CallerError, FunctionFailed, FunctionNotFound
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.invocation import Invocation, Outcome
from sandbox.lifecycle import NextEvent, Refused

REGION = "us-east-1"
ACCOUNT = "000000000000"
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


class FakeEnvironment:
    """A RuntimeFace: hands out the events put in, keeps what is posted, refuses on demand."""

    def __init__(self) -> None:
        self.put, self._events = trio.open_memory_channel[NextEvent](100)
        self.posted: list[Posted] = []
        self.refusal: Exception | None = None
        self.limit: int | None = None
        self.parked = trio.Event()
        self.abandoned = trio.Event()
        self.arrived, self.chunks = trio.open_memory_channel[bytes](math.inf)
        self._done, self.done = trio.open_memory_channel[Posted](math.inf)
        self.may_read = trio.Event()
        self.may_read.set()

    async def next(self) -> NextEvent:
        self._maybe_refuse()
        self.parked.set()
        try:
            return await self._events.receive()
        except trio.Cancelled:
            self.abandoned.set()
            raise

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

    async def error(self, request_id: str, *, body: bytes, **details: str | None) -> None:
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
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1

    def get(self, name: str) -> FunctionVersion:
        one = self.found.get(name)
        if one is None:
            raise FunctionNotFound(name)
        if isinstance(one, BrokenFunction):
            raise FunctionFailed(one.problem)
        return one

    def all(self) -> list[FunctionVersion | BrokenFunction]:
        return list(self.found.values())


Behaviour = Callable[[Invocation], Awaitable[Outcome]]


async def echo(invocation: Invocation) -> Outcome:
    return Outcome("success", invocation.payload, log_tail=b"START\nEND\n", duration_ms=1.5)


class FakeInvoker:
    """The scheduler: does what `behaviour` does, remembers what it was asked."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = echo
        self.invoked: list[Invocation] = []
        self.accepted: list[Invocation] = []
        self.refusal: CallerError | None = None

    async def invoke(self, invocation: Invocation) -> Outcome:
        self.invoked.append(invocation)
        return await self.behaviour(invocation)

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
async def quart_callers() -> AsyncIterator[Callers]:
    broken = BrokenFunction("broken", Path("/nowhere"), "broken/function.toml:1: memory: mend it")
    functions = FakeFunctions(function(), function("dotted.name"), broken)
    invoker, logs, sock = FakeInvoker(), FakeLogs(), listening()
    app = make_invoke_app(functions, invoker, logs.console(), region=REGION, account=ACCOUNT)
    served_at = Callers(sock.getsockname(), functions, invoker, logs)
    async with running_app(app, caller_config()) as served, trio.open_nursery() as nursery:
        await nursery.start(served.serve, sock, {})
        yield served_at
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def quart_environments(count: int = 1) -> AsyncIterator[Environments]:
    faces = [FakeEnvironment() for _ in range(count)]
    sockets = [listening() for _ in faces]
    addresses = [sock.getsockname() for sock in sockets]
    async with (
        running_app(make_rapi_app(), environment_config()) as served,
        trio.open_nursery() as nursery,
    ):
        for face, sock in zip(faces, sockets, strict=True):
            await nursery.start(served.serve, sock, {"environment": face})
        yield Environments(faces, addresses)
        nursery.cancel_scope.cancel()


LANES = {"quart": (quart_callers, quart_environments)}
