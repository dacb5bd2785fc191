"""Connections that the supervisor makes into a sandbox: they reach what is in it, and nothing else."""

from __future__ import annotations

import socket

import pytest
import trio

from sandbox.confine.spec import ConfineError
from tests.system.confine_fixtures import confined, nothing_left

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("making")]

LISTENING = """
    listener = socket.create_server(("127.0.0.1", 0))
    say(listener.getsockname()[1])
    while True:
        peer, address = listener.accept()
        peer.sendall(b"inside")
        say([peer.recv(100).decode(), address[0]])
        peer.close()
"""


async def test_a_connection_reaches_the_sandboxs_own_loopback() -> None:
    with nothing_left():
        async with confined() as box:
            await box.python(LISTENING)
            port = await box.heard()
            for word in (b"one", b"two"):
                async with await box.sandbox.dial(port) as stream:
                    await stream.send_all(word)
                    assert await stream.receive_some() == b"inside"
                assert await box.heard() == [word.decode(), "127.0.0.1"]


async def test_the_hosts_loopback_is_not_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        async with confined() as box:
            await box.ask("1")
            with pytest.raises(ConnectionRefusedError):
                await box.sandbox.dial(ours.getsockname()[1])
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.accept()


async def test_a_frozen_sandbox_is_waited_for_and_the_wait_may_be_left() -> None:
    with nothing_left():
        async with confined() as box:
            await box.python(LISTENING)
            port = await box.heard()
            box.sandbox.freeze()
            with trio.move_on_after(0.1) as patience:
                await box.sandbox.dial(port)
            assert patience.cancelled_caught
            box.sandbox.thaw()
            async with await box.sandbox.dial(port) as stream:
                assert await stream.receive_some() == b"inside"


async def test_one_who_is_cancelled_spoils_nothing_for_the_next() -> None:
    with nothing_left():
        async with confined() as box:
            await box.python(LISTENING)
            port = await box.heard()
            with trio.CancelScope() as at_once:
                at_once.cancel()
                await box.sandbox.dial(port)
            assert at_once.cancelled_caught
            async with await box.sandbox.dial(port) as stream:
                assert await stream.receive_some() == b"inside"


async def test_a_dead_sandbox_has_ended() -> None:
    async with confined() as box:
        await box.ask("1")
        await box.sandbox.kill()
        with pytest.raises((ConfineError, OSError)):
            await box.sandbox.dial(1)
