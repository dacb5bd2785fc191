"""Owns accepted events on disk: one SQLite file per running server, synced before an accept is answered.

A server holds its file locked (SQLite's exclusive locking, which the kernel lets go of however the server
ends). Files that nobody holds are what stopped or killed servers left: the next start takes them over. An
event is deleted when it has ended, so one may run twice but none is lost.

    StoreProblem        the disk does not take it (full, read-only, damaged); nothing was changed
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger(__name__)
MOST_FILES = 64
"""Servers of one folder at a time."""
SIDE_FILES = ("-wal", "-shm", "-journal")


class StoreProblem(Exception):
    """The events could not be written; the message says where and why."""


class EventStore:
    """All methods block and raise StoreProblem; one call at a time, from any thread. Close it."""

    def __init__(self, folder: Path, key: str) -> None:
        """Nothing is opened before something is to be kept. `key`: whose events these are."""
        self._folder = folder
        self._key = key
        self._path: Path | None = None
        self._database: sqlite3.Connection | None = None

    def take_up(self) -> dict[str, str]:
        """Every event that no living server has, by its key; ours from now on."""
        if not self._left():
            return {}
        self._open()
        found = self._rows()
        for path in self._left():
            if path != self._path:
                try:
                    found |= self._take_over(path)
                except StoreProblem as exc:
                    log.error("accepted events are left for the next start: %s", exc)
        return found

    def commit(self, put: Mapping[str, str], drop: Collection[str] = (), *, sync: bool) -> None:
        """Have these, and those no more: all of it or nothing. `sync`: it survives a power cut from here on."""
        import sqlite3  # here: 3 ms at a start that few servers need

        if self._database is None:
            self._open()
        assert self._database is not None
        try:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany("REPLACE INTO events VALUES (?, ?)", put.items())
                self._database.executemany(
                    "DELETE FROM events WHERE key = ?", [(key,) for key in drop]
                )
        except sqlite3.Error as exc:
            raise StoreProblem(f"{self._path}: {exc}") from exc

    def close(self) -> None:
        """Another server may take over what is left. The file stays, however empty: one that goes while another
        server is opening it would take that one's events along."""
        if self._database is not None:
            self._database.close()
            self._database = self._path = None

    def _left(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._key}-*.db"))

    def _open(self) -> None:
        """A file of our own. Payloads are the functions' business: not for other users of the host."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreProblem(f"{self._folder}: {exc.strerror}") from exc
        for number in range(MOST_FILES):
            path = self._folder / f"{self._key}-{number}.db"
            database = _locked(path)
            if database is not None:
                self._path, self._database = path, database
                return
        raise StoreProblem(f"{self._folder}: {MOST_FILES} servers keep events there already")

    def _rows(self) -> dict[str, str]:
        assert self._database is not None
        assert self._path is not None
        found, damage = _read(self._database, self._path)
        if damage is not None:
            path = self._path
            self.close()
            try:
                _put_aside(path, damage)
            except OSError as exc:
                raise StoreProblem(f"{path}: {exc.strerror}") from exc
            self.commit(found, sync=True)
        return found

    def _take_over(self, path: Path) -> dict[str, str]:
        """Somebody else's, if that one is gone."""
        import sqlite3

        database = _locked(path)
        if database is None:
            return {}
        with closing(database):
            rows, damage = _read(database, path)
            self.commit(rows, sync=True)
            if damage is None:
                with suppress(sqlite3.Error):  # then they are found again, under the same keys
                    database.execute("DELETE FROM events")
        if damage is not None:
            with suppress(OSError):  # the same
                _put_aside(path, damage)
        return rows


def _read(database: sqlite3.Connection, path: Path) -> tuple[dict[str, str], Exception | None]:
    """What is in it, and what is wrong with it: then that is what stands before and behind the damage.

    Raises StoreProblem: it cannot be read at all just now.
    """
    import sqlite3

    found: dict[str, str] = {}
    damage: Exception | None = None
    for order in ("ASC", "DESC"):
        try:
            found.update(database.execute(f"SELECT key, event FROM events ORDER BY rowid {order}"))
            break
        except sqlite3.OperationalError as exc:
            raise StoreProblem(f"{path}: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            damage = exc
    return found, damage


def _put_aside(path: Path, damage: Exception) -> None:
    """It may be mended by hand. Nobody has it open. Raises OSError."""
    aside = path.with_suffix(f".damaged-{time.time_ns()}")
    log.error("%s: %s; it is put aside as %s", path, damage, aside.name)
    path.rename(aside)
    for suffix in SIDE_FILES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")


def _locked(path: Path) -> sqlite3.Connection | None:
    """The database at `path`, made if missing; None when another server has it. Raises StoreProblem.

    What is no database is put aside, and said: it may be mended by hand.
    """
    import sqlite3

    try:
        return _connect(path)
    except sqlite3.OperationalError as exc:
        # No subclass tells them apart; SQLite's extended codes have the primary one in their low byte.
        if (exc.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return None
        raise StoreProblem(f"{path}: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        try:
            _put_aside(path, exc)
            return _connect(path)
        except (OSError, sqlite3.Error) as again:
            raise StoreProblem(f"{path}: {again}") from again


def _connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error, StoreProblem."""
    import sqlite3

    try:
        fresh = not path.exists()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if fresh:
            _sync_folder(path.parent)
    except OSError as exc:
        raise StoreProblem(f"{path}: {exc.strerror}") from exc
    database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    # A damaged event is its reader's problem, not that of all others.
    database.text_factory = lambda text: text.decode("utf-8", "replace")
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE IF NOT EXISTS events (key TEXT PRIMARY KEY, event TEXT)")
        database.execute("COMMIT")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
