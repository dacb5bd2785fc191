"""Owns the file behind the registry: rows (kind, key, JSON) in SQLite, write-ahead log, each commit synced.

One server holds a state folder (flock(2), which the kernel lets go of however the server ends); another one on
the same folder reads what there is when it starts, and may change nothing as long as it lives.

    DatabaseProblem     the disk does not take it or give it; nothing was changed
      HeldByAnother     another server holds the folder
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import apsw

log = logging.getLogger(__name__)
FILE = "lambox.db"
LOCK = "lambox.lock"
"""Its holder may change what is in the folder; holds the holder's pid."""
READERS = "lambox.readers"
"""Locked, shared, by every other server of the folder: while there is one, nothing is thrown away."""
SIDE_FILES = ("-wal", "-shm", "-journal")
SCHEMA = 1
"""PRAGMA user_version of what is written here."""
TABLE = (
    "CREATE TABLE IF NOT EXISTS records (kind TEXT, key TEXT, value BLOB, PRIMARY KEY (kind, key))"
)

Key = tuple[str, str]
"""(kind, key)"""


class DatabaseProblem(Exception):
    """The message says what is wrong with which file, and the mend."""


class HeldByAnother(DatabaseProblem):
    pass


class Database:
    """Made by `open_database`. The file is opened when there is something to read or to write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.folder = folder
        self._lock: int | None = None
        self._reader: int | None = None
        self._connection: apsw.AsyncConnection | None = None

    @property
    def ours(self) -> bool:
        """We hold the folder, and no other server does."""
        return self._lock is not None

    async def rows(self) -> dict[Key, bytes]:
        """Everything there is. A damaged file is put aside, and said; what can still be read of it is kept.

        Raises DatabaseProblem.
        """
        await trio.to_thread.run_sync(self._take_lock)
        if not await trio.to_thread.run_sync(self._there):
            return {}
        import apsw  # here: 45 ms at a start that few servers need

        found: dict[Key, bytes] = {}
        try:
            await self._read(found)
        except (apsw.CorruptError, apsw.NotADBError) as exc:
            if not self.ours:
                raise DatabaseProblem(f"{self.path}: {exc}") from exc
            await self._salvage(found, exc)
        except apsw.Error as exc:
            raise DatabaseProblem(f"{self.path}: {exc}") from exc
        return found

    async def _read(self, found: dict[Key, bytes]) -> None:
        """Into `found`, so that what stands before the damage is there when it raises."""
        connection = await self._opened()
        cursor = await connection.execute("SELECT kind, key, value FROM records ORDER BY rowid")
        async for kind, key, value in cursor:
            found[kind, key] = value
        # A damaged index does not show in a scan, and would have every change refused for ever.
        if (said := await connection.pragma("quick_check", 1)) != "ok":
            import apsw

            raise apsw.CorruptError(said)

    async def _salvage(self, found: dict[Key, bytes], damage: apsw.Error) -> None:
        import apsw

        with suppress(apsw.Error):
            connection = await self._opened()
            backwards = "SELECT kind, key, value FROM records ORDER BY rowid DESC"
            async for kind, key, value in await connection.execute(backwards):
                found[kind, key] = value
        await self._disconnect()
        await trio.to_thread.run_sync(self._mend, found, damage)

    async def commit(self, put: Mapping[Key, bytes], drop: Collection[Key] = ()) -> None:
        """Have these rows, and those no more: all of it or nothing, on disk when this returns.

        Raises DatabaseProblem.
        """
        await trio.to_thread.run_sync(self._take_lock)
        self.check_ours()
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

    def check_ours(self) -> None:
        """Raises HeldByAnother."""
        if self._reader is not None:
            raise HeldByAnother(
                f"the state folder {self.folder} is held by another lambox{_holder(self.folder)}, so nothing can be "
                "changed here. Hint: ask that one; or give this one a folder of its own: lambox serve --state DIR"
            )

    def damaged(self) -> list[Path]:
        """Files that were put aside and that nobody has taken away."""
        return sorted(self.folder.glob(f"{self.path.stem}.damaged-*"))

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other server reads the folder; none can begin to inside. Blocks for as long as opening a file."""
        if not self.ours:
            yield False
            return
        fd = os.open(self.folder / READERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    async def _opened(self) -> apsw.AsyncConnection:
        if self._connection is not None:
            return self._connection
        import apsw
        import apsw.aio

        apsw.async_controller.set(apsw.aio.Trio)  # type: ignore[arg-type]  # as its own examples do
        flags = apsw.SQLITE_OPEN_READONLY
        if self.ours:
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            await trio.to_thread.run_sync(self._make_file)
        # Cancelled half-way, nobody would have the connection, and its thread would keep the process from ending.
        with trio.CancelScope(shield=True):
            connection = await apsw.Connection.as_async(str(self.path), flags)
        try:
            await connection.execute("PRAGMA busy_timeout = 2000")
            await self._prepare(connection)
        except BaseException:
            with trio.CancelScope(shield=True):
                await connection.aclose()
            raise
        self._connection = connection
        return connection

    def _make_file(self) -> None:
        """Environment variables will be in it: not for other users of the host. SQLite's side files get its mode."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, 0o600)
            finally:
                os.close(fd)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise DatabaseProblem(f"{self.path}: {exc.strerror}") from exc

    async def _prepare(self, connection: apsw.AsyncConnection) -> None:
        found: int = await connection.pragma("user_version")
        if found > SCHEMA:
            raise DatabaseProblem(
                f"{self.path} was written by a newer lambox (schema {found}, known here: {SCHEMA}). "
                "Hint: upgrade lambox, or start with another --state"
            )
        if not self.ours:
            return
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        async with connection:
            await connection.execute(TABLE)
            await connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _there(self) -> bool:
        """A server that was killed between the two renames of `_mend` has left the second to us."""
        if not self.path.exists() and self.ours and self._mended.exists():
            self._mended.rename(self.path)
        return self.path.exists()

    @property
    def _mended(self) -> Path:
        return self.path.with_suffix(".mended")

    def _mend(self, found: Mapping[Key, bytes], damage: Exception) -> None:
        """What could be read is on disk before the file that it was read from goes. Raises DatabaseProblem."""
        import sqlite3

        try:
            self._mended.unlink(missing_ok=True)
            if found:
                os.close(os.open(self._mended, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                with closing(sqlite3.connect(self._mended)) as database, database:
                    database.execute("PRAGMA synchronous = FULL")
                    database.execute(TABLE)
                    rows = [(*key, value) for key, value in found.items()]
                    database.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)
                    database.execute(f"PRAGMA user_version = {SCHEMA}")
        except (OSError, sqlite3.Error) as exc:
            raise DatabaseProblem(f"{self._mended}: {exc}") from exc
        self._put_aside(damage)
        if self._there():
            log.error("%s: %d records could be read and are kept", self.path, len(found))

    def _put_aside(self, damage: Exception) -> None:
        """It may be mended by hand. Nobody has it open. Raises DatabaseProblem."""
        aside = self.path.with_suffix(f".damaged-{time.time_ns()}")
        log.error(
            "%s: %s; it is put aside as %s. Until that is taken away, no code is removed from the store",
            self.path,
            damage,
            aside.name,
        )
        try:
            self.path.rename(aside)
            for suffix in SIDE_FILES:
                with suppress(FileNotFoundError):
                    Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        except OSError as exc:
            raise DatabaseProblem(f"{self.path}: {exc.strerror}") from exc

    def _take_lock(self) -> None:
        """Once: a server that found the folder held has read what may be out of date when it is let go."""
        if self._lock is not None or self._reader is not None:
            return
        try:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise DatabaseProblem(f"{self.folder}: {exc.strerror}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            self._reader = self._be_reader()
        else:
            self._lock = fd
            with suppress(OSError):  # it is for people only
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _be_reader(self) -> int:
        try:
            fd = os.open(self.folder / READERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise DatabaseProblem(f"{self.folder / READERS}: {exc.strerror}") from exc
        fcntl.flock(fd, fcntl.LOCK_SH)  # waits for as long as the holder throws something away
        return fd

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with trio.CancelScope(shield=True):
                await connection.aclose()

    async def close(self) -> None:
        await self._disconnect()
        for fd in (self._lock, self._reader):
            if fd is not None:
                os.close(fd)
        self._lock = self._reader = None


def _holder(folder: Path) -> str:
    try:
        text = (folder / LOCK).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return f" (pid {text})" if text.isdigit() else ""


@asynccontextmanager
async def open_database(folder: Path) -> AsyncIterator[Database]:
    database = Database(folder)
    try:
        yield database
    finally:
        with trio.CancelScope(shield=True):
            await database.close()
