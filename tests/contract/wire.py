"""A plain HTTP/1.1 client over trio and h11, for what polite clients cannot be made to send."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import h11
import trio


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    pairs: tuple[tuple[str, str], ...] = ()
    """All headers, those too that are there several times."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection. `send` takes raw bytes; `answer` reads one response."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def expect(self, method: str = "POST") -> None:
        """Tell the parser what was asked (the bytes went out by `send`)."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        self._h11.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        self._h11.send(h11.EndOfMessage())

    async def event(self) -> Any:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(bytes(await self.stream.receive_some(65536)))

    async def answer(self, method: str = "POST") -> Answer:
        self.expect(method)
        response = await self.event()
        while isinstance(response, h11.InformationalResponse):
            response = await self.event()
        assert isinstance(response, h11.Response), response
        body = b""
        while not isinstance(part := await self.event(), h11.EndOfMessage):
            body += part.data
        pairs = tuple((name.decode(), value.decode()) for name, value in response.headers)
        return Answer(response.status_code, dict(pairs), body, pairs)

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        await self.send(head(method, path, {"Content-Length": str(len(body)), **(headers or {})}))
        if body:
            await self.send(body)
        return await self.answer(method)


def head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1:9001"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def chunked(*pieces: bytes, trailers: dict[str, str] | None = None) -> bytes:
    data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    tail = "".join(f"{name}: {value}\r\n" for name, value in (trailers or {}).items())
    return data + b"0\r\n" + tail.encode() + b"\r\n"


async def connect(address: tuple[str, int]) -> Wire:
    return Wire(await trio.open_tcp_stream(*address))


async def ask(
    address: tuple[str, int],
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> Answer:
    async with await connect(address) as wire:
        return await wire.ask(method, path, body, headers)
