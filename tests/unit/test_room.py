"""runtimeapi.room: who gets a place for a large body, and who yields his. `test_spool.py` has who is refused."""

from __future__ import annotations

from math import inf

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from runtimeapi.bodies import HIGH_WATER, StreamedBody
from runtimeapi.intake import read_body
from runtimeapi.room import SMALL, Place, Room
from sandbox.errors import InvalidRequest

LIMIT = 6_000_000


class Reader:
    """One body on its way to a handler."""

    def __init__(self, room: Room, nursery: trio.Nursery, told: int | None) -> None:
        self.body = StreamedBody(told)
        self.body.place = Place(room)
        self.got: bytes | None = None
        self.error: InvalidRequest | None = None
        self.done_at = inf
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            try:
                self.got = await read_body(self.body, limit=LIMIT, operation="Invoke")
            except InvalidRequest as exc:
                self.error = exc
        self.done_at = trio.current_time()

    def is_read(self) -> bool:
        return not self.body._held

    async def send(self, size: int) -> None:
        await self.body.feed(b"x" * size)
        await wait_all_tasks_blocked()


async def reading(room: Room, nursery: trio.Nursery, told: int | None = SMALL + 1) -> Reader:
    """One that has its place, or waits for it behind those that were begun before."""
    reader = Reader(room, nursery, told)
    await wait_all_tasks_blocked()
    return reader


@pytest.mark.trio
async def test_small_bodies_need_no_place(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        for told in (SMALL, None):
            reader = await reading(Room(0), nursery, told)
            await reader.send(SMALL)
            reader.body.finish()
            await wait_all_tasks_blocked()
            assert reader.got == b"x" * SMALL


@pytest.mark.trio
async def test_who_waits_is_not_read(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        for told in (LIMIT, None):
            reader = await reading(Room(0, inf), nursery, told)
            with trio.move_on_after(10) as taken:
                for _ in range(3):
                    await reader.body.feed(b"x" * HIGH_WATER)
            assert taken.cancelled_caught
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_slowest_yields_once_it_has_had_its_time(autojump_clock: MockClock) -> None:
    room = Room(2, 5)
    async with trio.open_nursery() as nursery:
        slow, fast = await reading(room, nursery), await reading(room, nursery)
        await slow.send(1000)
        await fast.send(2000)
        await trio.sleep(3)
        late = await reading(room, nursery)
        await late.send(1)
        began = trio.current_time()
        await trio.sleep(1)
        assert not late.is_read()
        await trio.sleep(5)
        assert late.is_read()
        assert slow.done_at - began == pytest.approx(2)
        assert slow.error is not None
        assert (slow.error.status, slow.error.code) == (408, "RequestTimeoutException")
        assert slow.error.message == "The request body did not arrive within 5 seconds."
        for reader in (fast, late):
            reader.body.finish()
        await wait_all_tasks_blocked()
        assert (fast.got, late.got) == (b"x" * 2000, b"x")


@pytest.mark.trio
async def test_nobody_yields_to_nobody(autojump_clock: MockClock) -> None:
    room = Room(1, 5)
    async with trio.open_nursery() as nursery:
        reader = await reading(room, nursery)
        await trio.sleep(100)
        await reader.send(10)
        assert reader.is_read()
        # One that comes now finds its time over already.
        late = await reading(room, nursery)
        await late.send(1)
        assert late.is_read()
        assert reader.done_at == trio.current_time()
        late.body.finish()


@pytest.mark.trio
async def test_a_crowd_is_let_in_by_turns_and_waiting_is_nobodys_slowness(
    autojump_clock: MockClock,
) -> None:
    room = Room(2, 5)
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        crowd = [await reading(room, nursery) for _ in range(6)]
        last = await reading(room, nursery)
        await last.send(1)
        await trio.sleep(60)
        assert last.is_read()
        # Each had its 5 seconds; of the third pair one is enough.
        gone = [round(one.done_at - began) for one in crowd if one.error is not None]
        assert sorted(gone) == [5, 5, 10, 10, 15]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_who_gives_up_waiting_is_not_given_a_place(autojump_clock: MockClock) -> None:
    room = Room(1, inf)
    async with trio.open_nursery() as nursery:
        holder, gone, last = [await reading(room, nursery) for _ in range(3)]
        await last.send(1)
        gone.scope.cancel()
        await wait_all_tasks_blocked()
        assert not last.is_read()
        holder.scope.cancel()
        await wait_all_tasks_blocked()
        assert last.is_read()
        last.body.finish()


@pytest.mark.trio
async def test_a_place_is_given_to_one_who_is_just_giving_up(autojump_clock: MockClock) -> None:
    room = Room(1, inf)
    async with trio.open_nursery() as nursery:
        holder, gone, last = [await reading(room, nursery) for _ in range(3)]
        await last.send(1)
        assert holder.body.place is not None
        holder.body.place.leave()
        gone.scope.cancel()
        await wait_all_tasks_blocked()
        assert last.is_read()
        last.body.finish()
        holder.body.finish()


@pytest.mark.trio
async def test_one_that_only_keeps_its_place_does_not_yield(autojump_clock: MockClock) -> None:
    """The fast lane's, which does so for a second; an environment's head."""
    room = Room(1, 5)
    kept = Place(room)
    assert kept.take()
    async with trio.open_nursery() as nursery:
        late = await reading(room, nursery)
        await late.send(1)
        await trio.sleep(100)
        assert not late.is_read()
        kept.leave()
        await wait_all_tasks_blocked()
        assert late.is_read()
        late.body.finish()
