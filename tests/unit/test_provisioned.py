"""Provisioned environments: scheduler and environment together, on fakes and a mock clock."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.confine.spec import ConfineError, Exit
from sandbox.environment import Environment
from sandbox.function import FunctionVersion
from sandbox.invocation import Outcome
from sandbox.planner import Limits
from sandbox.scheduler import Scheduler
from tests.fakes import FakeSandbox, World, make_function
from tests.unit.test_scheduler import Clock, run, scheduling, sleepy

blocked = trio.testing.wait_all_tasks_blocked


def provide(scheduler: Scheduler, *functions: FunctionVersion) -> None:
    scheduler.retire_changed(functions)


def rows(scheduler: Scheduler, kind: str = "provisioned") -> list[dict[str, Any]]:
    return [row for row in scheduler.environments() if row["type"] == kind]


def ids(scheduler: Scheduler, kind: str = "provisioned") -> set[str]:
    return {row["id"] for row in rows(scheduler, kind)}


async def test_they_stand_before_the_first_invocation_which_is_warm(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=2)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        assert [row["state"] for row in rows(scheduler)] == ["idle", "idle"]
        outcome = await run(scheduler, function)
        await blocked()
        assert outcome.payload.decode() in ids(scheduler)
        assert len(world.launcher.sandboxes) == 2
    assert (outcome.cold, outcome.init_ms) == (False, None)
    (report,) = [line for line in world.lines if line.startswith("REPORT")]
    assert "Init Duration" not in report
    assert sum("INIT_REPORT" in line and "Status: success" in line for line in world.lines) == 2


async def test_the_runtime_is_told_its_initialization_type(autojump_clock: Clock) -> None:
    told: list[bool] = []
    world = World(sleepy)
    prepare = world.surroundings.prepare

    def watched(function: FunctionVersion, id_: str, provisioned: bool) -> Any:
        told.append(provisioned)
        return prepare(function, id_, provisioned)

    world.surroundings = replace(world.surroundings, prepare=watched)
    function = make_function(provisioned_concurrency=1)
    async with scheduling(world) as scheduler:
        await run(scheduler, function)
        provide(scheduler, function)
        await blocked()
    assert told == [False, True]


async def test_no_idle_time_ends_them_and_they_are_frozen(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=1, idle_timeout_s=1.0)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        before = ids(scheduler)
        await trio.sleep(1000)
        assert ids(scheduler) == before
        assert [row["state"] for row in rows(scheduler)] == ["frozen"]
        assert (await run(scheduler, function)).payload.decode() in before


async def test_demand_spills_over_and_on_demand_environments_go_again(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=1, idle_timeout_s=30.0)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        outcomes: list[Outcome] = []

        async def one() -> None:
            outcomes.append(await run(scheduler, function, 1.0))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
        assert sorted(outcome.cold for outcome in outcomes) == [False, True, True]
        # The provisioned one is taken first, though the others were used as recently.
        await trio.sleep(20)
        assert (await run(scheduler, function)).payload.decode() in ids(scheduler)
        await trio.sleep(29)
        assert (len(rows(scheduler)), rows(scheduler, "on-demand")) == (1, [])


async def test_one_that_is_lost_in_an_invocation_is_replaced_at_once(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=1, timeout_s=3)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        before = ids(scheduler)
        assert (await run(scheduler, function, 10.0)).status == "timeout"
        await blocked()
        assert len(ids(scheduler) - before) == 1
        assert [row["state"] for row in rows(scheduler)] == ["idle"]
        assert trio.current_time() == pytest.approx(3.0)


async def test_one_that_exits_idle_is_replaced_after_a_second(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=1, freeze=False)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        world.launcher.sandboxes[0].end(Exit(code=1))
        await trio.sleep(0.9)
        assert rows(scheduler) == []
        await trio.sleep(0.2)
        assert len(rows(scheduler)) == 1
    assert "failed before its first invocation, the next try is in 1 s" in caplog.text


async def test_new_code_is_provisioned_and_the_old_retired(autojump_clock: Clock) -> None:
    world = World(sleepy)
    old = make_function(provisioned_concurrency=2)
    new = replace(old, revision="2", provisioned_concurrency=3)
    async with scheduling(world) as scheduler:
        provide(scheduler, old)
        await blocked()
        before = ids(scheduler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, old, 2.0)
            await blocked()
            provide(scheduler, new)
            await blocked()
            assert len(ids(scheduler) - before) == 3
        await blocked()
        assert len(ids(scheduler)) == 3
        assert not ids(scheduler) & before
        assert (await run(scheduler, new)).cold is False


async def test_code_that_an_invocation_saw_first_is_provisioned_too(autojump_clock: Clock) -> None:
    world = World(sleepy)
    old = make_function(provisioned_concurrency=1)
    new = replace(old, revision="2")
    async with scheduling(world) as scheduler:
        provide(scheduler, old)
        await blocked()
        before = ids(scheduler)
        await run(scheduler, new)
        await blocked()
        assert len(ids(scheduler) - before) == 1
        provide(scheduler, new)
        await blocked()
        assert len(ids(scheduler)) == 1


async def test_without_being_asked_for_nothing_is_provisioned(autojump_clock: Clock) -> None:
    # `lambox invoke` without a server: one invocation on a node of its own.
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        await run(scheduler, make_function(provisioned_concurrency=5))
        await trio.sleep(1)
        assert rows(scheduler) == []


async def test_a_function_that_goes_takes_them_along_and_comes_back_with_them(
    autojump_clock: Clock,
) -> None:
    async def slow(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep(5)
        await sleepy(environment, sandbox)

    for runtime in (sleepy, slow):  # idle ones, starting ones
        world = World(runtime)
        function = make_function(provisioned_concurrency=2)
        async with scheduling(world) as scheduler:
            provide(scheduler, function)
            await blocked()
            assert len(rows(scheduler)) == 2
            provide(scheduler)
            await blocked()
            assert scheduler.environments() == []
            provide(scheduler, function)
            await trio.sleep(6)
            assert len(rows(scheduler)) == 2


async def test_a_broken_init_backs_off_and_invocations_get_its_error(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(environment: Environment, sandbox: FakeSandbox) -> None:
        sandbox.end(Exit(code=7))
        await trio.sleep_forever()

    world = World(broken)
    function = make_function(provisioned_concurrency=4)
    async with scheduling(world, Limits(max_starts=8)) as scheduler:
        provide(scheduler, function)
        await trio.sleep(600)
        tries = len(world.launcher.sandboxes)
        # Four at first; then one after 1 (four failures: 8) s, 16, 32, 60, 60 ...
        assert 10 <= tries <= 20
        outcome = await run(scheduler, function)
        assert json.loads(outcome.payload)["errorType"] == "Runtime.ExitError"
        assert len(world.launcher.sandboxes) == tries + 2  # the init and its second try
    assert "a provisioned environment of f failed to initialise" in caplog.text
    assert "the next try is in 60 s: Runtime.ExitError" in caplog.text


async def test_mended_code_is_provisioned_at_once(autojump_clock: Clock) -> None:
    works = False

    async def flaky(environment: Environment, sandbox: FakeSandbox) -> None:
        if not works:
            sandbox.end(Exit(code=1))
            await trio.sleep_forever()
        await sleepy(environment, sandbox)

    function = make_function(provisioned_concurrency=3)
    async with scheduling(World(flaky)) as scheduler:
        provide(scheduler, function)
        await trio.sleep(100)
        works = True
        provide(scheduler, replace(function, revision="2"))
        await blocked()
        assert len(rows(scheduler)) == 3


async def test_a_host_that_cannot_launch_is_tried_again(autojump_clock: Clock) -> None:
    world = World(sleepy)
    world.launcher.faults = [ConfineError("no more namespaces")] * 3
    async with scheduling(world) as scheduler:
        provide(scheduler, make_function(provisioned_concurrency=1))
        await trio.sleep(1 + 2 + 4 + 0.1)
        assert len(rows(scheduler)) == 1


async def test_they_are_renewed_before_they_wear_out(autojump_clock: Clock) -> None:
    world = World(sleepy, max_age_s=100)
    function = make_function(provisioned_concurrency=2)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        seen = ids(scheduler)
        for _ in range(5):
            await trio.sleep(91)
            assert len(rows(scheduler)) == 2
            assert (await run(scheduler, function)).cold is False
            await blocked()
            assert not ids(scheduler) & seen
            seen |= ids(scheduler)
    assert len(seen) == 12


async def test_one_that_is_replaced_at_work_goes_when_it_comes_free(autojump_clock: Clock) -> None:
    world = World(sleepy, max_age_s=100)
    function = make_function(provisioned_concurrency=1, timeout_s=900)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await trio.sleep(85)
        before = ids(scheduler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, function, 9.0)
            await trio.sleep(6)
            assert len(rows(scheduler)) == 2
        await blocked()
        assert len(rows(scheduler)) == 1
        assert not ids(scheduler) & before


async def test_a_worn_out_one_is_no_failure(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(sleepy, max_age_s=100)
    function = make_function(provisioned_concurrency=1)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await trio.sleep(89)
        world.launcher.faults = [ConfineError("full")] * 100
        await trio.sleep(12)
        (old,) = ids(scheduler)
        world.launcher.faults.clear()
        assert (await run(scheduler, function)).cold
        assert old not in ids(scheduler)
        await trio.sleep(10)
        assert len(rows(scheduler)) == 1
    assert "failed to initialise" in caplog.text
    assert "before its first invocation" not in caplog.text


async def test_waiting_invocations_find_all_start_slots_free(autojump_clock: Clock) -> None:
    async def slow_init(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep(5)
        await sleepy(environment, sandbox)

    world = World(slow_init)
    provisioned = make_function("p", provisioned_concurrency=10)
    other = make_function("o")
    async with scheduling(world, Limits(max_starts=4)) as scheduler:
        provide(scheduler, provisioned, other)
        await blocked()
        assert len(rows(scheduler)) == 2  # half of the slots
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(run, scheduler, other)
            await blocked()
            assert len(rows(scheduler, "on-demand")) == 4
        assert trio.current_time() == pytest.approx(5.0)
        await trio.sleep(30)
        assert len(rows(scheduler)) == 10


async def test_their_init_may_take_as_long_as_aws_allows(autojump_clock: Clock) -> None:
    async def slow(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep(129)
        await sleepy(environment, sandbox)

    function = make_function(provisioned_concurrency=1)
    async with scheduling(World(slow, init_timeout_s=10)) as scheduler:
        provide(scheduler, function)
        await trio.sleep(130)
        assert [row["state"] for row in rows(scheduler)] == ["frozen"]


async def test_memory_shortage_spares_them(autojump_clock: Clock) -> None:
    world = World(sleepy)
    available = 1 << 40
    async with scheduling(world, available_memory=lambda: available) as scheduler:
        provide(scheduler, make_function("p", provisioned_concurrency=1))
        await blocked()
        await run(scheduler, make_function("a"))
        await blocked()
        available = 0
        await run(scheduler, make_function("b"))
        await blocked()
        assert sorted(row["function"] for row in scheduler.environments()) == ["b", "p"]


async def test_a_reservation_holds_for_them_too(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=1, reserved_concurrency=1)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        for _ in range(3):
            await run(scheduler, function)
        await blocked()
        assert len(world.launcher.sandboxes) == 1


async def test_closing_while_they_start(autojump_clock: Clock, caplog: Any) -> None:
    async def never(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep_forever()

    async with scheduling(World(never)) as scheduler:
        provide(scheduler, make_function(provisioned_concurrency=3))
        await blocked()
        assert [row["state"] for row in rows(scheduler)] == ["starting"] * 3
        scheduler.close()
        await blocked()
        assert scheduler.environments() == []
    assert "failed" not in caplog.text


async def test_a_closing_scheduler_replaces_none(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function(provisioned_concurrency=1)
    async with scheduling(world) as scheduler:
        provide(scheduler, function)
        await blocked()
        await run(scheduler, function)
        await blocked()
        scheduler.close()
        await blocked()
        assert scheduler.environments() == []
    assert len(world.launcher.sandboxes) == 1
