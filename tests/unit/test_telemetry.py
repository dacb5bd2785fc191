"""Subscribers of one environment on a mock clock: when they get what, what they miss, and that nobody waits."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from sandbox import events
from sandbox.lifecycle import Refused
from sandbox.telemetry import (
    DELIVERY_S,
    EARLY_ITEMS,
    RETRY_S,
    Destination,
    Subscription,
    Telemetry,
    Undelivered,
)

Clock = trio.testing.MockClock
HERE = Destination("HTTP", 8080)
START = events.Start("id", "$LATEST")


def subscription(**changes: Any) -> Subscription:
    values: dict[str, Any] = {
        "api": "telemetry",
        "schema": "2022-12-13",
        "types": ("platform", "function", "extension"),
        "destination": HERE,
    }
    return Subscription(**{**values, **changes})


class Peer:
    """A Courier and the subscriber behind it. `failures` are raised first; `takes_s` may be for ever."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.times: list[float] = []
        self.failures = 0.0
        self.tries = 0
        self.takes_s = 0.0
        self.closed = 0

    async def deliver(self, items: Sequence[bytes]) -> None:
        self.tries += 1
        await trio.sleep(self.takes_s)
        if self.failures:
            self.failures -= 1
            raise Undelivered("refused")
        self.times.append(trio.current_time())
        self.batches.append([json.loads(item) for item in items])

    def close(self) -> None:
        self.closed += 1

    @property
    def got(self) -> list[Any]:
        """What came, as type for platform events and as record for lines."""
        return [
            one["type"] if one["type"].startswith("platform") else one["record"]
            for batch in self.batches
            for one in batch
        ]

    @property
    def dropped(self) -> tuple[int, int]:
        found = [
            one["record"]
            for batch in self.batches
            for one in batch
            if one["type"] == "platform.logsDropped"
        ]
        return (
            sum(one["droppedRecords"] for one in found),
            sum(one["droppedBytes"] for one in found),
        )


@asynccontextmanager
async def telemetry(peer: Peer, *, objects: bool = False) -> AsyncIterator[Telemetry]:
    it = Telemetry("f", objects=objects, wall=trio.current_time)
    async with trio.open_nursery() as nursery:
        it.start(nursery, lambda _: peer)
        yield it
        nursery.cancel_scope.cancel()


async def test_init_is_replayed_to_whoever_subscribes(autojump_clock: Clock) -> None:
    peer = Peer()
    async with telemetry(peer) as it:
        it.tell("platform", START, 1.0)
        it.tell("function", "imported", 2.0)
        it.subscribe("agent", subscription())
        it.tell("extension", "hello", 3.0)
        await trio.sleep(2)
    assert peer.got == ["platform.start", "imported", "hello"]
    assert [one["time"] for one in peer.batches[0]] == [
        "1970-01-01T00:00:01.000Z",
        "1970-01-01T00:00:02.000Z",
        "1970-01-01T00:00:03.000Z",
    ]
    assert peer.closed == 1


async def test_what_is_kept_of_an_init_is_bounded_and_what_is_not_is_told(
    autojump_clock: Clock,
) -> None:
    peer = Peer()
    async with telemetry(peer) as it:
        for number in range(EARLY_ITEMS + 5):
            it.tell("function", str(number), 1.0)
        it.subscribe("agent", subscription())
        await trio.sleep(2)
    assert peer.got == [*map(str, range(EARLY_ITEMS)), "platform.logsDropped"]
    assert peer.dropped[0] == 5


async def test_each_gets_the_types_it_asked_for(autojump_clock: Clock) -> None:
    first, second = Peer(), Peer()
    peers = [first, second]
    it = Telemetry("f", objects=False, wall=trio.current_time)
    async with trio.open_nursery() as nursery:
        it.start(nursery, lambda _: peers.pop(0))
        it.subscribe("a", subscription(types=("platform",)))
        it.subscribe("b", subscription(types=("function", "extension")))
        it.tell("platform", START, 1.0)
        it.tell("function", "line", 1.0)
        it.tell("extension", "line of its own", 1.0)
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert first.got == ["platform.start"]
    assert second.got == ["line", "line of its own"]


