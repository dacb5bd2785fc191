"""Serving itself: sockets come and go, stopping, grace, peers that stand still, nothing left
behind."""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from quart import Response

from runtimeapi.app import FaceApp, respond
from runtimeapi.connection import FaceConfig
from runtimeapi.lanes import runtime_lane
from runtimeapi.rapi import make_rapi_app
from runtimeapi.server import ServedApp, caller_config, environment_config, running_app, serve_app
from tests.contract.fakes import FakeEnvironment, event, listening
from tests.contract.wire import Wire, ask, connect, head

OUT_OF_SOMETHING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
PING = "/2018-06-01/ping"
NEXT = "/2018-06-01/runtime/invocation/next"
RESPONSE = "/2018-06-01/runtime/invocation/1/response"


@pytest.fixture(params=[None, runtime_lane], ids=["quart", "fast"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[ServedApp]:
    with trio.fail_after(20):
        async with running_app(make_rapi_app(), environment_config(), request.param) as app:
            yield app


async def settled() -> tuple[int, int]:
    """(tasks, descriptors) once everything is quiet."""
    await trio.testing.wait_all_tasks_blocked(0.02)
    return trio.lowlevel.current_statistics().tasks_living, len(os.listdir("/proc/self/fd"))


@pytest.mark.trio
async def test_sockets_come_and_go_on_one_app(served: ServedApp) -> None:
    before = await settled()
    for _ in range(5):
        sock = listening()
        address = sock.getsockname()
        async with trio.open_nursery() as nursery:
            await nursery.start(served.serve, sock, {"environment": FakeEnvironment()})
            assert (await ask(address, "GET", PING)).status == 200
            nursery.cancel_scope.cancel()
        with pytest.raises(OSError, match="all attempts to connect"):
            await connect(address)
    assert await settled() == before


@pytest.mark.trio
async def test_connections_that_end_leave_nothing_behind(served: ServedApp) -> None:
    """There is no idle timeout towards environments, so nothing else would ever clean up."""
    sock, face = listening(), FakeEnvironment()
    address = sock.getsockname()
    async with trio.open_nursery() as nursery:
        await nursery.start(served.serve, sock, {"environment": face})
        before = await settled()
        for _ in range(10):
            await ask(address, "GET", PING)  # idle after a request
            (await connect(address)).stream.socket.close()  # before any
            async with await connect(address) as wire:  # parked
                await wire.send(head("GET", NEXT, {}))
            async with await connect(address) as wire:  # inside a body, refused or not
                await wire.send(head("POST", RESPONSE, {"Content-Length": "9"}) + b"x")
        assert await settled() == before
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_who_goes_while_it_is_looked_at_is_not_heard(served: ServedApp) -> None:
    """Its address could be another's by then, who was found there in its place."""
    sock, face = listening(), FakeEnvironment()
    wire = await connect(sock.getsockname())
    await wire.send(head("GET", NEXT, {}))
    looked = trio.Event()

    def admits(peer: tuple[str, int]) -> bool:
        # Reset: no TIME_WAIT keeps its port, and what it has sent can be read all the same.
        reset = struct.pack("=ii", 1, 0)
        wire.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        wire.stream.socket.close()
        looked.set()
        return True

    async with trio.open_nursery() as nursery:
        serve = functools.partial(served.serve, admits=admits)
        await nursery.start(serve, sock, {"environment": face})
        await looked.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not face.parked.is_set()
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_stopping_closes_parked_connections(served: ServedApp) -> None:
    sock, face = listening(), FakeEnvironment()
    async with await connect(sock.getsockname()) as wire:
        async with trio.open_nursery() as nursery:
            await nursery.start(served.serve, sock, {"environment": face})
            await wire.send(head("GET", NEXT, {}))
            await face.parked.wait()
            nursery.cancel_scope.cancel()
        assert await wire.stream.receive_some() == b""
    assert face.abandoned.is_set()


@pytest.mark.trio
async def test_stopping_is_not_held_up_by_a_peer_that_does_not_read(served: ServedApp) -> None:
    sock, face = listening(), FakeEnvironment()
    face.put.send_nowait(event(b"x" * 50_000_000))
    async with await connect(sock.getsockname()) as wire, trio.open_nursery() as nursery:
        await nursery.start(served.serve, sock, {"environment": face})
        await wire.send(head("GET", NEXT, {}))
        await face.parked.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)  # the server stands in its write
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_grace_lets_running_requests_finish_and_takes_no_new_ones(
    served: ServedApp,
) -> None:
    sock, face = listening(), FakeEnvironment()
    address = sock.getsockname()
    async with await connect(address) as wire, await connect(address) as idle:
        async with trio.open_nursery() as nursery, trio.open_nursery() as serving:
            await serving.start(_serve, served, sock, face, 10.0)
            assert (await idle.ask("GET", PING)).status == 200
            await wire.send(head("GET", NEXT, {}))
            await face.parked.wait()
            serving.cancel_scope.cancel()

            async def finish() -> None:
                assert await idle.stream.receive_some() == b""  # idle: closed at once
                with pytest.raises(OSError, match="all attempts to connect"):
                    await connect(address)
                face.put.send_nowait(event(b'"late"'))
                assert (await wire.answer("GET")).body == b'"late"'

            nursery.start_soon(finish)
        assert await wire.stream.receive_some() == b""


@pytest.mark.trio
async def test_grace_ends(served: ServedApp) -> None:
    sock, face = listening(), FakeEnvironment()
    async with await connect(sock.getsockname()) as wire:
        async with trio.open_nursery() as serving:
            await serving.start(_serve, served, sock, face, 0.05)
            await wire.send(head("GET", NEXT, {}))
            await face.parked.wait()
            serving.cancel_scope.cancel()
        assert face.abandoned.is_set()


@pytest.mark.trio
@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_at_any_step_of_starting_it_ends(served: ServedApp, steps: int) -> None:
    with listening() as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, served, sock, FakeEnvironment(), 0.0)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def _serve(
    served: ServedApp,
    sock: socket.socket,
    face: FakeEnvironment,
    grace_s: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await served.serve(sock, {"environment": face}, grace_s=grace_s, task_status=task_status)


@pytest.mark.trio
async def test_a_connection_can_be_handed_over_with_bytes_already_read(served: ServedApp) -> None:
    face = FakeEnvironment()
    ours, theirs = await _pair()
    async with ours, trio.open_nursery() as nursery:
        request = head("POST", RESPONSE, {"Content-Length": "5"})

        async def lane() -> None:
            await served.serve_connection(
                theirs, {"environment": face}, already_read=deque([request, b"he"])
            )

        nursery.start_soon(lane)
        await ours.send(b"llo")
        assert (await ours.answer()).status == 202
        assert face.posted[0].body == b"hello"
        assert (await ours.ask("GET", PING)).body == b"pong"
        await ours.stream.aclose()


async def _pair() -> tuple[Wire, trio.SocketStream]:
    sock = listening()
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with listener:
        wire = await connect(sock.getsockname())
        return wire, await listener.accept()


@pytest.mark.trio
async def test_out_of_descriptors_is_survived(
    served: ServedApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept, failures = trio.SocketListener.accept, list(OUT_OF_SOMETHING)

    async def starved(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise OSError(failures.pop(), "out of descriptors")
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", starved)
    sock = listening()
    async with trio.open_nursery() as nursery:
        await nursery.start(served.serve, sock, {"environment": FakeEnvironment()})
        assert (await ask(sock.getsockname(), "GET", PING)).status == 200
        nursery.cancel_scope.cancel()
    assert failures == []


@pytest.mark.trio
async def test_a_connection_that_fails_does_not_take_the_server_along(
    served: ServedApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sock = listening()
    async with trio.open_nursery() as nursery:
        await nursery.start(served.serve, sock, {"environment": FakeEnvironment()})
        with monkeypatch.context() as broken:
            broken.setattr("runtimeapi.connection.FaceProtocol._create_stream", None)
            async with await connect(sock.getsockname()) as wire:
                await wire.send(head("GET", PING, {}))
                assert await wire.stream.receive_some() == b""
        assert (await ask(sock.getsockname(), "GET", PING)).status == 200
        nursery.cancel_scope.cancel()
    assert [record.name for record in caplog.records if record.exc_info] == ["lambox.http"]


@pytest.mark.trio
async def test_serve_app_on_several_sockets() -> None:
    sockets = [listening(), listening()]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[None]) -> None:
                await serve_app(
                    make_rapi_app(),
                    sockets,
                    environment_config(),
                    state={"environment": FakeEnvironment()},
                    task_status=task_status,
                )

            await nursery.start(serve)
            for sock in sockets:
                assert (await ask(sock.getsockname(), "GET", PING)).status == 200
            nursery.cancel_scope.cancel()


# -- limits towards callers


def _upload_app() -> FaceApp:
    app = FaceApp("tests.upload")

    @app.post("/big")
    async def big() -> Response:
        return respond(200, {}, b"x" * 50_000_000)

    return app


async def _with_config(config: FaceConfig, request: bytes) -> Wire:
    """One connection to an app served under `config`, `request` sent; the server has ended it on
    return."""
    ours, theirs = await _pair()
    async with running_app(_upload_app(), config) as served, trio.open_nursery() as nursery:
        nursery.start_soon(served.serve_connection, theirs, {})
        await ours.send(request)
    return ours


@pytest.mark.trio
async def test_an_idle_caller_is_closed() -> None:
    config = caller_config()
    config.keep_alive_timeout = 0.05
    with trio.fail_after(10):
        async with await _with_config(config, b"POST /half-a-head") as wire:
            assert await wire.stream.receive_some() == b""


@pytest.mark.trio
async def test_a_caller_that_does_not_read_is_cut() -> None:
    config = caller_config()
    config.send_timeout_s = 0.05
    with trio.fail_after(10):
        async with await _with_config(config, head("POST", "/big", {"Content-Length": "0"})):
            pass


@pytest.mark.trio
async def test_a_body_that_stops_coming_is_answered() -> None:
    config = caller_config()
    config.body_timeout_s = 0.05
    ours, theirs = await _pair()
    with trio.fail_after(10):
        async with ours, running_app(make_rapi_app(), config) as served:  # noqa: SIM117 - order
            async with trio.open_nursery() as nursery:
                state = {"environment": FakeEnvironment()}
                nursery.start_soon(served.serve_connection, theirs, state)
                await ours.send(head("POST", RESPONSE, {"Content-Length": "5"}) + b"he")
                assert (await ours.answer()).json["errorType"] == "TruncatedHTTPRequest"
                assert await ours.stream.receive_some() == b""


@pytest.mark.trio
async def test_a_long_invocation_is_not_silence() -> None:
    """The time limit on bodies does not run while the handler works."""
    config = caller_config()
    config.body_timeout_s = config.keep_alive_timeout = 0.02
    ours, theirs = await _pair()
    face = FakeEnvironment()
    with trio.fail_after(10):
        async with ours, running_app(make_rapi_app(), config) as served:  # noqa: SIM117 - order
            async with trio.open_nursery() as nursery:
                nursery.start_soon(served.serve_connection, theirs, {"environment": face})
                await ours.send(head("GET", NEXT, {}))
                with trio.move_on_after(0.1):
                    await face.abandoned.wait()
                assert not face.abandoned.is_set()
                face.put.send_nowait(event())
                assert (await ours.answer("GET")).status == 200
                await ours.stream.aclose()
