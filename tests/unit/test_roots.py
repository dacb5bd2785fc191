"""sandbox.confine.roots: put together once, used by many, taken apart when too many stand unused."""

from __future__ import annotations

import trio
import trio.testing

from rootfs.layout import Directory
from sandbox.confine.roots import Root, Roots
from sandbox.confine.staging import OutOfOrder


class Composer:
    def __init__(self) -> None:
        self.standing: dict[str, Root] = {}
        self.composed = 0
        self.fault: Exception | None = None

    async def compose(self, entries: Root) -> str:
        await trio.lowlevel.checkpoint()
        if self.fault is not None:
            raise self.fault
        self.composed += 1
        place = f"/{self.composed}"
        self.standing[place] = entries
        return place

    def dismantle(self, place: str) -> None:
        del self.standing[place]


def root(number: int) -> Root:
    return (Directory(f"/{number}"),)


async def test_a_root_is_put_together_once_for_all_who_come_together() -> None:
    composer = Composer()
    roots = Roots(composer)
    places = set()

    async def use() -> None:
        async with roots.use(root(1)) as place:
            places.add(place)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use)
    assert composer.composed == 1
    assert places == set(composer.standing)


async def test_the_longest_unused_goes_and_none_that_is_in_use() -> None:
    composer = Composer()
    roots = Roots(composer, most=3)
    async with roots.use(root(0)) as first:
        for number in range(1, 10):
            async with roots.use(root(number)):
                pass
        assert first in composer.standing
        assert len(composer.standing) == len(roots) == 3
    async with roots.use(root(9)):
        pass
    assert set(composer.standing.values()) == {root(0), root(8), root(9)}


async def test_many_in_use_at_once_are_all_kept_until_they_are_not() -> None:
    composer = Composer()
    roots = Roots(composer, most=2)
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def use(number: int) -> None:
            async with roots.use(root(number)) as place:
                await done.wait()
                assert place in composer.standing

        for number in range(5):
            nursery.start_soon(use, number)
        await trio.testing.wait_all_tasks_blocked()
        assert len(composer.standing) == 5
        done.set()
    assert len(composer.standing) == 2


async def test_what_cannot_be_shared_is_remembered_and_what_failed_is_tried_again() -> None:
    composer = Composer()
    roots = Roots(composer)
    composer.fault = OSError("no memory")
    async with roots.use(root(1)) as place:
        assert place is None
    composer.fault = OutOfOrder()
    async with roots.use(root(2)) as place:
        assert place is None
    composer.fault = None
    async with roots.use(root(1)) as place:
        assert place is not None
    async with roots.use(root(2)) as place:
        assert place is None
