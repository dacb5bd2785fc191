"""Owns the subscribers of one environment's Telemetry and Logs API: what each gets, when, and what it misses.

An extension subscribes during init (SPEC 6.4, 6.5). What has happened up to then is kept, and given to each
subscriber first. Events are rendered when they happen, once for all who want the same form, and buffered per
subscriber; one task per subscriber delivers them through a `Courier`, which knows how.

Nobody waits for a subscriber. Its buffer, with what is on its way, is bounded (twice its `max_bytes`); what does
not fit, or cannot be delivered in TRIES, is dropped and counted, and the next delivery begins with the count.
A frozen environment is not delivered to: nobody in it could take anything, and its time limits stand still too.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import trio

from sandbox import events
from sandbox.events import PlatformEvent
from sandbox.lifecycle import Refused
from sandbox.loggingconfig import parsed_object

log = logging.getLogger(__name__)
DELIVERY_S = 5.0
"""For one delivery, from the connection to the end of the answer."""
RETRY_S = (0.1, 0.3, 1.0)
"""After a delivery that failed; after as many and one more its events are dropped."""
EARLY_BYTES = 256 * 1024
EARLY_ITEMS = 1000
"""What is kept of an init for those who may still subscribe."""
OVERHEAD = 120
"""What an event costs beside its text, at most as many of which a reserve has to hold."""
UNDELIVERED = "could not send events: "

Category = Literal["platform", "function", "extension"]
CATEGORIES: tuple[Category, ...] = ("platform", "function", "extension")
Api = Literal["telemetry", "logs"]
SCHEMAS: dict[Api, tuple[str, ...]] = {
    "telemetry": ("2022-07-01", "2022-12-13", "2025-01-29"),
    "logs": ("2020-08-15", "2021-03-18"),
}


_CLOSED: dict[Api, tuple[str, str]] = {
    "telemetry": ("Telemetry.SubscriptionClosed", "Telemetry API subscription is closed"),
    "logs": ("Logs.SubscriptionClosed", "Logs API subscription is closed already"),
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a subscriber listens, inside its environment, on 127.0.0.1."""

    protocol: Literal["HTTP", "TCP"]
    port: int
    path: str = "/"
    host: str = "sandbox.localdomain"
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Subscription:
    """A checked request to subscribe."""

    api: Api
    schema: str
    types: tuple[Category, ...]
    destination: Destination
    max_items: int = 10_000
    max_bytes: int = 262_144
    timeout_ms: int = 1000


class Undelivered(Exception):
    """A delivery failed; why, in a few words."""


class Courier(Protocol):
    """Takes events to one destination."""

    async def deliver(self, items: Sequence[bytes]) -> None:
        """Each item is one event as JSON. Raises Undelivered. May be cancelled."""

    def close(self) -> None: ...


