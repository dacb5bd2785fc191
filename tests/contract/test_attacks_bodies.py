"""Large bodies of callers that do not end: who waits for whom, and who goes (`test_attacks.py` has the rest)."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from math import inf

import pytest
import trio

from runtimeapi import wire as fast_lane
from runtimeapi.room import SMALL
from runtimeapi.server import CallerLimits
from sandbox.invocation import MAX_PAYLOAD, Invocation, Outcome
from tests.contract.fakes import Callers, echo
from tests.contract.test_attacks import GOOD_S, INVOKE, callers, good_client, lanes
from tests.contract.wire import Answer, Wire, ask, chunked, connect, head

LARGE = b'"' + b"x" * (SMALL + 100_000) + b'"'
ONE = CallerLimits(large_bodies=1, patience_s=inf)
"""Who does not give its one place back keeps all others waiting for ever."""

framings = pytest.mark.parametrize("framing", ["length", "chunks"])


@pytest.fixture(autouse=True)
def _soon_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections change lanes in the middle of what these tests look at."""
    monkeypatch.setattr(fast_lane, "PATIENCE_S", 0.1)


@dataclass
class Upload:
    """A body that is sent in two parts."""

    body: bytes
    first: int
    framing: str
    path: str = INVOKE

    @property
    def start(self) -> bytes:
        if self.framing == "length":
            begun = head("POST", self.path, {"Content-Length": str(len(self.body))})
        else:
            begun = head("POST", self.path, {"Transfer-Encoding": "chunked"})
            begun += b"%x\r\n" % len(self.body)
        return begun + self.body[: self.first]

    @property
    def rest(self) -> bytes:
        return self.body[self.first :] + b"\r\n0\r\n\r\n" * (self.framing == "chunks")


async def small_ones(served: Callers) -> None:
    """They wait for nobody; and what was sent before them has been read."""
    for _ in range(20):
        with trio.fail_after(GOOD_S):
            assert (await ask(served.address, "POST", INVOKE, b"1")).status == 200


async def large_one(served: Callers) -> Answer:
    with trio.fail_after(GOOD_S):
        return await ask(served.address, "POST", INVOKE, LARGE)


@lanes
@framings
@pytest.mark.trio
async def test_the_slowest_yields_to_a_good_client(lane: str, framing: str) -> None:
    patience_s = 0.8
    limits = CallerLimits(large_bodies=2, patience_s=patience_s)
    slow = Upload(b'"' + b"s" * 1_000_000 + b'"', SMALL + 1, framing)
    fast = Upload(b'"' + b"f" * 3_000_000 + b'"', 3_000_001, framing)
    async with (
        callers(lane, limits) as served,
        await connect(served.address) as slow_wire,
        await connect(served.address) as fast_wire,
        good_client(served),
    ):
        await slow_wire.send(slow.start)
        await fast_wire.send(fast.start)
        await small_ones(served)
        assert (await large_one(served)).body == LARGE
        with trio.fail_after(GOOD_S):
            told = await slow_wire.answer()
            assert (told.status, told.headers["x-amzn-errortype"]) == (
                408,
                "RequestTimeoutException",
            )
            assert "The request body did not arrive within" in told.json["message"]
            await fast_wire.send(fast.rest)
            answer = await fast_wire.answer()
    assert (answer.status, answer.body) == (200, fast.body)


@lanes
@framings
@pytest.mark.parametrize("path", [INVOKE, "/invoke/hello"])
@pytest.mark.trio
async def test_large_bodies_wait_for_their_turn(lane: str, framing: str, path: str) -> None:
    upload = Upload(LARGE, len(LARGE) - 1, framing, path)
    answered: list[str] = []

    async def post(name: str, wire: Wire, data: bytes) -> None:
        await wire.send(data)
        assert (await wire.answer()).status == 200
        answered.append(name)

    async with (
        callers(lane, ONE) as served,
        await connect(served.address) as first,
        await connect(served.address) as second,
        trio.open_nursery() as nursery,
    ):
        await first.send(upload.start)
        await small_ones(served)
        nursery.start_soon(post, "second", second, upload.start + upload.rest)
        await small_ones(served)
        assert answered == []
        await post("first", first, upload.rest)
    assert sorted(answered) == ["first", "second"]


