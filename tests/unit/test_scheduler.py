"""The scheduler on fakes and a mock clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.confine.spec import ConfineError, Exit, SandboxSpec
from sandbox.environment import Environment
from sandbox.errors import PlatformFault, TooManyRequests
from sandbox.invocation import Outcome
from sandbox.planner import Limits
from sandbox.scheduler import Scheduler, open_scheduler
from tests.fakes import Body, FakeSandbox, World, make_function, make_invocation, respond

Clock = trio.testing.MockClock


async def sleepy(environment: Environment, sandbox: FakeSandbox) -> None:
    """Takes as many seconds as the event says; answers with its environment's id."""
    while True:
        event = await environment.next()
        await trio.sleep(json.loads(event.payload))
        await respond(environment, event.request_id, Body(environment.id.encode()))


@asynccontextmanager
async def scheduling(
    world: World, limits: Limits | None = None, **seams: Any
) -> AsyncIterator[Scheduler]:
    async with open_scheduler(
        world.surroundings, limits or Limits(max_starts=100), **seams
    ) as scheduler:
        yield scheduler
    assert world.launcher.alive == []


async def run(scheduler: Scheduler, function: Any, seconds: float = 0.0) -> Outcome:
    return await scheduler.invoke(make_invocation(function, json.dumps(seconds).encode()))


async def together(
    scheduler: Scheduler, function: Any, count: int, seconds: float
) -> list[Outcome]:
    outcomes: list[Outcome] = []

    async def one() -> None:
        outcomes.append(await run(scheduler, function, seconds))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    await trio.testing.wait_all_tasks_blocked()
    return outcomes


async def test_warm_reuse(autojump_clock: Clock) -> None:
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        first = await run(scheduler, make_function())
        await trio.testing.wait_all_tasks_blocked()
        second = await run(scheduler, make_function())
    assert first.payload == second.payload
    assert len(world.launcher.sandboxes) == 1


async def test_concurrent_invocations_scale_out_each_alone_in_its_environment(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        outcomes = await together(scheduler, make_function(), 8, 1.0)
        assert trio.current_time() == pytest.approx(1.0)
    assert len({outcome.payload for outcome in outcomes}) == 8


async def test_the_most_recently_used_environment_is_taken(autojump_clock: Clock) -> None:
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, make_function(), 1.0)
            nursery.start_soon(run, scheduler, make_function(), 2.0)
        await trio.testing.wait_all_tasks_blocked()
        rows = scheduler.environments()
        again = await run(scheduler, make_function())
        (mru,) = [row["id"] for row in scheduler.environments() if row["invocations"] == 2]
    assert len(rows) == 2
    assert again.payload.decode() == mru


async def test_a_waiting_invocation_takes_whichever_environment_is_free_first(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    async with scheduling(world, Limits(max_starts=1)) as scheduler:
        outcomes = await together(scheduler, make_function(), 5, 0.0)
    assert len(outcomes) == 5
    assert len(world.launcher.sandboxes) < 5


async def test_reserved_concurrency_throttles_with_awss_reason(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function(reserved_concurrency=1)
    async with scheduling(world) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, function, 1.0)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooManyRequests) as refused:
                await run(scheduler, function)
        await run(scheduler, function)
    assert refused.value.reason == "ReservedFunctionConcurrentInvocationLimitExceeded"


async def lazy(environment: Environment, sandbox: FakeSandbox) -> None:
    """Answers at once, and takes as many seconds as the event says before it asks again."""
    while True:
        event = await environment.next()
        await respond(environment, event.request_id, Body(environment.id.encode()))
        await trio.sleep(json.loads(event.payload))


async def test_one_reserved_environment_serves_caller_after_caller(autojump_clock: Clock) -> None:
    # Each call comes when the one before is answered, but `next` only 0.05 s later.
    world = World(lazy)
    function = make_function(reserved_concurrency=1)
    async with scheduling(world) as scheduler:
        answers = {(await run(scheduler, function, 0.05)).payload for _ in range(5)}
    assert len(answers) == 1
    assert len(world.launcher.sandboxes) == 1


async def test_nobody_waits_long_for_an_environment_that_is_busy_with_itself(
    autojump_clock: Clock,
) -> None:
    world = World(lazy)
    async with scheduling(world) as scheduler:
        first = await run(scheduler, make_function(), 2.0)
        second = await run(scheduler, make_function(), 0.0)
        assert trio.current_time() == pytest.approx(0.1)
    assert first.payload != second.payload