class Subscriber:
    """One subscription and its buffer. `run` delivers until it is cancelled."""

    def __init__(
        self,
        subscription: Subscription,
        courier: Courier,
        *,
        wall: Callable[[], float],
        on_quiet: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """`on_lost` is told once, with the reason, when events are given up for the first time."""
        self.subscription = subscription
        self._courier = courier
        self._wall = wall
        self._on_quiet = on_quiet
        self._on_lost: Callable[[str], None] | None = on_lost
        self._items: list[bytes] = []
        self._bytes = 0
        self._flying = 0
        """Bytes of the delivery that is under way."""
        self._sending = False
        self._lost_bytes = self._lost_records = 0
        self._reason = events.SLOWER
        self._first_at = math.inf
        self._hurry = False
        self._frozen = False
        self._news = trio.Event()
        self._delivery = trio.CancelScope()
        self._left = math.inf
        """Seconds that it may still take, while the environment is frozen."""

    @property
    def quiet(self) -> bool:
        """Nothing waits and nothing is on its way."""
        return not (self._items or self._sending or self._lost_records)

    def replace(self, subscription: Subscription, courier: Courier) -> None:
        """The same extension subscribes anew; what it has not got yet goes the new way."""
        self._courier.close()
        self.subscription, self._courier = subscription, courier
        self._news.set()

    def add(self, item: bytes) -> None:
        """Never waits. What there is no room for is counted instead."""
        most = self.subscription
        full = len(self._items) >= most.max_items or (
            self._bytes + self._flying + len(item) > 2 * most.max_bytes
        )
        if full and self._items:
            self._lost_bytes += len(item)
            self._lost_records += 1
            return
        if not self._items:
            self._first_at = trio.current_time()
        self._items.append(item)
        self._bytes += len(item)
        if len(self._items) == 1 or self._is_full:
            self._news.set()

    @property
    def _is_full(self) -> bool:
        most = self.subscription
        return len(self._items) >= most.max_items or self._bytes >= most.max_bytes

    def flush(self) -> None:
        """Deliver what there is now, without waiting for more."""
        if self._items or self._lost_records:
            self._hurry = True
            self._news.set()

    def freeze(self) -> None:
        if not self._frozen:
            self._frozen = True
            self._left = self._delivery.deadline - trio.current_time()
            self._delivery.deadline = math.inf

    def thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            self._delivery.deadline = trio.current_time() + self._left
            self._news.set()

    async def run(self) -> None:
        try:
            while True:
                await self._due()
                await self._deliver()
                if self.quiet:
                    self._on_quiet()
        finally:
            self._courier.close()

    async def _due(self) -> None:
        while True:
            at = self._first_at + self.subscription.timeout_ms / 1000
            if not self._items:
                at = math.inf
            ready = self._hurry or self._is_full or trio.current_time() >= at
            if ready and (self._items or self._lost_records) and not self._frozen:
                return
            self._news = trio.Event()
            with trio.move_on_at(math.inf if self._frozen else at):
                await self._news.wait()

    async def _deliver(self) -> None:
        lost = self._lost_bytes, self._lost_records
        dropped = events.LogsDropped(*lost, self._reason)
        self._lost_bytes = self._lost_records = 0
        items, self._items = self._items, []
        self._flying, self._bytes = self._bytes, 0
        self._hurry = False
        self._sending = True
        told = []
        if lost[1] and "platform" in self.subscription.types:
            told = [events.as_json(dropped, self._wall()).encode()]
        try:
            problem = await self._try([*told, *items])
        finally:
            self._sending = False
        if problem:
            self._reason = UNDELIVERED + problem
            self._lost_bytes += lost[0] + self._flying
            self._lost_records += lost[1] + len(items)
            if self._on_lost is not None:
                self._on_lost(problem)
                self._on_lost = None
        else:
            self._reason = events.SLOWER
        self._flying = 0

    async def _try(self, items: Sequence[bytes]) -> str:
        """What was wrong with the last try; empty if the items have been delivered."""
        problem = ""
        for pause in (*RETRY_S, None):
            if self._frozen:
                deadline, self._left = math.inf, DELIVERY_S
            else:
                deadline = trio.current_time() + DELIVERY_S
            with trio.CancelScope(deadline=deadline) as self._delivery:
                try:
                    await self._courier.deliver(items)
                except Undelivered as exc:
                    problem = str(exc)
                else:
                    return ""
            if self._delivery.cancelled_caught:
                problem = f"not taken within {DELIVERY_S:g} s"
            if pause is not None:
                await trio.sleep(pause)
        return problem


class Telemetry:
    """All of it that is one environment's. Until `start`, nothing can be subscribed."""

    def __init__(self, function: str, *, objects: bool, wall: Callable[[], float]) -> None:
        """`objects`: the log's format is JSON, so what the function logs as a JSON object stays one."""
        self._function = function
        self.open = True
        """Init has not ended: extensions may subscribe, and what happens is kept for them."""
        self._objects = objects
        self._wall = wall
        self._subscribers: dict[str, Subscriber] = {}
        self._early: list[tuple[Category, PlatformEvent | str, float]] = []
        self._early_bytes = 0
        self._missed_bytes = self._missed_records = 0
        self._nursery: trio.Nursery | None = None
        self._courier: Callable[[Destination], Courier] | None = None
        self.on_quiet: Callable[[], None] = lambda: None
        """Called when the last event there was has been delivered."""

    @property
    def listening(self) -> bool:
        """Whether events are wanted."""
        return self.open or bool(self._subscribers)

    def start(self, nursery: trio.Nursery, courier: Callable[[Destination], Courier]) -> None:
        """Deliver in tasks of `nursery` from now on."""
        self._nursery, self._courier = nursery, courier

    def subscribe(self, name: str, subscription: Subscription) -> bool:
        """Extension `name` subscribes. False: it had done so in the same words. Raises Refused."""
        if not self.open or self._nursery is None or self._courier is None:
            raise Refused(403, *_CLOSED[subscription.api])
        known = self._subscribers.get(name)
        if known is not None and known.subscription.api != subscription.api:
            kind = "ValidationError" if subscription.api == "telemetry" else "Logs.ValidationError"
            raise Refused(
                400,
                kind,
                f"extension {name} is subscribed by the {known.subscription.api.capitalize()} API; "
                "it cannot use both",
            )
        if known is not None:
            if known.subscription == subscription:
                return False
            known.replace(subscription, self._courier(subscription.destination))
            return True
        subscriber = self._subscribers[name] = Subscriber(
            subscription,
            self._courier(subscription.destination),
            wall=self._wall,
            on_quiet=self._one_is_quiet,
            on_lost=partial(self._one_lost, name),
        )
        for category, what, at in self._early:
            self._give([subscriber], category, what, at)
        if self._missed_records:
            missed = events.LogsDropped(self._missed_bytes, self._missed_records)
            self._give([subscriber], "platform", missed, self._wall())
        self._nursery.start_soon(subscriber.run)
        return True

    def close(self) -> None:
        """Init is over: nobody can subscribe any more."""
        self.open = False
        self._early.clear()

    def tell(self, category: Category, what: PlatformEvent | str, at: float) -> None:
        """An event, or a line of the function's or an extension's log. Never waits."""
        if self.open:
            size = OVERHEAD + (len(what) if isinstance(what, str) else OVERHEAD)
            if len(self._early) < EARLY_ITEMS and self._early_bytes + size <= EARLY_BYTES:
                self._early.append((category, what, at))
                self._early_bytes += size
            else:
                self._missed_bytes += size
                self._missed_records += 1
        if self._subscribers:
            self._give(self._subscribers.values(), category, what, at)

    def _give(
        self,
        subscribers: Iterable[Subscriber],
        category: Category,
        what: PlatformEvent | str,
        at: float,
    ) -> None:
        forms: dict[str, bytes | None] = {}
        for subscriber in subscribers:
            subscription = subscriber.subscription
            if category not in subscription.types:
                continue
            form = self._form(subscription)
            if form not in forms:
                forms[form] = _render(form, category, what, at)
            item = forms[form]
            if item is not None:
                subscriber.add(item)

    def _form(self, subscription: Subscription) -> str:
        if subscription.api == "logs":
            return subscription.schema
        return "objects" if self._objects and subscription.schema > "2022-07-01" else "telemetry"

    def _one_lost(self, name: str, problem: str) -> None:
        log.warning(
            "function %s: extension %s does not take its telemetry: %s",
            self._function,
            name,
            problem,
        )

    def _one_is_quiet(self) -> None:
        if self.quiet:
            self.on_quiet()

    @property
    def quiet(self) -> bool:
        return all(one.quiet for one in self._subscribers.values())

    def flush(self) -> bool:
        """Deliver at once what waits. False: nothing does."""
        for one in self._subscribers.values():
            one.flush()
        return not self.quiet

    def freeze(self) -> None:
        for one in self._subscribers.values():
            one.freeze()

    def thaw(self) -> None:
        for one in self._subscribers.values():
            one.thaw()

    async def drain(self) -> None:
        """Return when all is delivered. Bound it: a subscriber may never take anything."""
        gone = trio.Event()
        before, self.on_quiet = self.on_quiet, gone.set
        try:
            if self.flush():
                await gone.wait()
        finally:
            self.on_quiet = before


def _render(form: str, category: Category, what: PlatformEvent | str, at: float) -> bytes | None:
    """An event as a subscriber of this form gets it; None: it has no such event."""
    if isinstance(what, str):
        parsed = parsed_object(what) if form == "objects" else None
        if parsed is None:
            record = events.to_json(what)
        elif "\n" in what or "\r" in what:
            # A TCP subscriber reads line by line.
            record = json.dumps(parsed, separators=(",", ":"))
        else:
            record = what
        return events.envelope(category, record, at).encode("utf-8", "replace")
    if form in SCHEMAS["logs"]:
        found = _of_logs_api(form, what)
    elif isinstance(what, events.End | events.Fault):
        found = None
    else:
        found = what.kind, what.record()
    if found is None:
        return None
    kind, fields = found
    return events.envelope(kind, events.to_json(fields), at).encode("utf-8", "replace")


def _of_logs_api(schema: str, event: PlatformEvent) -> tuple[str, object] | None:
    """(type, record) of the older API, which has fewer events, and says less in them (SPEC 6.5)."""
    match event:
        case events.Start():
            return event.kind, {"requestId": event.request_id, "version": event.version}
        case events.Report():
            record = event.record()
            return event.kind, {key: record[key] for key in ("requestId", "metrics")}
        case events.RuntimeDone():
            if schema == "2020-08-15":
                return None
            status = "failure" if event.status == "error" else event.status
            return event.kind, {"requestId": event.request_id, "status": status}
        case events.Fault():
            return event.kind, event.line()
        case events.TelemetrySubscription():
            return "platform.logsSubscription", event.record()
        case events.End() | events.Extension() | events.LogsDropped():
            return event.kind, event.record()
    return None
