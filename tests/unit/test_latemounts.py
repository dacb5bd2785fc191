"""sandbox.confine.latemounts: a launch waits for a file system for a moment, and leaves nothing behind."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence

import pytest
import trio

from sandbox.confine import latemounts
from sandbox.confine.latemounts import Folders


class Walk:
    """A walk that stands until it may go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.free = threading.Event()
        self.undone: list[str] = []
        self.undo_called = threading.Event()

    def __call__(self, sources: Sequence[str]) -> str:
        self.entered.set()
        self.free.wait()
        return "walked"

    def undo(self, result: str) -> None:
        self.undone.append(result)
        self.undo_called.set()


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    monkeypatch.setattr(latemounts, "LIMIT_S", 0.1)
    walk = Walk()
    yield walk
    walk.free.set()


async def test_what_answers_is_walked() -> None:
    assert await Folders().reach(["/usr", "/nowhere"], list) == ["/usr", "/nowhere"]


async def test_what_the_walk_raises_is_raised() -> None:
    def refuse(sources: Sequence[str]) -> None:
        raise PermissionError(errno.EACCES, "no", sources[0])

    with pytest.raises(PermissionError):
        await Folders().reach(["/usr"], refuse)


async def test_one_that_stands_is_named_left_alone_and_taken_back(walk: Walk) -> None:
    """The first waits for LIMIT_S, those after it not at all; what comes too late is undone."""
    folders = Folders()
    with pytest.raises(TimeoutError, match="does not answer: '/usr'"):
        await folders.reach(["/usr"], walk, walk.undo)
    began = trio.current_time()
    with pytest.raises(TimeoutError):
        await folders.reach(["/etc", "/usr"], list)
    assert trio.current_time() - began < 0.09
    assert await folders.reach(["/etc"], list) == ["/etc"]
    walk.free.set()
    await trio.to_thread.run_sync(walk.undo_called.wait, 5)
    assert walk.undone == ["walked"]
    with trio.fail_after(5):
        while folders._standing:  # noqa: ASYNC110  the thread has one step left
            await trio.sleep(0.001)
    assert await folders.reach(["/usr"], list) == ["/usr"]


async def test_a_launch_that_is_given_up_leaves_no_copy(walk: Walk) -> None:
    folders = Folders()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(folders.reach, ["/usr"], walk, walk.undo)
        await trio.to_thread.run_sync(walk.entered.wait, 5)
        nursery.cancel_scope.cancel()
    walk.free.set()
    await trio.to_thread.run_sync(walk.undo_called.wait, 5)
    assert walk.undone == ["walked"]
    assert not folders._standing