@pytest.mark.parametrize(
    ("buffering", "count", "at"),
    [
        ({"timeout_ms": 25}, 1, 0.025),
        ({"timeout_ms": 30_000}, 999, 30),
        ({"timeout_ms": 30_000, "max_items": 1000}, 1000, 0),
        ({"timeout_ms": 30_000, "max_bytes": 262_144}, 4, 0),
    ],
)
async def test_a_batch_goes_when_it_is_full_or_old(
    autojump_clock: Clock, buffering: dict[str, int], count: int, at: float
) -> None:
    peer = Peer()
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription(**buffering))
        line = "x" * (70_000 if "max_bytes" in buffering else 1)
        began = trio.current_time()
        for _ in range(count):
            it.tell("function", line, 1.0)
        await trio.sleep(40)
    assert peer.times == [pytest.approx(began + at)]
    assert len(peer.batches[0]) == count


async def test_one_who_never_takes_anything_costs_a_bounded_buffer(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = math.inf
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription(timeout_ms=25))
        (subscriber,) = it._subscribers.values()
        sent = held = 0
        for _ in range(100):
            for _ in range(50):
                it.tell("function", "x" * 1000, 1.0)
                sent += 1
            await trio.sleep(1)
            held = max(held, subscriber._bytes + subscriber._flying)
        assert held <= 2 * 262_144
        assert len(subscriber._items) < 600
        peer.takes_s = 0
        await trio.sleep(30)
        it.tell("function", "at last", 1.0)
        await trio.sleep(30)
    assert peer.got[-1] == "at last"
    assert peer.dropped[0] + sum(one == "x" * 1000 for one in peer.got) == sent
    assert peer.dropped[1] > peer.dropped[0] * 1000


async def test_a_delivery_that_fails_is_tried_again(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.failures = len(RETRY_S)
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription())
        it.tell("function", "line", 1.0)
        await trio.sleep(5)
    assert peer.got == ["line"]
    assert peer.tries == len(RETRY_S) + 1


async def test_what_cannot_be_delivered_is_dropped_and_told(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.failures = len(RETRY_S) + 1
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription())
        it.tell("function", "lost", 1.0)
        await trio.sleep(10)
        assert peer.tries == len(RETRY_S) + 1
        it.tell("function", "found", 1.0)
        await trio.sleep(2)
    assert peer.got == ["platform.logsDropped", "found"]
    assert peer.batches[0][0]["record"]["reason"] == "could not send events: refused"
    assert peer.dropped[0] == 1


async def test_the_dropped_are_counted_again_if_the_count_is_lost(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer()
    peer.failures = 2 * (len(RETRY_S) + 1)
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription())
        for _ in range(2):
            it.tell("function", "lost", 1.0)
            await trio.sleep(10)
        it.tell("function", "found", 1.0)
        await trio.sleep(2)
    assert peer.dropped[0] == 2
    # And whoever runs the server is told once.
    assert [record.getMessage() for record in caplog.records] == [
        "function f: extension agent does not take its telemetry: refused"
    ]


async def test_a_frozen_environment_is_left_alone(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = 1
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription(timeout_ms=25))
        it.tell("function", "before", 1.0)
        await trio.sleep(0.5)
        it.freeze()  # in the middle of a delivery
        peer.takes_s = 0
        it.tell("function", "meanwhile", 1.0)
        await trio.sleep(100 * DELIVERY_S)
        assert peer.got == ["before"]
        it.thaw()
        await trio.sleep(0.1)
    assert peer.got == ["before", "meanwhile"]


async def test_a_deliverys_time_stands_still_while_frozen(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = math.inf
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription(timeout_ms=25))
        it.tell("function", "line", 1.0)
        await trio.sleep(DELIVERY_S - 1)
        it.freeze()
        await trio.sleep(1000)
        assert peer.tries == 1
        it.thaw()
        peer.takes_s = 0
        await trio.sleep(0.9)
        assert peer.tries == 1
        await trio.sleep(1)
    assert peer.got == ["line"]


async def test_drain_returns_when_all_is_delivered(autojump_clock: Clock) -> None:
    peer = Peer()
    peer.takes_s = 0.2
    async with telemetry(peer) as it:
        await it.drain()  # nothing to do
        it.subscribe("agent", subscription(timeout_ms=30_000))
        it.tell("function", "line", 1.0)
        began = trio.current_time()
        await it.drain()
        assert trio.current_time() - began == pytest.approx(0.2)
    assert peer.got == ["line"]


