"""Owns large request bodies until there is room for them in memory: files without a name, hashed on the way.

A request with code has up to 70 MB, which takes 250 MB while it is read. Nobody has memory for that set aside
before all of it is here: a slow sender waits for the disk alone, and where requests are signed, one that does not
prove itself costs no more than that either. The kernel takes the files away with their descriptors.

A body has a place from its first large piece until it has been read or refused: PLACES of at most 70 MB bound the
disk. When all are taken, the sender that is slowest goes (408), if it has had PATIENT_S; else the newcomer (429).
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

import trio

from runtimeapi.bodies import StreamedBody
from runtimeapi.intake import BODY_TOTAL_S, cut_short, too_large, too_slow
from runtimeapi.ports import BodyTruncated
from sandbox.errors import PlatformFault, TooManyRequests

IN_MEMORY = 256 * 1024
"""Bytes up to which a body needs no file and no place."""
PIECE = 1024 * 1024
"""Bytes written at a time, in a thread."""
PLACES = 16
PATIENT_S = 5.0


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


class _Arrival:
    """One large body on its way."""

    def __init__(self) -> None:
        self.began_at = trio.current_time()
        self.received = 0
        self.scope = trio.CancelScope()
        self.sent_away = False
        self.has_place = False

    def rate(self, now: float) -> float:
        return self.received / max(now - self.began_at, 1e-6)


class Spool:
    """One per face. `folder` is made when it is first needed."""

    def __init__(self, folder: Path, *, places: int = PLACES) -> None:
        self._folder = folder
        self._places = places
        self._taken = 0
        self._arriving: set[_Arrival] = set()

    async def receive(self, body: StreamedBody, *, limit: int, operation: str) -> Spooled:
        """All of it; whoever gets it closes it. Raises CallerError, PlatformFault where the disk is full."""
        if body.expected_bytes is not None and body.expected_bytes > limit:
            body.discard()
            raise too_large(limit, operation)
        arrival = _Arrival()
        with trio.move_on_after(BODY_TOTAL_S), arrival.scope:
            try:
                return await self._receive(body, arrival, limit, operation)
            except BodyTruncated as exc:
                raise cut_short() from exc
        body.discard()
        raise too_slow(
            BODY_TOTAL_S if not arrival.sent_away else trio.current_time() - arrival.began_at
        )

    async def _receive(
        self, body: StreamedBody, arrival: _Arrival, limit: int, operation: str
    ) -> Spooled:
        digest = hashlib.sha256()
        held: list[bytes] = []
        held_bytes = 0
        file: IO[bytes] | None = None
        try:
            async for chunk in body:
                held.append(chunk)
                held_bytes += len(chunk)
                arrival.received += len(chunk)
                if arrival.received > limit:
                    body.discard()
                    raise too_large(limit, operation)
                if held_bytes <= (IN_MEMORY if file is None else PIECE):
                    continue
                if file is None:
                    self._enter(arrival, body)
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
            self._leave(arrival)
            if isinstance(exc, OSError):
                body.discard()
                raise PlatformFault(f"a request's body cannot be kept: {exc}") from exc
            raise
        self._arriving.discard(arrival)
        return Spooled(file, digest.hexdigest(), arrival.received, partial(self._leave, arrival))

    def _open(self) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self._folder)

    def _enter(self, arrival: _Arrival, body: StreamedBody) -> None:
        """Take a place, somebody else's if need be. Raises TooManyRequests."""
        if self._taken >= self._places:
            now = trio.current_time()
            patient = [one for one in self._arriving if now - one.began_at >= PATIENT_S]
            if not patient:
                body.discard()
                raise TooManyRequests("CallerRateLimitExceeded")
            slowest = min(patient, key=lambda one: one.rate(now))
            slowest.sent_away = True
            slowest.scope.cancel()
            self._arriving.discard(slowest)
        self._taken += 1
        arrival.has_place = True
        self._arriving.add(arrival)

    def _leave(self, arrival: _Arrival) -> None:
        if arrival.has_place:
            arrival.has_place = False
            self._taken -= 1
            self._arriving.discard(arrival)


def _keep(file: IO[bytes], digest: hashlib._Hash, pieces: list[bytes]) -> None:
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    file.flush()
