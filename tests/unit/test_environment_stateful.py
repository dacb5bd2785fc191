"""One environment against a model of it: whatever its runtime says, in whatever order, whenever it dies.

The model is SPEC 1.6 and 3.4 to 3.6 in a few lines; the environment is the real one with its conversation,
lifecycle and timer, on a fake sandbox.
"""

from __future__ import annotations

import math
from typing import Any

import trio
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from sandbox.confine.spec import Exit
from sandbox.environment import Environment
from sandbox.failures import Failure
from sandbox.invocation import BodyTruncated
from sandbox.lifecycle import NextEvent, Refused
from sandbox.ticket import Ticket
from tests.fakes import FakeSandbox, World, make_function, make_invocation
from tests.machines import Loop, effort

INIT_S, TIMEOUT_S, FREEZE_S, IDLE_S, LINGER_S = 10.0, 3.0, 0.1, 30.0, 0.1
EXITS = (Exit(code=0), Exit(code=1), Exit(code=139), Exit(signal=9, oom_kills=1), Exit(signal=11))
RARELY = (None,) * 12
"""Most of what is drawn does nothing where the rest would end the example."""


class Channel:
    """A response body that comes when the test says so."""

    def __init__(self) -> None:
        self.trailers: dict[str, str] = {}
        self.send, self._receive = trio.open_memory_channel[bytes | None](100)

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._receive.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
        if chunk is None:
            raise BodyTruncated
        return chunk


class Call:
    """One request of the runtime: its answer, once there is one."""

    def __init__(self) -> None:
        self.status = 0
        self.event: NextEvent | None = None
        self.scope = trio.CancelScope()


