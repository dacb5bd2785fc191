"""runtimeapi.spool: large bodies wait on the disk, and a slow sender for nobody else's sake."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from runtimeapi.bodies import StreamedBody
from runtimeapi.control import model
from runtimeapi.control.face import CARRY_CODE, code_carrier
from runtimeapi.room import PATIENT_S
from runtimeapi.spool import IN_MEMORY, PIECE, Spool, Spooled
from sandbox.errors import CallerError, PlatformFault, TooManyRequests

LIMIT = 10_000_000


class Sender:
    """One body on its way into a spool."""

    def __init__(self, spool: Spool, nursery: trio.Nursery, told: int | None = None) -> None:
        self.body = StreamedBody(told)
        self.got: Spooled | None = None
        self.error: Exception | None = None
        self.done = trio.Event()
        nursery.start_soon(self._run, spool)

    async def _run(self, spool: Spool) -> None:
        try:
            self.got = await spool.receive(self.body, limit=LIMIT, operation="CreateFunction")
        except Exception as exc:
            self.error = exc
        self.done.set()

    async def send(self, size: int) -> None:
        """Returns when all of it has been taken."""
        await self.body.feed(b"x" * size)
        while self.body._held and not self.done.is_set():
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()

    async def end(self) -> Spooled:
        self.body.finish()
        await self.done.wait()
        assert self.got is not None, self.error
        return self.got

    def refusal(self) -> CallerError:
        assert isinstance(self.error, CallerError), self.error
        return self.error


async def test_small_bodies_need_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    async with trio.open_nursery() as nursery:
        sender = Sender(Spool(folder, places=0), nursery)
        await sender.send(IN_MEMORY - 1000)
        got = await sender.end()
    data = got.read()
    assert got.sha256 == hashlib.sha256(data).hexdigest()
    assert (got.size, len(data), folder.exists()) == (IN_MEMORY - 1000, IN_MEMORY - 1000, False)
    got.close()


async def test_a_large_body_is_kept_and_hashed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", places=1)
    async with trio.open_nursery() as nursery:
        for _ in range(2):  # the place is free again
            sender = Sender(spool, nursery)
            for size in (IN_MEMORY, 300_000, 3_000_000, 1):
                await sender.send(size)
            got = await sender.end()
            assert list((tmp_path / "spool").iterdir()) == []  # it has no name
            data = got.read()
            assert data == b"x" * (IN_MEMORY + 3_300_001)
            assert (got.size, got.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            got.close()
            got.close()


async def test_what_is_too_large_is_refused_by_its_head_or_when_it_is(tmp_path: Path) -> None:
    spool = Spool(tmp_path, places=1)
    async with trio.open_nursery() as nursery:
        told = Sender(spool, nursery, LIMIT + 1)
        await told.done.wait()
        untold = Sender(spool, nursery)
        await untold.send(LIMIT)
        await untold.send(1)
        await untold.done.wait()
    for sender in (told, untold):
        assert (sender.refusal().status, sender.refusal().message) == (
            413,
            "Request must be smaller than 10000000 bytes for the CreateFunction operation",
        )
        assert not sender.body.awaited


async def test_the_slowest_goes_when_all_places_are_taken(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    # It jumps when told alone: files are written by real threads.
    spool = Spool(tmp_path, places=2)
    async with trio.open_nursery() as nursery:
        slow, fast, third = (Sender(spool, nursery) for _ in range(3))
        await slow.send(IN_MEMORY + 1)
        await fast.send(3_000_000)
        await third.send(IN_MEMORY + 1)
        # Nobody has had his time.
        assert isinstance(third.error, TooManyRequests)
        mock_clock.jump(PATIENT_S)
        await fast.send(100)
        fourth = Sender(spool, nursery)
        await fourth.send(IN_MEMORY + 1)
        await slow.done.wait()
        assert (slow.refusal().status, slow.refusal().code) == (408, "RequestTimeoutException")
        assert slow.refusal().message == "The request body did not arrive within 5 seconds."
        for sender in (fast, fourth):
            (await sender.end()).close()
        # One that is here and waits is not sent away.
        kept = []
        for sender in (Sender(spool, nursery), Sender(spool, nursery)):
            await sender.send(IN_MEMORY + 1)
            kept.append(await sender.end())
        mock_clock.jump(PATIENT_S)
        late = Sender(spool, nursery)
        await late.send(IN_MEMORY + 1)
        assert isinstance(late.error, TooManyRequests)
        for got in kept:
            got.close()


async def test_a_peer_that_goes_leaves_no_place_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path, places=1)
    async with trio.open_nursery() as nursery:
        gone = Sender(spool, nursery)
        await gone.send(IN_MEMORY + 1)
        gone.body.break_off()
        await gone.done.wait()
        assert gone.refusal().message == "The request body ended before it was complete."
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                cancelled = Sender(spool, inner)
                await cancelled.send(IN_MEMORY + 1)
                scope.cancel()
        last = Sender(spool, nursery)
        await last.send(IN_MEMORY + 1)
        (await last.end()).close()


async def test_a_disk_that_takes_nothing_is_our_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file" / "spool", places=1)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            sender = Sender(spool, nursery)
            await sender.send(IN_MEMORY + 1)
            await sender.done.wait()
            assert isinstance(sender.error, PlatformFault)


async def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    spool = Spool(tmp_path, places=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with trio.open_nursery() as nursery:
        full = Sender(spool, nursery)
        await full.send(IN_MEMORY + 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (IN_MEMORY, limits[1]))
        try:
            await full.send(PIECE + 1)
            await full.done.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert isinstance(full.error, PlatformFault)
        after = Sender(spool, nursery)
        await after.send(IN_MEMORY + 1)
        (await after.end()).close()


def test_operations_with_code_are_known_without_the_model() -> None:
    found, with_package = set(), set()
    for operation in model.load().operations:
        uri = operation.http["requestUri"].replace("{FunctionName}", "arn%3Aaws")
        uri = uri.replace("{LayerName}", "arn%3Aaws")
        told = code_carrier(operation.http["method"], uri)
        assert told in (None, operation.name)
        assert code_carrier(operation.http["method"], uri.rstrip("/") + "/") == told
        if told is not None:
            found.add(told)
        shape = operation.input_shape
        members = {} if shape is None else shape.members
        inner = [one.members for one in members.values() if one.type_name == "structure"]
        if any("ZipFile" in one for one in (members, *inner)):
            with_package.add(operation.name)
    assert found == set(CARRY_CODE) == with_package