@lanes
@framings
@pytest.mark.trio
async def test_an_invocation_that_runs_holds_no_place(lane: str, framing: str) -> None:
    count = 3
    begun, over = trio.Event(), trio.Event()
    running: list[Invocation] = []

    async def together(invocation: Invocation) -> Outcome:
        running.append(invocation)
        if len(running) == count:
            begun.set()
        await over.wait()
        return await echo(invocation)

    upload = Upload(LARGE, len(LARGE), framing)
    async with callers(lane, ONE) as served:
        served.invoker.behaviour = together

        async def post() -> None:
            async with await connect(served.address) as wire:
                await wire.send(upload.start + upload.rest)
                assert (await wire.answer()).body == LARGE

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(post)
            with trio.fail_after(GOOD_S):
                await begun.wait()
            over.set()


@lanes
@framings
@pytest.mark.trio
async def test_a_peer_that_goes_gives_its_place_back(lane: str, framing: str) -> None:
    upload = Upload(LARGE, len(LARGE) - 1, framing)
    async with callers(lane, ONE) as served:
        for half in (False, True):
            async with await connect(served.address) as wire:
                await wire.send(upload.start)
                await small_ones(served)
                if half:
                    await wire.stream.send_eof()
                    answer = await wire.answer()
                    assert answer.headers["x-amzn-errortype"] == "InvalidRequestContentException"
            assert (await large_one(served)).status == 200


@lanes
@pytest.mark.trio
async def test_who_is_refused_gives_its_place_back(lane: str) -> None:
    nowhere = INVOKE.replace("hello", "nope")
    too_many = [b"x" * 1_000_000] * (MAX_PAYLOAD // 1_000_000 + 1)
    length = {"Content-Length": str(len(LARGE))}
    refused = [
        (400, head("POST", INVOKE, length) + LARGE[:-1] + b" "),
        (413, head("POST", INVOKE, {"Transfer-Encoding": "chunked"}) + chunked(*too_many)),
        (413, head("POST", INVOKE, {"Content-Length": str(MAX_PAYLOAD + 1)})),
        (404, head("POST", nowhere, length) + LARGE),
        (200, head("POST", INVOKE, length) + LARGE),
    ]
    async with callers(lane, ONE) as served:
        for status, request in refused:
            async with await connect(served.address) as wire:
                with trio.fail_after(GOOD_S):
                    await wire.send(request)
                    assert (await wire.answer()).status == status
                assert (await large_one(served)).status == 200


@pytest.mark.trio
async def test_a_function_that_goes_meanwhile_takes_no_place_along() -> None:
    """The fast lane has taken the place; it is the app that refuses, before it reads the body."""
    upload = Upload(LARGE, 1000, "length")
    async with callers("fast", ONE) as served, await connect(served.address) as wire:
        await wire.send(upload.start)
        await served.functions.resolved.wait()
        found = served.functions.found.pop("hello")
        with trio.fail_after(GOOD_S):
            assert (await wire.answer()).status == 404
        served.functions.found["hello"] = found
        assert (await large_one(served)).status == 200


@pytest.mark.trio
async def test_a_reset_takes_no_place_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast lane leaves it to nobody then."""
    monkeypatch.setattr(fast_lane, "PATIENCE_S", inf)
    upload = Upload(LARGE, 1000, "length")
    async with callers("fast", ONE) as served:
        wire = await connect(served.address)
        await wire.send(upload.start)
        await served.functions.resolved.wait()
        wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(wire.stream)
        assert (await large_one(served)).status == 200
