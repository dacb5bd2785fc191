"""Telemetry in the life of an environment: the order of its events, before it is frozen, before it ends."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from sandbox.environment import FLUSH_S, Environment
from tests.fakes import Body, FakeSandbox, World, respond
from tests.held import Held, held
from tests.unit.test_telemetry import Peer, subscription

Clock = trio.testing.MockClock


@asynccontextmanager
async def subscribed(
    peer: Peer, *, events: Sequence[str] = (), works_s: float = 0, **how: Any
) -> AsyncIterator[Held]:
    """An environment whose runtime is a subscriber too (an internal extension), and answers at once.

    `events`: what the extension wants to be told; it works on each for `works_s`.
    """

    async def extension(environment: Environment, identifier: str) -> None:
        while True:
            await environment.extensions.next(identifier)
            await trio.sleep(works_s)

    async def runtime(environment: Environment, sandbox: FakeSandbox) -> None:
        registered = environment.extensions.register("inner", list(events))
        environment.subscribe(
            environment.extension_name(registered.identifier), subscription(**how)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(extension, environment, registered.identifier)
            while True:
                event = await environment.next()
                await respond(environment, event.request_id, Body(b'"x"'))

    world = World(runtime, courier=lambda destination, dial: peer)
    async with held(world, idle_timeout_s=5000, timeout_s=3) as it:
        await it.owner.ready.wait()
        yield it


async def test_a_subscriber_gets_events_in_awss_order(autojump_clock: Clock) -> None:
    peer = Peer()
    async with subscribed(peer, timeout_ms=25) as it:
        await it.invoke()
        await trio.sleep(0.05)
    assert peer.got == [
        "platform.initStart",
        "platform.telemetrySubscription",
        "platform.initRuntimeDone",
        "platform.extension",
        "platform.initReport",
        "platform.start",
        "platform.runtimeDone",
        "platform.report",
    ]


@pytest.mark.parametrize(
    ("takes_s", "frozen_after"), [(0, 0.1), (0.2, 0.3), (math.inf, 0.1 + FLUSH_S)]
)
async def test_it_is_frozen_when_its_telemetry_is_out_but_not_much_later(
    autojump_clock: Clock, takes_s: float, frozen_after: float
) -> None:
    peer = Peer()
    peer.takes_s = takes_s
    async with subscribed(peer, timeout_ms=30_000) as it:
        began = trio.current_time()
        while not it.environment.frozen:  # noqa: ASYNC110  nothing tells
            await trio.sleep(0.01)
        assert trio.current_time() - began == pytest.approx(frozen_after, abs=0.02)
    assert bool(peer.got) == (takes_s < math.inf)


async def test_an_invocation_does_not_wait_for_a_flush(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = math.inf
    async with subscribed(peer) as it:
        await trio.sleep(0.1 + FLUSH_S / 2)
        began = trio.current_time()
        await it.invoke()
        assert trio.current_time() == began
        await trio.sleep(FLUSH_S)
        assert not it.environment.frozen
        await trio.sleep(FLUSH_S)
        assert it.environment.frozen


async def test_what_waits_is_delivered_after_a_thaw(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = math.inf
    async with subscribed(peer, timeout_ms=25) as it:
        await trio.sleep(10)
        assert it.environment.frozen
        tries = peer.tries
        await trio.sleep(1000)
        assert peer.tries == tries
        peer.takes_s = 0
        # The delivery that hangs has 5 s of an environment that is not frozen; each of these is half a second.
        for _ in range(20):
            await it.invoke()
            await trio.sleep(10)
    assert "platform.report" in peer.got


async def test_what_waits_is_delivered_before_the_end(autojump_clock: Clock) -> None:
    peer = Peer()
    async with subscribed(peer, timeout_ms=30_000) as it:
        it.environment.retire()
        await trio.sleep(1)
        assert it.sandbox.killed
    assert peer.got[0] == "platform.initStart"


async def test_one_who_takes_nothing_has_a_share_of_the_end(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = math.inf
    async with subscribed(peer, timeout_ms=30_000) as it:
        it.environment.retire()
        await trio.sleep(0.55)
        assert it.sandbox.killed


def overheads(peer: Peer) -> list[Any]:
    return [
        one["record"].get("spans")
        for batch in peer.batches
        for one in batch
        if one["type"] == "platform.report"
    ]


async def test_a_report_waits_for_extensions_and_says_how_long(autojump_clock: Clock) -> None:
    peer = Peer()
    async with subscribed(peer, events=["INVOKE"], works_s=0.5, timeout_ms=25) as it:
        await it.invoke()
        await trio.sleep(0.3)
        assert peer.got[-1] == "platform.runtimeDone"
        await trio.sleep(0.3)
        assert peer.got[-1] == "platform.report"
    ((span,),) = overheads(peer)
    assert (span["name"], span["durationMs"]) == ("extensionOverhead", pytest.approx(500))


async def test_a_report_comes_even_if_the_extension_never_ends(autojump_clock: Clock) -> None:
    peer = Peer()
    async with subscribed(peer, events=["INVOKE"], works_s=math.inf, timeout_ms=25) as it:
        await it.invoke()
        await it.owner.lost.wait()
        await trio.sleep(1)
    ((span,),) = overheads(peer)
    assert span["durationMs"] == pytest.approx(3000, rel=0.1)