async def test_account_limit(autojump_clock: Clock) -> None:
    world = World(sleepy)
    async with (
        scheduling(world, Limits(account_concurrency=2)) as scheduler,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(run, scheduler, make_function("a"), 1.0)
        nursery.start_soon(run, scheduler, make_function("b"), 1.0)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyRequests) as refused:
            await run(scheduler, make_function("c"))
    assert refused.value.reason == "ConcurrentInvocationLimitExceeded"


async def test_new_code_serves_the_next_invocation_and_the_running_one_ends_on_the_old(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    old, new = make_function(), make_function(revision="2")
    async with scheduling(world) as scheduler:
        outcomes: list[Outcome] = []

        async def slow() -> None:
            outcomes.append(await run(scheduler, old, 2.0))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await trio.testing.wait_all_tasks_blocked()
            fresh = await run(scheduler, new)
        assert outcomes[0].status == "success"
        assert fresh.payload != outcomes[0].payload
        await trio.testing.wait_all_tasks_blocked()
        assert [row["id"] for row in scheduler.environments()] == [fresh.payload.decode()]


async def test_idle_environments_of_changed_code_go_at_once(autojump_clock: Clock) -> None:
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        await run(scheduler, make_function())
        await trio.testing.wait_all_tasks_blocked()
        scheduler.retire_changed([make_function(revision="2")])
        await trio.testing.wait_all_tasks_blocked()
        assert scheduler.environments() == []


async def test_environments_wear_out(autojump_clock: Clock) -> None:
    world = World(sleepy, max_age_s=100)
    function = make_function(idle_timeout_s=1000, timeout_s=900)
    async with scheduling(world) as scheduler:
        first = await run(scheduler, function)
        await trio.sleep(101)
        second = await run(scheduler, function)
    assert first.payload != second.payload


async def test_a_failed_init_is_tried_again_and_then_answered_with_the_second_failure(
    autojump_clock: Clock,
) -> None:
    async def broken(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.init_error(error_type="Runtime.X", body=environment.id.encode())
        sandbox.end(Exit(code=1))
        await trio.sleep_forever()

    world = World(broken)
    async with scheduling(world) as scheduler:
        outcomes = await together(scheduler, make_function(), 3, 0.0)
    assert len(world.launcher.sandboxes) == 6
    assert {outcome.status for outcome in outcomes} == {"error"}
    assert len({outcome.payload for outcome in outcomes}) == 3
    phases = [line for line in world.lines if line.startswith("INIT_REPORT")]
    assert sum("Phase: init" in line for line in phases) == 3
    assert sum("Phase: invoke" in line for line in phases) == 3


async def test_an_init_that_works_the_second_time_serves_the_invocation(
    autojump_clock: Clock,
) -> None:
    async def flaky(environment: Environment, sandbox: FakeSandbox) -> None:
        if not environment.suppressed_init:
            sandbox.end(Exit(code=1))
            await trio.sleep_forever()
        await sleepy(environment, sandbox)

    async with scheduling(World(flaky)) as scheduler:
        assert (await run(scheduler, make_function())).status == "success"


async def test_init_exit_names_the_invocation(autojump_clock: Clock) -> None:
    async def dies(environment: Environment, sandbox: FakeSandbox) -> None:
        sandbox.end(Exit(code=7))
        await trio.sleep_forever()

    async with scheduling(World(dies)) as scheduler:
        outcome = await scheduler.invoke(make_invocation(make_function(), request_id="id-9"))
    assert json.loads(outcome.payload)["errorMessage"] == (
        "RequestId: id-9 Error: Runtime exited with error: exit status 7"
    )


async def test_a_host_that_cannot_launch_is_our_fault_not_the_functions(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    world.launcher.faults = [ConfineError("no more namespaces")]
    async with scheduling(world) as scheduler:
        with pytest.raises(PlatformFault, match="no more namespaces"):
            await run(scheduler, make_function())
        assert (await run(scheduler, make_function())).status == "success"


async def test_a_fault_after_the_launch_is_answered_and_the_sandbox_killed(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(sleepy)

    class Damaged(FakeSandbox):
        def __init__(self, spec: SandboxSpec) -> None:
            super().__init__(spec)
            self.listener.close()  # dup(2) fails, as it does without descriptors to spare

    world.launcher.make = Damaged
    async with scheduling(world) as scheduler:
        with pytest.raises(PlatformFault, match="Bad file descriptor"):
            await run(scheduler, make_function())
    assert len(world.launcher.sandboxes) == 1
    assert "ended badly" in caplog.text


async def test_a_caller_that_leaves_the_queue_takes_its_invocation_along(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    async with scheduling(world, Limits(max_starts=1)) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, make_function(), 1.0)
            await trio.sleep(0.5)
            world.launcher.faults = [ConfineError("full")]
            with trio.move_on_after(0):
                await run(scheduler, make_function())
        await scheduler.settle()


async def test_a_caller_that_leaves_does_not_stop_a_running_invocation(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    async with scheduling(world) as scheduler:
        with trio.move_on_after(0.5):
            await run(scheduler, make_function(), 2.0)
        await scheduler.settle()
        assert trio.current_time() == pytest.approx(2.0)
        await trio.testing.wait_all_tasks_blocked()
        assert (await run(scheduler, make_function())).cold is False


async def test_memory_shortage_lets_the_longest_idle_go(autojump_clock: Clock) -> None:
    world = World(sleepy)
    available = 1 << 40
    async with scheduling(world, available_memory=lambda: available) as scheduler:
        first = await run(scheduler, make_function("a"))
        await trio.sleep(1)
        await run(scheduler, make_function("b"))
        await trio.testing.wait_all_tasks_blocked()
        available = 0
        await run(scheduler, make_function("c"))
        await trio.testing.wait_all_tasks_blocked()
        left = {row["id"] for row in scheduler.environments()}
    assert first.payload.decode() not in left
    assert len(left) == 2


async def test_counts_survive_a_change_of_configuration_in_flight(autojump_clock: Clock) -> None:
    world = World(sleepy)
    function = make_function()
    changed = replace(function, revision="2", memory_mb=512, reserved_concurrency=1)
    async with scheduling(world, Limits(account_concurrency=2)) as scheduler:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, scheduler, function, 1.0)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooManyRequests):
                await run(scheduler, changed)
        await scheduler.settle()
        await together(scheduler, make_function("g"), 2, 0.1)


async def test_closing_ends_what_waits_and_what_runs(autojump_clock: Clock) -> None:
    world = World(sleepy)
    results: list[Any] = []

    async def one(scheduler: Scheduler) -> None:
        try:
            results.append((await run(scheduler, make_function(), 2.0)).error_type)
        except PlatformFault as exc:
            results.append(str(exc))

    async with (
        trio.open_nursery() as nursery,
        scheduling(world, Limits(max_starts=1)) as scheduler,
    ):
        for _ in range(3):
            nursery.start_soon(one, scheduler)
        await trio.sleep(1)
        assert len(scheduler.environments()) == 3
        nursery.start_soon(one, scheduler)
        await trio.testing.wait_all_tasks_blocked()
        scheduler.close()
    assert results.count("Sandbox.Failure") + results.count("lambox is stopping") == 4


async def test_submit_tells_the_end_at_once_and_withdraw_takes_back(autojump_clock: Clock) -> None:
    world = World(sleepy)
    limits = Limits(max_starts=1)
    async with scheduling(world, limits) as scheduler:
        function = make_function()
        ended: list[float] = []
        first = scheduler.submit(
            make_invocation(function, b"1"), lambda: ended.append(trio.current_time())
        )
        second = scheduler.submit(make_invocation(function, b"1"), lambda: ended.append(-1))
        scheduler.withdraw(second)
        await first.wait()
        assert ended == [pytest.approx(1.0)]
        scheduler.withdraw(first)  # ended: nothing happens
        await scheduler.settle()
        begun = scheduler.submit(make_invocation(function, b"1"))
        await trio.testing.wait_all_tasks_blocked()
        scheduler.withdraw(begun)  # an environment has it: it runs to its end
        await scheduler.settle()
        assert begun.done
    assert not second.done


@pytest.mark.parametrize("where", ["start", "serve"])
async def test_a_start_that_trips_is_the_callers_answer_and_not_begun_for_ever(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    world = World(sleepy)

    async def trips(*_: Any, task_status: Any = None) -> None:
        if task_status is not None:
            task_status.started()
            await trio.lowlevel.checkpoint()
        raise OSError("too many open files")

    if where == "start":
        monkeypatch.setattr(FakeSandbox, "start", trips)
    else:
        world.surroundings = replace(world.surroundings, serve=trips)
    async with scheduling(world) as scheduler:
        with trio.fail_after(5), pytest.raises(PlatformFault):
            await run(scheduler, make_function())
    assert len(world.launcher.sandboxes) == 1


async def test_quick_invocations_queue_for_a_moment_rather_than_start_an_environment_each(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    world.launcher.takes_s = 0.01
    async with scheduling(world) as scheduler:
        await together(scheduler, make_function(), 2, 0.001)
        there = len(world.launcher.sandboxes)
        await together(scheduler, make_function(), 15, 0.001)
        assert len(world.launcher.sandboxes) == there


async def test_an_unusually_slow_turn_keeps_others_waiting_for_a_moment_only(
    autojump_clock: Clock,
) -> None:
    """Turns were quick so far, so the queue is trusted; then it is not."""
    world = World(sleepy)
    world.launcher.takes_s = 0.01
    async with scheduling(world) as scheduler:
        for _ in range(20):
            await run(scheduler, make_function(), 0.001)
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await together(scheduler, make_function(), 8, 10.0)
        assert trio.current_time() - began < 10.0 + 0.1


async def test_without_a_place_the_longest_idle_of_any_function_goes(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    async with scheduling(world, places=lambda: 3) as scheduler:
        for name in "abcdefgh":
            await run(scheduler, make_function(name))
            await trio.sleep(1)
            assert len(world.launcher.alive) <= 3
        left = {row["function"] for row in scheduler.environments()}
        assert left == {"f", "g", "h"}
        await run(scheduler, make_function("f"))
        assert len(world.launcher.sandboxes) == 8


async def test_with_every_place_at_work_one_more_is_throttled(autojump_clock: Clock) -> None:
    world = World(sleepy)
    async with scheduling(world, places=lambda: 3) as scheduler, trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(run, scheduler, make_function(name), 1.0)
        await trio.testing.wait_all_tasks_blocked()
        for function in (make_function("a"), make_function("d", reserved_concurrency=2)):
            with pytest.raises(TooManyRequests) as caught:
                await run(scheduler, function)
            assert caught.value.reason == "ConcurrentInvocationLimitExceeded"
        await trio.sleep(2)
        await run(scheduler, make_function("d"))
    assert trio.current_time() == pytest.approx(2.0)


async def test_a_place_that_a_start_will_leave_is_waited_for(autojump_clock: Clock) -> None:
    """Nobody needs it any more: its caller has been served by another."""
    world = World(sleepy)
    world.launcher.takes_s = 1.0
    function = make_function("a", timeout_s=100)
    async with scheduling(world, places=lambda: 2) as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(run, scheduler, function, 0.5)
        await trio.sleep(1.2)
        nursery.start_soon(run, scheduler, function, 10.0)
        await trio.sleep(0.6)
        assert [row["state"] for row in scheduler.environments()] == ["busy", "starting"]
        await run(scheduler, make_function("b"))
        assert trio.current_time() == pytest.approx(3.2)
        assert len(world.launcher.alive) == 2


async def test_a_place_that_an_answer_will_leave_is_waited_for(autojump_clock: Clock) -> None:
    async def thoughtful(environment: Environment, sandbox: FakeSandbox) -> None:
        while True:
            event = await environment.next()
            await respond(environment, event.request_id, Body(b"done"))
            await trio.sleep(0.05)

    world = World(thoughtful)
    async with scheduling(world, places=lambda: 1) as scheduler:
        await run(scheduler, make_function("a"))
        assert [row["state"] for row in scheduler.environments()] == ["busy"]
        await run(scheduler, make_function("b"))
        assert trio.current_time() == pytest.approx(0.05)
        assert [row["function"] for row in scheduler.environments()] == ["b"]


async def test_what_lingers_or_is_provisioned_keeps_its_place(autojump_clock: Clock) -> None:
    async def lingering(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await respond(environment, event.request_id, Body(b"done"))
        await trio.sleep(2)
        await environment.next()
        await trio.sleep_forever()

    world = World(lingering)
    provisioned = make_function("p", provisioned_concurrency=1)
    async with scheduling(world, places=lambda: 2) as scheduler:
        scheduler.retire_changed([provisioned])
        await trio.testing.wait_all_tasks_blocked()
        assert scheduler.provisioned(provisioned).status == "READY"
        await run(scheduler, make_function("a"))
        await trio.sleep(1)
        # One of the two is promised to p, the other still does something of its own.
        with pytest.raises(TooManyRequests):
            await run(scheduler, make_function("b"))
        assert (await run(scheduler, provisioned)).cold is False
        await trio.sleep(1.5)
        await run(scheduler, make_function("b"))
        assert {row["function"] for row in scheduler.environments()} == {"p", "b"}


async def test_provisioned_ones_wait_for_a_place_and_take_it_from_idle_ones(
    autojump_clock: Clock,
) -> None:
    world = World(sleepy)
    provisioned = make_function("p", provisioned_concurrency=1)
    async with scheduling(world, places=lambda: 1) as scheduler, trio.open_nursery() as nursery:
        nursery.start_soon(run, scheduler, make_function("a"), 3.0)
        await trio.testing.wait_all_tasks_blocked()
        scheduler.retire_changed([make_function("a"), provisioned])
        await trio.sleep(2)
        assert scheduler.provisioned(provisioned).status == "IN_PROGRESS"
        await trio.sleep(3)
        assert scheduler.provisioned(provisioned).status == "READY"
        assert len(world.launcher.sandboxes) == 2
