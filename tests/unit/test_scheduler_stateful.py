"""The scheduler against a model of its promises, on fakes and a mock clock.

Invocations come, are given up, take long, crash and hang; code is replaced, versions vanish and come again,
reservations change, launches fail, environments die, memory is short, places are few. At every moment: each accepted
invocation ends once, nobody waits while an environment is idle or could be had, no limit is exceeded, nothing
of a version that is gone serves the one that came after it. At the end: nothing is left.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox.confine.spec import MIB, ConfineError, Exit
from sandbox.environment import Environment
from sandbox.errors import TooManyRequests
from sandbox.function import FunctionVersion
from sandbox.planner import Limits
from sandbox.scheduler import open_scheduler
from sandbox.slots import Slots
from sandbox.ticket import Ticket
from tests.fakes import Body, FakeSandbox, World, make_function, make_invocation, respond
from tests.machines import Loop, effort

LIMITS = Limits(account_concurrency=10, memory_budget_mb=2000, max_starts=3)
RESERVED = 3
"""Of the function `reserved` at first, all its versions together."""
TIMEOUT_S, INIT_S = 3, 10.0
DEEDS = ("ok", "ok", "ok", "error", "lazy", "exit", "hang", "exit later")
PROVISIONED = 2
FUNCTIONS = {
    "plain": make_function("plain", timeout_s=TIMEOUT_S),
    "wide": make_function("wide", timeout_s=TIMEOUT_S, memory_mb=700),
    "reserved": make_function("reserved", timeout_s=TIMEOUT_S, reserved_concurrency=RESERVED),
    "reserved:1": make_function(
        "reserved", version="1", timeout_s=TIMEOUT_S, reserved_concurrency=RESERVED
    ),
    "reserved:2": make_function(
        "reserved",
        version="2",
        timeout_s=TIMEOUT_S,
        reserved_concurrency=RESERVED,
        provisioned_concurrency=1,
    ),
    "ready": make_function("ready", timeout_s=TIMEOUT_S),
    "ready:1": make_function("ready", version="1", timeout_s=TIMEOUT_S, provisioned_concurrency=1),
}
"""By name and version; $LATEST without."""
NAMES = st.sampled_from(sorted(FUNCTIONS))


class Asked:
    """One invocation as its caller knows it."""

    def __init__(self, function: FunctionVersion) -> None:
        self.function = function
        self.name = function.name
        self.ticket: Ticket | None = None
        self.ends = 0
        self.withdrawn = False

    @property
    def in_flight(self) -> bool:
        assert self.ticket is not None
        return not self.ticket.done and not self.withdrawn


class SchedulerMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.loop = Loop()
        self.functions = dict(FUNCTIONS)
        self.revision = 1
        self.room_before = math.inf
        self.places = self.living_before = math.inf
        self.asked: dict[str, Asked] = {}
        self.begun: Counter[str] = Counter()
        self.served_by: dict[str, str] = {}
        self.inits: list[str] = []
        self.memory = 64 * 1024 * MIB
        self.loop.do(self._open)

    async def _open(self) -> None:
        self.world = World(self._runtime, init_timeout_s=INIT_S, max_age_s=1000.0)
        opened, self.closing, self.closed = trio.Event(), trio.Event(), trio.Event()

        async def hold() -> None:
            async with open_scheduler(
                self.world.surroundings,
                LIMITS,
                reserved_total=lambda: self.functions["reserved"].reserved_concurrency or 0,
                available_memory=lambda: self.memory,
                places=lambda: self.places,
            ) as self.scheduler:
                opened.set()
                await self.closing.wait()
            self.closed.set()

        self.loop.nursery.start_soon(hold)
        await opened.wait()
        self.scheduler.retire_changed(self.functions.values())

    async def _runtime(self, environment: Environment, sandbox: FakeSandbox) -> None:
        init = self.inits.pop() if self.inits else "ok"
        if init == "exit":
            sandbox.end(Exit(code=1))
            await trio.sleep_forever()
        elif init == "error":
            await environment.init_error(error_type="Runtime.Odd", body=b"{}")
            await trio.sleep_forever()
        elif init == "slow":
            await trio.sleep(2.0)
        elif init == "hang":
            await trio.sleep_forever()
        while True:
            event = await environment.next()
            self.begun[event.request_id] += 1
            self.served_by[event.request_id] = environment.id
            deed, seconds = json.loads(event.payload)
            if deed == "lazy":
                await respond(environment, event.request_id, Body(b"{}"))
                await trio.sleep(seconds)
                continue
            await trio.sleep(seconds)
            if deed == "exit":
                sandbox.end(Exit(signal=9))
                await trio.sleep_forever()
            if deed == "hang":
                await trio.sleep_forever()
            if deed == "error":
                await environment.error(
                    event.request_id,
                    invocation_id=None,
                    error_type=None,
                    content_type=None,
                    body=b"{}",
                )
            else:
                await respond(environment, event.request_id, Body(b"{}"))
            if deed == "exit later":
                sandbox.end(Exit(code=0))
                await trio.sleep_forever()

    # --- what callers do

    @rule(
        name=NAMES,
        deed=st.sampled_from(DEEDS),
        seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0]),
        count=st.sampled_from([1, 1, 1, 2, 5]),
    )
    def invoke(self, name: str, deed: str, seconds: float, count: int) -> None:
        for _ in range(count):
            id_, newest = self.loop.do(self._submit, name, json.dumps([deed, seconds]).encode())
            if id_ in self.asked and newest:
                assert self.served_by[id_] in newest

    @rule(name=NAMES, count=st.integers(2, 4))
    def several_are_idle(self, name: str, count: int) -> None:
        """One after the other."""
        for number in range(count):
            self.invoke(name, "ok", 0.1 * number, 1)
        self.loop.jump(0.5)

    @rule(name=NAMES)
    def several_do_not_come_back(self, name: str) -> None:
        """Their callers are answered, and call again."""
        for _ in range(2):
            self.invoke(name, "lazy", 0.6, RESERVED)
            self.loop.jump(0.2)
            self.loop.do(self._sync, self._check)

    async def _submit(self, name: str, payload: bytes) -> tuple[str, set[str]]:
        """(request id, environments of which one has to have it)."""
        refusal, newest = self._refusal(name), self._most_recently_used(name)
        invocation = make_invocation(self.functions[name], payload)
        id_ = invocation.request_id
        asked = Asked(self.functions[name])

        def on_end() -> None:
            asked.ends += 1

        try:
            asked.ticket = self.scheduler.submit(invocation, on_end)
        except TooManyRequests as exc:
            refused = exc.reason
        else:
            refused = None
            self.asked[id_] = asked
        assert refused == refusal
        return id_, newest

    def _refusal(self, name: str) -> str | None:
        """AWS's reason where one more is too many, from what callers know alone."""
        counts = Counter(one.name for one in self.asked.values() if one.in_flight)
        function, reserved = self.functions[name], self.functions["reserved"].reserved_concurrency
        if function.reserved_concurrency is not None:
            if counts[function.name] >= function.reserved_concurrency:
                return "ReservedFunctionConcurrentInvocationLimitExceeded"
        else:
            elsewhere = 0 if reserved is None else counts["reserved"]
            if sum(counts.values()) - elsewhere >= LIMITS.account_concurrency - (reserved or 0):
                return "ConcurrentInvocationLimitExceeded"
        if sum(counts.values()) >= self.places:
            return "ConcurrentInvocationLimitExceeded"
        memory = sum(one.function.memory_mb for one in self.asked.values() if one.in_flight)
        if memory and memory + function.memory_mb > LIMITS.memory_budget_mb:
            return "ConcurrentInvocationLimitExceeded"
        return None

    def _most_recently_used(self, name: str) -> set[str]:
        """Ids of which one has to be taken; none if none is idle."""
        slots = self._slots(name)
        reserved = self.functions[name].reserved_concurrency
        if slots is None or slots.waiting:
            return set()  # those who have waited for room in a reservation come first
        if reserved is not None and sum(one.at_work for one in slots.versions) >= reserved:
            return set()
        fit = [one for one in slots.idle if not slots.outdated(one)]
        fit = [one for one in fit if one.function.revision == self.functions[name].revision]
        fit = [one for one in fit if one.provisioned] or fit
        newest = max((one.idle_since for one in fit), default=0.0)
        return {one.id for one in fit if one.provisioned or one.idle_since == newest}

    @precondition(lambda self: any(one.in_flight for one in self.asked.values()))
    @rule(data=st.data())
    def a_caller_goes_away(self, data: st.DataObject) -> None:
        waiting = [one for one in self.asked.values() if one.in_flight]
        one = waiting[data.draw(st.integers(0, len(waiting) - 1))]
        assert one.ticket is not None
        begun = one.ticket.dispatched
        self.loop.do(self._sync, self.scheduler.withdraw, one.ticket)
        one.withdrawn = not begun

    async def _sync(self, call: Any, *args: Any) -> None:
        call(*args)

    # --- what the world does

    @rule(seconds=st.sampled_from([0.005, 0.02, 0.06, 0.15, 0.5, 1.0, 4.0, 12.0, 40.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.jump(seconds)

    @rule(name=NAMES, told=st.booleans())
    def code_changes(self, name: str, told: bool) -> None:
        """`told`: the watcher sees it before an invocation does."""
        self.revision += 1
        self.functions[name] = replace(self.functions[name], revision=str(self.revision))
        if told:
            self._tell()

    def _tell(self, *missing: str) -> None:
        there = [one for key, one in self.functions.items() if key not in missing]
        self.loop.do(self._sync, self.scheduler.retire_changed, there)

    @rule(name=NAMES, whole=st.booleans(), fresh=st.booleans())
    def a_version_vanishes_for_a_moment(self, name: str, whole: bool, fresh: bool) -> None:
        """`whole`: with all others of its function. `fresh`: what comes back has other code."""
        function = self.functions[name].name
        gone = [k for k, one in self.functions.items() if one.name == function] if whole else [name]
        before = {environment.id for environment in self.scheduler._live}
        self._tell(*gone)
        for slots in self._all_slots():
            if not slots.gone:
                assert self._key(slots) not in gone
            elif not slots.waiting:
                assert not slots.idle
                assert not slots.starting
        for one in gone if fresh else ():
            self.revision += 1
            self.functions[one] = replace(self.functions[one], revision=str(self.revision))
        self._tell()
        for one in gone:
            new = self._slots(one)
            ids = {environment.id for environment in new.environments} if new else set()
            assert not ids & before, "one of those before is used"

    @rule(reserved=st.sampled_from([None, 0, 1, 2, RESERVED, RESERVED]), told=st.booleans())
    def the_reservation_changes(self, reserved: int | None, told: bool) -> None:
        for name, function in self.functions.items():
            if function.name == "reserved":
                self.functions[name] = replace(function, reserved_concurrency=reserved)
        if told:
            self.loop.do(self._sync, self._tell_and_see_them_kept)
        else:
            self.invoke("reserved:1", "ok", 0.0, 1)
        self.room_before = self._reserved_room()

    def _tell_and_see_them_kept(self) -> None:
        kept = [
            one
            for name, function in self.functions.items()
            if (slots := self._slots(name)) is not None
            for one in slots.environments
            if one.function.revision == function.revision and not slots.outdated(one)
        ]
        self.scheduler.retire_changed(self.functions.values())
        assert not self.memory or not any(one.lost for one in kept)

    @rule(name=NAMES, count=st.integers(0, 2))
    def provisioned_concurrency_changes(self, name: str, count: int) -> None:
        self.functions[name] = replace(self.functions[name], provisioned_concurrency=count)
        self._tell()

    @rule(name=NAMES, idle_s=st.sampled_from([1.0, 30.0, 100.0]))
    def the_idle_timeout_changes(self, name: str, idle_s: float) -> None:
        function = self.functions[name] = replace(self.functions[name], idle_timeout_s=idle_s)
        self._tell()
        self.loop.jump(idle_s + 0.2)
        slots, now = self._slots(name), self.loop.clock.current_time()
        for one in slots.idle if slots else ():
            assert one.provisioned or now - one.idle_since <= function.idle_timeout_s + 0.1

    @rule(inits=st.lists(st.sampled_from(["exit", "error", "slow", "hang"]), max_size=3))
    def inits_will_fail(self, inits: list[str]) -> None:
        self.inits = inits

    @rule(faults=st.integers(0, 3), takes_s=st.sampled_from([0.0, 0.0, 0.05, 1.0]))
    def launches_will_fail(self, faults: int, takes_s: float) -> None:
        self.world.launcher.faults = [ConfineError("no more of them")] * faults
        self.world.launcher.takes_s = takes_s

    @rule(short=st.booleans())
    def memory_is_short(self, short: bool) -> None:
        self.memory = 0 if short else 64 * 1024 * MIB

    @rule(places=st.sampled_from([1, 3, 5, math.inf]))
    def places_are_few(self, places: float) -> None:
        self.places = places

    @precondition(lambda self: self.world.launcher.alive)
    @rule(data=st.data())
    def an_environment_is_killed(self, data: st.DataObject) -> None:
        alive = self.world.launcher.alive
        sandbox = alive[data.draw(st.integers(0, len(alive) - 1))]
        self.loop.do(self._sync, sandbox.end, Exit(killed=True))

    @rule(name=NAMES)
    def old_ones_are_renewed(self, name: str) -> None:
        self.loop.do(self._sync, self.scheduler.renew, self.functions[name], 60.0)

    # --- what must hold

    def _slots(self, name: str) -> Slots | None:
        return self.scheduler._known(self.functions[name])

    def _all_slots(self) -> list[Slots]:
        return list(self.scheduler._all_slots())

    def _key(self, slots: Slots) -> str:
        version = slots.function.version
        return slots.function.name + ("" if version == "$LATEST" else f":{version}")

    def _room(self, slots: Slots) -> float:
        room = slots.versions.room
        return math.inf if room is None else room

    @invariant()
    def what_must_hold(self) -> None:
        self.loop.do(self._sync, self._check)

    def _check(self) -> None:
        self.each_ends_once_and_begins_once_at_most()
        self.nobody_waits_in_vain()
        self.the_books_are_right()
        self.no_limit_is_exceeded()
        self.no_environment_is_in_two_places_or_in_none()

    def each_ends_once_and_begins_once_at_most(self) -> None:
        assert all(count == 1 for count in self.begun.values())
        for id_, one in self.asked.items():
            assert one.ticket is not None
            assert one.ends == one.ticket.done
            if one.withdrawn:
                assert not one.ticket.done
                assert not self.begun[id_]

    def nobody_waits_in_vain(self) -> None:
        for slots in self._all_slots():
            if not slots.waiting:
                continue
            if self._room(slots) > 0:
                assert all(slots.outdated(one) for one in slots.idle), "one is idle"
                coming = self.scheduler._starting or any(s.answered for s in self._all_slots())
                assert slots.at_work or coming, "nothing is coming"
            else:
                assert any(other.at_work for other in slots.versions), "nothing makes room"

    def the_books_are_right(self) -> None:
        counts = Counter(one.name for one in self.asked.values() if one.in_flight)
        for slots in self._all_slots():
            assert slots.in_flight == len(slots.waiting) + len(slots.busy)
            assert not slots.over
        for name, versions in self.scheduler._functions.items():
            assert versions.in_flight == sum(one.in_flight for one in versions) == counts[name]
        assert self.scheduler._in_flight == sum(counts.values())
        reserved = self.scheduler._functions.get("reserved")
        apart = 0 if reserved is None or reserved.reserved is None else counts["reserved"]
        assert self.scheduler._unreserved_in_flight == sum(counts.values()) - apart
        memory = sum(one.function.memory_mb for one in self.asked.values() if one.in_flight)
        assert self.scheduler._memory_in_flight == memory

    def no_limit_is_exceeded(self) -> None:
        assert len(self.scheduler._starting) <= LIMITS.max_starts
        # A reservation that was lowered takes nobody's environment away, and lets no other begin.
        living = sum(not one.lost for one in self.scheduler._live)
        assert living <= max(self.places, self.living_before)
        self.living_before = living
        room = self._reserved_room()
        assert room >= min(0, self.room_before)
        self.room_before = room

    def _reserved_room(self) -> float:
        versions = self.scheduler._functions.get("reserved")
        return math.inf if versions is None or versions.room is None else versions.room

    def no_environment_is_in_two_places_or_in_none(self) -> None:
        held: Counter[Environment] = Counter()
        for slots in self._all_slots():
            for group in (
                slots.idle, slots.busy, slots.starting, slots.answered, slots.lingering,
                slots.provision.starting,
            ):  # fmt: skip
                held.update(group)
        assert all(count == 1 for count in held.values())
        assert not any(one.lost for one in held)
        living = self.scheduler._live
        assert set(held) == {one for one in living if not one.lost}
        names = {one.id for one in living}
        assert {sandbox.name for sandbox in self.world.launcher.alive} <= names

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.inits.clear()
            self.world.launcher.faults.clear()
            self.memory = 64 * 1024 * MIB
            self.places = math.inf
            for _ in range(40):
                self.loop.jump(5.0)
                if not any(one.in_flight for one in self.asked.values()):
                    break
            self.each_ends_once_and_begins_once_at_most()
            assert not any(one.in_flight for one in self.asked.values()), "some never end"
            self.loop.jump(200.0)  # one whose init hangs is given 130 s
            # Those that are provisioned; idle ones have had their time.
            wanted = sum(one.provisioned_concurrency for one in self.functions.values())
            assert len(self.world.launcher.alive) == wanted
            assert not any(slots.gone for slots in self._all_slots())
            self.loop.do(self._sync, self.closing.set)
            assert self.closed.is_set()
            assert self.world.launcher.alive == []
            assert self.scheduler.environments() == []
        finally:
            self.loop.close()


SchedulerMachine.TestCase.settings = effort(60, 25)
TestScheduler = SchedulerMachine.TestCase
