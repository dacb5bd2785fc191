"""An environment's log in both formats: what is in it, what is filtered, what an invocation's tail has."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.confine.spec import Exit
from sandbox.environment import Environment
from tests.fakes import Body, FakeSandbox, World, echo, respond
from tests.held import held
from tests.unit.test_events import check

Clock = trio.testing.MockClock
TRACE = "Root=1-62e900b2-710d76f009d6e7785905449a;Parent=0efbd19962d95b05;Sampled=1"


def frame(text: str, level: int) -> bytes:
    return struct.pack(">IIQ", 0xA55A0002 | level, len(text), 1) + text.encode()


async def talkative(environment: Environment, sandbox: FakeSandbox) -> None:
    os.write(sandbox.write_stdout, b"imported\n")
    while True:
        event = await environment.next()
        os.write(sandbox.write_stdout, b'plain\n{"level":"DEBUG","message":"fine"}\n')
        os.write(sandbox.write_telemetry, frame('{"message":"bad"}', 0x14))
        os.write(sandbox.write_telemetry, frame('{"message":"fine"}', 0x08))
        await respond(environment, event.request_id, Body(b'"1234"'))


def told(lines: list[str]) -> list[str]:
    """Types of the platform's events, the function's own lines as they are."""
    found = []
    for line in lines:
        event = json.loads(line) if line.startswith('{"time"') else None
        if event:
            check(event)
        found.append(event["type"] if event else line)
    return found


async def test_a_text_log_is_what_it_always_was(autojump_clock: Clock) -> None:
    world = World(talkative)
    async with held(world) as it:
        await it.invoke(request_id="id-1", trace_id=TRACE)
        await trio.testing.wait_all_tasks_blocked()
    assert world.lines[:3] == [
        "INIT_START Runtime Version: python3.11",
        "imported",
        "START RequestId: id-1 Version: $LATEST",
    ]
    # Which of its pipes is read first is not fixed.
    assert sorted(world.lines[3:7]) == [
        "plain",
        '{"level":"DEBUG","message":"fine"}',
        '{"message":"bad"}',
        '{"message":"fine"}',
    ]
    assert world.lines[7] == "END RequestId: id-1"
    assert world.lines[8].startswith("REPORT RequestId: id-1\tDuration: ")
    assert len(world.lines) == 9


@pytest.mark.parametrize(
    ("levels", "lines"),
    [
        (
            {},
            [
                "platform.initStart",
                "imported",
                "platform.start",
                "plain",
                '{"message":"bad"}',
                "platform.report",
            ],
        ),
        (
            {"system_log_level": "WARN", "application_log_level": "ERROR"},
            ['{"message":"bad"}'],
        ),
        (
            {"system_log_level": "DEBUG", "application_log_level": "DEBUG"},
            [
                "platform.initStart",
                "imported",
                "platform.initRuntimeDone",
                "platform.initReport",
                "platform.start",
                "plain",
                '{"level":"DEBUG","message":"fine"}',
                '{"message":"bad"}',
                '{"message":"fine"}',
                "platform.report",
                "platform.runtimeDone",
            ],
        ),
    ],
)
async def test_a_json_log_has_what_its_levels_let_through(
    autojump_clock: Clock, levels: dict[str, str], lines: list[str]
) -> None:
    world = World(talkative)
    async with held(world, log_format="JSON", **levels) as it:
        outcome = await it.invoke()
        await trio.testing.wait_all_tasks_blocked()
    # Which of its pipes is read first is not fixed.
    assert sorted(told(world.lines)) == sorted(lines)
    assert told(world.lines)[-1] == lines[-1]
    tail = told(outcome.log_tail.decode().splitlines())
    before = ("imported", "platform.initStart", "platform.initRuntimeDone", "platform.initReport")
    after = ("platform.runtimeDone",)
    assert sorted(tail) == sorted(line for line in lines if line not in before + after)


def only(world: World, kind: str) -> dict[str, Any]:
    found = [json.loads(line) for line in world.lines if f'"type":"{kind}"' in line]
    assert len(found) == 1
    record: dict[str, Any] = found[0]["record"]
    return record


async def test_the_parts_of_an_invocations_time(autojump_clock: Clock) -> None:
    async def slow(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        await trio.sleep(0.5)
        await respond(environment, event.request_id, Slow(b"12345"))
        await trio.sleep(0.03)
        await environment.next()
        await trio.sleep_forever()

    class Slow(Body):
        async def __anext__(self) -> bytes:
            await trio.sleep(0.1)
            return await super().__anext__()

    world = World(slow)
    async with held(world, log_format="JSON", system_log_level="DEBUG") as it:
        await it.invoke(trace_id=TRACE)
        await trio.sleep(0.1)
    done = only(world, "platform.runtimeDone")
    assert done["status"] == "success"
    assert done["metrics"] == {
        "durationMs": pytest.approx(730),
        "producedBytes": 5,
    }
    assert done["tracing"] == {"type": "X-Amzn-Trace-Id", "value": TRACE}
    spans = {span["name"]: span["durationMs"] for span in done["spans"]}
    assert spans == {
        "responseLatency": pytest.approx(500),
        "responseDuration": pytest.approx(200),
        "runtimeOverhead": pytest.approx(30),
    }
    report = only(world, "platform.report")
    assert report["metrics"]["durationMs"] == pytest.approx(700)
    assert report["metrics"]["maxMemoryUsedMB"] == 10
    assert report["metrics"]["memorySizeMB"] == 128


@pytest.mark.parametrize(
    ("ends", "status", "error_type", "reported"),
    [
        ("hangs", "timeout", "Sandbox.Timedout", "timeout"),
        ("exits", "error", "Runtime.ExitError", "error"),
        ("exits after its answer", "error", "Runtime.ExitError", "success"),
        ("hangs after its answer", "timeout", "Sandbox.Timedout", "success"),
        ("reports an error", "error", "Runtime.Unknown", "error"),
    ],
)
async def test_how_a_runtime_failed(
    autojump_clock: Clock, ends: str, status: str, error_type: str, reported: str
) -> None:
    async def fail(environment: Environment, sandbox: FakeSandbox) -> None:
        event = await environment.next()
        if ends == "reports an error":
            await environment.error(
                event.request_id, invocation_id=None, error_type=None, content_type=None, body=b"1"
            )
            await environment.next()
        if "answer" in ends:
            await respond(environment, event.request_id, Body(b"1"))
        if "exits" in ends:
            sandbox.end(Exit(code=1))
        await trio.sleep_forever()

    world = World(fail)
    async with held(world, log_format="JSON", system_log_level="WARN") as it:
        await it.invoke()
        await trio.sleep(10)
    done = only(world, "platform.runtimeDone")
    assert (done["status"], done["errorType"]) == (status, error_type)
    reports = [line for line in world.lines if "platform.report" in line]
    assert len(reports) == (reported != "success")


async def test_a_failed_init_is_told_in_both_forms(autojump_clock: Clock) -> None:
    async def die(environment: Environment, sandbox: FakeSandbox) -> None:
        sandbox.end(Exit(code=3))
        await trio.sleep_forever()

    world = World(die)
    async with held(world, log_format="JSON") as it:
        await it.owner.lost.wait()
    assert told(world.lines) == [
        "platform.initStart",
        "platform.initRuntimeDone",
        "platform.initReport",
    ]
    assert only(world, "platform.initReport")["errorType"] == "Runtime.ExitError"


async def test_without_subscribers_nothing_is_kept_after_init(autojump_clock: Clock) -> None:
    async with held(World(echo)) as it:
        assert it.environment._stream.heard
        await it.owner.ready.wait()
        assert not it.environment._stream.heard
        assert it.environment._stream.telemetry._early == []
