"""One environment with extensions, on fakes and a mock clock: init, invocations, failures, the Shutdown phase."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from sandbox.confine.spec import Exit
from sandbox.environment import Environment
from sandbox.extensions import InvokeEvent, Reason, ShutdownEvent
from sandbox.failures import Failure
from sandbox.lifecycle import Refused
from tests.fakes import Body, FakeSandbox, World, echo, respond
from tests.held import Held, held

BOTH = ("INVOKE", "SHUTDOWN")
Behaviour = Callable[[Environment, FakeSandbox], Awaitable[None]]


class Extension:
    """An extension that does as it should, and writes down what it is told. `lazy_s`: how long each event takes."""

    def __init__(
        self,
        name: str = "one",
        events: tuple[str, ...] = BOTH,
        *,
        lazy_s: float = 0.0,
        leaves: bool = True,
    ) -> None:
        self.name = name
        self.events = events
        self.lazy_s = lazy_s
        self.leaves = leaves
        self.told: list[str] = []
        self.identifier = ""

    async def __call__(self, environment: Environment, sandbox: FakeSandbox) -> None:
        host = environment.extensions
        self.identifier = host.register(self.name, self.events).identifier
        while True:
            event = await host.next(self.identifier)
            self.told.append("INVOKE" if isinstance(event, InvokeEvent) else event.reason)
            await trio.sleep(self.lazy_s)
            if isinstance(event, ShutdownEvent) and self.leaves:
                sandbox.companions[self.name].end(Exit(code=0))
                return


def together(*behaviours: Behaviour) -> Behaviour:
    async def run(environment: Environment, sandbox: FakeSandbox) -> None:
        async with trio.open_nursery() as nursery:
            for behaviour in behaviours:
                nursery.start_soon(behaviour, environment, sandbox)

    return run


def world(*behaviours: Behaviour, **settings: object) -> World:
    made = World(**settings)  # type: ignore[arg-type]
    made.extensions = together(*behaviours)
    return made


async def over(one: Held) -> None:
    await one.environment.gone.wait()


def failed(one: Held) -> tuple[str, str]:
    failure = one.owner.failure
    assert isinstance(failure, Failure)
    return failure.error_type, failure.reason


# --- init


async def test_the_runtime_starts_when_all_external_ones_have_registered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = trio.Event()

    async def registers_late(environment: Environment, sandbox: FakeSandbox) -> None:
        await slow.wait()
        await Extension("late")(environment, sandbox)

    async with held(world(Extension(), registers_late), extensions=("late", "one")) as one:
        await trio.sleep(1)
        assert not one.sandbox.started.is_set()
        assert list(one.sandbox.companions) == ["late", "one"]
        assert one.environment.phase == "starting"
        slow.set()
        await one.owner.ready.wait()
        assert one.sandbox.started.is_set()
        assert one.environment.phase == "idle"
    lines = [line for line in one.world.lines if line.startswith("EXTENSION")]
    assert lines == [
        f"EXTENSION\tName: {name}\tState: Ready\tEvents: [INVOKE, SHUTDOWN]"
        for name in ("late", "one")
    ]


async def test_what_an_extension_is_started_with(autojump_clock: trio.testing.MockClock) -> None:
    async with held(world(Extension()), extensions=("one",)) as one:
        await one.owner.ready.wait()
        program = one.sandbox.companions["one"].program
        assert (list(program.argv), program.cwd) == (["/opt/extensions/one"], "/")
        assert program.env["AWS_LAMBDA_METADATA_API"] == one.sandbox.address
        assert program.env["AWS_LAMBDA_METADATA_TOKEN"] == one.environment.metadata_token


async def test_init_ends_when_the_last_extension_has_called_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(environment: Environment, sandbox: FakeSandbox) -> None:
        host = environment.extensions
        identifier = host.register("mine", ["INVOKE"]).identifier
        await trio.sleep(2)
        await host.next(identifier)

    async with held(world(Extension(), slow), extensions=("one",)) as one:
        await one.owner.ready.wait()
        assert trio.current_time() - one.environment.born_at == pytest.approx(2, abs=0.1)
        assert one.environment.extensions.all.init_ended
        outcome = await one.invoke()
        assert outcome.init_ms == pytest.approx(2000, abs=100)


async def test_who_never_registers_uses_up_the_init_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with held(World(), extensions=("silent",)) as one:
        await one.owner.lost.wait()
        assert trio.current_time() - one.environment.born_at == pytest.approx(10)
        assert not one.sandbox.started.is_set()
        await over(one)
        assert one.sandbox.companions["silent"].signals == [9]
        assert one.sandbox.killed
    assert "EXTENSION\tName: silent\tState: Started\tEvents: []" in one.world.lines


async def test_who_never_calls_next_uses_up_the_init_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def registers(environment: Environment, sandbox: FakeSandbox) -> None:
        environment.extensions.register("mine", [])

    async with held(world(registers)) as one:
        await one.owner.lost.wait()
        assert trio.current_time() - one.environment.born_at == pytest.approx(10)
        assert failed(one)[0] == "Sandbox.Timedout"


@pytest.mark.parametrize(
    ("exit_", "reason"),
    [
        (Exit(code=0), "exit code 0"),
        (Exit(code=3), "exit status 3"),
        (Exit(signal=11), "signal: segmentation fault"),
    ],
)
async def test_who_exits_during_init_fails_it(
    autojump_clock: trio.testing.MockClock, exit_: Exit, reason: str
) -> None:
    async def exits(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep(1)
        sandbox.companions["one"].end(exit_)

    async with held(world(exits), extensions=("one",)) as one:
        await one.owner.lost.wait()
        assert failed(one) == ("Extension.Crash", reason)
        await over(one)
    assert any("INIT_REPORT" in line and "Extension.Crash" in line for line in one.world.lines)


@pytest.mark.parametrize("exits", [True, False])
async def test_who_reports_an_init_error_has_a_moment_to_exit(
    autojump_clock: trio.testing.MockClock, exits: bool
) -> None:
    async def reports(environment: Environment, sandbox: FakeSandbox) -> None:
        identifier = environment.extensions.register("one", BOTH).identifier
        environment.extensions.init_error(identifier, "Extension.NoConfig")
        await trio.sleep(0.3)
        if exits:
            sandbox.companions["one"].end(Exit(code=1))

    async with held(world(reports), extensions=("one",)) as one:
        await one.owner.lost.wait()
        took = trio.current_time() - one.environment.born_at
        assert took == pytest.approx(0.3 if exits else 1.0, abs=0.01)
        words = "exit status 1" if exits else "extension one reported Extension.NoConfig"
        assert failed(one) == ("Extension.InitError", words)
        await over(one)
    assert "EXTENSION\tName: one\tState: InitError\tEvents: [INVOKE, SHUTDOWN]" in one.world.lines


@pytest.mark.parametrize(
    ("number", "reason", "kind"),
    [
        (errno.EACCES, "permission denied", "PermissionDenied"),
        (errno.ENOEXEC, "exec format error", "UnknownError"),
    ],
)
async def test_what_cannot_be_executed(
    autojump_clock: trio.testing.MockClock, number: int, reason: str, kind: str
) -> None:
    here = World()

    def make(spec: object) -> FakeSandbox:
        sandbox = FakeSandbox(spec)  # type: ignore[arg-type]
        sandbox.not_executable["bad"] = number
        return sandbox

    here.launcher.make = make
    async with held(here, extensions=("a", "bad", "c")) as one:
        await one.owner.lost.wait()
        assert failed(one) == (
            "Extension.LaunchError",
            f"fork/exec /opt/extensions/bad: {reason}",
        )
        assert list(one.sandbox.companions) == ["a"]
        (bad,) = (each for each in one.environment.extensions.all if each.name == "bad")
        assert bad.error_type == kind


async def test_eleven_are_not_started_at_all(autojump_clock: trio.testing.MockClock) -> None:
    names = tuple(f"e{number:02}" for number in range(11))
    async with held(World(), extensions=names) as one:
        await one.owner.lost.wait()
        assert failed(one) == ("Extension.LaunchError", "Extension limit (10) reached")
        assert one.sandbox.companions == {}
    assert "EXTENSION\tName: e10\tState: LaunchError\tEvents: []" in one.world.lines


# --- invocations


async def test_an_invocation_is_over_when_the_last_subscriber_has_called_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lazy, deaf = Extension("lazy", lazy_s=1.0), Extension("deaf", ("SHUTDOWN",))
    async with held(world(lazy, deaf), extensions=("lazy", "deaf")) as one:
        await one.owner.ready.wait()
        one.owner.ready = trio.Event()
        before = trio.current_time()
        outcome = await one.invoke_now()
        # The caller does not wait for it.
        assert outcome.status == "success"
        assert trio.current_time() - before < 0.1
        assert one.environment.phase == "busy"
        await one.owner.ready.wait()
        assert trio.current_time() - before == pytest.approx(1.0, abs=0.01)
        assert one.environment.phase == "idle"
        assert one.owner.lingers
        assert (lazy.told, deaf.told) == (["INVOKE"], [])


async def test_it_is_frozen_when_all_wait(autojump_clock: trio.testing.MockClock) -> None:
    async with held(world(Extension(lazy_s=1.0)), extensions=("one",)) as one:
        await one.owner.ready.wait()
        await one.invoke_now()
        await trio.sleep(0.9)
        assert not one.sandbox.frozen
        await trio.sleep(0.3)
        assert one.sandbox.frozen


async def test_a_subscriber_that_never_calls_next_costs_the_environment_at_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lazy = Extension(lazy_s=60)
    async with held(world(lazy), extensions=("one",)) as one:
        await one.owner.ready.wait()
        before = trio.current_time()
        assert (await one.invoke_now()).status == "success"
        await one.owner.lost.wait()
        assert trio.current_time() - before == pytest.approx(3)  # the function's timeout
        await over(one)
        assert trio.current_time() - before == pytest.approx(5)  # and the Shutdown phase
    assert any("Status: timeout" in line for line in one.world.lines)


async def test_a_crash_during_an_invocation_is_its_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def crashes(environment: Environment, sandbox: FakeSandbox) -> None:
        host = environment.extensions
        identifier = host.register("one", BOTH).identifier
        await host.next(identifier)
        sandbox.companions["one"].end(Exit(code=1))

    async def slow(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await trio.sleep(1)
        with pytest.raises(Refused) as late:
            await respond(environment, event.request_id, Body(b"1"))
        assert (late.value.status, late.value.error_type) == (410, "InvokeTimeout")

    here = world(crashes, Extension("other"))
    here.runtime = slow
    async with held(here, extensions=("one", "other")) as one:
        await one.owner.ready.wait()
        runtime_ignores_sigterm(one)
        outcome = await one.invoke(request_id="id-1")
        assert outcome.status == "error"
        assert json.loads(outcome.payload) == {
            "errorType": "Extension.Crash",
            "errorMessage": "RequestId: id-1 Error: exit status 1",
        }
        await over(one)
    assert any("Error Type: Extension.Crash" in line for line in one.world.lines)


def runtime_ignores_sigterm(one: Held) -> None:
    one.sandbox.ignores_sigterm = True


async def test_what_it_reported_before_names_its_exit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def reports(environment: Environment, sandbox: FakeSandbox) -> None:
        host = environment.extensions
        identifier = host.register("one", BOTH).identifier
        await host.next(identifier)
        host.exit_error(identifier, "Extension.Broken")
        await trio.sleep(0.1)
        sandbox.companions["one"].end(Exit(code=0))

    async def hangs(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.next()
        await trio.sleep_forever()

    here = world(reports)
    here.runtime = hangs
    async with held(here, extensions=("one",)) as one:
        outcome = await one.invoke()
        assert outcome.error_type == "Extension.ExitError"
        assert b"exit code 0" in outcome.payload


async def test_who_exits_between_invocations_takes_the_environment_along(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with held(world(Extension(), Extension("two")), extensions=("one", "two")) as one:
        await one.owner.ready.wait()
        one.sandbox.companions["one"].end(Exit(code=0))
        await one.owner.lost.wait()
        assert one.owner.failure is None
        await over(one)


async def test_what_extensions_print(autojump_clock: trio.testing.MockClock) -> None:
    async with held(world(Extension()), extensions=("one",)) as one:
        await one.owner.ready.wait()
        os.write(one.sandbox.companions["one"].write_output, b"a line\nthe rest")
    assert one.world.lines[-2:] == ["a line", "the rest"]


# --- the Shutdown phase


async def test_without_extensions_it_is_killed_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with held(World()) as one:
        await one.owner.ready.wait()
        before = trio.current_time()
        one.environment.retire()
        await over(one)
        assert one.sandbox.history == ["kill"]
        assert trio.current_time() == before


async def test_an_orderly_end(autojump_clock: trio.testing.MockClock) -> None:
    quick, slow = Extension("quick"), Extension("slow", lazy_s=1.2)
    deaf = Extension("deaf", ("INVOKE",))
    here = world(quick, slow, deaf)
    async with held(here, extensions=("deaf", "quick", "slow")) as one:
        await one.owner.ready.wait()
        before = trio.current_time()
        one.environment.retire()
        await over(one)
        assert trio.current_time() - before == pytest.approx(1.2, abs=0.01)
        # The runtime first; who did not ask to be told is killed.
        assert one.sandbox.history == ["SIGTERM", "kill"]
        assert one.sandbox.companions["deaf"].signals == [9]
        assert one.sandbox.companions["quick"].signals == []
        assert (quick.told, slow.told, deaf.told) == (["spindown"], ["spindown"], [])


async def test_who_ignores_it_all_is_killed_when_the_budget_is_used_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stubborn = Extension(lazy_s=60)
    async with held(world(stubborn), extensions=("one",)) as one:
        await one.owner.ready.wait()
        runtime_ignores_sigterm(one)
        before = trio.current_time()
        one.environment.retire()
        await over(one)
        assert trio.current_time() - before == pytest.approx(2.0, abs=0.01)
        assert one.sandbox.history == ["SIGTERM", "SIGKILL", "kill"]
        (extension,) = one.environment.extensions.all
        assert extension.state.value == "ShutdownFailed"


async def test_internal_ones_have_the_runtime_given_a_sigterm(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with held(world(Extension("mine", ("INVOKE",)))) as one:
        await one.owner.ready.wait()
        runtime_ignores_sigterm(one)
        before = trio.current_time()
        one.environment.retire()
        await over(one)
        assert trio.current_time() - before == pytest.approx(0.15, abs=0.01)
        assert one.sandbox.history == ["SIGTERM", "SIGKILL", "kill"]


async def test_it_is_thawed_for_its_end(autojump_clock: trio.testing.MockClock) -> None:
    async with held(world(Extension()), extensions=("one",)) as one:
        await one.owner.ready.wait()
        await trio.sleep(1)
        assert one.sandbox.frozen
        one.environment.retire()
        await over(one)
        assert one.sandbox.history == ["freeze", "thaw", "SIGTERM", "kill"]


@pytest.mark.parametrize("how", ["timeout", "failure"])
async def test_the_reason_is_told(autojump_clock: trio.testing.MockClock, how: str) -> None:
    async def hangs(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.next()
        if how == "failure":
            sandbox.end(Exit(code=1))
        await trio.sleep_forever()

    extension = Extension()
    here = world(extension)
    here.runtime = hangs
    async with held(here, extensions=("one",)) as one:
        outcome = await one.invoke()
        assert outcome.status == ("timeout" if how == "timeout" else "error")
        await over(one)
        assert extension.told == ["INVOKE", how]


@pytest.mark.parametrize("reason", ["spindown", "timeout", "failure"])
async def test_so_many_that_failed_are_given_that_time_at_once(
    autojump_clock: trio.testing.MockClock, reason: Reason
) -> None:
    others = trio.CapacityLimiter(1)
    extension = Extension()
    async with held(world(extension, failed=others), extensions=("one",)) as one:
        await one.owner.ready.wait()
        others.acquire_on_behalf_of_nowait("another")
        one.environment.retire(reason)
        await over(one)
    # What was idle costs nothing that it did not cost before.
    assert extension.told == ([reason] if reason == "spindown" else [])


async def test_cancellation_in_the_middle_of_it_kills_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stubborn = Extension(leaves=False)
    async with held(world(stubborn), extensions=("one",)) as one:
        await one.owner.ready.wait()
        one.environment.retire()
        await trio.sleep(0.5)
        before = trio.current_time()
    assert trio.current_time() == before
    assert one.sandbox.killed


async def test_a_call_of_next_during_its_end_starts_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def late(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await respond(environment, event.request_id, Body(b"1"))
        await trio.sleep(3.2)
        await environment.next()

    here = world(Extension(leaves=False))
    here.runtime = late
    async with held(here, extensions=("one",)) as one:
        await one.owner.ready.wait()
        runtime_ignores_sigterm(one)
        assert (await one.invoke()).status == "success"
        await one.owner.lost.wait()
        one.owner.ready = trio.Event()
        await over(one)
        assert not one.owner.ready.is_set()


async def test_without_extensions_nothing_is_different(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with held(World(echo)) as one:
        assert (await one.invoke(b'"x"')).payload == b'"x"'
        assert one.environment.describe()["extensions"] == []
    assert not any(line.startswith("EXTENSION") for line in one.world.lines)
