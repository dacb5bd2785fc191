"""Owns which event source mappings are polled, and their states (SPEC 8.4): Creating -> Enabled..."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from sandbox.errors import CallerError, PlatformFault
from sandbox.registry.records import MappingRecord
from sandbox.registry.registry import Registry
from sandbox.sources.poller import Poller, Source, source_of

log = logging.getLogger(__name__)
SETTLED = ("Enabled", "Disabled")
RETRY_S = 5.0
"""Until a state that the disk did not take is written again."""


class _Running:
    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.ended = trio.Event()


class EventSources:
    """Follows the registry. `run` does it; leaving it ends all polling."""

    def __init__(self, registry: Registry, make: Callable[[str, Source], Poller]) -> None:
        self._registry = registry
        self._make = make
        self._running: dict[str, _Running] = {}
        self._followed: set[str] = set()
        self._unreadable: set[str] = set()
        self._news = trio.Event()
        registry.on_change(self._note)

    def _note(self) -> None:
        self._news.set()

    async def run(self) -> None:
        try:
            self._registry.check_writable()
        except (CallerError, PlatformFault) as exc:
            # Whoever holds the state folder polls; what it changes would not be seen here.
            if self._registry.mappings():
                log.warning("event source mappings are not polled by this server: %s", exc)
            return
        async with trio.open_nursery() as nursery:
            while True:
                self._news = trio.Event()
                for mapping in self._registry.mappings():
                    if mapping.name not in self._followed and self._readable(mapping):
                        self._followed.add(mapping.name)
                        nursery.start_soon(self._follow, mapping.name, nursery)
                await self._news.wait()

    def _readable(self, mapping: MappingRecord) -> bool:
        """One that another lambox wrote in another way is left alone, and said once."""
        try:
            _wanted(mapping)
        except (KeyError, IndexError, TypeError, ValueError) as exc:
            if mapping.name not in self._unreadable:
                log.error("event source mapping %s cannot be read: %r", mapping.name, exc)
                self._unreadable.add(mapping.name)
            return False
        return True

    async def _follow(self, name: str, nursery: trio.Nursery) -> None:
        """Until it is as the registry has it; what was being polled is first brought to its end."""
        try:
            while (mapping := self._registry.mapping(name)) and not self._right(mapping):
                source, enabled = _wanted(mapping)
                running = self._running.get(name)
                if running is not None and (not enabled or running.poller.source != source):
                    running.poller.stop()
                    await running.ended.wait()
                    continue  # the mapping may have changed meanwhile
                if enabled and running is None:
                    running = self._running[name] = _Running(self._make(name, source))
                    nursery.start_soon(self._poll, name, running)
                try:
                    await self._settle(mapping)
                except PlatformFault:
                    log.warning("the state of event source mapping %s is not kept yet", name)
                    await trio.sleep(RETRY_S)
        finally:
            self._followed.discard(name)

    def _right(self, mapping: MappingRecord) -> bool:
        source, enabled = _wanted(mapping)
        running = self._running.get(mapping.name)
        polled = running is not None and running.poller.source == source
        return mapping.document["State"] in SETTLED and polled == enabled

    async def _poll(self, name: str, running: _Running) -> None:
        try:
            await running.poller.run()
        finally:
            if self._running.get(name) is running:
                del self._running[name]
            running.ended.set()

    async def _settle(self, mapping: MappingRecord) -> None:
        async with self._registry.edit() as edit:
            now = self._registry.mapping(mapping.name)
            if now != mapping:
                return  # that change is followed next
            state = mapping.document["State"]
            if state == "Deleting":
                edit.drop(mapping)
            elif state not in SETTLED:
                settled = "Enabled" if mapping.document["Enabled"] else "Disabled"
                edit.put(replace(mapping, document={**mapping.document, "State": settled}))


def _wanted(mapping: MappingRecord) -> tuple[Source, bool]:
    document = mapping.document
    enabled = document["Enabled"] and document["State"] != "Deleting"
    return source_of(document, mapping.function, mapping.qualifier), enabled
