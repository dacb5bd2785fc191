"""Versions of one function in the scheduler: what they share, what each has of its own, and how they go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.confine.spec import ConfineError, Exit
from sandbox.environment import Environment
from sandbox.errors import FunctionNotFound, TooManyRequests
from sandbox.function import FunctionVersion
from sandbox.invocation import Outcome
from sandbox.planner import Limits
from sandbox.provisioning import Provisioned
from sandbox.scheduler import Scheduler
from tests.fakes import FakeSandbox, World, make_function, make_invocation
from tests.unit.test_scheduler import Clock, lazy, run, scheduling, sleepy

blocked = trio.testing.wait_all_tasks_blocked


def versions(**changes: Any) -> tuple[FunctionVersion, FunctionVersion]:
    one = make_function(version="1", revision="a", code=Path("/code/1"), **changes)
    return one, replace(one, version="2", revision="b", code=Path("/code/2"))


def rows(scheduler: Scheduler) -> list[tuple[str, str]]:
    return sorted((row["version"], row["state"]) for row in scheduler.environments())


async def test_each_version_has_environments_of_its_own(autojump_clock: Clock) -> None:
    world = World(sleepy)
    one, two = versions()
    async with scheduling(world) as scheduler:
        first, second = await run(scheduler, one), await run(scheduler, two)
        await blocked()
        again = [await run(scheduler, function) for function in (one, two, make_function())]
        await blocked()
        assert [outcome.executed_version for outcome in again] == ["1", "2", "$LATEST"]
        assert [outcome.cold for outcome in again] == [False, False, True]
        assert [outcome.payload for outcome in again[:2]] == [first.payload, second.payload]
        assert first.payload.startswith(b"f-v1-")
        assert [row[0] for row in rows(scheduler)] == ["$LATEST", "1", "2"]
    starts = [line for line in world.lines if line.startswith("START")]
    assert [line.rpartition(" ")[2] for line in starts] == ["1", "2", "1", "2", "$LATEST"]


async def test_a_reservation_is_the_functions(autojump_clock: Clock) -> None:
    one, two = versions(reserved_concurrency=1)
    async with scheduling(World(sleepy)) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, one, 1.0)
            await blocked()
            with pytest.raises(TooManyRequests) as refused:
                await run(scheduler, two)
        assert (await run(scheduler, two)).executed_version == "2"
    assert refused.value.reason == "ReservedFunctionConcurrentInvocationLimitExceeded"


async def test_room_that_one_version_leaves_is_anothers(autojump_clock: Clock) -> None:
    """Its caller has its answer, so one more is admitted, but its runtime is not done yet."""
    one, two = versions(reserved_concurrency=1)
    async with scheduling(World(lazy)) as scheduler:
        await run(scheduler, one, 0.5)
        assert (await run(scheduler, two)).executed_version == "2"
        assert trio.current_time() == pytest.approx(0.5)


async def test_a_reservation_that_is_raised_lets_those_in_who_wait(autojump_clock: Clock) -> None:
    one, two = versions(reserved_concurrency=1)
    async with scheduling(World(lazy)) as scheduler, trio.open_nursery() as nursery:
        await run(scheduler, one, 2.0)
        nursery.start_soon(run, scheduler, two, 0.0)
        await trio.sleep(0.5)
        assert rows(scheduler) == [("1", "busy")]
        more = [replace(function, reserved_concurrency=2) for function in (one, two)]
        scheduler.retire_changed(more)
        await blocked()
        assert [row[0] for row in rows(scheduler)] == ["1", "2"]


async def test_no_reservation_left_turns_away_what_has_not_begun(autojump_clock: Clock) -> None:
    one, two = versions(reserved_concurrency=2)
    none = [replace(function, reserved_concurrency=0) for function in (one, two)]
    async with scheduling(World(sleepy), Limits(max_starts=1)) as scheduler:
        running = scheduler.submit(make_invocation(one, b"1"))
        await blocked()
        async with trio.open_nursery() as nursery:
            waiting = scheduler.submit(make_invocation(two, b"1"))
            nursery.start_soon(run, scheduler, make_function("other"))
            scheduler.retire_changed([*none, make_function("other")])
            with pytest.raises(TooManyRequests):
                await waiting.wait()
        assert (await running.wait()).status == "success"
        with pytest.raises(TooManyRequests):
            await run(scheduler, none[0])


@pytest.mark.parametrize(
    "change",
    [
        {"reserved_concurrency": 5},
        {"provisioned_concurrency": 1},
        {"description": "other"},
        {"idle_timeout_s": 40.0},
    ],
    ids=str,
)
async def test_what_environments_do_not_see_keeps_them_warm(
    autojump_clock: Clock, change: dict[str, Any]
) -> None:
    function = make_function()
    async with scheduling(World(sleepy)) as scheduler:
        first = await run(scheduler, function)
        await blocked()
        changed = replace(function, **change)
        scheduler.retire_changed([changed])
        await trio.sleep(29)
        again = await run(scheduler, changed)
    warm = not changed.provisioned_concurrency  # those that are provisioned are taken first
    assert (again.payload == first.payload, again.cold) == (warm, False)


@pytest.mark.parametrize("freeze", [True, False])
async def test_an_idle_timeout_holds_for_those_that_idle_already(
    autojump_clock: Clock, freeze: bool
) -> None:
    function = make_function(idle_timeout_s=1000.0, freeze=freeze)
    async with scheduling(World(sleepy)) as scheduler:
        await run(scheduler, function)
        await trio.sleep(5)
        scheduler.retire_changed([replace(function, idle_timeout_s=20.0)])
        await trio.sleep(14)
        assert len(scheduler.environments()) == 1
        await trio.sleep(2)
        assert scheduler.environments() == []


async def test_a_version_that_is_deleted_goes_when_it_is_free_and_takes_no_other_along(
    autojump_clock: Clock,
) -> None:
    one, two = versions()
    async with scheduling(World(sleepy)) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, one, 2.0)
            nursery.start_soon(run, scheduler, two, 2.0)
            await trio.sleep(1)
            await run(scheduler, one)
            await blocked()
            assert rows(scheduler) == [("1", "busy"), ("1", "idle"), ("2", "busy")]
            scheduler.retire_changed([two])
            await blocked()
            assert rows(scheduler) == [("1", "busy"), ("2", "busy")]
            assert Path("/code/1") in scheduler.in_use()
        await blocked()
        assert rows(scheduler) == [("2", "idle")]
        assert scheduler.in_use() == {Path("/code/2")}


async def test_a_version_made_again_shares_nothing_with_the_one_before(
    autojump_clock: Clock,
) -> None:
    """Not even with the same revision, and while the old one is still at work."""
    one, _ = versions()
    async with scheduling(World(sleepy)) as scheduler:
        old: list[Outcome] = []

        async def begin() -> None:
            old.append(await run(scheduler, one, 2.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            await blocked()
            scheduler.retire_changed([])
            scheduler.retire_changed([one])
            fresh = await run(scheduler, one)
            assert fresh.cold
        await blocked()
        assert (await run(scheduler, one)).payload == fresh.payload != old[0].payload
        await blocked()
        assert rows(scheduler) == [("1", "idle")]


async def test_who_waits_for_a_version_that_goes_is_served(autojump_clock: Clock) -> None:
    one, _ = versions()
    world = World(sleepy)
    async with scheduling(world, Limits(max_starts=1)) as scheduler:
        world.launcher.takes_s = 1.0
        tickets = [scheduler.submit(make_invocation(one, b"0")) for _ in range(3)]
        await blocked()
        scheduler.retire_changed([])
        outcomes = [await ticket.wait() for ticket in tickets]
        assert {outcome.status for outcome in outcomes} == {"success"}
        await trio.sleep(2)  # one was being launched
        assert scheduler.environments() == []


async def test_nothing_starts_for_a_version_that_went_with_its_last_caller(
    autojump_clock: Clock,
) -> None:
    one, _ = versions()
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        world.launcher.takes_s = 1.0
        ticket = scheduler.submit(make_invocation(one, b"0"))
        await blocked()
        scheduler.retire_changed([])
        scheduler.withdraw(ticket)
        await trio.sleep(2)
        assert scheduler.environments() == []
    assert [sandbox.started.is_set() for sandbox in world.launcher.sandboxes] == [False]


@pytest.mark.parametrize("qualifier", ["", ":1", ":live"])
async def test_one_whose_code_went_meanwhile_is_not_found(
    autojump_clock: Clock, qualifier: str
) -> None:
    function = make_function(version="1" if qualifier else "$LATEST")
    arn = function.arn("us-east-1", "123456789012")
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        world.launcher.takes_s = 1.0
        world.launcher.faults = [ConfineError("/code: No such file or directory")]
        ticket = scheduler.submit(make_invocation(function, b"0", invoked_arn=arn + qualifier))
        await blocked()
        scheduler.retire_changed([])
        with pytest.raises(FunctionNotFound) as caught:
            await ticket.wait()
    assert caught.value.message == f"Function not found: {arn}{qualifier or ':$LATEST'}"


async def test_nothing_is_kept_of_functions_that_are_gone(autojump_clock: Clock) -> None:
    async with scheduling(World(sleepy)) as scheduler:
        for number in range(50):
            function = make_function(f"f{number}", provisioned_concurrency=number % 2)
            scheduler.retire_changed([function])
            await run(scheduler, function)
            await blocked()
        scheduler.retire_changed([])
        await blocked()
        assert scheduler.environments() == []
        assert scheduler._functions == {}


async def test_provisioned_concurrency_is_told_as_aws_tells_it(autojump_clock: Clock) -> None:
    broken = False

    async def slow(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep(1)
        if broken:
            sandbox.end(Exit(code=1))
            await trio.sleep_forever()
        await sleepy(environment, sandbox)

    world = World(slow)
    one, two = versions(provisioned_concurrency=2)
    async with scheduling(world) as scheduler:
        assert scheduler.provisioned(one) == Provisioned(2, 0, 0, "IN_PROGRESS")
        scheduler.retire_changed([one])
        assert scheduler.provisioned(one) == Provisioned(2, 0, 0, "IN_PROGRESS")
        await trio.sleep(1.5)
        assert scheduler.provisioned(one) == Provisioned(2, 2, 2, "READY")
        # One that is replaced does not put all in doubt.
        world.launcher.sandboxes[0].end(Exit(code=1))
        await trio.sleep(0.5)
        assert scheduler.provisioned(one) == Provisioned(2, 1, 1, "READY")
        await trio.sleep(2)
        more = replace(one, provisioned_concurrency=3)
        scheduler.retire_changed([more])
        assert scheduler.provisioned(one) == Provisioned(2)  # that is not what is asked for now
        assert scheduler.provisioned(more) == Provisioned(3, 2, 2, "IN_PROGRESS")
        await trio.sleep(1.5)
        broken = True
        scheduler.retire_changed([more, two])
        await trio.sleep(1.5)
        assert scheduler.provisioned(more) == Provisioned(3, 3, 3, "READY")
        failed = Provisioned(2, 0, 0, "FAILED", "FUNCTION_ERROR_INIT_FAILURE")
        assert scheduler.provisioned(two) == failed
        broken = False
        await trio.sleep(20)
        assert scheduler.provisioned(two) == Provisioned(2, 2, 2, "READY")


async def test_a_host_that_can_provision_none_is_named(autojump_clock: Clock) -> None:
    world = World(sleepy)
    world.launcher.faults = [ConfineError("no more namespaces")] * 9
    one, _ = versions(provisioned_concurrency=1)
    async with scheduling(world) as scheduler:
        scheduler.retire_changed([one])
        await blocked()
        state = scheduler.provisioned(one)
    assert state == Provisioned(1, 0, 0, "FAILED", "INTERNAL_ERROR: no more namespaces")
