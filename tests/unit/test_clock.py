"""A wall clock that is set, or that ran on while the host was suspended: nothing is measured by it.

Deadlines, grace and ages are on CLOCK_MONOTONIC, which nobody sets and which stands still in a suspended host. The
queue's ages: test_asyncqueue; keep-warm schedules: test_keepwarm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from sandbox.environment import Environment
from tests.fakes import Body, FakeSandbox, Runtime, World, respond
from tests.held import held

HOUR_S = 3600.0


class Wall:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.offset_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.offset_s + trio.current_time()


def world_with(wall: Callable[[], float], runtime: Runtime) -> World:
    world = World(runtime)
    world.surroundings = replace(world.surroundings, wall=wall)
    return world


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, 365 * 24 * HOUR_S])
async def test_a_clock_set_while_an_invocation_runs_moves_no_deadline(
    autojump_clock: trio.testing.MockClock, step_s: float
) -> None:
    """One that hangs times out after its 3 s, not before, not after."""
    wall = Wall()

    async def hang(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.next()
        await trio.sleep(1)
        wall.offset_s += step_s
        await trio.sleep_forever()

    async with held(world_with(wall, hang), timeout_s=3) as it:
        began = trio.current_time()
        outcome = await it.invoke()
        assert outcome.status == "timeout"
        assert trio.current_time() - began == pytest.approx(3)


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
async def test_a_clock_set_between_invocations_is_told_as_it_is_then(
    autojump_clock: trio.testing.MockClock, step_s: float
) -> None:
    """Deadline-Ms is the clock of the dispatch plus the timeout: what the function's own clock counts from."""
    wall = Wall()
    left_ms: list[float] = []

    async def tell(environment: Environment, sandbox: FakeSandbox) -> None:
        while True:
            event = await environment.next()
            left_ms.append(event.deadline_ms - wall() * 1000)
            await respond(environment, event.request_id, Body(b"1"))

    async with held(world_with(wall, tell), timeout_s=9) as it:
        await it.invoke()
        await it.owner.ready.wait()
        wall.offset_s += step_s
        await trio.sleep(0.01)
        await it.invoke()
    assert left_ms == [pytest.approx(9000, abs=1), pytest.approx(9000, abs=1)]
