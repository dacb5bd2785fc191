"""One environment on fakes, held by whoever tests it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from sandbox.environment import Environment
from sandbox.failures import Failure
from sandbox.invocation import Outcome
from sandbox.ticket import Ticket
from tests.fakes import FakeSandbox, World, make_function, make_invocation

Clock = trio.testing.MockClock


class OneOwner:
    """Holds one environment: remembers what it says."""

    def __init__(self) -> None:
        self.ready = trio.Event()
        self.lost = trio.Event()
        self.failure: Failure | Exception | None = None
        self.answered = self.lingers = False

    def environment_answered(self, environment: Environment) -> None:
        self.answered = True

    def environment_lingers(self, environment: Environment) -> None:
        self.lingers = True

    def environment_ready(self, environment: Environment) -> None:
        self.ready.set()

    def environment_lost(
        self, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        self.failure = failure
        self.lost.set()


class Held:
    def __init__(self, world: World, environment: Environment, owner: OneOwner) -> None:
        self.world = world
        self.environment = environment
        self.owner = owner

    @property
    def sandbox(self) -> FakeSandbox:
        return self.world.launcher.sandboxes[0]

    async def invoke(self, payload: bytes = b"{}", **how: Any) -> Outcome:
        await self.owner.ready.wait()
        return await self.invoke_now(payload, **how)

    async def invoke_now(self, payload: bytes = b"{}", **how: Any) -> Outcome:
        """It is ready."""
        ticket = Ticket(make_invocation(self.environment.function, payload, **how))
        self.environment.dispatch(ticket)
        return await ticket.wait()


@asynccontextmanager
async def held(
    world: World, *, suppressed_init: bool = False, **function: Any
) -> AsyncIterator[Held]:
    owner = OneOwner()
    environment = Environment(
        "f-1", make_function(**function), owner, world.surroundings, suppressed_init=suppressed_init
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(environment.run)
        yield Held(world, environment, owner)
        nursery.cancel_scope.cancel()
    assert world.launcher.alive == []
