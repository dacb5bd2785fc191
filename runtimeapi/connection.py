"""Owns one HTTP/1.1 connection: hypercorn's, mended where a Lambda platform needs more.

hypercorn 0.18 is subclassed, not copied; the pin matters because private seams are used. What
differs:

- request bodies go straight into a `StreamedBody` (bounded), not through a queue of ten messages
  into quart's unbounded buffer. With the queue, a handler that answers without reading leaves the
  reading task stuck for good;
- the trailers of a chunked body are kept (hypercorn drops `h11.EndOfMessage.headers`), SPEC 1.4;
- a body that ends early is told to the handler, whose answer is still sent to a peer that only
  half-closed (SPEC 1.5); hypercorn answers an empty 400 of its own and cancels the handler;
- a request refused before its body was read is answered, and the rest of the body is dropped up to
  a bound, so that a client that only reads after it has written gets the answer and not a reset;
- writes can be cancelled and have a time limit; hypercorn shields them, so one peer that does
  not read (a frozen environment) would keep the server from ever stopping;
- reading has a time limit only while a body is due: hypercorn's `read_timeout` would also end a
  connection whose invocation simply takes long;
- when the peer goes away the idle timer goes too; hypercorn keeps the descriptor until it fires,
  which with keep-alive without end is never;
- heads and bodies that come in too slowly end (`Slowness`), a head that is too large is refused even if it came
  at once, and peers that are paced wait;
- no HTTP/2, no WebSocket: neither face has them.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from math import inf
from typing import cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from runtimeapi.bodies import StreamedBody
from runtimeapi.heads import Buffer
from runtimeapi.pace import FREE_HEAD, HEAD_BYTE, PIECE, REFUSAL, Pace
from runtimeapi.room import SMALL_HEAD, place_of
from runtimeapi.urls.names import called

log = logging.getLogger("lambox.http")

LINGER_BYTES = 96 * 1024 * 1024
"""Bytes of a refused request's body that are read and dropped before the connection is cut: more than a request
with code may have (70 MB), so that one a little larger still hears why."""
SEND_SLICE = 256 * 1024
"""Bytes written under one `send_timeout_s`: the limit is on a peer that stands still, not on a slow
one."""
BODY_KEY = "lambox.body"
"""Where the ASGI scope carries the StreamedBody."""
PACE_KEY = "lambox.pace"
"""Where a socket's state carries the Pace of those behind it."""
PIECES = 64
"""Pieces of bodies taken before others come: one read may bring 11,000."""

BODILESS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
"""Methods no handler but a function URL's reads a body of: a peer that goes away cancels them, body or not."""


class FaceConfig(Config):
    """hypercorn's Config with the limits it has no words for."""

    header_timeout_s: float = inf
    """Longest time from the first byte of a head to its last, and for a TLS handshake."""
    body_timeout_s: float = inf
    """Longest silence while a request body is due."""
    body_bytes_per_s: float = 0.0
    """Fewest, on average, once a body has taken `body_timeout_s`."""
    one_framing: bool = False
    """Content-Length beside Transfer-Encoding is refused: a proxy in front may have taken the other one."""
    large_at_once: int = sys.maxsize
    """Large bodies on their way at a time on one listening socket (`room.py`)."""
    patience_s: float = inf
    """What their senders have before the slowest yields to one that waits."""
    max_connections: int = sys.maxsize
    """Open at a time on one listening socket."""
    holds_back: bool = False
    """Above `max_connections` nothing more is accepted; else it is answered with 503 and closed."""
    paced: bool = False
    """What peers make us do for nothing is charged to them (`pace.py`)."""
    send_timeout_s: float = inf
    """Longest time for SEND_SLICE bytes to be taken by the peer."""


class RequestStream(HTTPStream):
    """One request and its response on a connection."""

    def __init__(self, protocol: FaceProtocol) -> None:
        super().__init__(
            protocol.app,
            protocol.config,
            protocol.context,
            protocol.task_group,
            protocol.ssl,
            protocol.client,
            protocol.server,
            protocol.stream_send,
            STREAM_ID,
        )
        self.body = StreamedBody()
        self.body.place = protocol.place

    async def handle(self, event: StreamEvent) -> None:
        if isinstance(event, Request):
            # The scope is made and the app started in one go by the base class; the state dict is
            # the one thing of ours that it carries along.
            event.state[BODY_KEY] = self.body
            if event.method in BODILESS and not _is_function_urls(event):
                self.body.discard()
            await super().handle(event)
        elif isinstance(event, StreamClosed) and not self.closed:
            self.closed = True
            if self.state is ASGIHTTPState.CLOSED:
                self.body.discard()
            elif self.body.awaited:
                # The handler learns it from the body and ends by itself (SPEC 2.1:
                # Runtime.TruncatedResponse).
                self.body.break_off()
            else:
                await self.app_put({"type": "http.disconnect"})


def _is_function_urls(request: Request) -> bool:
    """Its handler reads bodies of whatever method."""
    hosts = [value for name, value in request.headers if name.lower() == b"host"]
    host, path = b"".join(hosts[:1]).decode("latin-1"), request.raw_path.partition(b"?")[0]
    return called(host, path, region="") is not None


