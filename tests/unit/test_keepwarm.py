"""sandbox.keepwarm on a mock clock and a wall clock that tests may set."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.errors import FunctionNotFound, PlatformFault, TooManyRequests
from sandbox.function import LATEST, FunctionVersion
from sandbox.invocation import Invocation, Outcome
from sandbox.keepwarm import KeepWarm, idle_limit_s
from sandbox.schedules import parse
from tests.fakes import World, make_function
from tests.unit.test_scheduler import Clock, run, scheduling, sleepy

START = datetime(2026, 11, 21, 8, 0, 30, tzinfo=UTC)  # a Saturday
MINUTE = 60.0


def warm(*expressions: str, name: str = "f", **changes: Any) -> FunctionVersion:
    schedules = tuple(map(parse, expressions))
    return make_function(name, warm=schedules, **{"waits_for_ping": True, **changes})


def qualified(name: str, qualifier: str | None) -> str:
    return f"{name}:{qualifier or LATEST}"


@dataclass
class Scene:
    """A KeepWarm whose pings are kept in `pings`; `answer` is how they end."""

    keepwarm: KeepWarm = field(init=False)
    functions: dict[str, FunctionVersion] = field(default_factory=dict)
    pings: list[tuple[float, Invocation]] = field(default_factory=list)
    accepted: list[tuple[float, Invocation]] = field(default_factory=list)
    renewed: list[tuple[str, float]] = field(default_factory=list)
    answer: Callable[[], Awaitable[Outcome]] | None = None
    set_by: timedelta = timedelta()
    """By how much the wall clock was set."""

    def __post_init__(self) -> None:
        self.keepwarm = KeepWarm(
            self.invoke,
            self.find,
            region="eu-west-1",
            account="111122223333",
            now=self.now,
            accept=self.accept,
            renew=lambda function, within_s: self.renewed.append((function.name, within_s)),
            max_age_s=7200.0,
            trace_id=lambda: "Root=1",
        )

    def now(self) -> datetime:
        return START + timedelta(seconds=trio.current_time()) + self.set_by

    def find(self, name: str, qualifier: str | None) -> FunctionVersion:
        try:
            return self.functions[qualified(name, qualifier)]
        except KeyError:
            raise FunctionNotFound(name) from None

    async def accept(self, invocation: Invocation) -> None:
        self.accepted.append((trio.current_time(), invocation))

    async def invoke(self, invocation: Invocation) -> Outcome:
        self.pings.append((trio.current_time(), invocation))
        await trio.lowlevel.checkpoint()
        return await self.answer() if self.answer else Outcome("success")

    def keep(self, *functions: FunctionVersion) -> None:
        self.functions = {qualified(one.name, one.version): one for one in functions}
        self.keepwarm.keep(functions)

    @property
    def minutes(self) -> list[float]:
        return [round(at / MINUTE, 3) for at, _ in self.pings]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(invocation.payload) for _, invocation in self.pings]


@asynccontextmanager
async def scene(*functions: FunctionVersion) -> AsyncIterator[Scene]:
    one = Scene()
    one.keep(*functions)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.keepwarm.run)
        await trio.testing.wait_all_tasks_blocked()
        yield one
        nursery.cancel_scope.cancel()


async def test_the_event_is_what_eventbridge_sends(autojump_clock: Clock) -> None:
    function = warm("rate(5 minutes)")
    async with scene(function) as here:
        pass
    ((_, ping),) = here.pings
    (event,) = here.events
    identifier = event.pop("id")
    assert len(identifier) == 36
    assert event == {
        "version": "0",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "111122223333",
        "time": "2026-11-21T08:00:30Z",
        "region": "eu-west-1",
        "resources": ["arn:aws:events:eu-west-1:111122223333:rule/f-warm"],
        "detail": {},
    }
    assert (ping.kind, ping.function, ping.trace_id) == ("Event", function, "Root=1")
    assert ping.invoked_arn == "arn:aws:lambda:eu-west-1:111122223333:function:f"
    assert ping.request_id != identifier


async def test_a_rate_pings_at_once_and_then_at_its_interval(autojump_clock: Clock) -> None:
    async with scene(warm("rate(5 minutes)")) as here:
        await trio.sleep(21 * MINUTE)
        assert here.minutes == [0, 5, 10, 15, 20]


async def test_the_first_ping_of_a_rate_does_not_outrun_provisioned_environments(
    autojump_clock: Clock,
) -> None:
    async with scene(warm("rate(5 minutes)", provisioned_concurrency=1)) as here:
        await trio.sleep(11 * MINUTE)
        assert here.minutes == [5, 10]


async def test_scheduled_events_are_accepted_at_their_times_and_may_overlap(
    autojump_clock: Clock,
) -> None:
    function = make_function("f", schedule=(parse("rate(5 minutes)"), parse("cron(0 9 * * ? *)")))
    async with scene(function) as here:
        await trio.sleep(61 * MINUTE)
    assert [round(at / MINUTE, 1) for at, _ in here.accepted] == [
        *(5 * n for n in range(1, 12)),
        59.5,
        60,
    ]
    events = [json.loads(invocation.payload) for _, invocation in here.accepted]
    assert events[0]["resources"] == ["arn:aws:events:eu-west-1:111122223333:rule/f-schedule"]
    assert events[0]["time"] == "2026-11-21T08:05:30Z"
    assert events[11]["resources"] == ["arn:aws:events:eu-west-1:111122223333:rule/f-schedule-2"]
    assert len({event["id"] for event in events}) == len(events)
    assert {invocation.kind for _, invocation in here.accepted} == {"Event"}
    assert here.pings == []


async def test_cron_pings_at_its_times(autojump_clock: Clock) -> None:
    async with scene(warm("cron(0/15 * * * ? *)")) as here:
        await trio.sleep(60 * MINUTE)
        assert [event["time"][11:] for event in here.events] == [
            "08:15:00Z", "08:30:00Z", "08:45:00Z", "09:00:00Z",
        ]  # fmt: skip
        assert here.minutes == [14.5, 29.5, 44.5, 59.5]


async def test_several_schedules_each_have_a_rule(autojump_clock: Clock) -> None:
    name = "n" * 64
    async with scene(warm("cron(0 9 * * ? *)", "rate(35 minutes)", name=name)) as here:
        await trio.sleep(60 * MINUTE)
        rules = [event["resources"][0].partition(":rule/")[2] for event in here.events]
    assert here.minutes == [0, 35, 59.5]
    assert rules == ["n" * 57 + "-warm-2", "n" * 57 + "-warm-2", "n" * 59 + "-warm"]


async def test_a_ping_that_still_runs_is_not_joined_by_another(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow() -> Outcome:
        await trio.sleep(12 * MINUTE)
        return Outcome("success")

    async with scene(warm("rate(5 minutes)"), warm("rate(5 minutes)", name="g")) as here:
        here.answer = slow
        await trio.sleep(5.5 * MINUTE)
        # The first pings of both ended at once; these run until minute 17.
        await trio.sleep(10 * MINUTE)
        assert here.minutes == [0, 0, 5, 5]
        await trio.sleep(5 * MINUTE)
        assert here.minutes == [0, 0, 5, 5, 20, 20]
    assert caplog.text.count("ping of f left out: the one before is still running") == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (
            TooManyRequests("ReservedFunctionConcurrentInvocationLimitExceeded"),
            "throttled (Reserved",
        ),
        (PlatformFault("no more namespaces"), "left out: no more namespaces"),
    ],
)
async def test_a_ping_that_finds_no_room_is_left_out(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture, fault: Exception, told: str
) -> None:
    async def refuse() -> Outcome:
        raise fault

    caplog.set_level("INFO")
    async with scene(warm("rate(5 minutes)")) as here:
        here.answer = refuse
        await trio.sleep(11 * MINUTE)
        here.answer = None
        await trio.sleep(5 * MINUTE)
        assert here.minutes == [0, 5, 10, 15]
    assert caplog.text.count(told) == 2


async def test_a_function_error_is_told_and_not_tried_again(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> Outcome:
        return Outcome("error", error_type="Runtime.ExitError")

    async with scene(warm("rate(5 minutes)")) as here:
        here.answer = fail
        await trio.sleep(6 * MINUTE)
        assert here.minutes == [0, 5]
    assert "keep-warm ping of f failed: Runtime.ExitError" in caplog.text


async def test_a_function_that_went_a_moment_ago_is_not_pinged(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(warm("rate(5 minutes)")) as here:
        here.functions.clear()
        await trio.sleep(6 * MINUTE)
        assert here.minutes == [0]
    assert "ping of f left out" in caplog.text


async def test_changed_functions_keep_their_rhythm_and_the_ping_runs_the_new_code(
    autojump_clock: Clock,
) -> None:
    function = warm("rate(5 minutes)")
    async with scene(function) as here:
        await trio.sleep(3 * MINUTE)
        changed = replace(function, revision="2")
        here.keep(changed)
        await trio.sleep(3 * MINUTE)
        assert here.minutes == [0, 5]
        assert here.pings[-1][1].function is changed


async def test_versions_of_one_function_are_pinged_each(autojump_clock: Clock) -> None:
    latest = warm("rate(5 minutes)")
    async with scene(latest, replace(latest, version="3")) as here:
        await trio.sleep(1 * MINUTE)
        asked = {one.invoked_arn: one.function.version for _, one in here.pings}
        arn = "arn:aws:lambda:eu-west-1:111122223333:function:f"
        assert asked == {arn: "$LATEST", f"{arn}:3": "3"}
        here.keep(latest)
        await trio.sleep(5 * MINUTE)
        assert here.minutes == [0, 0, 5]


async def test_schedules_come_and_go(autojump_clock: Clock) -> None:
    async with scene() as here:
        await trio.sleep(100 * MINUTE)
        here.keep(warm("rate(10 minutes)"))
        await trio.sleep(1 * MINUTE)
        here.keep(warm("rate(2 minutes)"))
        await trio.sleep(3 * MINUTE)
        here.keep(make_function())
        await trio.sleep(100 * MINUTE)
        assert here.minutes == [100, 101, 103]


async def test_a_clock_set_forward_makes_one_ping(autojump_clock: Clock) -> None:
    async with scene(warm("rate(5 minutes)"), warm("cron(0 * * * ? *)", name="g")) as here:
        await trio.sleep(MINUTE)
        here.pings.clear()
        here.set_by += timedelta(days=30)
        await trio.sleep(2 * MINUTE)
        assert sorted(ping.function.name for _, ping in here.pings) == ["f", "g"]
        await trio.sleep(4 * MINUTE)
        assert [ping.function.name for _, ping in here.pings[2:]] == ["f"]


async def test_a_clock_that_wavers_repeats_no_ping(autojump_clock: Clock) -> None:
    async with scene(warm("cron(0/15 * * * ? *)")) as here:
        await trio.sleep(14.6 * MINUTE)
        for _ in range(20):
            here.set_by -= timedelta(seconds=31)
            await trio.sleep(31)
    assert [event["time"][11:] for event in here.events] == ["08:15:00Z"]


async def test_a_clock_set_back_silences_nobody(autojump_clock: Clock) -> None:
    async with scene(warm("rate(5 minutes)"), warm("cron(0/15 * * * ? *)", name="g")) as here:
        await trio.sleep(20.1 * MINUTE)
        here.pings.clear()
        here.set_by -= timedelta(days=30)
        await trio.sleep(16 * MINUTE)
        names = [ping.function.name for _, ping in here.pings]
    assert (names.count("f"), names.count("g")) == (3, 1)


async def test_what_never_comes_is_told_once(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    function = warm("cron(0 0 30 2 ? *)")
    async with scene(function) as here:
        here.keep(function)
        await trio.sleep(100 * MINUTE)
        assert here.pings == []
    assert caplog.text.count("cron(0 0 30 2 ? *) of f never comes again") == 1


@pytest.mark.parametrize(
    ("function", "limit"),
    [
        (make_function(), 30.0),
        (warm("rate(5 minutes)"), 330.0),
        (warm("rate(5 minutes)", idle_timeout_s=120.0), 420.0),
        (warm("cron(0/15 * * * ? *)"), 14.5 * MINUTE + 30),
        (warm("rate(1 day)", "cron(10 8 * * ? *)"), 9.5 * MINUTE + 30),
        (warm("cron(0 8 ? * MON-FRI *)"), 7230.0),  # no longer than the greatest age
        (warm("rate(5 minutes)", waits_for_ping=False), 30.0),
        (warm("cron(0 0 1 1 ? 2000)"), 30.0),
    ],
)
def test_idle_environments_wait_for_the_next_ping(function: FunctionVersion, limit: float) -> None:
    assert idle_limit_s(function, START, 7200.0) == limit


async def test_an_environment_is_warm_at_any_time_between_pings(autojump_clock: Clock) -> None:
    """With the scheduler, over more than an environment's greatest age."""
    clock = Scene().now
    max_age_s = 1000.0
    world = World(sleepy, max_age_s=max_age_s)
    world.surroundings = replace(
        world.surroundings,
        idle_limit=lambda function: idle_limit_s(function, clock(), max_age_s),
    )
    function = warm("rate(5 minutes)")
    async with scheduling(world) as scheduler:
        pings: list[Outcome] = []

        async def ping(invocation: Invocation) -> Outcome:
            pings.append(await scheduler.invoke(replace(invocation, payload=b"0")))
            return pings[-1]

        keepwarm = KeepWarm(
            ping,
            lambda name, qualifier: function,
            region="r",
            account="a",
            now=clock,
            renew=scheduler.renew,
            max_age_s=max_age_s,
        )
        keepwarm.keep([function])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keepwarm.run)
            await trio.sleep(1)
            for _ in range(30):
                await trio.sleep(277)
                assert (await run(scheduler, function)).cold is False
            nursery.cancel_scope.cancel()
        assert len(pings) == 28
        assert 8 <= sum(outcome.cold for outcome in pings) <= 14
