"""Request bodies between a connection and a handler."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from runtimeapi.bodies import (
    CHUNK_COST,
    HIGH_WATER,
    BodyTooLarge,
    StreamedBody,
    read_all,
    read_off,
)
from runtimeapi.ports import BodyTruncated


async def collect(body: StreamedBody) -> list[bytes]:
    return [chunk async for chunk in body]


@pytest.mark.trio
async def test_chunks_stay_as_they_came() -> None:
    body = StreamedBody()
    for chunk in (b"a", b"", b"bc"):
        await body.feed(chunk)
    body.finish([(b"X-Trailer", b"v")])
    assert await collect(body) == [b"a", b"bc"]
    assert body.trailers == {"x-trailer": "v"}
    assert not body.awaited


@pytest.mark.trio
async def test_a_reader_gets_each_chunk_at_once() -> None:
    body = StreamedBody()
    got: list[bytes] = []

    async def read() -> None:
        async for chunk in body:
            got.append(chunk)  # noqa: PERF401 - one by one is what is tested

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for number, chunk in enumerate((b"one", b"two"), 1):
            await body.feed(chunk)
            await trio.testing.wait_all_tasks_blocked()
            assert len(got) == number
        body.finish()


@pytest.mark.trio
async def test_feeding_waits_for_the_reader() -> None:
    body = StreamedBody()
    fed = 0

    async def feed() -> None:
        nonlocal fed
        for _ in range(10):
            await body.feed(b"x" * HIGH_WATER)
            fed += 1
        body.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        assert fed == 0
        await body.__anext__()
        await trio.testing.wait_all_tasks_blocked()
        assert fed == 1
        assert len(await collect(body)) == 9


@pytest.mark.trio
async def test_tiny_chunks_cost_more_than_their_bytes() -> None:
    body = StreamedBody()

    async def feed() -> None:
        for _ in range(HIGH_WATER):
            await body.feed(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        assert len(body._chunks) <= HIGH_WATER // CHUNK_COST
        nursery.cancel_scope.cancel()


@pytest.mark.trio
@pytest.mark.parametrize("way_out", ["discard", "break_off"])
async def test_a_feeder_is_freed(way_out: str) -> None:
    body = StreamedBody()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.feed, b"x" * 2 * HIGH_WATER)
        await trio.testing.wait_all_tasks_blocked()
        getattr(body, way_out)()


@pytest.mark.trio
async def test_truncation_comes_after_what_did_arrive() -> None:
    body = StreamedBody()
    await body.feed(b"part")
    body.break_off()
    assert await body.__anext__() == b"part"
    for _ in range(2):
        with pytest.raises(BodyTruncated):
            await body.__anext__()
    assert body.cut_short


@pytest.mark.trio
async def test_a_discarded_body_is_empty_and_swallows() -> None:
    body = StreamedBody()
    await body.feed(b"held")
    body.discard()
    await body.feed(b"x" * 10 * HIGH_WATER)
    assert await collect(body) == []
    body.break_off()
    assert not body.cut_short


@pytest.mark.trio
async def test_read_all_joins() -> None:
    body = StreamedBody()
    await body.feed(b"a")
    await body.feed(b"b")
    body.finish()
    assert await read_all(body, 2) == b"ab"


@pytest.mark.trio
@pytest.mark.parametrize(("read", "most"), [(read_all, 3), (read_off, 1)])
async def test_pieces_are_not_kept(
    read: Callable[[StreamedBody, int], Awaitable[object]], most: int
) -> None:
    """Of 6 MB in chunks of a byte each they were 300 MB."""
    body, count = StreamedBody(), 300_000
    tracemalloc.start()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, body, 2 * count)
            for number in range(count):
                await body.feed(b"%02d" % (number % 100))
            body.finish()
        # Besides: what waits for the reader.
        assert tracemalloc.get_traced_memory()[1] < most * 2 * count + 2 * HIGH_WATER
    finally:
        tracemalloc.stop()


@pytest.mark.trio
async def test_read_all_refuses_by_content_length() -> None:
    body = StreamedBody(expected_content_length=11)
    with pytest.raises(BodyTooLarge):
        await read_all(body, 10)
    assert not body.awaited


@pytest.mark.trio
async def test_read_all_refuses_when_it_goes_over() -> None:
    body = StreamedBody()
    await body.feed(b"x" * 11)
    with pytest.raises(BodyTooLarge):
        await read_all(body, 10)
    assert not body.awaited


def test_repr_shows_state() -> None:
    body = StreamedBody()
    assert repr(body) == "<StreamedBody arriving, 0 held>"
    body.discard()
    body.break_off()
    assert repr(body) == "<StreamedBody broken, 0 held, discarding>"
