"""Owns sandboxes made ahead: which there are, who waits for one, and how many there should be.

A shelf holds sandboxes of one kind (equal specs but for what a function adds). It is filled up to a
target in the background: the number taken in the last WINDOW_S, between two bounds. Who finds it empty
waits for the next one made, which need not be the one started on his account.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import trio

log = logging.getLogger(__name__)
WINDOW_S = 10.0
"""How far back starts count for the size of a shelf."""
CALM_S = 0.05
"""Filling up waits this long after a start, while enough are left: the function that starts comes first."""
SHORT_CALM_S = 0.005
FORGET_S = 600.0
"""A shelf nobody took from for this long is emptied, unless it is to be kept."""
LONGEST_RETRY_S = 60.0


class Made(Protocol):
    """What a pool holds."""

    async def wait(self) -> Any:
        """Returns when it has ended by itself."""

    async def kill(self) -> Any: ...


T = TypeVar("T", bound=Made)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many sandboxes of a kind are kept ready."""

    least: int = 4
    most: int = 16


@dataclass(frozen=True, slots=True, eq=False)
class Ready(Generic[T]):
    """One on a shelf, and the task that would notice its end."""

    made: T
    watch: trio.CancelScope


class Shelf(Generic[T]):
    """One kind's."""

    def __init__(self, limits: PoolLimits, now: float) -> None:
        self._limits = limits
        self.ready: deque[Ready[T]] = deque()
        self.waiting: deque[Waiter[T]] = deque()
        self.making = 0
        self.kept = False
        self.proven = False
        """The last one could be made."""
        self.takes: deque[float] = deque()
        self.last_take = now
        self.retry_s = 0.0
        self.retry_at = 0.0
        self.changed = trio.Event()

    def target(self, now: float) -> int:
        while self.takes and self.takes[0] + WINDOW_S <= now:
            self.takes.popleft()
        if not self.kept and now - self.last_take > FORGET_S:
            return 0
        return max(self._limits.least, min(len(self.takes), self._limits.most))

    def wake_at(self) -> float:
        """When the target may change by itself."""
        if self.takes:
            return self.takes[0] + WINDOW_S
        return math.inf if self.kept else self.last_take + FORGET_S + 1

    def forgotten(self, now: float) -> bool:
        """Nobody has asked for this kind for long, and nothing of it is left."""
        if self.kept or now - self.last_take <= FORGET_S:
            return False
        return not (self.ready or self.waiting or self.making)


