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
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Any

import psutil
import trio

from sandbox import planner
from sandbox.environment import Environment, Surroundings
from sandbox.errors import InvalidRuntime, PlatformFault, TooManyRequests
from sandbox.failures import Failure
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome
from sandbox.planner import Limits, Load
from sandbox.provisioning import Provision
from sandbox.ticket import Ticket

log = logging.getLogger(__name__)
MIB = 1024 * 1024


class Slots:
    """The environments and the queue of one function."""

    def __init__(self, function: FunctionVersion, max_age_s: float = math.inf) -> None:
        self.function = function
        """The newest revision seen; older environments are retired when they come free."""
        self.waiting: deque[Ticket] = deque()
        self.starting: set[Environment] = set()
        self.idle: list[Environment] = []
        """Most recently used last; the provisioned ones after all others."""
        self.provision: Provision[Environment] = Provision(max_age_s)
        self.busy: set[Environment] = set()
        self.answered: set[Environment] = set()
        """Their callers are served; they will be idle in a moment."""
        self.lingering: set[Environment] = set()
        """Answered, but busy with something of their own."""
        self.in_flight = 0
        self.pace = planner.Pace()
        self.hurried = False
        """A task looks after those that wait too long."""

    @property
    def overdue(self) -> int:
        """How many wait for longer than environments at work are trusted with."""
        since = trio.current_time() - self.pace.patience_s
        return sum(1 for _ in takewhile(lambda ticket: ticket.queued_at <= since, self.waiting))

    @property
    def room(self) -> int | None:
        """How many more environments a reservation allows to be at work."""
        if self.function.reserved_concurrency is None:
            return None
        at_work = (self.starting, self.busy, self.answered, self.lingering)
        return self.function.reserved_concurrency - sum(map(len, at_work))

    def forget(self, environment: Environment) -> None:
        for group in (self.starting, self.busy, self.answered, self.lingering):
            group.discard(environment)

    def put_idle(self, environment: Environment) -> None:
        """Provisioned ones are taken first, so that the others can go when demand does."""
        place = len(self.idle)
        if not environment.provisioned:
            while place and self.idle[place - 1].provisioned:
                place -= 1
        self.idle.insert(place, environment)

    def pop_idle(self) -> Environment | None:
        """The most recently used environment that may still be used; unfit ones are retired."""
        while self.idle:
            environment = self.idle.pop()
            if not self.outdated(environment):
                return environment
            self.let_go(environment)
        return None

    def let_go(self, environment: Environment) -> None:
        self.provision.drop(environment)
        environment.retire()

    def outdated(self, environment: Environment) -> bool:
        if environment.provisioned and environment not in self.provision:
            return True  # replaced while it was at work
        return environment.worn_out or environment.function.revision != self.function.revision


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
    ) -> None:
        self._around = surroundings
        self._limits = limits
        self._nursery = nursery
        self._reserved_total = reserved_total
        self._available_memory = available_memory
        self._functions: dict[str, Slots] = {}
        self._live: dict[str, Environment] = {}
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
        self._admit(slots, invocation.function)
        ticket = Ticket(invocation, on_end)
        slots.waiting.append(ticket)
        self._count(slots, +1)
        self._pump(slots)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: taken out of the queue, or let run if it has begun."""
        if not ticket.done and not ticket.dispatched:
            slots = self._functions[ticket.invocation.function.name]
            slots.waiting.remove(ticket)
            self._count(slots, -1)

    def _admit(self, slots: Slots, function: FunctionVersion) -> None:
        load = Load(
            function_in_flight=slots.in_flight,
            unreserved_in_flight=self._unreserved_in_flight,
            reserved_total=self._reserved_total(),
            memory_mb_in_flight=self._memory_in_flight,
        )
        reason = planner.throttle_reason(
            load,
            self._limits,
            reserved=function.reserved_concurrency,
            memory_mb=function.memory_mb,
        )
        if reason is not None:
            raise TooManyRequests(reason)

    def _slots_of(self, function: FunctionVersion) -> Slots:
        slots = self._functions.get(function.name)
        if slots is None:
            slots = Slots(function, self._around.max_age_s)
            self._functions[function.name] = slots
        elif slots.function.revision != function.revision:
            self._change(slots, function)
        return slots

    def _change(self, slots: Slots, function: FunctionVersion) -> None:
        """New code or configuration: what idles or starts goes now, what runs goes when it is done."""
        # The counts were made with the old configuration: take them back and make them anew.
        in_flight = slots.in_flight
        self._count(slots, -in_flight)
        slots.function = function
        self._count(slots, in_flight)
        idle, slots.idle = slots.idle, []
        for environment in [*idle, *slots.starting, *slots.provision.drop_all()]:
            environment.retire()
        self._news.set()

    def _count(self, slots: Slots, change: int) -> None:
        slots.in_flight += change
        self._in_flight += change
        self._memory_in_flight += change * slots.function.memory_mb
        if slots.function.reserved_concurrency is None:
            self._unreserved_in_flight += change
        if self._in_flight == 0:
            self._settled.set()
            self._settled = trio.Event()

    # --- giving work out

    def _pump(self, slots: Slots) -> None:
        if self._closing:
            return
        while slots.waiting and (environment := slots.pop_idle()) is not None:
            self._dispatch(slots, environment)
        # Asked anew each time: a start may retire another environment, which pumps as well.
        while slots.waiting and planner.starts_wanted(
            waiting=len(slots.waiting),
            coming=len(slots.starting) + len(slots.answered),
            room=slots.room,
            starting_everywhere=len(self._starting),
            limits=self._limits,
            soon=slots.pace.reached_soon(len(slots.busy)),
            overdue=slots.overdue if slots.busy else 0,
        ):
            self._start(slots)
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
        for slots in self._functions.values():
            if slots.waiting:
                self._pump(slots)

    def _dispatch(self, slots: Slots, environment: Environment) -> None:
        slots.busy.add(environment)
        environment.turn_began_at = trio.current_time()
        environment.dispatch(slots.waiting.popleft())

    def _start(
        self, slots: Slots, *, suppressed_init: bool = False, provisioned: bool = False
    ) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", slots.function.name.lower()).strip("-")[:40]
        environment = Environment(
            f"{name or 'function'}-{secrets.token_hex(4)}",
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
        self._live[environment.id] = environment
        self._make_room(slots.function.memory_mb)
        self._nursery.start_soon(self._run, environment)

    async def _run(self, environment: Environment) -> None:
        try:
            await environment.run()
        except Exception:
            # One environment's trouble (a tree that will not die, a broken cgroup) is told and
            # stays its own.
            log.exception("environment %s ended badly", environment.id)
            if not environment.lost:
                environment.retire()
        finally:
            del self._live[environment.id]

    def _make_room(self, memory_mb: int) -> None:
        """Idle environments are worth less than a start: the longest idle goes first when memory is short."""
        if self._available_memory() >= memory_mb * MIB:
            return
        idle = [
            (e.idle_since, slots, e)
            for slots in self._functions.values()
            for e in slots.idle
            if not e.provisioned
        ]
        if idle:
            _, slots, environment = min(idle, key=lambda item: item[0])
            slots.idle.remove(environment)
            environment.retire()

    # --- what environments say (Owner)

    def environment_answered(self, environment: Environment) -> None:
        slots = self._functions[environment.function.name]
        slots.busy.remove(environment)
        slots.answered.add(environment)
        self._count(slots, -1)

    def environment_lingers(self, environment: Environment) -> None:
        slots = self._functions[environment.function.name]
        slots.answered.discard(environment)
        slots.lingering.add(environment)
        self._pump(slots)

    def environment_ready(self, environment: Environment) -> None:
        slots = self._functions[environment.function.name]
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
        elif slots.waiting:
            self._dispatch(slots, environment)
        else:
            slots.put_idle(environment)
        if was_starting:
            self._pump_all()
            self._news.set()

    def environment_lost(
        self, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        slots = self._functions[environment.function.name]
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
        self._pump_all()

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
        everyone = [slots for slots in self._functions.values() if slots.provision.concerns]
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
                self._start(slots, provisioned=True)
            look_at = min(look_at, provision.next_look(now))
        return look_at

    def _provisioned_lost(
        self, slots: Slots, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        delay = slots.provision.lost(environment, trio.current_time())
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
        return [environment.describe() for environment in self._live.values()]

    def retire_changed(self, current: dict[str, FunctionVersion]) -> None:
        """Functions came, changed or went on disk: let go of environments that nobody will ask for.

        Provisioned environments are kept for those named here, from now on.
        """
        for name, slots in self._functions.items():
            function = current.get(name)
            if function is not None and function.revision != slots.function.revision:
                self._change(slots, function)
                self._pump(slots)
            elif function is None:
                slots.provision.wanted = 0
                idle, slots.idle = slots.idle, []
                for environment in [*idle, *slots.provision.drop_all()]:
                    environment.retire()
        self._provision(current.values())

    def _provision(self, functions: Iterable[FunctionVersion]) -> None:
        for function in functions:
            if function.provisioned_concurrency or function.name in self._functions:
                slots = self._slots_of(function)
                if slots.provision.wanted != function.provisioned_concurrency:
                    slots.provision.wanted = function.provisioned_concurrency
                    self._news.set()

    def renew(self, function: FunctionVersion, within_s: float) -> None:
        """Let go of its idle environments that would wear out within this time."""
        slots = self._functions.get(function.name)
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
        slow = [one for one in self._live.values() if one.extensions.all.shutdown_budget_s]
        if slow:
            self.close()
        for environment in slow:
            await environment.gone.wait()

    def close(self) -> None:
        """Start nothing more; end what waits with a fault and what runs with a Sandbox.Failure."""
        self._closing = True
        for slots in self._functions.values():
            while slots.waiting:
                slots.waiting.popleft().fail(PlatformFault("lambox is stopping"))
                self._count(slots, -1)
        for environment in list(self._live.values()):
            environment.retire()


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
