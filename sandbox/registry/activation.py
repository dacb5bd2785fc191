"""Owns the way from Pending to Active and from InProgress to Successful, or to Failed (SPEC 10.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from sandbox.registry.records import FunctionRecord, VersionRecord
from sandbox.registry.registry import Registry
from sandbox.registry.resolving import AllFunctions, NotReady


class Activator:
    """Makes the newest code and configuration of a function ready, and says so in its record."""

    def __init__(
        self, registry: Registry, functions: AllFunctions, new_id: Callable[[], str]
    ) -> None:
        self._registry = registry
        self._functions = functions
        self._new_id = new_id

    async def activate(self, name: str) -> None:
        """Nothing happens if the function went or changed meanwhile: that change has its own activation."""
        record = self._registry.function(name)
        if record is None or record.latest is None:
            return
        latest = record.latest
        problem = await trio.to_thread.run_sync(self._functions.prepare, record, latest)
        async with self._registry.edit() as edit:
            now = edit.function(name)
            if not _same(record, now):
                return
            assert now is not None
            assert now.latest is not None
            edit.put(replace(now, latest=self._settled(now.latest, problem)))

    async def finish(self) -> None:
        """At the start: what a killed server left in the middle of a change."""
        for record in self._registry.functions():
            latest = record.latest
            if latest is not None and "InProgress" in (latest.last_update_status, _pending(latest)):
                await self.activate(record.name)

    def _settled(self, latest: VersionRecord, problem: NotReady | None) -> VersionRecord:
        """A failed update leaves an Active function Active, as AWS does: only its LastUpdateStatus tells."""
        created = latest.state == "Pending"
        if problem is None:
            return replace(
                latest,
                revision_id=self._new_id(),
                state="Active",
                state_reason=None,
                state_reason_code=None,
                last_update_status="Successful",
                last_update_status_reason=None,
                last_update_status_reason_code=None,
            )
        message = problem.error.message
        failed = replace(
            latest,
            revision_id=self._new_id(),
            last_update_status="Failed",
            last_update_status_reason=message,
            last_update_status_reason_code=problem.code,
        )
        if not created:
            return failed
        return replace(failed, state="Failed", state_reason=message, state_reason_code=problem.code)


def _pending(latest: VersionRecord) -> str:
    return "InProgress" if latest.state == "Pending" else ""


def _same(before: FunctionRecord, now: FunctionRecord | None) -> bool:
    return (
        now is not None
        and now.latest is not None
        and before.latest is not None
        and now.birth == before.birth
        and now.latest.identity == before.latest.identity
    )
