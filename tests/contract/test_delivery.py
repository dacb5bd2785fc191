"""Telemetry on its way to a subscriber, over real sockets: polite ones and others."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from runtimeapi.delivery import MOST_ANSWER, PART_COST, courier
from sandbox.confine.spec import ConfineError
from sandbox.telemetry import Destination, Undelivered

pytestmark = pytest.mark.trio
ITEMS = [b'{"type":"function","record":"one"}', b'{"type":"function","record":"two"}']
Behaviour = Callable[[trio.SocketStream], Awaitable[None]]


async def dial(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


@asynccontextmanager
async def listening(behave: Behaviour) -> AsyncIterator[int]:
    """A subscriber -> its port."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def serve(stream: trio.SocketStream) -> None:
                try:
                    await behave(stream)
                except trio.BrokenResourceError:
                    pass
                finally:
                    await trio.aclose_forcefully(stream)

            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield listener.socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def request(stream: trio.SocketStream) -> bytes:
    """One whole request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


async def test_a_delivery_is_one_post_of_a_json_array() -> None:
    got: list[bytes] = []

    async def polite(stream: trio.SocketStream) -> None:
        got.append(await request(stream))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")

    async with listening(polite) as port:
        to = courier(Destination("HTTP", port, "/logs?a=b"), dial)
        await to.deliver(ITEMS)
        await to.deliver([b"x" * 300_000])
    head, _, body = got[0].partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    assert first == "POST /logs?a=b HTTP/1.1"
    assert f"Host: sandbox.localdomain:{port}" in fields
    assert "Content-Type: application/json" in fields
    assert [one["record"] for one in json.loads(body)] == ["one", "two"]
    assert len(got[1]) > 300_000


async def test_the_logs_api_may_put() -> None:
    got: list[bytes] = []

    async def polite(stream: trio.SocketStream) -> None:
        got.append(await request(stream))
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with listening(polite) as port:
        await courier(Destination("HTTP", port, method="PUT"), dial).deliver(ITEMS)
    assert got[0].startswith(b"PUT / HTTP/1.1\r\n")


async def hang_up(stream: trio.SocketStream) -> None:
    """At once."""


def saying(answer: bytes, times: float = 1) -> Behaviour:
    async def behave(stream: trio.SocketStream) -> None:
        await request(stream)
        sent = 0
        while sent < times:
            await stream.send_all(answer)
            sent += 1

    return behave


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (hang_up, "connection broke|no answer|no HTTP"),
        (saying(b""), "no HTTP|no answer"),
        (saying(b"\x00\xff\r\n\r\n"), "no HTTP"),
        (saying(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"), "HTTP status 500"),
        (saying(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "HTTP status 404"),
        (saying(b"HTTP/1.1 302 Found\r\nLocation: http://a/\r\n\r\n"), "HTTP status 302"),
        (saying(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), "no HTTP"),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 20_000), "no HTTP"),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n", math.inf), "no answer"),
    ],
)
async def test_what_is_no_success_is_no_delivery(behave: Behaviour, said: str) -> None:
    async with listening(behave) as port:
        with pytest.raises(Undelivered, match=said):
            await courier(Destination("HTTP", port), dial).deliver(ITEMS)


async def test_an_answer_in_very_many_parts_is_not_read_to_its_end() -> None:
    """21,000 chunks of a byte, from ten subscribers, kept the event loop busy and a neighbour waiting for 0.2 s."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    count = MOST_ANSWER // PART_COST + 1

    async def parked(stream: trio.SocketStream, answer: bytes) -> None:
        await request(stream)
        await stream.send_all(answer)
        await trio.sleep_forever()

    async with listening(partial(parked, answer=head + b"1\r\nx\r\n" * count)) as port:
        await courier(Destination("HTTP", port), dial).deliver(ITEMS)
    async with listening(partial(parked, answer=b"HTTP/1.1 100 C\r\n\r\n" * count)) as port:
        with pytest.raises(Undelivered, match="no answer"):
            await courier(Destination("HTTP", port), dial).deliver(ITEMS)


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(stream: trio.SocketStream) -> None:
        nonlocal sent
        await request(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65_536)
            sent += 65_536

    async with listening(endless) as port:
        await courier(Destination("HTTP", port), dial).deliver(ITEMS)
    assert sent < 16 * 1024 * 1024 + MOST_ANSWER  # what two sockets' buffers take


