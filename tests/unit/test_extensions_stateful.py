"""One environment with extensions and a runtime that do what they like, in any order, on fakes and a mock clock.

Nobody predicts what comes of it here; at every moment: an environment is offered work, and frozen, only when all of
them wait; every invocation ends once; what was lost is offered no more. At the end nothing is left, in time.
"""

from __future__ import annotations

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox.confine.spec import Exit
from sandbox.environment import Environment
from sandbox.extensions import Extension, ShutdownEvent, State
from sandbox.failures import Failure
from sandbox.lifecycle import NextEvent, Refused
from sandbox.lifecycle import State as Runtime
from sandbox.ticket import Ticket
from tests.fakes import Body, FakeSandbox, World, make_function, make_invocation, respond
from tests.machines import Loop, effort

INIT_S, TIMEOUT_S, BUDGET_S = 10.0, 3.0, 2.0
NAMES = ("a", "b", "mine")
RARELY = st.sampled_from([*[False] * 15, True])


class Owner:
    """As the scheduler: whoever is ready gets the head of the queue."""

    def __init__(self) -> None:
        self.queue: list[Ticket] = []
        self.offered = False
        self.lost = 0
        self.ended_at = 0.0

    def environment_answered(self, environment: Environment) -> None:
        assert not self.lost

    def environment_lingers(self, environment: Environment) -> None:
        assert not self.lost

    def environment_ready(self, environment: Environment) -> None:
        assert not self.lost, "what is lost is offered no more"
        assert not self.offered, "it is offered once"
        assert everybody_waits(environment)
        if self.queue:
            environment.dispatch(self.queue.pop(0))
        else:
            self.offered = True

    def environment_lost(
        self, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        self.lost += 1
        self.offered = False
        for ticket in self.queue:
            ticket.fail(RuntimeError("lost"))
        self.queue.clear()


def everybody_waits(environment: Environment) -> bool:
    extensions = environment.extensions.all
    return (
        environment._life.state is Runtime.READY
        and extensions.init_ended
        and not extensions.busy
        and all(one.was_ready for one in extensions)
    )


class ExtendedEnvironment(RuleBasedStateMachine):
    @initialize(far=st.sampled_from(["launched", "registered", "ready", "ready", "ready"]))
    def launch(self, far: str) -> None:
        self.loop = Loop()
        self.owner = Owner()
        self.tickets: list[Ticket] = []
        self.events: list[NextEvent] = []
        self.shutdowns: list[ShutdownEvent] = []
        self.loop.do(self._launch)
        for name in ("a", "b") if far != "launched" else ():
            self.register(name, ["INVOKE", "SHUTDOWN"])
            if far == "ready":
                self.next(name)
        if far == "ready":
            self.runtime_next()

    async def _launch(self) -> None:
        async def silent(environment: Environment, sandbox: FakeSandbox) -> None:
            await trio.sleep_forever()

        self.world = World(silent, init_timeout_s=INIT_S)
        function = make_function(timeout_s=TIMEOUT_S, extensions=("a", "b"))
        self.environment = Environment("f-1", function, self.owner, self.world.surroundings)
        self.loop.nursery.start_soon(self.environment.run)

    @property
    def sandbox(self) -> FakeSandbox:
        return self.world.launcher.sandboxes[0]

    def find(self, name: str) -> Extension | None:
        return next((one for one in self.environment.extensions.all if one.name == name), None)

    # --- extensions

    @rule(
        name=st.sampled_from(NAMES),
        events=st.lists(st.sampled_from(["INVOKE", "INVOKE", "SHUTDOWN"]), max_size=2),
    )
    def register(self, name: str, events: list[str]) -> None:
        async def call() -> None:
            self.environment.extensions.register(name, events)

        self.refusable(call)

    @rule(name=st.sampled_from([*NAMES, "a", "b"]))
    def next(self, name: str) -> None:
        one = self.find(name)
        if one is None:
            return
        identifier = one.identifier

        async def ask() -> None:
            try:
                event = await self.environment.extensions.next(identifier)
            except Refused:
                return
            if isinstance(event, ShutdownEvent):
                self.shutdowns.append(event)

        self.start(ask)

    @rule(name=st.sampled_from(NAMES), init=st.booleans(), now=RARELY)
    def reports(self, name: str, init: bool, now: bool) -> None:
        one = self.find(name)
        if one is None or not now:
            return
        host = self.environment.extensions
        fail = host.init_error if init else host.exit_error
        identifier = one.identifier

        async def call() -> None:
            fail(identifier, "Extension.Sad")

        self.refusable(call)

    @rule(name=st.sampled_from(["a", "b"]), code=st.sampled_from([0, 1]), now=RARELY)
    def exits(self, name: str, code: int, now: bool) -> None:
        companions = self.sandbox.companions
        if name in companions and (now or self.shutdowns):
            self.end(lambda: companions[name].end(Exit(code=code)))

    # --- the runtime

    @precondition(lambda self: self.sandbox.started.is_set())
    @rule()
    def runtime_next(self) -> None:
        async def ask() -> None:
            try:
                event = await self.environment.next()
            except Refused:
                return
            self.events.append(event)

        self.start(ask)

    @precondition(lambda self: self.events)
    @rule()
    def responds(self) -> None:
        request_id = self.events[-1].request_id

        async def call() -> None:
            await respond(self.environment, request_id, Body(b"1"))

        self.refusable(call)

    @precondition(lambda self: self.sandbox.started.is_set())
    @rule(now=RARELY)
    def runtime_exits(self, now: bool) -> None:
        if now:
            self.end(lambda: self.sandbox.end(Exit(code=1)))

    # --- the world

    @rule(seconds=st.sampled_from([*[0.01, 0.2, 1.0] * 5, 4.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.jump(seconds)

    @precondition(lambda self: not self.owner.lost)
    @rule()
    def invoke(self) -> None:
        async def call() -> None:
            ticket = Ticket(make_invocation(self.environment.function))
            self.tickets.append(ticket)
            if self.owner.offered:
                self.owner.offered = False
                self.environment.dispatch(ticket)
            else:
                self.owner.queue.append(ticket)

        self.loop.do(call)

    @precondition(lambda self: self.owner.offered)
    @rule(
        steps=st.permutations(["responds", "runtime", "a", "b"]),
        of_them=st.integers(2, 4),
        seconds=st.sampled_from([0.0, 0.0, 0.5]),
    )
    def a_turn(self, steps: list[str], of_them: int, seconds: float) -> None:
        """Most of what has to be done to be over, in any order."""
        self.invoke()
        for step in steps[:of_them]:
            if step == "responds":
                self.responds()
            elif step == "runtime":
                self.runtime_next()
            else:
                self.next(step)
            self.loop.jump(seconds)
            self.it_makes_sense()

    @rule(now=RARELY)
    def retire(self, now: bool) -> None:
        if now:
            self.end(self.environment.retire)

    # --- what holds

    @invariant()
    def it_makes_sense(self) -> None:
        environment = self.environment
        if environment.frozen:
            assert everybody_waits(environment)
        if self.owner.offered:
            assert everybody_waits(environment)
            assert not environment.lost
        assert self.owner.lost <= 1
        assert environment.lost == bool(self.owner.lost)
        if environment.lost:
            assert all(ticket.done for ticket in self.tickets)
        if self.sandbox.started.is_set():
            external = environment.extensions.all.external
            assert all(one.state is not State.STARTED for one in external)
        if environment.gone.is_set():
            assert self.sandbox.killed

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            if not self.environment.lost:
                self.end(self.environment.retire)
            # Its runtime has a share of that, and who cannot be told is not waited for.
            self.loop.jump(BUDGET_S + 1.5)
            assert self.environment.gone.is_set()
            assert self.world.launcher.alive == []
            assert all(ticket.done for ticket in self.tickets)
            assert len(self.shutdowns) <= 2
        finally:
            self.loop.close()

    # --- how

    def start(self, task) -> None:  # type: ignore[no-untyped-def]
        async def begin() -> None:
            self.loop.nursery.start_soon(task)

        self.loop.do(begin)

    def refusable(self, call) -> None:  # type: ignore[no-untyped-def]
        async def run() -> None:
            try:
                await call()
            except Refused:
                return

        self.loop.do(run)

    def end(self, call) -> None:  # type: ignore[no-untyped-def]
        async def run() -> None:
            call()

        self.loop.do(run)


TestExtendedEnvironment = ExtendedEnvironment.TestCase
TestExtendedEnvironment.settings = effort(40, steps=40)