class FaceProtocol(H11Protocol):
    """h11 events of one connection -> RequestStreams, one after the other."""

    stream: RequestStream | None
    config: FaceConfig

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.broken = False
        """The peer broke the protocol or ended early: nothing more is read."""
        self._dropped = 0
        self._pieces = 0
        self.buffer = cast(h11.Connection, self.connection)._receive_buffer = Buffer()
        self.pace = cast("Pace | None", self.connection_state.get(PACE_KEY))
        self.place = place_of(self.connection_state)

    @property
    def reading(self) -> tuple[str, int] | None:
        """What the peer is in the middle of sending, and the how many-th of this connection that is."""
        if self.body_due:
            return "body", self.keep_alive_requests
        begun = self.connection.their_state is h11.IDLE and bool(self.buffer)
        return ("head", self.keep_alive_requests) if begun else None

    @property
    def body_due(self) -> bool:
        return self.connection.their_state is h11.SEND_BODY

    async def _handle_events(self) -> None:
        while not self.broken:
            if self.connection.they_are_waiting_for_100_continue and self.stream is not None:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                await self._take_breakage(error)
                break
            if isinstance(event, h11.Request):
                refusal = self._refusal_of(event)
                if refusal is not None:
                    self.broken = True
                    await self._send_error_response(refusal)
                    await self.send(Closed())
                    break
                if self.pace is not None:
                    self._charge_lines(self.pace)
                    await self.pace.rest()
                await self.send(Updated(idle=False))
                await self._create_stream(event)
            elif event is h11.PAUSED:
                # The next request is here already and waits for this one's answer. Until then
                # nothing is read, so a pipelining peer that goes away is noticed late; no client
                # of either face pipelines.
                await self.can_read.clear()
                await self.can_read.wait()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA:
                break
            elif isinstance(event, h11.Data):
                await self._take_data(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._take_end(event)

    def _refusal_of(self, request: h11.Request) -> int | None:
        """A status for what h11 lets pass: its limit is on heads that have not ended, so one that came in a single
        segment may be larger; and of two framings it takes the chunks (RFC 9112, 6.3, would have an error)."""
        names = {name for name, _ in request.headers}
        if self.config.one_framing and {b"content-length", b"transfer-encoding"} <= names:
            return 400
        lines = sum(len(name) + len(value) + 4 for name, value in request.headers)
        size = len(request.method) + len(request.target) + 12 + lines + 2
        return 431 if size > self.config.h11_max_incomplete_size else None

    async def stream_send(self, event: StreamEvent) -> None:
        if self.pace is not None and isinstance(event, Response) and event.status_code >= 400:
            self.pace.charge(REFUSAL)
        await super().stream_send(event)

    async def make_room(self) -> None:
        """Before more is read: a head, or trailers, this large may be in the middle of only so many connections.

        Callers' are limited to less (`max_header_bytes`).
        """
        if self.pace is not None and self.place is not None and len(self.buffer) > SMALL_HEAD:
            await self.place.wait()

    def _charge_lines(self, pace: Pace) -> None:
        pace.charge(max(0, self.buffer.lines_size - FREE_HEAD) * HEAD_BYTE)
        self.buffer.lines_size = 0

    async def _send_error_response(self, status_code: int) -> None:
        if self.pace is not None:
            self.pace.charge(REFUSAL)
        await super()._send_error_response(status_code)

    async def _take_data(self, data: bytes) -> None:
        self._pieces += 1
        if self.pace is not None:
            self.pace.charge(PIECE)
        if self._pieces % PIECES == 0:
            await trio.lowlevel.checkpoint()
            if self.pace is not None:
                await self.pace.rest()
        if self.stream is not None:
            await self.stream.body.feed(data)
            return
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.broken = True
            await self.send(Closed())

    async def _take_end(self, event: h11.EndOfMessage) -> None:
        if self.pace is not None:
            self._charge_lines(self.pace)
        if self.stream is not None:
            self.stream.body.finish(event.headers)
        else:
            await self._recycle()

    async def _take_breakage(self, error: h11.RemoteProtocolError) -> None:
        self.broken = True
        if self.stream is not None and self.stream.body.awaited:
            self.stream.body.break_off()  # the handler answers
            return
        if self.stream is None and self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(error.error_status_hint)
        await self.send(Closed())

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = RequestStream(self)
        self._dropped = 0
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=ConnectionState(dict(self.connection_state)),
            )
        )
        self.keep_alive_requests += 1

    async def _maybe_recycle(self) -> None:
        """The app is done with its response (or died without one)."""
        await self._close_stream()
        unread = self.connection.their_state is h11.SEND_BODY
        if unread and self.connection.our_state in {h11.DONE, h11.MUST_CLOSE}:
            await self.send(
                Updated(idle=True)
            )  # dropping the rest: at most keep_alive_timeout, LINGER_BYTES
        else:
            await self._recycle()

    async def _close_stream(self) -> None:
        # Here and not where the app ends: a peer that is gone ends the stream first.
        if self.stream is not None:
            self.stream.body.settled.set()
        if self.place is not None:
            self.place.leave()  # which a request refused before its body was read may still hold
        await super()._close_stream()

    async def _recycle(self) -> None:
        done = {self.connection.our_state, self.connection.their_state} == {h11.DONE}
        if done and not self.context.terminated.is_set():
            self.connection.start_next_cycle()
            await self.can_read.set()
            await self.send(Updated(idle=True))
        else:
            await self.can_read.set()
            await self.send(Closed())