async def test_after_init_nobody_subscribes(autojump_clock: Clock) -> None:
    async with telemetry(Peer()) as it:
        it.close()
        assert not it.listening
        with pytest.raises(Refused) as caught:
            it.subscribe("agent", subscription())
        assert (caught.value.status, caught.value.error_type, caught.value.message) == (
            403,
            "Telemetry.SubscriptionClosed",
            "Telemetry API subscription is closed",
        )
        with pytest.raises(Refused, match="Logs API subscription is closed already"):
            it.subscribe("agent", subscription(api="logs", schema="2021-03-18"))


async def test_the_two_apis_exclude_each_other(autojump_clock: Clock) -> None:
    async with telemetry(Peer()) as it:
        it.subscribe("agent", subscription())
        it.subscribe("other", subscription(api="logs", schema="2021-03-18"))
        with pytest.raises(Refused) as caught:
            it.subscribe("agent", subscription(api="logs", schema="2021-03-18"))
        assert (caught.value.status, caught.value.error_type) == (400, "Logs.ValidationError")
        assert "agent is subscribed by the Telemetry API" in caught.value.message


async def test_to_subscribe_again_is_idempotent_or_replaces(autojump_clock: Clock) -> None:
    peer = Peer()
    async with telemetry(peer) as it:
        assert it.subscribe("agent", subscription())
        assert not it.subscribe("agent", subscription())
        assert it.subscribe("agent", subscription(types=("function",), timeout_ms=25))
        it.tell("platform", START, 1.0)
        it.tell("function", "line", 1.0)
        await trio.sleep(0.1)
    assert peer.got == ["line"]


@pytest.mark.parametrize(
    ("objects", "schema", "record"),
    [
        (True, "2022-12-13", {"a": 1}),
        (True, "2025-01-29", {"a": 1}),
        (True, "2022-07-01", '{"a":\n1}'),
        (False, "2022-12-13", '{"a":\n1}'),
    ],
)
async def test_a_json_line_is_an_object_for_newer_schemas(
    autojump_clock: Clock, objects: bool, schema: str, record: Any
) -> None:
    peer = Peer()
    async with telemetry(peer, objects=objects) as it:
        it.subscribe("agent", subscription(schema=schema))
        it.tell("function", '{"a":\n1}', 1.0)
        it.tell("function", '{"a":', 1.0)
        await trio.sleep(2)
    assert peer.got == [record, '{"a":']


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        (
            "2021-03-18",
            [
                "platform.start",
                "platform.runtimeDone",
                "platform.fault",
                "platform.end",
                "platform.report",
                "platform.logsSubscription",
            ],
        ),
        (
            "2020-08-15",
            [
                "platform.start",
                "platform.fault",
                "platform.end",
                "platform.report",
                "platform.logsSubscription",
            ],
        ),
    ],
)
async def test_the_logs_api_has_its_own_events(
    autojump_clock: Clock, schema: str, types: list[str]
) -> None:
    peer = Peer()
    async with telemetry(peer) as it:
        it.subscribe("agent", subscription(api="logs", schema=schema))
        for event in (
            events.InitStart("on-demand", "init", "python3.11", "f", "1"),
            START,
            events.RuntimeDone("id", "error", 1.0, 0, (), "Runtime.ExitError"),
            events.Fault("id", "error", "Runtime.ExitError"),
            events.End("id"),
            events.Report("id", "error", 1.0, 1, 128, 10, None, "Runtime.ExitError"),
            events.TelemetrySubscription("agent", ("platform",), "logs"),
        ):
            it.tell("platform", event, 1.0)
        await trio.sleep(2)
    assert peer.got == types
    records = {one["type"]: one["record"] for one in peer.batches[0]}
    assert records["platform.fault"] == "RequestId: id Status: error\tErrorType: Runtime.ExitError"
    assert records["platform.end"] == {"requestId": "id"}
    assert set(records["platform.report"]) == {"requestId", "metrics"}
    if schema == "2021-03-18":
        assert records["platform.runtimeDone"] == {"requestId": "id", "status": "failure"}
