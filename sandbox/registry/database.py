"""Owns the file behind the registry: rows (kind, key, JSON) in SQLite, write-ahead log, each commit synced.

One server holds a state folder (flock(2), which the kernel lets go of however the server ends); a second
one on the same folder reads what there is and may change nothing.

    DatabaseProblem     the disk does not take or give it, or another server holds it; nothing was changed
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import apsw

log = logging.getLogger(__name__)
FILE = "lambox.db"
LOCK = "lambox.lock"
SCHEMA = 1
"""PRAGMA user_version of what is written here."""

Key = tuple[str, str]
"""(kind, key)"""


class DatabaseProblem(Exception):
    """The message says what is wrong with which file, and the mend."""


class Database:
    """Made by `open_database`. The file is opened when there is something to read or to write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._folder = folder
        self._lock: int | None = None
        self._connection: apsw.AsyncConnection | None = None

    @property
    def ours(self) -> bool:
        """No other server holds the folder."""
        return self._lock is not None

    async def rows(self) -> dict[Key, bytes]:
        """Everything there is. Raises DatabaseProblem."""
        await trio.to_thread.run_sync(self._take_lock)
        if not self.path.exists():
            return {}
        import apsw  # here: 45 ms at a start that few servers need

        try:
            connection = await self._opened()
            cursor = await connection.execute("SELECT kind, key, value FROM records ORDER BY rowid")
            return {(kind, key): value async for kind, key, value in cursor}
        except apsw.Error as exc:
            raise DatabaseProblem(f"{self.path}: {exc}") from exc

    async def commit(self, put: Mapping[Key, bytes], drop: Collection[Key] = ()) -> None:
        """Have these rows, and those no more: all of it or nothing, on disk when this returns.

        Raises DatabaseProblem.
        """
        await trio.to_thread.run_sync(self._take_lock)
        if not self.ours:
            raise DatabaseProblem(
                f"{self._folder} is held by another lambox. Hint: lambox serve --state DIR"
            )
        import apsw

        try:
            connection = await self._opened()
            # Not half of it: a caller that goes away in the middle must not leave a transaction open.
            with trio.CancelScope(shield=True):
                async with connection:
                    await connection.executemany(
                        "REPLACE INTO records VALUES (?, ?, ?)",
                        [(*key, value) for key, value in put.items()],
                    )
                    await connection.executemany(
                        "DELETE FROM records WHERE kind = ? AND key = ?", list(drop)
                    )
        except apsw.Error as exc:
            raise DatabaseProblem(f"{self.path}: {exc}") from exc

    async def _opened(self) -> apsw.AsyncConnection:
        if self._connection is not None:
            return self._connection
        import apsw
        import apsw.aio

        apsw.async_controller.set(apsw.aio.Trio)  # type: ignore[arg-type]  # as its own examples do
        readonly = not self.ours
        flags = (
            apsw.SQLITE_OPEN_READONLY
            if readonly
            else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        )
        if not readonly:
            # Environment variables are in it: not for other users of the host.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = await apsw.Connection.as_async(str(self.path), flags)
        try:
            await connection.execute("PRAGMA busy_timeout = 2000")
            if not readonly:
                await self._prepare(connection)
        except BaseException:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            raise
        self._connection = connection
        return connection

    async def _prepare(self, connection: apsw.AsyncConnection) -> None:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        found: int = await connection.pragma("user_version")
        if found > SCHEMA:
            raise DatabaseProblem(
                f"{self.path} was written by a newer lambox (schema {found}, known here: {SCHEMA}). "
                "Hint: upgrade lambox, or start with another --state"
            )
        async with connection:
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS records "
                "(kind TEXT, key TEXT, value BLOB, PRIMARY KEY (kind, key))"
            )
            await connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        try:
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise DatabaseProblem(f"{self._folder}: {exc.strerror}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
        else:
            self._lock = fd

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@asynccontextmanager
async def open_database(folder: Path) -> AsyncIterator[Database]:
    database = Database(folder)
    try:
        yield database
    finally:
        with trio.CancelScope(shield=True):
            await database.close()
