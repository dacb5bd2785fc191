"""Owns large request bodies until there is room for them in memory: files without a name, hashed on the way.

A request with code has up to 70 MB, which takes 250 MB while it is read. Nobody has memory for that set aside
before all of it is here: a slow sender waits for the disk alone, and where requests are signed, one that does not
prove itself costs no more than that either. The kernel takes the files away with their descriptors.

A body has a place (`room.py`) from its first large piece until it has been read or refused: PLACES of at most 70 MB
bound the disk. When all are taken, the sender that is slowest goes (408), if it has had PATIENT_S; else the newcomer
(429).
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import trio

from runtimeapi.bodies import StreamedBody
from runtimeapi.intake import BODY_TOTAL_S, cut_short, too_large, too_slow
from runtimeapi.ports import BodyTruncated
from runtimeapi.room import Place, Room
from sandbox.errors import PlatformFault, TooManyRequests

IN_MEMORY = 256 * 1024
"""Bytes up to which a body needs no file and no place."""
PIECE = 1024 * 1024
"""Bytes written at a time, in a thread."""
PLACES = 16


class Spooled:
    """A body that is here as a whole."""

    def __init__(self, file: IO[bytes], sha256: str, size: int, left: Callable[[], None]) -> None:
        self._file = file
        self._left = left
        self.sha256 = sha256
        """In hex."""
        self.size = size

    def read(self) -> bytes:
        """Blocks. Once only."""
        self._file.seek(0)
        data = self._file.read()
        self._file.close()
        return data

    def close(self) -> None:
        """Nobody wants it, or it has been read."""
        self._file.close()
        self._left()


class Spool:
    """One per face. `folder` is made when it is first needed."""

    def __init__(self, folder: Path, *, places: int = PLACES) -> None:
        self._folder = folder
        self._room = Room(places)

    async def receive(self, body: StreamedBody, *, limit: int, operation: str) -> Spooled:
        """All of it; whoever gets it closes it. Raises CallerError, PlatformFault where the disk is full."""
        if body.expected_bytes is not None and body.expected_bytes > limit:
            body.discard()
            raise too_large(limit, operation)
        place = Place(self._room)
        with trio.move_on_after(BODY_TOTAL_S), place.arriving():
            try:
                return await self._receive(body, place, limit, operation)
            except BodyTruncated as exc:
                raise cut_short() from exc
        body.discard()
        raise too_slow(
            BODY_TOTAL_S if not place.sent_away else trio.current_time() - place.began_at
        )

    async def _receive(
        self, body: StreamedBody, place: Place, limit: int, operation: str
    ) -> Spooled:
        digest = hashlib.sha256()
        held: list[bytes] = []
        held_bytes = 0
        file: IO[bytes] | None = None
        try:
            async for chunk in body:
                held.append(chunk)
                held_bytes += len(chunk)
                place.received += len(chunk)
                if place.received > limit:
                    body.discard()
                    raise too_large(limit, operation)
                if held_bytes <= (IN_MEMORY if file is None else PIECE):
                    continue
                if file is None:
                    if not place.take_anyones():
                        body.discard()
                        raise TooManyRequests("CallerRateLimitExceeded")
                    file = await trio.to_thread.run_sync(self._open)
                await trio.to_thread.run_sync(_keep, file, digest, held)
                held, held_bytes = [], 0
            if file is None:
                data = b"".join(held)
                return Spooled(
                    io.BytesIO(data), hashlib.sha256(data).hexdigest(), len(data), lambda: None
                )
            await trio.to_thread.run_sync(_keep, file, digest, held)
        except BaseException as exc:
            if file is not None:
                with suppress(OSError):  # what it still holds does not fit either
                    file.close()
            place.leave()
            if isinstance(exc, OSError):
                body.discard()
                raise PlatformFault(f"a request's body cannot be kept: {exc}") from exc
            raise
        return Spooled(file, digest.hexdigest(), place.received, place.leave)

    def _open(self) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)


def _keep(file: IO[bytes], digest: hashlib._Hash, pieces: list[bytes]) -> None:
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    file.flush()