async def never(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def drip(stream: trio.SocketStream) -> None:
    await request(stream)
    for byte in b"HTTP/1.1 200 OK\r\n" * 1000:
        await stream.send_all(bytes([byte]))
        await trio.sleep(0.05)


@pytest.mark.parametrize("behave", [never, drip])
@pytest.mark.parametrize("protocol", ["HTTP", "TCP"])
async def test_a_slow_one_can_be_left_any_time(behave: Behaviour, protocol: str) -> None:
    if protocol == "TCP" and behave is drip:
        behave = never  # what it says is not read
    async with listening(behave) as port:
        to = courier(Destination(protocol, port), dial)  # type: ignore[arg-type]
        with trio.move_on_after(0.2) as patience:
            while True:
                await to.deliver([b"x" * 1_000_000])
        assert patience.cancelled_caught
        to.close()


async def test_over_tcp_each_event_is_a_line_and_the_connection_stays() -> None:
    got = b""
    connections = 0

    async def read(stream: trio.SocketStream) -> None:
        nonlocal got, connections
        connections += 1
        async for data in stream:
            got += data

    async with listening(read) as port:
        to = courier(Destination("TCP", port), dial)
        await to.deliver(ITEMS)
        await to.deliver([b'{"type":"function","record":"three"}'])
        while got.count(b"\n") < 3:  # noqa: ASYNC110  the peer is a task of this test
            await trio.sleep(0.001)
        to.close()
    assert [json.loads(line)["record"] for line in got.splitlines()] == ["one", "two", "three"]
    assert connections == 1


async def test_a_tcp_peer_that_went_is_dialled_anew() -> None:
    connections = 0

    async def leave(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1

    async with listening(leave) as port:
        to = courier(Destination("TCP", port), dial)
        while connections < 3:
            with suppress(Undelivered):
                await to.deliver(ITEMS)
            await trio.sleep(0.001)
        to.close()


async def test_a_new_subscription_in_the_middle_of_a_delivery_is_no_trouble_of_the_environments() -> (
    None
):
    said, begun = "", trio.Event()

    async def takes_some(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        begun.set()
        await trio.sleep_forever()

    async with listening(takes_some) as port, trio.open_nursery() as nursery:
        to = courier(Destination("TCP", port), dial)

        async def deliver() -> None:
            nonlocal said
            try:
                await to.deliver([b"x" * 20_000_000])
            except Undelivered as exc:
                said = str(exc)

        nursery.start_soon(deliver)
        await begun.wait()
        to.close()
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert said == "the connection broke"


@pytest.mark.parametrize("protocol", ["HTTP", "TCP"])
async def test_nobody_listens(protocol: str) -> None:
    async with listening(hang_up) as port:
        pass
    to = courier(Destination(protocol, port), dial)  # type: ignore[arg-type]
    with pytest.raises(Undelivered, match=f"cannot connect to port {port}"):
        await to.deliver(ITEMS)

    async def refused(port: int) -> trio.SocketStream:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "trio says more here")

    with pytest.raises(Undelivered, match=f"^cannot connect to port {port}: Connection refused$"):
        await courier(Destination("HTTP", port), refused).deliver(ITEMS)

    async def gone(port: int) -> trio.SocketStream:
        raise ConfineError("the sandbox has ended")

    with pytest.raises(Undelivered, match="the sandbox has ended"):
        await courier(Destination("HTTP", port), gone).deliver(ITEMS)
