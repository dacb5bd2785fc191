"""Owns one client's connection: one request, exactly one answer, or why there was none."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import h11
import trio

PATIENCE_S = 90.0
"""No function here may run for longer than 30 s; whoever is not answered by then is not answered."""


class Unanswered(Exception):
    """The connection ended, broke the protocol or stood still before there was a whole answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes


class Caller:
    """Keeps a connection while the server does. Close it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stream: trio.SocketStream | None = None
        self._state = h11.Connection(h11.CLIENT)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """Raises Unanswered. Cancelled, the connection is dropped: the server sees its caller go."""
        request = h11.Request(
            method=method,
            target=path,
            headers=[("Host", "127.0.0.1"), *headers.items(), ("Content-Length", str(len(body)))],
        )
        try:
            with trio.fail_after(PATIENCE_S):
                stream = await self._connected()
                data = self._state.send(request) or b""
                data += self._state.send(h11.Data(data=body)) or b""
                data += self._state.send(h11.EndOfMessage()) or b""
                await stream.send_all(data)
                answer = await self._answer(stream)
        except trio.TooSlowError as exc:
            self.drop()
            raise Unanswered(f"nothing for {PATIENCE_S:.0f} s") from exc
        except (OSError, trio.BrokenResourceError, h11.ProtocolError) as exc:
            self.drop()
            raise Unanswered(repr(exc)) from exc
        except BaseException:
            self.drop()
            raise
        if self._state.our_state is h11.DONE and self._state.their_state is h11.DONE:
            self._state.start_next_cycle()
        else:
            self.drop()
        return answer

    async def raw(self, data: bytes, *, half_close: bool) -> bytes:
        """Bytes as they are on a connection of their own; whatever comes back until its end or 5 s."""
        found = b""
        with trio.move_on_after(5):
            try:
                async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
                    await stream.send_all(data)
                    if half_close:
                        await stream.send_eof()
                    while more := await stream.receive_some(65536):
                        found += more
            except trio.BrokenResourceError:
                pass
        return found

    def drop(self) -> None:
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    async def _connected(self) -> trio.SocketStream:
        if self._stream is not None and self._spoken_to(self._stream):
            self.drop()
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
            self._state = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        return self._stream

    @staticmethod
    def _spoken_to(stream: trio.SocketStream) -> bool:
        """Between two requests only the end may come. Raises ProtocolError for an answer too many."""
        flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
        with socket.socket(fileno=stream.socket.fileno()) as plain:
            try:
                surplus = plain.recv(200, flags)
            except BlockingIOError:
                return False
            finally:
                plain.detach()
        if surplus:
            raise h11.RemoteProtocolError(f"an answer that nobody asked for: {surplus!r}")
        return True

    async def _answer(self, stream: trio.SocketStream) -> Answer:
        head: h11.Response | None = None
        body = b""
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                self._state.receive_data(await stream.receive_some(256 * 1024))
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Answer(head.status_code, headers, body)
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the connection ended without an answer")
