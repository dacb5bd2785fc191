"""sandbox.confine.pool: how many are made ahead, and who gets which."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sandbox.confine.pool import CALM_S, FORGET_S, SHORT_CALM_S, WINDOW_S, Pool, PoolLimits

MAKING_S = 1.0


class Thing:
    """What is made; ends when told to."""

    def __init__(self, kind: object) -> None:
        self.kind = kind
        self.killed = False
        self.ended = trio.Event()

    async def wait(self) -> None:
        await self.ended.wait()

    async def kill(self) -> None:
        self.killed = True
        self.ended.set()


class Maker:
    """Makes things in MAKING_S, or raises what it is told to."""

    def __init__(self) -> None:
        self.made: list[Thing] = []
        self.fault: Exception | None = None
        self.at_once = 0
        self.most_at_once = 0

    async def make(self, kind: object) -> Thing:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await trio.sleep(MAKING_S)
        finally:
            self.at_once -= 1
        if self.fault is not None:
            raise self.fault
        self.made.append(Thing(kind))
        return self.made[-1]

    @property
    def alive(self) -> list[Thing]:
        return [thing for thing in self.made if not thing.killed]


@asynccontextmanager
async def pool_of(
    maker: Maker, least: int = 2, most: int = 5, makers: int = 2, most_held: float = math.inf
) -> AsyncIterator[Pool[Thing]]:
    async with trio.open_nursery() as nursery:
        limits = PoolLimits(least, most)
        yield Pool(maker.make, lambda _: limits, nursery, makers=makers, most_held=most_held)
        nursery.cancel_scope.cancel()


def ready(pool: Pool[Thing]) -> int:
    return sum(len(things) for _, things, _ in pool.held())


async def test_a_kept_shelf_is_filled_and_refilled(autojump_clock: MockClock) -> None:
    maker = Maker()
    async with pool_of(maker, least=3) as pool:
        pool.keep({"a"})
        await trio.sleep(10)
        assert (ready(pool), maker.most_at_once) == (3, 2)
        first = await pool.take("a")
        assert first is maker.made[0]  # the longest ready
        assert ready(pool) == 2
        await trio.sleep(CALM_S + MAKING_S + 0.1)
        assert ready(pool) == 3
        assert not first.killed


async def test_taking_from_a_filled_shelf_takes_no_time(autojump_clock: MockClock) -> None:
    async with pool_of(Maker()) as pool:
        pool.keep({"a"})
        await trio.sleep(10)
        now = trio.current_time()
        await pool.take("a")
        assert trio.current_time() == now


async def test_who_finds_it_empty_gets_the_next_one_made(autojump_clock: MockClock) -> None:
    """One is under way already: the caller does not wait for the one begun on his account."""
    maker = Maker()
    async with pool_of(maker) as pool:
        pool.keep({"a"})
        await trio.sleep(SHORT_CALM_S + 0.5)
        now = trio.current_time()
        taken = await pool.take("a")
        assert trio.current_time() - now == pytest.approx(0.5)
        assert taken is maker.made[0]


async def test_one_that_is_expected_is_begun_before_it_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    maker = Maker()
    async with pool_of(maker, least=0, most=0) as pool:
        pool.expect("a")  # nobody knows yet whether they can be made
        await trio.sleep(10)
        assert maker.made == []
        await pool.take("a")
        pool.expect("a")
        pool.expect("a")
        await trio.sleep(MAKING_S / 2)
        now = trio.current_time()
        await pool.take("a")
        assert trio.current_time() - now == pytest.approx(MAKING_S / 2)
        assert len(maker.made) == 2


async def test_as_many_are_made_at_once_as_wait(autojump_clock: MockClock) -> None:
    maker = Maker()
    async with pool_of(maker, least=0, most=0) as pool, trio.open_nursery() as nursery:
        for _ in range(7):
            nursery.start_soon(pool.take, "a")
    assert maker.most_at_once == 7
    assert len(maker.made) == 7


async def test_the_target_follows_recent_starts_between_its_bounds(
    autojump_clock: MockClock,
) -> None:
    maker = Maker()
    async with pool_of(maker, least=2, most=5) as pool:
        pool.keep({"a"})
        async with trio.open_nursery() as takers:
            for _ in range(9):
                takers.start_soon(pool.take, "a")
        await trio.sleep(WINDOW_S / 2)
        assert ready(pool) == 5
        await trio.sleep(2 * WINDOW_S)
        assert ready(pool) == 2
        assert len(maker.alive) == 9 + 2  # those above are ended, those taken are their owners'


async def test_one_that_ends_by_itself_is_replaced_and_never_given_out(
    autojump_clock: MockClock,
) -> None:
    maker = Maker()
    async with pool_of(maker, least=1) as pool:
        pool.keep({"a"})
        await trio.sleep(10)
        (dead,) = maker.made
        dead.ended.set()
        await wait_all_tasks_blocked()
        assert dead.killed  # reaped
        assert ready(pool) == 0
        assert await pool.take("a") is not dead


async def test_a_shelf_that_is_not_kept_is_forgotten(autojump_clock: MockClock) -> None:
    maker = Maker()
    async with pool_of(maker) as pool:
        await pool.take("a")
        await trio.sleep(FORGET_S / 2)
        assert ready(pool) == 2
        await trio.sleep(FORGET_S)
        assert ready(pool) == 0
        pool.keep({"b"})
        await trio.sleep(2 * FORGET_S)
        assert ready(pool) == 2
        pool.keep(set())
        await trio.sleep(FORGET_S)
        assert ready(pool) == 0


async def test_a_shelf_of_a_kind_that_is_gone_goes_too(autojump_clock: MockClock) -> None:
    """However many kinds there have been: neither shelves nor their tasks pile up."""
    async with trio.open_nursery() as nursery:
        pool = Pool(Maker().make, lambda _: PoolLimits(1, 2), nursery)
        pool.keep(["kept"])
        for number in range(50):
            thing = await pool.take(f"kind {number}")
            await thing.kill()
        assert len(pool.held()) == 51
        await trio.sleep(FORGET_S + MAKING_S + 2)
        assert [kind for kind, _, _ in pool.held()] == ["kept"]
        assert len(nursery.child_tasks) == 2  # the shelf's, and who watches what is on it
        assert not pool.offers("kind 7")
        await (await pool.take("kind 7")).kill()
        nursery.cancel_scope.cancel()


async def test_kinds_are_kept_apart(autojump_clock: MockClock) -> None:
    async with pool_of(Maker()) as pool:
        pool.keep({"a", "b"})
        await trio.sleep(10)
        assert (await pool.take("b")).kind == "b"
        assert (await pool.take("a")).kind == "a"


async def test_a_failure_goes_to_who_waits_and_is_not_repeated_at_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    maker = Maker()
    maker.fault = OSError("no more of them")
    async with pool_of(maker, least=1, makers=1) as pool:
        with pytest.raises(OSError, match="no more"):
            await pool.take("a")
        pool.keep({"a"})
        assert not pool.offers("a")
        await trio.sleep(600)
        tries = len([line for line in caplog.messages if "no more of them" in line])
        assert 5 < tries < 20  # further and further apart
        maker.fault = None
        await trio.sleep(61 + MAKING_S)
        assert pool.offers("a")
        assert ready(pool) == 1


async def test_nothing_is_lost_when_a_waiter_gives_up(autojump_clock: MockClock) -> None:
    maker = Maker()
    async with pool_of(maker, least=0, most=0) as pool:
        with trio.move_on_after(MAKING_S / 2):
            await pool.take("a")
        await trio.sleep(MAKING_S)
        # Nobody wants it any more: it is ended, or kept if it may be.
        assert [thing.killed for thing in maker.made] == [True]


async def test_a_new_kind_is_offered_once_one_could_be_made(autojump_clock: MockClock) -> None:
    async with pool_of(Maker()) as pool:
        assert not pool.offers("a")
        await trio.sleep(CALM_S + MAKING_S + 0.1)
        assert pool.offers("a")


async def test_many_kinds_together_are_held_in_bounds(autojump_clock: MockClock) -> None:
    maker = Maker()
    async with pool_of(maker, least=3, most_held=7) as pool:
        pool.keep(set(range(100)))
        await trio.sleep(60)
        assert ready(pool) == 7
        assert (await pool.take(99)).kind == 99  # who waits has his made all the same
        pool.keep({"late"})
        await trio.sleep(2 * FORGET_S)
        assert [len(things) for kind, things, _ in pool.held() if kind == "late"] == [3]


async def test_it_leaves_as_many_as_it_holds_and_gives_up_what_somebody_needs(
    autojump_clock: MockClock,
) -> None:
    maker, room, waiting = Maker(), 7, 0

    def free() -> float:
        return room - len(maker.alive) - waiting

    async with trio.open_nursery() as nursery:
        pool = Pool(maker.make, lambda _: PoolLimits(5, 5), nursery, free=free)
        pool.keep({"a", "b"})
        await trio.sleep(100)
        assert ready(pool) == 3
        for left in (2, 1, 0, 0):
            pool.give_up()
            assert ready(pool) == left
        await wait_all_tasks_blocked()
        assert maker.alive == []
        # While all are taken nothing is made, and what is being made ends when somebody waits.
        room = 0
        await trio.sleep(100)
        assert len(maker.made) == 3
        room = 7
        while maker.at_once == 0:  # noqa: ASYNC110
            await trio.sleep(0.1)
        room, waiting = 0, 1
        await trio.sleep(100)
        assert ready(pool) == 0
        assert maker.alive == []
        assert len(maker.made) > 3
        nursery.cancel_scope.cancel()
