"""One environment on fakes and a mock clock: deadlines, failures, freezing, reaping."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from sandbox.confine.spec import Exit, SandboxSpec
from sandbox.environment import Environment
from sandbox.failures import Failure
from sandbox.invocation import MAX_PAYLOAD, BodyTruncated, Outcome
from sandbox.lifecycle import Refused
from sandbox.ticket import Ticket
from tests.fakes import Body, FakeSandbox, World, echo, make_invocation, respond
from tests.held import Clock, held


class Endless(Body):
    """A body whose end never comes."""

    async def __anext__(self) -> bytes:
        if not self._left:
            await trio.sleep_forever()
        return await super().__anext__()


async def test_it_answers_and_can_be_used_again(autojump_clock: Clock) -> None:
    async with held(World()) as it:
        first = await it.invoke(b'{"n":1}')
        await trio.testing.wait_all_tasks_blocked()
        second = await it.invoke(b'{"n":2}')
    assert (first.payload, second.payload) == (b'{"n":1}', b'{"n":2}')
    assert (first.cold, second.cold) == (True, False)
    assert first.init_ms is not None
    assert second.init_ms is None
    assert first.function_error is None


async def test_the_log_of_an_invocation_is_awss(autojump_clock: Clock) -> None:
    async def talk(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        os.write(sandbox.write_stdout, b"hello\n")
        await respond(environment, event.request_id, Body(b"1"))
        await trio.sleep_forever()

    async with held(World(talk)) as it:
        outcome = await it.invoke(request_id="id-1")
    lines = outcome.log_tail.decode().splitlines()
    assert lines[:3] == ["START RequestId: id-1 Version: $LATEST", "hello", "END RequestId: id-1"]
    assert lines[3].startswith("REPORT RequestId: id-1\tDuration: ")
    assert "Max Memory Used: 10 MB" in lines[3]


async def test_timeout_answers_at_the_deadline_and_kills(autojump_clock: Clock) -> None:
    async def hang(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.next()
        await trio.sleep_forever()

    async with held(World(hang), timeout_s=7) as it:
        await it.owner.ready.wait()
        began = trio.current_time()
        outcome = await it.invoke(request_id="id-1")
        assert trio.current_time() - began == pytest.approx(7)
        await trio.testing.wait_all_tasks_blocked()
        assert it.sandbox.killed
    assert outcome.status == "timeout"
    assert outcome.payload == (
        b'{"errorType":"Sandbox.Timedout",'
        b'"errorMessage":"RequestId: id-1 Error: Task timed out after 7.00 seconds"}'
    )
    assert outcome.log_tail.decode().rstrip().endswith("Status: timeout")


async def test_a_runtime_that_answers_but_never_asks_again_is_killed_at_the_deadline(
    autojump_clock: Clock,
) -> None:
    async def answer_once(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await respond(environment, event.request_id, Body(b"1"))
        await trio.sleep_forever()

    async with held(World(answer_once), timeout_s=5) as it:
        outcome = await it.invoke()
        assert outcome.status == "success"
        assert it.owner.answered
        assert not it.owner.lingers
        await trio.sleep(0.3)
        assert it.owner.lingers
        assert not it.sandbox.killed
        await it.owner.lost.wait()
        assert trio.current_time() == pytest.approx(5)


@pytest.mark.parametrize(
    ("exit_", "message", "logged"),
    [
        (Exit(code=0), "Runtime exited without providing a reason", "Runtime.ExitError"),
        (Exit(code=3), "Runtime exited with error: exit status 3", "Runtime.ExitError"),
        (Exit(code=139), "Runtime exited with error: exit status 139", "Runtime.ExitError"),
        (
            Exit(signal=11),
            "Runtime exited with error: signal: segmentation fault",
            "Runtime.ExitError",
        ),
        (Exit(signal=9), "Runtime exited with error: signal: killed", "Runtime.ExitError"),
        (
            Exit(signal=9, oom_kills=1),
            "Runtime exited with error: signal: killed",
            "Runtime.OutOfMemory",
        ),
        (Exit(oom_kills=2), "Runtime exited with error: signal: killed", "Runtime.OutOfMemory"),
    ],
)
async def test_exits_are_told_from_the_facts(
    autojump_clock: Clock, exit_: Exit, message: str, logged: str
) -> None:
    async def die(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.next()
        sandbox.end(exit_)
        await trio.sleep_forever()

    async with held(World(die)) as it:
        outcome = await it.invoke(request_id="id-1")
    assert json.loads(outcome.payload) == {
        "errorType": "Runtime.ExitError",
        "errorMessage": f"RequestId: id-1 Error: {message}",
    }
    assert f"Error Type: {logged}" in outcome.log_tail.decode()


async def test_an_answer_sent_in_the_last_moment_counts(autojump_clock: Clock) -> None:
    async def answer_and_die(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        environment.count_connection(+1)
        sandbox.end(Exit(code=0))
        await trio.sleep(0.05)  # its bytes are still in our socket buffer
        await respond(environment, event.request_id, Body(b'"last"'))
        environment.count_connection(-1)
        await trio.sleep_forever()

    async with held(World(answer_and_die)) as it:
        outcome = await it.invoke()
        await it.owner.lost.wait()
    assert outcome.payload == b'"last"'


async def test_exit_after_answering_is_no_error_of_the_invocation(autojump_clock: Clock) -> None:
    async def answer_and_leave(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await respond(environment, event.request_id, Body(b"1"))
        sandbox.end(Exit(code=1))
        await trio.sleep_forever()

    async with held(World(answer_and_leave)) as it:
        assert (await it.invoke()).status == "success"
        await it.owner.lost.wait()


async def test_init_error_is_kept_as_the_runtime_sent_it(autojump_clock: Clock) -> None:
    async def broken(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.init_error(error_type="Runtime.ImportModuleError", body=b'{"x":1}')
        with pytest.raises(Refused, match="from InitError to Ready"):
            await environment.next()
        sandbox.end(Exit(code=1))
        await trio.sleep_forever()

    async with held(World(broken)) as it:
        await it.owner.lost.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert it.sandbox.killed
    assert isinstance(it.owner.failure, Failure)
    assert it.owner.failure.body("id") == b'{"x":1}'
    assert any("Phase: init\tStatus: error" in line for line in it.world.lines)


async def test_init_that_takes_longer_than_ten_seconds_fails(autojump_clock: Clock) -> None:
    async def never(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep_forever()

    async with held(World(never)) as it:
        await it.owner.lost.wait()
        assert trio.current_time() == pytest.approx(10)
    assert any("Phase: init\tStatus: timeout" in line for line in it.world.lines)


async def test_a_second_init_has_the_functions_timeout_for_init_and_handler_together(
    autojump_clock: Clock,
) -> None:
    async def slow_init(environment: Environment, sandbox: FakeSandbox) -> None:
        await trio.sleep(2)
        await environment.next()
        await trio.sleep_forever()

    async with held(World(slow_init), suppressed_init=True, timeout_s=3) as it:
        outcome = await it.invoke()
        assert trio.current_time() == pytest.approx(3)
    assert outcome.status == "timeout"
    assert outcome.init_ms is None


async def test_idle_is_frozen_after_a_moment_thawed_when_used_and_reaped_at_its_timeout(
    autojump_clock: Clock,
) -> None:
    async with held(World(freeze_delay_s=0.5), idle_timeout_s=20) as it:
        await it.invoke()
        await trio.sleep(0.4)
        assert not it.sandbox.frozen
        await trio.sleep(0.2)
        assert it.sandbox.frozen
        await it.invoke()
        assert not it.sandbox.frozen
        used = trio.current_time()
        await it.owner.lost.wait()
        assert trio.current_time() - used == pytest.approx(20)
        await trio.testing.wait_all_tasks_blocked()
    assert it.sandbox.history == ["freeze", "thaw", "freeze", "kill"]


async def test_a_dispatch_at_the_very_moment_of_freezing_is_no_timeout(
    autojump_clock: Clock,
) -> None:
    # trio shuffles tasks that become ready at once: 30 rounds see both orders.
    async with held(World(freeze_delay_s=0.5)) as it:
        await it.owner.ready.wait()
        for _ in range(30):
            await trio.testing.wait_all_tasks_blocked()
            ticket = Ticket(make_invocation(it.environment.function))
            await trio.sleep_until(it.environment.idle_since + 0.5)
            it.environment.dispatch(ticket)
            assert (await ticket.wait()).status == "success"


async def test_freezing_can_be_declined(autojump_clock: Clock) -> None:
    async with held(World(), freeze=False, idle_timeout_s=4) as it:
        await it.invoke()
        await it.owner.lost.wait()
        assert trio.current_time() == pytest.approx(4)
        await trio.testing.wait_all_tasks_blocked()
    assert it.sandbox.history == ["kill"]


async def test_too_large_a_response_spares_the_environment(autojump_clock: Clock) -> None:
    refused: list[Refused] = []

    async def big_then_small(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        try:
            await respond(environment, event.request_id, Body(b"x" * MAX_PAYLOAD, b"x"))
        except Refused as exc:
            refused.append(exc)
        await echo(environment, sandbox)

    async with held(World(big_then_small)) as it:
        outcome = await it.invoke()
        await trio.testing.wait_all_tasks_blocked()
        assert (await it.invoke(b"2")).payload == b"2"
    assert refused[0].status == 413
    assert outcome.payload == (
        b'{"errorMessage":"Response payload size exceeded maximum allowed payload size '
        b'(6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}'
    )


async def test_exactly_the_limit_passes(autojump_clock: Clock) -> None:
    async with held(World()) as it:
        outcome = await it.invoke(b"x" * MAX_PAYLOAD)
    assert len(outcome.payload) == MAX_PAYLOAD


async def test_truncated_response(autojump_clock: Clock) -> None:
    async def cut(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        with pytest.raises(Refused, match="truncated"):
            await respond(environment, event.request_id, Body(b"half", fault=BodyTruncated()))
        await trio.sleep_forever()

    async with held(World(cut)) as it:
        outcome = await it.invoke()
    assert outcome.error_type == "Runtime.TruncatedResponse"


async def test_a_connection_lost_in_the_body_is_a_truncated_response(autojump_clock: Clock) -> None:
    async def lost(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        with trio.move_on_after(1):
            await environment.respond(
                event.request_id,
                invocation_id=None,
                response_mode=None,
                content_type=None,
                body=Endless(b"x"),
            )
        await trio.sleep_forever()

    async with held(World(lost)) as it:
        outcome = await it.invoke()
    assert outcome.error_type == "Runtime.TruncatedResponse"


async def test_a_bad_response_mode_fails_the_invocation(autojump_clock: Clock) -> None:
    async def odd(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        with pytest.raises(Refused, match="Invalid function response mode"):
            await respond(environment, event.request_id, Body(b"1"), response_mode="odd")
        await trio.sleep_forever()

    async with held(World(odd)) as it:
        outcome = await it.invoke()
    assert outcome.error_type == "Runtime.InvalidResponseModeHeader"


class Sink:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.content_types: list[str | None] = []

    def opened(self, content_type: str | None) -> None:
        self.content_types.append(content_type)

    async def send(self, chunk: bytes) -> None:
        self.chunks.append(chunk)


async def test_a_streamed_response_goes_to_the_sink_as_it_comes(autojump_clock: Clock) -> None:
    async def stream(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await respond(environment, event.request_id, Body(b"a", b"b"), response_mode="streaming")
        await trio.sleep_forever()

    sink = Sink()
    async with held(World(stream)) as it:
        outcome = await it.invoke(sink=sink)
    assert sink.chunks == [b"a", b"b"]
    assert outcome.streamed
    assert outcome.stream_error is None
    assert outcome.payload == b""


async def test_a_stream_that_fails_midway_says_so_in_trailers(autojump_clock: Clock) -> None:
    trailers = {
        "lambda-runtime-function-error-type": "Runtime.Oops",
        "lambda-runtime-function-error-body": "eyJlIjoxfQ==",
    }

    async def stream(environment: Environment, sandbox: FakeSandbox) -> None:
        for _ in range(2):
            event = await environment.next()
            body = Body(b"a", trailers=trailers)
            await respond(environment, event.request_id, body, response_mode="streaming")
        await environment.next()

    async with held(World(stream)) as it:
        streamed = await it.invoke(sink=Sink())
        await trio.testing.wait_all_tasks_blocked()
        buffered = await it.invoke()
    assert streamed.stream_error == ("Runtime.Oops", '{"e":1}')
    assert (buffered.status, buffered.payload) == ("error", b'{"e":1}')


async def test_a_timeout_in_the_middle_of_a_stream(autojump_clock: Clock) -> None:
    async def stream(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await respond(environment, event.request_id, Endless(b"first"), response_mode="streaming")

    sink = Sink()
    async with held(World(stream)) as it:
        outcome = await it.invoke(sink=sink)
    assert sink.chunks == [b"first"]
    assert outcome.status == "timeout"
    assert outcome.stream_error is not None
    assert outcome.stream_error[0] == "Sandbox.Timedout"


async def test_a_function_error_is_passed_on_as_it_is(autojump_clock: Clock) -> None:
    async def fail(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await environment.error(
            event.request_id,
            invocation_id=None,
            error_type=None,
            content_type=None,
            body=b"not json",
        )
        await echo(environment, sandbox)

    async with held(World(fail)) as it:
        outcome = await it.invoke()
        await trio.testing.wait_all_tasks_blocked()
        assert (await it.invoke(b"5")).payload == b"5"
    assert outcome.payload == b"not json"
    assert outcome.function_error == "Unhandled"


async def test_next_again_gives_the_same_event(autojump_clock: Clock) -> None:
    seen: list[str] = []

    async def twice(environment: Environment, sandbox: FakeSandbox) -> None:
        first = await environment.next()
        again = await environment.next()
        seen.extend([first.invocation_id, again.invocation_id])
        await respond(environment, again.request_id, Body(b"1"))
        await environment.next()

    async with held(World(twice)) as it:
        await it.invoke()
    assert seen[0] == seen[1]


async def test_the_deadline_told_is_unix_milliseconds(autojump_clock: Clock) -> None:
    told: list[int] = []

    async def tell(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        told.append(event.deadline_ms)
        await respond(environment, event.request_id, Body(b"1"))

    async with held(World(tell), timeout_s=9) as it:
        await it.invoke()
    assert told == [9000]  # the fakes' wall clock is the mock clock, at 0


async def test_cancelled_in_the_middle_everything_is_killed(autojump_clock: Clock) -> None:
    async def hang(environment: Environment, sandbox: FakeSandbox) -> None:
        await environment.next()
        await trio.sleep_forever()

    world = World(hang)
    outcomes: list[Outcome] = []
    async with trio.open_nursery() as callers, held(world) as it:
        await it.owner.ready.wait()
        ticket = Ticket(make_invocation(it.environment.function))
        it.environment.dispatch(ticket)

        async def wait() -> None:
            outcomes.append(await ticket.wait())

        callers.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
    assert outcomes[0].error_type == "Sandbox.Failure"
    assert world.launcher.sandboxes[0].killed


@dataclass
class Call:
    """A system call that log mode met."""

    name: str

    def line(self) -> str:
        return f"{self.name} would be refused"

    def total(self) -> str:
        return f"{self.name} would have been refused twice"


async def test_log_modes_findings_are_told_once_per_function_and_counted_at_the_end(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    launch = world.launcher.launch

    async def with_findings(spec: SandboxSpec) -> FakeSandbox:
        sandbox = await launch(spec)
        sandbox.calls = [Call("shmget"), Call("vmsplice")]
        return sandbox

    world.launcher.launch = with_findings  # type: ignore[method-assign]
    for _ in range(2):
        async with held(world) as one:
            await one.owner.ready.wait()
    firsts = ["shmget would be refused", "vmsplice would be refused"]
    totals = ["shmget would have been refused twice", "vmsplice would have been refused twice"]
    assert [line for line in world.lines if "refused" in line] == firsts + totals + totals
    assert caplog.messages == [f"function f: {line}" for line in firsts]
