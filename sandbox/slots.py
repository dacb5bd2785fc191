"""Owns what the scheduler knows of one function version, and what all versions of a function share.

Plain bookkeeping over environments and tickets; the scheduler decides. A version has its queue, its
environments and its provisioned ones; the reservation, and what counts against it, is the function's
(SPEC 7).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import chain, takewhile

import trio

from sandbox import planner
from sandbox.environment import Environment
from sandbox.function import FunctionVersion
from sandbox.provisioning import Provision
from sandbox.ticket import Ticket


class Versions:
    """One function: the versions that are or were asked for, and the concurrency they share."""

    def __init__(self, reserved: int | None) -> None:
        self.reserved = reserved
        self.in_flight = 0
        """Waiting or running, of all versions."""
        self.slots: dict[str, Slots] = {}
        """By version."""
        self.leaving: set[Slots] = set()
        """Of versions that are no more, as long as something of them waits or runs."""

    def __iter__(self) -> Iterator[Slots]:
        return chain(self.slots.values(), self.leaving)

    @property
    def room(self) -> int | None:
        """How many more environments the reservation allows to be at work; None: any number."""
        if self.reserved is None:
            return None
        return self.reserved - sum(slots.at_work for slots in self)

    def part(self, slots: Slots) -> None:
        """This version is no more. One of the same number that comes later has nothing to do with it."""
        del self.slots[slots.function.version]
        self.leaving.add(slots)
        slots.gone = True


class Slots:
    """The environments and the queue of one function version."""

    def __init__(
        self, function: FunctionVersion, versions: Versions, max_age_s: float = math.inf
    ) -> None:
        self.function = function
        """The newest seen; environments of another revision are retired when they come free."""
        self.versions = versions
        self.gone = False
        """The version is no more: what waits is served, nothing is kept."""
        self.waiting: deque[Ticket] = deque()
        self.starting: set[Environment] = set()
        self.idle: list[Environment] = []
        """Most recently used last; the provisioned ones after all others."""
        self.provision: Provision[Environment] = Provision(max_age_s)
        self.busy: set[Environment] = set()
        self.answered: set[Environment] = set()
        """Their callers are served; they will be idle in a moment."""
        self.lingering: set[Environment] = set()
        """Answered, but busy with something of their own."""
        self.in_flight = 0
        self.pace = planner.Pace()
        self.hurried = False
        """A task looks after those that wait too long."""

    @property
    def overdue(self) -> int:
        """How many wait for longer than environments at work are trusted with."""
        since = trio.current_time() - self.pace.patience_s
        return sum(1 for _ in takewhile(lambda ticket: ticket.queued_at <= since, self.waiting))

    @property
    def at_work(self) -> int:
        """Environments that count against a reservation."""
        return len(self.starting) + len(self.busy) + len(self.answered) + len(self.lingering)

    @property
    def may_work(self) -> bool:
        """Whether the reservation has room for one more."""
        room = self.versions.room
        return room is None or room > 0

    @property
    def environments(self) -> list[Environment]:
        """All that are not lost."""
        groups = (self.idle, self.starting, self.busy, self.answered, self.lingering)
        return [*chain(*groups, self.provision.starting)]

    @property
    def over(self) -> bool:
        """The version is no more, and nothing of it is left."""
        return self.gone and not self.waiting and not self.environments

    def forget(self, environment: Environment) -> None:
        for group in (self.starting, self.busy, self.answered, self.lingering):
            group.discard(environment)

    def put_idle(self, environment: Environment) -> None:
        """Provisioned ones are taken first, so that the others can go when demand does."""
        place = len(self.idle)
        if not environment.provisioned:
            while place and self.idle[place - 1].provisioned:
                place -= 1
        self.idle.insert(place, environment)

    def pop_idle(self) -> Environment | None:
        """The most recently used environment that may still be used; unfit ones are retired."""
        while self.idle:
            environment = self.idle.pop()
            if not self.outdated(environment):
                return environment
            self.let_go(environment)
        return None

    def let_go(self, environment: Environment) -> None:
        self.provision.drop(environment)
        environment.retire()

    def let_idle_go(self) -> None:
        idle, self.idle = self.idle, []
        for environment in idle:
            self.let_go(environment)

    def outdated(self, environment: Environment) -> bool:
        if environment.provisioned and environment not in self.provision:
            return True  # replaced while it was at work
        return environment.worn_out or environment.function.revision != self.function.revision
