"""Owns all records in memory. Reading is plain Python; changing is one `edit` at a time, on disk when it ends."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import cast

import trio

from sandbox.errors import InvalidRequest, PlatformFault
from sandbox.registry.database import Database, DatabaseProblem, HeldByAnother, Key
from sandbox.registry.records import (
    KINDS,
    FunctionRecord,
    LayerRecord,
    MappingRecord,
    Record,
    kind_of,
    packages,
)
from sandbox.registry.soundness import check

log = logging.getLogger(__name__)


class Registry:
    """Made by `open_registry`."""

    def __init__(self, database: Database, missing: Callable[[Collection[str]], list[str]]) -> None:
        """`missing`: which of these packages the store has not got; it blocks."""
        self._database = database
        self._missing = missing
        self._unread: DatabaseProblem | None = None
        """Why what is on disk is not known: then nothing may be changed."""
        self._all_read = False
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

    @property
    def complete(self) -> bool:
        """All that could be read is in memory: what nothing in here refers to, nothing refers to."""
        return self._all_read

    def packages(self) -> set[str]:
        """Names of all packages in the store that some record refers to."""
        return set().union(*map(packages, self._records.values()))

    def check_writable(self) -> None:
        """Whether changes are taken at all. Raises what `edit` raises if not."""
        try:
            if self._unread is not None:
                raise self._unread
            self._database.check_ours()
        except DatabaseProblem as exc:
            raise _refused(exc) from exc

    @asynccontextmanager
    async def edit(self) -> AsyncIterator[Edit]:
        """Read, decide and `put` with nobody in between; written when the block ends without an exception.

        Raises PlatformFault when the disk does not take it, InvalidRequest when another server holds the state
        folder: then nothing has changed.
        """
        async with self._lock:
            self.check_writable()
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
        await self._check_packages(edit)
        try:
            await self._database.commit(put, drop)
        except DatabaseProblem as exc:
            raise _refused(exc) from exc
        for key, record in edit.changes.items():
            if record is None:
                self._records.pop(key, None)
            else:
                self._records[key] = record
        self.generation += 1
        for listener in self._listeners:
            listener()

    async def _check_packages(self, edit: Edit) -> None:
        """No record may ever name a package that is not there: whoever throws packages away holds an edit, too."""
        new: set[str] = set()
        for key, record in edit.changes.items():
            before = self._records.get(key)
            if record is not None:
                new |= packages(record) - (packages(before) if before is not None else set())
        if new and (gone := await trio.to_thread.run_sync(self._missing, new)):
            log.warning("a change of the Lambda API is refused: no package %s", ", ".join(gone))
            raise InvalidRequest(
                "The code or a layer that this refers to was removed meanwhile. Please try again.",
                code="ResourceConflictException",
                status=409,
            )

    async def load(self) -> None:
        """What the last server left. A row that cannot be read is told and left alone."""
        try:
            rows = await self._database.rows()
        except DatabaseProblem as exc:
            self._unread = exc
            log.error("nothing that the Lambda API has configured can be read: %s", exc)
            return
        self._all_read = True
        if not rows:
            return
        import msgspec

        for key, value in rows.items():
            kind = KINDS.get(key[0])
            try:
                if kind is not None:
                    record = msgspec.json.decode(value, type=kind)
                    check(key[1], record)
                    self._records[key] = record
            except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
                self._all_read = False
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

    def layer(self, name: str) -> LayerRecord | None:
        key = "layer", name
        if key in self.changes:
            return cast("LayerRecord | None", self.changes[key])
        return self._registry.layer(name)

    def put(self, record: Record) -> None:
        self.changes[kind_of(record), record.name] = record

    def drop(self, record: Record) -> None:
        self.changes[kind_of(record), record.name] = None


@asynccontextmanager
async def open_registry(
    database: Database, missing: Callable[[Collection[str]], list[str]] = lambda packages: []
) -> AsyncIterator[Registry]:
    """`missing`: which of these packages the store has not got; it blocks."""
    registry = Registry(database, missing)
    await registry.load()
    yield registry


def _refused(problem: DatabaseProblem) -> InvalidRequest | PlatformFault:
    if isinstance(problem, HeldByAnother):
        message = str(problem)
        return InvalidRequest(
            message[:1].upper() + message[1:], code="ResourceConflictException", status=409
        )
    log.error("a change of the Lambda API is refused: %s", problem)
    return PlatformFault(f"the change cannot be kept: {problem}")


def attached(record: FunctionRecord, feature: str) -> Mapping[str, dict[str, object]]:
    """What is configured of a feature, by qualifier."""
    return record.attached.get(feature, {})