class Owner:
    """As the scheduler: whoever is ready gets the head of the queue."""

    def __init__(self) -> None:
        self.queue: list[Ticket] = []
        self.told: list[str] = []
        self.failure: Failure | Exception | None = None

    def environment_answered(self, environment: Environment) -> None:
        self.told.append("answered")

    def environment_lingers(self, environment: Environment) -> None:
        self.told.append("lingers")

    def environment_ready(self, environment: Environment) -> None:
        self.told.append("ready")
        if self.queue:
            environment.dispatch(self.queue.pop(0))

    def environment_lost(
        self, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        self.told.append("lost")
        self.failure = failure


class Model:
    """What SPEC says the environment is in. `due`: when time alone changes it."""

    def __init__(self) -> None:
        self.state = "Started"
        self.now = 0.0
        self.due = INIT_S
        self.idle_since = math.inf
        self.deadline = math.inf
        self.linger_at = math.inf
        self.frozen = False
        self.told: list[str] = []
        self.queue: list[str] = []
        self.id: str | None = None
        self.past: list[str] = []
        self.outcomes: dict[str, tuple[str, str]] = {}
        """Request id -> (status, error type)."""

    @property
    def dead(self) -> bool:
        return self.state == "dead"

    def die(self, status: str = "", type_: str = "") -> None:
        if self.state in ("Running", "InvocationResponse"):
            assert self.id is not None
            self.outcomes[self.id] = status, type_
        if self.state != "InitError":  # told when it said so
            self.told.append("lost")
        self.state = "dead"

    def ready(self) -> None:
        self.told.append("ready")
        if self.id is not None:
            self.past.append(self.id)
        self.id = None
        self.state = "Ready"
        self.idle_since = self.now
        if self.queue:
            self.invoke(self.queue.pop(0))

    def invoke(self, id_: str) -> None:
        self.state, self.id, self.frozen = "Running", id_, False
        self.deadline = self.now + TIMEOUT_S

    def answered(self, status: str, type_: str) -> None:
        assert self.id is not None
        self.outcomes[self.id] = status, type_
        self.state = "RuntimeResponseSentState"
        self.told.append("answered")
        self.linger_at = min(self.deadline, self.now + LINGER_S)

    def pass_on(self, seconds: float) -> None:
        end = self.now + seconds
        while not self.dead:
            at, what = self._next()
            if at > end:
                break
            self.now = at
            if what == "freeze":
                self.frozen = True
            elif what == "linger":
                self.told.append("lingers")
                self.linger_at = math.inf
            else:
                self.die("timeout", "Sandbox.Timedout")
        self.now = end

    def next_due(self) -> float:
        return self._next()[0]

    def _next(self) -> tuple[float, str]:
        if self.state == "Started":
            return INIT_S, "die"
        if self.state == "InitError":
            return self.due, "die"
        if self.state == "Ready":
            if self.frozen:
                return self.idle_since + IDLE_S, "die"
            return self.idle_since + FREEZE_S, "freeze"
        if self.state == "RuntimeResponseSentState" and self.linger_at < self.deadline:
            return self.linger_at, "linger"
        return self.deadline, "die"


class EnvironmentMachine(RuleBasedStateMachine):
    @initialize()
    def launch(self) -> None:
        self.loop = Loop()
        self.owner, self.model = Owner(), Model()
        self.tickets: dict[str, Ticket] = {}
        self.parked: list[Call] = []
        self.body: Channel | None = None
        self.begun: Call | None = None
        self.count = 0
        self.loop.do(self._launch)

    async def _launch(self) -> None:
        async def silent(environment: Environment, sandbox: FakeSandbox) -> None:
            await trio.sleep_forever()

        self.world = World(silent, init_timeout_s=INIT_S, freeze_delay_s=FREEZE_S)
        function = make_function(timeout_s=TIMEOUT_S, idle_timeout_s=IDLE_S)
        self.environment = Environment("f-1", function, self.owner, self.world.surroundings)
        self.loop.nursery.start_soon(self.environment.run)

    # --- what the world does

    @rule(seconds=st.sampled_from([*[0.01, 0.05, 0.2, 0.5, 1.0] * 3, 2.0, 4.0, 15.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.jump(seconds)
        self.model.pass_on(seconds)

    @precondition(lambda self: not self.model.dead)
    @rule(by=st.sampled_from([-0.02, -0.02, 0.02]))
    def to_the_brink(self, by: float) -> None:
        """To just before, or just after, what time alone does next."""
        self.time_passes(max(0.0, self.model.next_due() - self.model.now + by))

    @precondition(lambda self: self.model.state in ("Started", "Ready", "RuntimeResponseSentState"))
    @rule()
    def a_turn_begins(self) -> None:
        if self.model.state != "Ready":
            self.next()
        if self.model.state == "Ready":
            self.invoke()

    @precondition(lambda self: self.model.state == "Running")
    @rule()
    def it_answers_at_the_last_moment(self) -> None:
        """`next` has to come by the same deadline."""
        self.to_the_brink(-0.02)
        self.response("right")
        self.to_the_brink(0.02)

    @precondition(lambda self: not self.model.dead)
    @rule()
    def invoke(self) -> None:
        """Somebody invokes: given out if it is idle, else it waits."""
        self.count += 1
        id_ = f"id-{self.count}"
        function = self.environment.function
        ticket = self.tickets[id_] = self.loop.do(
            self._ticket, make_invocation(function, request_id=id_, wants_tail=self.count % 2 == 0)
        )
        if self.model.state == "Ready":
            self.loop.do(self._sync, self.environment.dispatch, ticket)
            self.model.invoke(id_)
        else:
            self.owner.queue.append(ticket)
            self.model.queue.append(id_)

    async def _ticket(self, invocation: Any) -> Ticket:
        return Ticket(invocation)

    async def _sync(self, call: Any, *args: Any) -> None:
        call(*args)

    @precondition(lambda self: not self.model.dead)
    @rule(exit_=st.sampled_from((*EXITS, *RARELY)))
    def the_runtime_exits(self, exit_: Exit | None) -> None:
        if exit_ is None:
            return
        self.loop.do(self._sync, self.world.launcher.sandboxes[0].end, exit_)
        self.model.die("error", "Runtime.ExitError")

    @precondition(lambda self: not self.model.dead)
    @rule(really=st.sampled_from((True, *RARELY)))
    def it_is_retired(self, really: bool | None) -> None:
        if not really:
            return
        self.loop.do(self._sync, self.environment.retire)
        self.model.die("failure", "Sandbox.Failure")

    # --- what the runtime says

    @precondition(lambda self: not self.model.dead)
    @rule()
    def next(self) -> None:
        call = self.loop.do(self._call, self._next)
        state = self.model.state
        if state in ("Started", "RuntimeResponseSentState"):
            self.model.ready()
        elif state in ("InvocationResponse", "InitError"):
            assert call.status == 403
            return
        if self.model.state == "Running":
            self._has_event(call)
        else:
            assert call.status == 0
            self.parked.append(call)

    async def _next(self, call: Call) -> None:
        with call.scope:
            call.event = await self.environment.next()
            call.status = 200

    @precondition(lambda self: self.parked)
    @rule(data=st.data())
    def who_asked_goes_away(self, data: st.DataObject) -> None:
        call = self.parked.pop(data.draw(st.integers(0, len(self.parked) - 1)))
        self.loop.do(self._sync, call.scope.cancel)

    @precondition(lambda self: not self.model.dead)
    @rule(which=st.sampled_from(["right", "right", "right", "past", "made up", "other attempt"]))
    def response(self, which: str) -> None:
        self._answer(which, self._respond_whole, "success", "")

    @precondition(lambda self: not self.model.dead)
    @rule(which=st.sampled_from(["right", "right", "past", "made up", "other attempt"]))
    def error(self, which: str) -> None:
        self._answer(which, self._error, "error", "Function.Odd")

    @precondition(lambda self: not self.model.dead and self.body is None)
    @rule(which=st.sampled_from(["right", "right", "right", "past"]))
    def response_begins(self, which: str) -> None:
        """A body that does not come at once."""
        expected, id_, attempt = self._aim(which)
        body = self.loop.do(self._channel)
        call = self.loop.do(self._call, self._respond, id_, attempt, body)
        assert call.status == expected
        if not expected:
            self.body, self.begun = body, call
            self.model.state = "InvocationResponse"

    @precondition(lambda self: self.body is not None)
    @rule(how=st.sampled_from(["end", "cut", "too much", "connection gone"]))
    def response_ends(self, how: str) -> None:
        assert self.body is not None
        assert self.begun is not None
        counts = self.model.state == "InvocationResponse"
        if how == "too much":
            self.loop.do(self._sync, self.body.send.send_nowait, b"x" * 6_291_557)
        elif how == "cut":
            self.loop.do(self._sync, self.body.send.send_nowait, None)
        elif how == "connection gone":
            self.loop.do(self._sync, self.begun.scope.cancel)
        else:
            self.loop.do(self._sync, self.body.send.close)
        status, ending = {
            "end": (202, ("success", "")),
            "too much": (413, ("error", "Function.ResponseSizeTooLarge")),
            "cut": (400, ("error", "Runtime.TruncatedResponse")),
            "connection gone": (0, ("error", "Runtime.TruncatedResponse")),
        }[how]
        assert self.begun.status == status
        self.body = self.begun = None
        if counts:
            self.model.answered(*ending)

    @precondition(lambda self: not self.model.dead)
    @rule(really=st.sampled_from((True, *RARELY)))
    def init_error(self, really: bool | None) -> None:
        if not really and self.model.state == "Started":
            return
        call = self.loop.do(self._call, self._init_error)
        if self.model.state == "Started":
            assert call.status == 202
            self.model.state = "InitError"
            self.model.due = self.model.now + 1.0
            self.model.told.append("lost")
        else:
            assert call.status == 403

    def _aim(self, which: str) -> tuple[int, str, str | None]:
        """(status to expect, 0 for accepted; request id; invocation id)."""
        model = self.model
        id_ = {"right": model.id, "other attempt": model.id}.get(which, "made-up") or "made-up"
        if which == "past" and model.past:
            id_ = model.past[-1]
        if model.id is None or id_ != model.id:
            return 400, id_, None
        if which == "other attempt":
            return 410, id_, "another"
        return (0 if model.state == "Running" else 403), id_, None

    def _answer(self, which: str, how: Any, status: str, type_: str) -> None:
        expected, id_, attempt = self._aim(which)
        call = self.loop.do(self._call, how, id_, attempt)
        assert call.status == (expected or 202)
        if not expected:
            self.model.answered(status, type_)

    async def _call(self, how: Any, *args: Any) -> Call:
        call = Call()

        async def ask() -> None:
            try:
                await how(*args, call)
            except Refused as refused:
                call.status = refused.status

        self.loop.nursery.start_soon(ask)
        return call

    async def _channel(self) -> Channel:
        return Channel()

    async def _respond_whole(self, id_: str, attempt: str | None, call: Call) -> None:
        try:
            self.environment.take_response(
                id_, invocation_id=attempt, content_type=None, body=b"{}"
            )
        finally:
            self.environment.finish_turn()
        call.status = 202

    async def _respond(self, id_: str, attempt: str | None, body: Channel, call: Call) -> None:
        with call.scope:
            await self.environment.respond(
                id_, invocation_id=attempt, response_mode=None, content_type=None, body=body
            )
            call.status = 202

    async def _error(self, id_: str, attempt: str | None, call: Call) -> None:
        await self.environment.error(
            id_,
            invocation_id=attempt,
            error_type="Function.Odd",
            content_type=None,
            body=b'{"errorType":"Function.Odd"}',
        )
        call.status = 202

    async def _init_error(self, call: Call) -> None:
        await self.environment.init_error(error_type="Runtime.Odd", body=b"{}")
        call.status = 202

    # --- what must hold

    def _has_event(self, call: Call) -> None:
        assert call.status == 200
        assert call.event is not None
        assert call.event.request_id == self.model.id

    @invariant()
    def everybody_was_told_what_happened(self) -> None:
        model = self.model
        assert self.owner.told == model.told
        assert self.environment.lost == ("lost" in model.told)
        if model.state == "Running":
            for call in self.parked:
                self._has_event(call)
            self.parked.clear()
        if model.dead:
            assert self.world.launcher.alive == []
        elif model.state != "InitError":
            assert self.environment.frozen == model.frozen
            assert self.environment._life.state.value == model.state

    @invariant()
    def invocations_end_once_and_as_they_must(self) -> None:
        ended = {}
        for id_, ticket in self.tickets.items():
            if ticket.done:
                ended[id_] = (ticket.result().status, ticket.result().error_type)
        assert ended == self.model.outcomes

    @invariant()
    def the_log_tells_every_turn_once(self) -> None:
        lines = self.world.lines
        begun = [line.split()[2] for line in lines if line.startswith("START ")]
        ended = [line.split()[2] for line in lines if line.startswith("END ")]
        reported = [line.split()[2] for line in lines if line.startswith("REPORT ")]
        assert ended == reported == [id_ for id_ in begun if id_ in self.model.outcomes]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()
            assert self.world.launcher.alive == []


EnvironmentMachine.TestCase.settings = effort(100, 30)
TestEnvironment = EnvironmentMachine.TestCase
