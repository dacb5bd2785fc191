"""Owns one POST to somebody's HTTP endpoint: on trio, so that it can be cancelled at every byte.

No redirects, no proxies, no cookies: what is sent goes where it was told to go, or nowhere.

    PostProblem         it was not taken; the message says what happened
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

import h11
import trio

CONNECT_S = 5.0
TOTAL_S = 30.0
MOST_HEAD = 64 * 1024
"""Bytes of an answer that are read; its body is of no interest."""


class PostProblem(Exception):
    """The endpoint did not answer 2xx. `status`: what it answered, 0 if it did not."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


async def post(
    address: str, body: bytes, headers: Mapping[str, str], *, secure: ssl.SSLContext | None = None
) -> None:
    """Returns when the endpoint answered 2xx. Raises PostProblem. `secure`: whom to trust, the host's by default."""
    parts = urlsplit(address)
    try:
        with trio.fail_after(TOTAL_S):
            status = await _exchange(parts, body, headers, secure)
    except trio.TooSlowError as exc:
        raise PostProblem(f"no answer within {TOTAL_S:g} s") from exc
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as exc:
        raise PostProblem(f"{exc.__cause__ or exc}") from exc
    except h11.RemoteProtocolError as exc:
        raise PostProblem(f"what it answers is no HTTP: {exc}") from exc
    if not 200 <= status < 300:
        raise PostProblem(f"it answered with status {status}", status)


async def _exchange(
    parts: SplitResult, body: bytes, headers: Mapping[str, str], secure: ssl.SSLContext | None
) -> int:
    stream = await _connected(parts, secure)
    try:
        talk = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc.rpartition("@")[2]
        fields = {"Host": host, "Content-Length": str(len(body)), "Connection": "close", **headers}
        request = h11.Request(method="POST", target=target, headers=list(fields.items()))
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            await stream.send_all(talk.send(event) or b"")
        return await _status(stream, talk)
    finally:
        # Not the polite end of TLS, which would wait for the other side.
        await trio.aclose_forcefully(stream)


async def _status(stream: trio.abc.Stream, talk: h11.Connection) -> int:
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            talk.receive_data(bytes(await stream.receive_some(MOST_HEAD)))
        elif isinstance(event, h11.Response):
            return int(event.status_code)
        elif isinstance(event, h11.ConnectionClosed):
            raise h11.RemoteProtocolError("the connection ended before there was any")


async def _connected(parts: SplitResult, secure: ssl.SSLContext | None) -> trio.abc.Stream:
    assert parts.hostname is not None
    with trio.move_on_after(CONNECT_S):
        if parts.scheme == "http":
            return await trio.open_tcp_stream(parts.hostname, parts.port or 80)
        context = secure or await trio.to_thread.run_sync(ssl.create_default_context)
        stream = await trio.open_ssl_over_tcp_stream(
            parts.hostname, parts.port or 443, ssl_context=context, https_compatible=True
        )
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream
    raise PostProblem(f"no connection within {CONNECT_S:g} s")
