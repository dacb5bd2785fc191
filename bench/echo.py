"""The least a trio HTTP server can be: answers {"hello": EVENT}. A floor, run as a program of its own.

Prints its port; ends when its standard input does. httptools parses where it is installed, else a few
lines that know no more HTTP than the load generator speaks.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

import trio

try:
    httptools: Any = importlib.import_module("httptools")
except ImportError:
    httptools = None

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Request:
    """httptools' callbacks of one connection."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.complete = False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.complete = True


class PlainParser:
    """Content-Length requests, one at a time: stands in for httptools.HttpRequestParser."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._held = b""

    def feed_data(self, data: bytes) -> None:
        self._held += data
        head, found, body = self._held.partition(b"\r\n\r\n")
        if not found:
            return
        _, _, rest = head.lower().partition(b"content-length:")
        if len(body) >= int(rest.split(b"\r\n")[0] or 0):
            self._held = b""
            self._request.on_body(body)
            self._request.on_message_complete()


async def converse(stream: trio.SocketStream) -> None:
    request = Request()
    parser = httptools.HttpRequestParser(request) if httptools else PlainParser(request)
    async with stream:
        while data := await stream.receive_some(65536):
            parser.feed_data(data)
            if request.complete:
                body = b'{"hello": %s}' % b"".join(request.parts)
                request.parts, request.complete = [], False
                await stream.send_all(HEAD % len(body) + body)


async def connection(stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await converse(stream)


async def main() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        nursery.start_soon(trio.serve_listeners, connection, listeners)
        print(listeners[0].socket.getsockname()[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
