"""Owns which environment runs which invocation: admission, queueing, warm reuse, starts, retirement.

Decisions are made in synchronous code between two awaits, so there are no locks; what takes time
(launching, killing) runs in the environment's own task in the scheduler's nursery. A waiting
invocation is not tied to the environment started on its account: whichever is free first takes the
head of the queue.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import trio

from sandbox import planner
from sandbox.environment import Environment
from sandbox.errors import FunctionNotFound, InvalidRuntime, PlatformFault, TooManyRequests
from sandbox.failures import Failure
from sandbox.function import LATEST, FunctionVersion
from sandbox.invocation import Invocation, Outcome
from sandbox.planner import Limits, Load
from sandbox.provisioning import INIT_FAILURE, INTERNAL_ERROR, Provisioned
from sandbox.slots import Slots, Versions
from sandbox.surroundings import Surroundings
from sandbox.ticket import Ticket

log = logging.getLogger(__name__)
MIB = 1024 * 1024
PLACE_LOOK_S = 1.0
"""How often a provisioned environment that finds all places at work looks again."""


class Scheduler:
    """Runs invocations. Made by `open_scheduler`; is the Owner of its environments."""

    def __init__(
        self,
        surroundings: Surroundings,
        limits: Limits,
        nursery: trio.Nursery,
        *,
        reserved_total: Callable[[], int] = lambda: 0,
        available_memory: Callable[[], int] = lambda: psutil.virtual_memory().available,
        places: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """`places`: how many environments can live at a time on this host."""
        self._around = surroundings
        self._limits = limits
        self._nursery = nursery
        self._reserved_total = reserved_total
        self._available_memory = available_memory
        self._places = places
        self._making_room = False
        self._wanting = False
        """Somebody waits for a place that an environment at work may leave."""
        self._functions: dict[str, Versions] = {}
        self._live: dict[Environment, Slots] = {}
        """Whatever still exists on the host, and whose it is."""
        self._starting: set[Environment] = set()
        """Of all functions: asked for at every start wanted, so it is not summed up anew."""
        self._memory_in_flight = 0
        self._unreserved_in_flight = 0
        self._in_flight = 0
        self._settled = trio.Event()
        self._news = trio.Event()
        """Something has changed for provisioned environments."""
        self._closing = False

    async def invoke(self, invocation: Invocation) -> Outcome:
        """Run it and return how it ended. Raises TooManyRequests, InvalidRuntime or PlatformFault.

        Cancelled while it waits in the queue it is withdrawn; once an environment has it, it runs
        to its end whoever listens (SPEC 2.2).
        """
        ticket = self.submit(invocation)
        try:
            return await ticket.wait()
        finally:
            self.withdraw(ticket)

    def submit(self, invocation: Invocation, on_end: Callable[[], None] | None = None) -> Ticket:
        """`invoke` without waiting: `on_end` is called when the ticket has its result (`Ticket`)."""
        slots = self._slots_of(invocation.function)
        self._admit(slots)
        ticket = Ticket(invocation, on_end)
        slots.waiting.append(ticket)
        self._count(slots, +1)
        self._pump(slots)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: taken out of the queue, or let run if it has begun."""
        if not ticket.done and not ticket.dispatched:
            versions = self._functions[ticket.invocation.function.name]
            slots = next(slots for slots in versions if ticket in slots.waiting)
            slots.waiting.remove(ticket)
            self._count(slots, -1)
            self._tidy(slots)

    def _admit(self, slots: Slots) -> None:
        versions = slots.versions
        load = Load(
            function_in_flight=versions.in_flight,
            unreserved_in_flight=self._unreserved_in_flight,
            reserved_total=self._reserved_total(),
            memory_mb_in_flight=self._memory_in_flight,
            in_flight=self._in_flight,
            places=self._places(),
        )
        reason = planner.throttle_reason(
            load, self._limits, reserved=versions.reserved, memory_mb=slots.function.memory_mb
        )
        if reason is not None:
            raise TooManyRequests(reason)

    def _slots_of(self, function: FunctionVersion) -> Slots:
        """Made when first asked for, and brought to what the function is now."""
        versions = self._functions.get(function.name)
        if versions is None:
            versions = self._functions[function.name] = Versions(function.reserved_concurrency)
        slots = versions.slots.get(function.version)
        if slots is None:
            slots = Slots(function, versions, self._around.max_age_s)
            versions.slots[function.version] = slots
        elif slots.function is not function:
            self._change(slots, function)
        if versions.reserved != function.reserved_concurrency:
            self._reserve(versions, function.reserved_concurrency)
        return slots

    def _known(self, function: FunctionVersion) -> Slots | None:
        versions = self._functions.get(function.name)
        return versions.slots.get(function.version) if versions else None

    def _change(self, slots: Slots, function: FunctionVersion) -> None:
        """Of new code or configuration what idles or starts goes now, what runs when it is done.

        With the same revision it is only we who treat them differently from now on.
        """
        old, slots.function = slots.function, function
        if old.revision == function.revision:
            for environment in slots.environments if old != function else ():
                if environment.function.revision == function.revision:
                    environment.adopt(function)
            return
        # Counted with the old configuration so far.
        self._memory_in_flight += slots.in_flight * (function.memory_mb - old.memory_mb)
        idle, slots.idle = slots.idle, []
        for environment in [*idle, *slots.starting, *slots.provision.drop_all()]:
            environment.retire()
        self._news.set()

    def _reserve(self, versions: Versions, reserved: int | None) -> None:
        """From now on. What runs ends as it would, and what waits is served; with none nothing begins."""
        if versions.reserved is None:
            self._unreserved_in_flight -= versions.in_flight
        versions.reserved = reserved
        if reserved is None:
            self._unreserved_in_flight += versions.in_flight
        for slots in [slots for slots in versions if slots.waiting and reserved == 0]:
            while slots.waiting:
                self._count(slots, -1)
                slots.waiting.popleft().fail(TooManyRequests(planner.RESERVED_EXCEEDED))
            self._tidy(slots)
        self._pump_versions(versions)

    def _count(self, slots: Slots, change: int) -> None:
        slots.in_flight += change
        slots.versions.in_flight += change
        self._in_flight += change
        self._memory_in_flight += change * slots.function.memory_mb
        if slots.versions.reserved is None:
            self._unreserved_in_flight += change
        if self._in_flight == 0:
            self._settled.set()
            self._settled = trio.Event()

    def _part(self, slots: Slots) -> None:
        """This version is no more. What waits is served as it was admitted, nothing is kept for later."""
        slots.versions.part(slots)
        slots.provision.wanted = 0
        for environment in list(slots.provision.starting):
            slots.let_go(environment)
        self._tidy(slots)

    def _tidy(self, slots: Slots) -> None:
        """Nothing is kept of what is no more. Those at work go when they come free."""
        if not slots.gone:
            return
        if not slots.waiting:
            slots.let_idle_go()
            for environment in list(slots.starting):
                slots.let_go(environment)
        if slots.over:
            versions = slots.versions
            versions.leaving.discard(slots)
            if not versions.slots and not versions.leaving:
                self._functions.pop(slots.function.name, None)

    # --- giving work out

    def _pump(self, slots: Slots) -> None:
        if self._closing:
            return
        while slots.waiting and slots.may_work and (environment := slots.pop_idle()) is not None:
            self._dispatch(slots, environment)
        # Asked anew each time: a start takes a slot, and a place made is taken in the next turn.
        while slots.waiting and planner.starts_wanted(
            waiting=len(slots.waiting),
            coming=len(slots.starting) + len(slots.answered),
            room=slots.versions.room,
            starting_everywhere=len(self._starting),
            limits=self._limits,
            soon=slots.pace.reached_soon(len(slots.busy)),
            overdue=slots.overdue if slots.busy else 0,
        ):
            if not self._full():
                self._start(slots)
            elif not self._let_longest_idle_go():
                if self._place_is_coming():
                    self._wanting = True
                    break
                # Nothing is left that could make room: what came last is too much.
                self._count(slots, -1)
                slots.waiting.pop().fail(TooManyRequests(planner.CONCURRENCY_EXCEEDED))
        if slots.waiting and slots.busy and not slots.hurried:
            slots.hurried = True
            self._nursery.start_soon(self._hurry, slots)

    async def _hurry(self, slots: Slots) -> None:
        """Those who wait for environments at work do not wait for long."""
        while slots.waiting and not self._closing:
            await trio.sleep(slots.pace.patience_s)
            self._pump(slots)
        slots.hurried = False

    def _pump_all(self) -> None:
        self._wanting = False
        # Looked up first: pumping may retire environments, and what is over is dropped.
        for slots in [slots for slots in self._all_slots() if slots.waiting]:
            self._pump(slots)

    def _pump_versions(self, versions: Versions) -> None:
        """There may be room in a reservation that several versions wait for."""
        for slots in [slots for slots in versions if slots.waiting]:
            self._pump(slots)

    def _all_slots(self) -> Iterator[Slots]:
        return chain.from_iterable(self._functions.values())

    def _dispatch(self, slots: Slots, environment: Environment) -> None:
        slots.busy.add(environment)
        environment.turn_began_at = trio.current_time()
        environment.dispatch(slots.waiting.popleft())

    def _start(
        self, slots: Slots, *, suppressed_init: bool = False, provisioned: bool = False
    ) -> None:
        environment = Environment(
            _environment_id(slots.function),
            slots.function,
            self,
            self._around,
            suppressed_init=suppressed_init,
            provisioned=provisioned,
        )
        if provisioned:
            slots.provision.started(environment)
        else:
            slots.starting.add(environment)
            self._starting.add(environment)
        self._live[environment] = slots
        self._make_room(slots.function.memory_mb)
        self._nursery.start_soon(self._run, environment)

    async def _run(self, environment: Environment) -> None:
        try:
            await environment.run()
        except* Exception:
            # One environment's trouble (a tree that will not die, a broken cgroup) is told and
            # stays its own, also where it comes along with our own cancellation.
            log.exception("environment %s ended badly", environment.id)
            if not environment.lost:
                environment.retire()
        finally:
            del self._live[environment]

    def _make_room(self, memory_mb: int) -> None:
        """Idle environments are worth less than a start when memory is short."""
        if self._available_memory() < memory_mb * MIB:
            self._let_longest_idle_go()

    def _full(self) -> bool:
        """Whether every place is taken, but for those of environments that are on their way out."""
        places = self._places()
        return len(self._live) >= places and sum(not e.lost for e in self._live) >= places

    def _let_longest_idle_go(self) -> bool:
        """Of any function. Whether there was one: those provisioned stay."""
        idle = [
            (e.idle_since, slots, e)
            for slots in self._all_slots()
            for e in slots.idle
            if not e.provisioned
        ]
        if not idle:
            return False
        _, slots, environment = min(idle, key=lambda item: item[0])
        slots.idle.remove(environment)
        # The place is for who asked: others are not looked at in the middle of that.
        self._making_room = True
        environment.retire()
        self._making_room = False
        return True

    def _place_is_coming(self) -> bool:
        """Whether an environment will idle in a moment that nobody of its own function waits for."""
        return any(
            len(slots.starting) + len(slots.answered) > len(slots.waiting)
            for slots in self._all_slots()
        )

    # --- what environments say (Owner)

    def environment_answered(self, environment: Environment) -> None:
        slots = self._live[environment]
        slots.busy.remove(environment)
        slots.answered.add(environment)
        self._count(slots, -1)

    def environment_lingers(self, environment: Environment) -> None:
        slots = self._live[environment]
        slots.answered.discard(environment)
        slots.lingering.add(environment)
        self._pump(slots)
        if self._wanting:
            self._pump_all()

    def environment_ready(self, environment: Environment) -> None:
        slots = self._live[environment]
        was_starting = environment in slots.starting or (
            environment.provisioned and slots.provision.became_ready(environment)
        )
        now = trio.current_time()
        if was_starting:
            slots.pace.took_start(now - environment.born_at)
        else:
            slots.pace.took_turn(now - environment.turn_began_at)
        slots.forget(environment)
        self._starting.discard(environment)
        if slots.outdated(environment):
            slots.let_go(environment)
        elif slots.waiting and slots.may_work:
            self._dispatch(slots, environment)
        else:
            slots.put_idle(environment)
        if was_starting:
            self._pump_all()
            self._news.set()
        elif slots.versions.reserved is not None:
            self._pump_versions(slots.versions)  # another version may have waited for this room
        if self._wanting:
            self._pump_all()
        self._tidy(slots)

    def environment_lost(
        self, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        slots = self._live[environment]
        was_starting = environment in slots.starting
        if environment in slots.busy:
            self._count(slots, -1)
        if environment in slots.idle:
            slots.idle.remove(environment)
        slots.forget(environment)
        self._starting.discard(environment)
        if was_starting and failure is not None and not slots.outdated(environment):
            self._start_failed(slots, environment, failure)
        if environment in slots.provision:
            self._provisioned_lost(slots, environment, failure)
        if was_starting or environment.provisioned:
            self._news.set()
        if not self._making_room:
            self._pump_all()
        self._tidy(slots)

    def _start_failed(
        self, slots: Slots, environment: Environment, failure: Failure | Exception
    ) -> None:
        """SPEC 3.6: a failed init is tried again inside an invocation; then that one takes the failure."""
        if not slots.waiting:
            return
        if isinstance(failure, Failure) and not environment.suppressed_init:
            self._start(slots, suppressed_init=True)
            return
        ticket = slots.waiting.popleft()
        self._count(slots, -1)
        if isinstance(failure, Failure):
            body = failure.body(ticket.invocation.request_id)
            ticket.resolve(
                Outcome(
                    status=failure.status,
                    payload=body,
                    error_type=failure.error_type,
                    stream_error=(failure.error_type, body.decode("utf-8", "replace")),
                    executed_version=slots.function.version,
                    cold=True,
                )
            )
        elif isinstance(failure, InvalidRuntime):
            ticket.fail(failure)
        elif slots.gone:
            ticket.fail(_not_found(ticket.invocation))  # its code is gone with it
        else:
            log.error("cannot start %s: %s", environment.id, failure)
            fault = PlatformFault(str(failure))
            fault.__cause__ = failure
            ticket.fail(fault)

    # --- provisioned concurrency

    async def keep_provisioned(self) -> None:
        """Start and renew provisioned environments, until cancelled."""
        while True:
            self._news = trio.Event()
            with trio.move_on_at(self._provide()):
                await self._news.wait()

    def _provide(self) -> float:
        """Do what is to be done now; returns when to look again if nothing happens before."""
        now, look_at = trio.current_time(), math.inf
        everyone = [slots for slots in self._all_slots() if slots.provision.concerns]
        for slots in everyone:
            provision = slots.provision
            for environment in provision.surplus():
                provision.drop(environment)
                if environment in slots.idle:
                    environment.retire()  # else when it next comes free: it is `outdated` now
            wanted = planner.provisioned_starts(
                missing=provision.missing(now),
                starting=sum(len(other.provision.starting) for other in everyone),
                starting_on_demand=len(self._starting),
                limits=self._limits,
            )
            for _ in range(0 if self._closing else wanted):
                if self._full() and not self._let_longest_idle_go():
                    look_at = now + PLACE_LOOK_S
                    break
                self._start(slots, provisioned=True)
            look_at = min(look_at, provision.next_look(now))
        return look_at

    def _provisioned_lost(
        self, slots: Slots, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        reason = None
        if failure is not None:
            ours = not isinstance(failure, Failure)
            reason = f"{INTERNAL_ERROR}: {failure}" if ours else INIT_FAILURE
        delay = slots.provision.lost(environment, trio.current_time(), reason)
        if delay is not None and not self._closing:
            what = failure.report_type if isinstance(failure, Failure) else failure
            log.warning(
                "a provisioned environment of %s failed%s, the next try is in %g s: %s",
                slots.function.name,
                " to initialise" if failure else " before its first invocation",
                delay,
                what or "it exited",
            )

    # --- looking and ending

    def environments(self) -> list[dict[str, Any]]:
        """One row of `lambox ps` per environment that still exists on the host."""
        return [environment.describe() for environment in self._live]

    def provisioned(self, function: FunctionVersion) -> Provisioned:
        """How far what it asks for (`provisioned_concurrency`) has come (SPEC 10.5)."""
        slots, wanted = self._known(function), function.provisioned_concurrency
        if (
            slots is None
            or slots.provision.wanted != wanted
            or slots.function.revision != function.revision
        ):
            return Provisioned(wanted)  # not told yet
        return slots.provision.state()

    def in_use(self) -> set[Path]:
        """Folders of code and layers that environments have or may yet get, of versions that are gone too."""
        functions = [environment.function for environment in self._live]
        functions += [slots.function for slots in self._all_slots()]
        return {path for one in functions for path in (one.code, *one.layers)}

    def retire_changed(self, live: Iterable[FunctionVersion]) -> None:
        """Versions came, changed or went: let go of environments that nobody will ask for.

        Provisioned environments are kept for those named here, from now on.
        """
        live = list(live)
        there = {(function.name, function.version) for function in live}
        for slots in [
            slots
            for versions in self._functions.values()
            for slots in versions.slots.values()
            if (slots.function.name, slots.function.version) not in there
        ]:
            self._part(slots)
        for function in live:
            if function.provisioned_concurrency or self._known(function) is not None:
                slots = self._slots_of(function)
                if slots.provision.want(function.provisioned_concurrency):
                    self._news.set()
        self._pump_all()

    def renew(self, function: FunctionVersion, within_s: float) -> None:
        """Let go of its idle environments that would wear out within this time."""
        slots = self._known(function)
        for environment in list(slots.idle) if slots else ():
            age_s = trio.current_time() - environment.born_at
            if not environment.provisioned and age_s + within_s >= self._around.max_age_s:
                environment.retire()

    async def settle(self) -> None:
        """Returns when no invocation waits or runs."""
        while self._in_flight:
            await self._settled.wait()

    async def wind_up(self) -> None:
        """`close`, and wait for environments whose extensions are told of their end (SPEC 6.3).

        Cancelled, it leaves them to be killed. Where there are none it does nothing.
        """
        slow = [one for one in self._live if one.extensions.all.shutdown_budget_s]
        if slow:
            self.close()
        for environment in slow:
            await environment.gone.wait()

    def close(self) -> None:
        """Start nothing more; end what waits with a fault and what runs with a Sandbox.Failure."""
        self._closing = True
        for slots in list(self._all_slots()):
            while slots.waiting:
                slots.waiting.popleft().fail(PlatformFault("lambox is stopping"))
                self._count(slots, -1)
        for environment in list(self._live):
            environment.retire()


def _environment_id(function: FunctionVersion) -> str:
    """For people, logs and cgroups: hello-1f2e3d4c, or hello-v3-1f2e3d4c of a published version."""
    name = re.sub(r"[^a-z0-9]+", "-", function.name.lower()).strip("-")[:40]
    version = "" if function.version == LATEST else f"-v{function.version}"
    return f"{name or 'function'}{version}-{secrets.token_hex(4)}"


def _not_found(invocation: Invocation) -> FunctionNotFound:
    """As one that comes now is told (SPEC 3.8)."""
    latest = "" if invocation.qualifier else f":{LATEST}"
    return FunctionNotFound(f"Function not found: {invocation.invoked_arn}{latest}")


@asynccontextmanager
async def open_scheduler(
    surroundings: Surroundings, limits: Limits, **seams: Any
) -> AsyncIterator[Scheduler]:
    """A scheduler that owns its environments: leaving kills and reaps all of them."""
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(surroundings, limits, nursery, **seams)
        nursery.start_soon(scheduler.keep_provisioned)
        try:
            yield scheduler
        finally:
            scheduler.close()
            nursery.cancel_scope.cancel()