class Slowness:
    """How long a peer may take for what it is in the middle of sending. Pure."""

    def __init__(self, config: FaceConfig) -> None:
        self._config = config
        self._what: tuple[str, int] | None = None
        self._began_at = inf
        self._bytes = 0

    def deadline(self, what: tuple[str, int] | None, now: float) -> float:
        """Until when the next bytes have to be here."""
        if what != self._what:
            self._what, self._began_at, self._bytes = what, now, 0
        config = self._config
        if what is None:
            return inf
        if what[0] == "head":
            return self._began_at + config.header_timeout_s
        silent = now + config.body_timeout_s
        if not config.body_bytes_per_s:
            return silent
        due = self._began_at + config.body_timeout_s + self._bytes / config.body_bytes_per_s
        return min(silent, due)

    def came(self, count: int) -> None:
        self._bytes += count


class FaceConnection(TCPServer):
    """One accepted connection, from its first byte (or from bytes read before) to its end."""

    config: FaceConfig

    def __init__(
        self,
        app: AppWrapper,
        config: FaceConfig,
        context: WorkerContext,
        state: dict[str, object],
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        already_read: deque[bytes] | None = None,
    ) -> None:
        """`already_read` is emptied: nobody else keeps what a body's reader has gathered."""
        lifespan_state = ConnectionState(state)
        super().__init__(app, config, context, lifespan_state, stream)  # type: ignore[arg-type]
        self._already_read = already_read or deque()
        self._closing = False
        self._slow = Slowness(config)

    async def run(self) -> None:
        """Resource handling: closes the stream, whatever happens. Raises no Exception."""
        try:
            await self._run()
        except* OSError:
            pass  # the peer was gone before it could be looked at
        except* Exception:
            log.exception("a connection failed inside lambox")
        finally:
            self._closing = True
            await trio.aclose_forcefully(self.stream)

    async def _run(self) -> None:
        secure = isinstance(self.stream, trio.SSLStream)
        sock = cast(
            trio.SocketStream, self.stream.transport_stream if secure else self.stream
        ).socket
        client = parse_socket_addr(sock.family, sock.getpeername())
        server = parse_socket_addr(sock.family, sock.getsockname())
        async with TaskGroup() as task_group:
            self._task_group = task_group
            self.protocol: FaceProtocol = FaceProtocol(  # type: ignore[assignment]
                self.app,
                self.config,
                self.context,
                task_group,
                ConnectionState(self.state),
                secure,
                client,
                server,
                self.protocol_send,
            )
            await self.idle_task.restart(task_group, self._idle_timeout)
            try:
                while self._already_read and not self.protocol.broken:
                    await self.protocol.handle(RawData(self._already_read.popleft()))
                await self._read_data()
            finally:
                self.protocol.buffer.clear()
            self._closing = True
            await self.idle_task.stop()
        await self._close()

    async def _read_data(self) -> None:
        while not self.protocol.broken:
            try:
                with trio.fail_at(self._slow.deadline(self.protocol.reading, trio.current_time())):
                    data = bytes(await self.stream.receive_some(MAX_RECV))
                self._slow.came(len(data))
            except (trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError):
                self.protocol.broken = True
                break
            await self.protocol.handle(RawData(data))
            if data == b"":
                break
            await self.protocol.make_room()
        await self._let_answer()
        await self.protocol.handle(Closed())

    async def _let_answer(self) -> None:
        """Nothing more comes in; when that cut a body short its handler may still have an answer
        for the peer."""
        stream = self.protocol.stream
        if stream is None or self._closing:
            return
        if stream.body.awaited:
            stream.body.break_off()
        if stream.body.cut_short:
            await stream.body.settled.wait()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed):
            self._closing = True
            await self._close()
            await self.protocol.handle(Closed())
        elif isinstance(event, Updated) and event.idle and not self._closing:
            await self.idle_task.restart(self._task_group, self._idle_timeout)
        elif isinstance(event, Updated):
            await self.idle_task.stop()

    async def _close(self) -> None:
        # Without hypercorn's send_eof: it collides with a write under way, and close() ends both
        # directions.
        await self.stream.aclose()

    async def _send(self, data: bytes) -> None:
        async with self.send_lock:
            view = memoryview(data)
            try:
                for start in range(0, len(view), SEND_SLICE):
                    with trio.fail_after(self.config.send_timeout_s):
                        await self.stream.send_all(view[start : start + SEND_SLICE])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
