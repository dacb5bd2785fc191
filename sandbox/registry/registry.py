"""Owns all records in memory. Reading is plain Python; changing is one `edit` at a time, on disk when it ends."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import cast

import trio

from sandbox.errors import PlatformFault
from sandbox.registry.database import Database, DatabaseProblem, Key
from sandbox.registry.records import (
    KINDS,
    FunctionRecord,
    LayerRecord,
    MappingRecord,
    Record,
    kind_of,
)

log = logging.getLogger(__name__)


class Registry:
    """Made by `open_registry`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records: dict[Key, Record] = {}
        self._lock = trio.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.generation = 0
        """Grows with every change."""

    def function(self, name: str) -> FunctionRecord | None:
        return cast("FunctionRecord | None", self._records.get(("function", name)))

    def functions(self) -> list[FunctionRecord]:
        return [record for record in self._records.values() if isinstance(record, FunctionRecord)]

    def layer(self, name: str) -> LayerRecord | None:
        return cast("LayerRecord | None", self._records.get(("layer", name)))

    def layers(self) -> list[LayerRecord]:
        return [record for record in self._records.values() if isinstance(record, LayerRecord)]

    def mapping(self, name: str) -> MappingRecord | None:
        return cast("MappingRecord | None", self._records.get(("mapping", name)))

    def mappings(self) -> list[MappingRecord]:
        return [record for record in self._records.values() if isinstance(record, MappingRecord)]

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called after every change, in the middle of the caller's work: it only takes note."""
        self._listeners.append(listener)

    @asynccontextmanager
    async def edit(self) -> AsyncIterator[Edit]:
        """Read, decide and `put` with nobody in between; written when the block ends without an exception.

        Raises PlatformFault when the disk does not take it: then nothing has changed.
        """
        async with self._lock:
            edit = Edit(self)
            yield edit
            await self._commit(edit)

    async def _commit(self, edit: Edit) -> None:
        if not edit.changes:
            return
        import msgspec

        put = {
            key: msgspec.json.encode(record)
            for key, record in edit.changes.items()
            if record is not None
        }
        drop = [key for key, record in edit.changes.items() if record is None]
        try:
            await self._database.commit(put, drop)
        except DatabaseProblem as exc:
            log.error("a change of the Lambda API is refused: %s", exc)
            raise PlatformFault(f"the change cannot be kept: {exc}") from exc
        for key, record in edit.changes.items():
            if record is None:
                self._records.pop(key, None)
            else:
                self._records[key] = record
        self.generation += 1
        for listener in self._listeners:
            listener()

    async def load(self) -> None:
        """What the last server left. A row that cannot be read is told and left alone."""
        try:
            rows = await self._database.rows()
        except DatabaseProblem as exc:
            log.error("nothing that the Lambda API has configured can be read: %s", exc)
            return
        if not rows:
            return
        import msgspec

        for key, value in rows.items():
            kind = KINDS.get(key[0])
            try:
                if kind is not None:
                    self._records[key] = msgspec.json.decode(value, type=kind)
            except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
                log.error("%s: the %s %s cannot be read: %s", self._database.path, *key, exc)
        if not self._database.ours:
            log.warning(
                "%s is held by another lambox: what its Lambda API has configured is seen as it is now, and "
                "cannot be changed here. Hint: lambox serve --state DIR",
                self._database.path.parent,
            )


class Edit:
    """The records as they will be. Only inside `Registry.edit`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.changes: dict[Key, Record | None] = {}

    def function(self, name: str) -> FunctionRecord | None:
        key = "function", name
        if key in self.changes:
            return cast("FunctionRecord | None", self.changes[key])
        return self._registry.function(name)

    def put(self, record: Record) -> None:
        self.changes[kind_of(record), record.name] = record

    def drop(self, record: Record) -> None:
        self.changes[kind_of(record), record.name] = None


@asynccontextmanager
async def open_registry(database: Database) -> AsyncIterator[Registry]:
    registry = Registry(database)
    await registry.load()
    yield registry


def attached(record: FunctionRecord, feature: str) -> Mapping[str, dict[str, object]]:
    """What is configured of a feature, by qualifier."""
    return record.attached.get(feature, {})
