"""Owns which supervisor has which uids: byte N of a file, locked, is the host's uid N.

The locks are those of an open file description (F_OFD_SETLK of fcntl(2)): the kernel lets go of them when the
process is gone, however it went; ranges that overlap in part are told apart; and who shares the file system sees
them from any namespace. The file never has content, and goes with the last who holds something in it; what a
killed supervisor leaves of it is the next one's.

Supervisors that share no file system but a network namespace see each other by an abstract socket per range.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sandbox.confine import privilege

NAME = "lambox-uids"
FLOCK = "hhqqi4x"
"""struct flock of linux/fcntl.h, where off_t has 64 bits: type, whence, start, length, pid."""
log = logging.getLogger(__name__)


class Claim:
    """Uids that nobody else has, until `close`."""

    def __init__(self, held: socket.socket, file: _File | None) -> None:
        self._held = held
        self._file = file

    def close(self) -> None:
        self._held.close()
        if self._file is not None:
            self._file.close()


def claim(uids: range, folder: Path | None) -> Claim | None:
    """None: somebody has some of them. `folder`: of the file; None: there is no place for one. Blocks."""
    file = None
    if folder is not None:
        try:
            file = _File(folder)
            if not file.lock(range(privilege.host_uid(uids[0]), privilege.host_uid(uids[-1]) + 1)):
                file.close()
                return None
        except OSError as exc:
            if file is not None:
                file.close()
            file = None
            log.warning(
                "servers in other network namespaces may take the same uids: %s/%s: %s",
                folder,
                NAME,
                exc.strerror,
            )
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0{NAME}-{privilege.host_uid(uids[0])}")
    except OSError:
        Claim(held, file).close()
        return None
    return Claim(held, file)


def folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where all servers that could take the same uids look, and nobody else may write."""
    if privilege.owns_files():
        return Path("/run")
    own = Path(f"/run/user/{privilege.host_uid()}")
    for path in (Path(environ.get("XDG_RUNTIME_DIR", "")), own):
        if path.is_absolute() and os.access(path, os.W_OK | os.X_OK):
            return path
    base = Path(environ.get("XDG_STATE_HOME", ""))
    home = environ.get("HOME") or os.path.expanduser("~")
    state = (base if base.is_absolute() else Path(home, ".local/state")) / "lambox"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        log.warning("%s: %s; set XDG_RUNTIME_DIR", state, exc.strerror)
        return None
    return state


class _File:
    """The file of locks, there as long as anybody holds one in it."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError. Blocks, for as long as another server makes or removes it."""
        self._path = folder / NAME
        while True:
            self._fd = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            # flock(2) is no lock of fcntl(2): it guards the file's name.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if os.fstat(self._fd).st_nlink:
                return
            os.close(self._fd)

    def lock(self, uids: range) -> bool:
        """False: somebody has some of them. Raises OSError where there are no such locks."""
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(uids.start, len(uids)))
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        # Who is held up by nobody's guard may be about to take something: then the file is his.
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            said = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(0, 0))
            if struct.unpack(FLOCK, said)[0] == fcntl.F_UNLCK:
                self._path.unlink()
        os.close(self._fd)


def _flock(start: int, length: int) -> bytes:
    """`length` 0: up to the end."""
    return struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
