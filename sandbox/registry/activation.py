"""Owns the way from Pending to Active and from InProgress to Successful, or to Failed (SPEC 10.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import trio

from sandbox.function import FunctionVersion
from sandbox.registry.records import FunctionRecord, VersionRecord
from sandbox.registry.registry import Registry
from sandbox.registry.resolving import AllFunctions, NotReady, Ready


class Activator:
    """Makes the newest code and configuration of a function ready, and says so in its record."""

    def __init__(
        self, registry: Registry, functions: AllFunctions, new_id: Callable[[], str]
    ) -> None:
        self._registry = registry
        self._functions = functions
        self._new_id = new_id

    async def activate(self, name: str) -> None:
        """What went or changed meanwhile is left alone: that change has its own activation."""
        record = self._registry.function(name)
        if record is None:
            return
        found = {
            version.version: await self._make(record, version)
            for version in _versions(record)
            if version.unsettled
        }
        await self._settle(record, found)

    async def make_ready(self, record: FunctionRecord, version: VersionRecord) -> None:
        """A version that is about to be published: it runs as soon as it is in the registry."""
        ready = await self._make(record, version)
        self._functions.keep_ready(record, version, ready)

    async def _make(self, record: FunctionRecord, version: VersionRecord) -> Ready:
        return await trio.to_thread.run_sync(self._functions.make, record, version)

    async def retry(self) -> None:
        """At the start: what had failed runs if this host has by now what was missing."""
        for record in self._registry.functions():
            mended = {
                version.version: ready
                for version in _versions(record)
                if "Failed" in (version.state, version.last_update_status)
                and isinstance(ready := self._functions.ready(record, version), FunctionVersion)
            }
            await self._settle(record, mended)

    async def finish(self) -> None:
        """At the start: what a killed server left in the middle of a change."""
        for record in self._registry.functions():
            await self.activate(record.name)

    async def _settle(self, before: FunctionRecord, found: Mapping[str, Ready]) -> None:
        if not found:
            return
        async with self._registry.edit() as edit:
            now = edit.function(before.name)
            if now is None or now.birth != before.birth:
                return
            was = {version.version: version.identity for version in _versions(before)}
            for version in list(_versions(now)):
                ready = found.get(version.version)
                if ready is not None and was[version.version] == version.identity:
                    self._functions.keep_ready(now, version, ready)
                    now = now.with_version(self._settled(version, ready))
            edit.put(now)

    def _settled(self, version: VersionRecord, ready: Ready) -> VersionRecord:
        """A failed update leaves an Active function Active, as AWS does: only its LastUpdateStatus tells."""
        revision_id = self._new_id()
        if not isinstance(ready, NotReady):
            return replace(
                version,
                revision_id=revision_id,
                state="Active",
                state_reason=None,
                state_reason_code=None,
                last_update_status="Successful",
                last_update_status_reason=None,
                last_update_status_reason_code=None,
            )
        message = ready.error.message
        failed = replace(
            version,
            revision_id=revision_id,
            last_update_status="Failed",
            last_update_status_reason=message,
            last_update_status_reason_code=ready.code,
        )
        if version.state == "Active":
            return failed
        return replace(failed, state="Failed", state_reason=message, state_reason_code=ready.code)


def _versions(record: FunctionRecord) -> Iterator[VersionRecord]:
    if record.latest is not None:
        yield record.latest
    yield from record.versions.values()