class Waiter(Generic[T]):
    """Somebody who found the shelf empty."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.made: T | None = None
        self.fault: Exception | None = None


class Pool(Generic[T]):
    """Shelves by kind. Its tasks run in `nursery`; what it holds is its owner's to kill at the end."""

    def __init__(
        self,
        make: Callable[[Any], Awaitable[T]],
        limits: Callable[[Any], PoolLimits],
        nursery: trio.Nursery,
        *,
        makers: int = 1,
        most_held: float = math.inf,
        free: Callable[[], float] = lambda: math.inf,
        what: str = "a sandbox",
    ) -> None:
        """`make(kind)` makes one, `what`; `makers` of a kind at most are made at once in the background.

        No more than `most_held` of all kinds together are made for nobody, and no more than half of what
        can still be made. `free`: how many that is; less than none while somebody waits for one of them to end.
        """
        self._make = make
        self._limits = limits
        self._nursery = nursery
        self._makers = makers
        self._most_held = most_held
        self._free = free
        self._what = what
        self._shelves: dict[Hashable, Shelf[T]] = {}

    def keep(self, kinds: Collection[Hashable]) -> None:
        """Have shelves of these kinds filled at all times, and forget others when nobody takes from them."""
        for kind in kinds:
            self._shelf(kind)
        for kind, shelf in self._shelves.items():
            shelf.kept = kind in kinds
            _tell(shelf)

    def offers(self, kind: Hashable) -> bool:
        """Whether one of this kind is there, or is likely to come sooner than one that begins now.

        If not, they are made from now on.
        """
        shelf = self._shelf(kind)
        return bool(shelf.ready) or shelf.proven

    def expect(self, kind: Hashable) -> None:
        """One will be taken in a moment: if none is there, but they can be made, one is begun."""
        shelf = self._shelf(kind)
        if shelf.proven and not shelf.ready and shelf.making <= len(shelf.waiting):
            self._begin(kind, shelf)

    def held(self) -> list[tuple[Any, list[T], int]]:
        """(kind, what is ready of it, how many there should be) for every shelf."""
        now = trio.current_time()
        return [
            (kind, [one.made for one in shelf.ready], shelf.target(now))
            for kind, shelf in self._shelves.items()
        ]

    async def take(self, kind: Hashable) -> T:
        """The longest ready, or the next one made. Raises what `make` raises. It is the caller's then."""
        shelf = self._shelf(kind)
        now = trio.current_time()
        shelf.last_take = now
        shelf.takes.append(now)
        if shelf.ready:
            one = shelf.ready.popleft()
            one.watch.cancel()
            _tell(shelf)
            return one.made
        waiter: Waiter[T] = Waiter()
        shelf.waiting.append(waiter)
        if shelf.making < len(shelf.waiting):
            self._begin(kind, shelf)
        try:
            await waiter.done.wait()
        except trio.Cancelled:
            if waiter.made is not None:
                self._put(kind, shelf, waiter.made)
            elif waiter in shelf.waiting:
                shelf.waiting.remove(waiter)
            raise
        if waiter.fault is not None:
            raise waiter.fault
        assert waiter.made is not None
        return waiter.made

    def give_up(self) -> None:
        """One that was made for nobody ends, if there is one: of the kind that has the most."""
        shelf = max(self._shelves.values(), key=lambda shelf: len(shelf.ready), default=None)
        if shelf is not None and shelf.ready:
            one = shelf.ready.popleft()
            one.watch.cancel()
            self._nursery.start_soon(_end, one.made)

    def _may_hold_more(self) -> bool:
        held = self._holds() + 1
        # Those being made may not be missing from `free` yet.
        making = sum(shelf.making for shelf in self._shelves.values())
        return held <= self._most_held and held < self._free() - making

    def _holds(self) -> int:
        return sum(len(shelf.ready) + shelf.making for shelf in self._shelves.values())

    def _shelf(self, kind: Hashable) -> Shelf[T]:
        shelf = self._shelves.get(kind)
        if shelf is None:
            shelf = self._shelves[kind] = Shelf(self._limits(kind), trio.current_time())
            self._nursery.start_soon(self._keep_filled, kind, shelf)
        return shelf

    def _begin(self, kind: Hashable, shelf: Shelf[T]) -> None:
        shelf.making += 1
        self._nursery.start_soon(self._make_one, kind, shelf)

    async def _make_one(self, kind: Hashable, shelf: Shelf[T]) -> None:
        try:
            made = await self._make(kind)
        except Exception as exc:
            shelf.making -= 1
            shelf.proven = False
            shelf.retry_s = min(max(1.0, shelf.retry_s * 2), LONGEST_RETRY_S)
            shelf.retry_at = trio.current_time() + shelf.retry_s
            if shelf.waiting:
                waiter = shelf.waiting.popleft()
                waiter.fault = exc
                waiter.done.set()
            else:
                log.warning("%s could not be made ahead: %s", self._what, exc)
        else:
            shelf.making -= 1
            shelf.proven = True
            shelf.retry_s = shelf.retry_at = 0.0
            self._put(kind, shelf, made)
        _tell(shelf)

    def _put(self, kind: Hashable, shelf: Shelf[T], made: T) -> None:
        if shelf.waiting:
            waiter = shelf.waiting.popleft()
            waiter.made = made
            waiter.done.set()
            return
        if self._free() < 0:
            self._nursery.start_soon(_end, made)
            return
        one = Ready(made, trio.CancelScope())
        shelf.ready.append(one)
        self._nursery.start_soon(self._watch, shelf, one)

    async def _watch(self, shelf: Shelf[T], one: Ready[T]) -> None:
        with one.watch:
            await one.made.wait()
        if one in shelf.ready:
            shelf.ready.remove(one)
            _tell(shelf)
            await _end(one.made)

    async def _keep_filled(self, kind: Hashable, shelf: Shelf[T]) -> None:
        while True:
            shelf.changed = trio.Event()
            now = trio.current_time()
            if shelf.forgotten(now):
                del self._shelves[kind]
                return
            target = shelf.target(now)
            coming = len(shelf.ready) + shelf.making - len(shelf.waiting)
            wake_at = shelf.wake_at()
            if coming > target and shelf.ready:
                one = shelf.ready.popleft()
                one.watch.cancel()
                await _end(one.made)
                continue
            # Who waits has one made for him already; more at the same time would hold that up.
            if coming < target and shelf.making < self._makers and not shelf.waiting:
                if not self._may_hold_more():
                    with trio.move_on_after(WINDOW_S):
                        await shelf.changed.wait()
                    continue
                calm_s = CALM_S if len(shelf.ready) > target / 4 else SHORT_CALM_S
                wake_at = max(shelf.last_take + calm_s, shelf.retry_at)
                if wake_at <= now:
                    self._begin(kind, shelf)
                    continue
            with trio.move_on_at(wake_at):
                await shelf.changed.wait()


def _tell(shelf: Shelf[Any]) -> None:
    shelf.changed.set()


async def _end(made: Made) -> None:
    try:
        await made.kill()
    except Exception as exc:
        log.error("%s", exc)
