"""Owns the fast lane: connections of both faces, served without a framework while they send plain requests.

`gate.py` says which requests those are. At the first other one the connection goes to hypercorn, with
every byte read and not yet answered, and stays there (`server.py`). Both lanes call the same functions
(`intake`, `replies`, `rapi`, the environment), so an answer is the same bytes whichever lane gave it.

One task reads for all connections (`hub.py`): the next request, more of this one, or the end of a peer that
waits for an answer. Whoever has the answer writes it, if the socket takes it: the call that dispatches answers a
parked `next`, the one that took the runtime's response answers the caller. Each connection also has a task of
its own, which sleeps while all goes its plain way, and is nudged for the rest: time limits, what the
socket does not take at once, work for a thread, pipelined requests, the end.

Bounds: a head of MAX_HEAD bytes (or less, if so configured), which has `header_timeout_s` from its first byte on;
a body of MAX_PAYLOAD, which may take PATIENCE_S to arrive before hypercorn, with its limits on silence and on
the whole, goes on with it; nothing is read while an answer is due and the next request is here already.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import inf
from wsgiref.handlers import format_date_time

import trio

from runtimeapi.connection import SEND_SLICE, FaceConfig
from runtimeapi.gate import MAX_HEAD, Head, hopeless
from runtimeapi.hub import Hub
from runtimeapi.replies import Reply
from sandbox.invocation import MAX_PAYLOAD

log = logging.getLogger("lambox.http")

READ_SIZE = 64 * 1024
MAX_READ = 1024 * 1024
JOINED_BODY = 64 * 1024
"""Bytes of a body that are copied behind the head, so that both are one write and one segment."""
PATIENCE_S = 1.0


class FastConnection:
    """One connection, from its first byte to its end or to the first request that is not for this lane."""

    def __init__(
        self,
        stream: trio.SocketStream,
        config: FaceConfig,
        gate: Callable[[bytes], Head | None],
    ) -> None:
        self._stream = stream
        self._config = config
        self._gate = gate
        self._fd = stream.socket.fileno()
        self._input = b""
        self._more: list[bytes] = []
        """What was read after `_input`: joined when there is enough of it."""
        self._size = 0
        self._most = min(MAX_HEAD, config.h11_max_incomplete_size)
        """Bytes of a head; above it hypercorn decides."""
        self._begun = False
        """A head has begun to arrive, and has not ended."""
        self._need = 1
        """Bytes that must have been read before it is worth looking at them."""
        self._head: Head | None = None
        """The request whose body is awaited."""
        self._body_at = 0
        self._raw = b""
        """The last head read."""
        self._waited = False
        """Others were served between this request's head and now."""
        self._asked = False
        """An answer is due from elsewhere."""
        self._job: Callable[[], None] | None = None
        """What a thread has to do before the request can be served."""
        self._output: list[memoryview] = []
        """What the socket did not take yet. Not joined: an event of 6 MB is the same for all who ask for it."""
        self._ending = False
        self._over = False
        self._handed_over: deque[bytes] | None = None
        self._due = inf
        self._scope = trio.CancelScope()
        self._hub: Hub
        self._watched = False
        self._turn = 0
        """The hub's, while it is the hub that has us look at what it read; else 0."""

    def __repr__(self) -> str:
        state = "over" if self._over else "asked" if self._asked else "reading"
        return f"<{type(self).__name__} {state}, {self._size} read>"

    # --- for the face

    def _accepts(self, head: Head) -> bool:
        """The head is here: whether this lane serves it. Nothing has been answered or changed yet."""
        raise NotImplementedError

    def _serve(self, head: Head, body: bytes) -> None:
        """The request is here: `_send` the answer, or set `_asked` and `_settle` it later."""
        raise NotImplementedError

    def _forget(self) -> None:
        """The peer has gone: what it asked for is not waited for any more."""
        raise NotImplementedError

    # --- its life

    async def run(self, hub: Hub) -> deque[bytes] | None:
        """Serve until the end (None), or until hypercorn has to go on: the bytes for it, of which nothing is kept.

        Resource handling: closes the stream, unless it is to be handed over. Raises no Exception.
        """
        self._hub = hub
        try:
            self._arm_idle()
            while not self._over:
                with trio.CancelScope(deadline=self._due) as self._scope:
                    await self._rest()
                if self._job is not None:
                    await self._work()
                elif self._output:
                    await self._flush()
                elif self._due <= trio.current_time():
                    self._on_due()
                elif self._ending and not self._busy:
                    self._over = True
        except Exception:
            self._handed_over = None
            log.exception("a connection failed inside lambox")
        finally:
            self._unwatch()
            # From here on nobody writes to this descriptor: its number may become another connection's.
            self._over, self._fd = True, -1
            self._forget()
            if self._handed_over is None:
                self._stream.socket.close()
        return self._handed_over

    def terminate(self) -> None:
        """End when no request is under way: at once, or after the answer."""
        self._ending = True
        if not self._busy:
            self._nudge()

    @property
    def _busy(self) -> bool:
        return self._asked or self._head is not None or self._job is not None or bool(self._output)

    async def _rest(self) -> None:
        """Serve what is here, then sleep until nudged (the scope is cancelled), while the hub reads."""
        while not self._asked and self._size >= self._need:
            self._look()
            if self._stopped():
                return
            # More of a pipelining peer's requests: others first.
            await trio.lowlevel.checkpoint()
        if self._stopped():
            return
        if not (self._asked and self._size):
            self._watched = True
            self._hub.watch(self._fd, self._on_readable)
        try:
            await trio.sleep_forever()
        finally:
            self._unwatch()

    def _on_readable(self) -> None:
        """Called by the hub. One request at most is served; what is unusual is left to our own task."""
        try:
            # A request that began to arrive before this turn; what follows it may be younger.
            self._turn = 0 if self._size else self._hub.turn
            self._read()
            if not (self._over or self._asked or self._size < self._need):
                self._look()
        except Exception as exc:
            self._fail(exc)
        self._turn = 0
        if self._stopped() or (self._size and (self._asked or self._size >= self._need)):
            self._nudge()

    def _nudge(self) -> None:
        """Our own task has something to do; nothing is read until it has done it."""
        self._unwatch()
        self._scope.cancel()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._hub.forget(self._fd)

    def _stopped(self) -> bool:
        if self._ending and not self._busy:
            self._over = True
        return self._over or bool(self._output) or self._job is not None

    def _read(self) -> None:
        missing = self._need - self._size
        try:
            data = os.read(self._fd, min(max(missing, READ_SIZE), MAX_READ))
        except BlockingIOError:
            return
        except OSError:
            self._over = True
            return
        if data:
            self._more.append(data)
            self._size += len(data)
        elif self._asked or not self._size:
            self._over = True
        else:
            self._hand_over()  # it ended inside a request, which hypercorn will find too

    def _look(self) -> None:
        """Serve the request that has been read, if all of it has."""
        data = self._join()
        if self._head is None:
            end = data.find(b"\r\n\r\n", 0, self._most)
            if end < 0:
                if hopeless(data, self._most):
                    self._hand_over()
                else:
                    self._need = len(data) + 1
                    self._arm_head()
                return
            self._begun = False
            self._raw = data[: end + 2]
            head = self._gate(self._raw)
            if head is None or head.length > MAX_PAYLOAD or not self._accepts(head):
                self._hand_over()
                return
            self._head, self._body_at = head, end + 4
            self._need = end + 4 + head.length
            self._due = inf
            self._waited = self._size < self._need
            if self._waited:
                self._arm(trio.current_time() + PATIENCE_S)
                return
        head, at, end = self._head, self._body_at, self._need
        self._input, body = data[end:], data[at:end]
        self._size = len(self._input)
        self._head, self._need, self._due = None, 1, inf
        self._serve(head, body)
        if not self._asked:
            self._arm_idle()

    def _join(self) -> bytes:
        if self._more:
            if self._input:
                self._more.insert(0, self._input)
            self._input = self._more[0] if len(self._more) == 1 else b"".join(self._more)
            self._more.clear()
        return self._input

    def _hand_over(self, *before: bytes) -> None:
        self._handed_over = deque(part for part in (*before, self._input, *self._more) if part)
        self._input, self._more = b"", []
        self._over = True

    def _hand_over_again(self, body: bytes = b"") -> None:
        """The same with the last request, of which nothing has been done that may not be done again."""
        self._hand_over(self._raw + b"\r\n", body)
        self._nudge()

    # --- time

    def _arm_idle(self) -> None:
        limit_s = self._config.keep_alive_timeout
        if limit_s != inf:
            self._arm(trio.current_time() + limit_s)

    def _arm_head(self) -> None:
        """However often a little more of it comes."""
        limit_s = self._config.header_timeout_s
        if not self._begun and limit_s != inf:
            self._begun = True
            self._arm(min(self._due, trio.current_time() + limit_s))

    def _arm(self, due: float) -> None:
        """A later deadline is only noted: the task wakes up at the old one and sees it."""
        self._due = due
        if due < self._scope.deadline:
            self._scope.deadline = due

    def _on_due(self) -> None:
        if self._head is not None:
            self._hand_over()  # a slow body
        else:
            self._over = True  # idle, or a head that does not come to its end

    # --- answers

    def _send(self, reply: Reply) -> None:
        """Write an answer. Any task may call it; what the socket does not take is left to our own.

        Raises OddHeader, and has written nothing.
        """
        self._write(write_head(reply, dated=self._config.include_date_header), reply.body)

    def _write(self, head: bytes, body: bytes) -> None:
        if self._over:
            return
        try:
            if len(body) <= JOINED_BODY:
                head, body = head + body, b""
                sent = os.write(self._fd, head)
            else:
                sent = os.writev(self._fd, (head, body))
        except BlockingIOError:
            sent = 0
        except OSError:
            self._over = True
            return
        if sent < len(head) + len(body):
            self._output = [memoryview(head)[sent:], memoryview(body)[max(0, sent - len(head)) :]]

    def _settle(self) -> None:
        """An answer that was due has been sent, by whatever task."""
        self._asked = False
        self._arm_idle()
        if self._over or self._size or self._output or self._ending:
            self._nudge()

    def _fail(self, error: Exception) -> None:
        """A mistake of ours in the middle of another task's work: it is this connection's alone."""
        log.error("a connection failed inside lambox", exc_info=error)
        self._over = True

    async def _flush(self) -> None:
        """As `FaceConnection._send`: the limit is on a peer that stands still."""
        output, self._output = self._output, []
        try:
            for part in output:
                for start in range(0, len(part), SEND_SLICE):
                    with trio.fail_after(self._config.send_timeout_s):
                        await self._stream.send_all(part[start : start + SEND_SLICE])
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._over = True
        if self._ending and not self._busy:
            self._over = True
        self._arm_idle()

    async def _work(self) -> None:
        job = self._job
        assert job is not None
        self._waited = True
        try:
            await trio.to_thread.run_sync(job)
        except Exception as exc:
            self._job = None
            self._worked(exc)
        else:
            self._job = None
            self._worked(None)
        if not self._asked:
            self._arm_idle()

    def _worked(self, error: Exception | None) -> None:
        """The job is done."""
        raise NotImplementedError


class OddHeader(Exception):
    """A header value that h11 would not write."""


_ODD = re.compile(r"[\x00\n\x0b\x0c\r]|\A[ \t]|[ \t]\Z")


def write_head(reply: Reply, *, dated: bool) -> bytes:
    """As hypercorn and h11 write it: lower-case names, no reason, Content-Length, then the date."""
    lines = [f"HTTP/1.1 {reply.status} "]
    for name, value in reply.headers.items():
        plain = value.isprintable() and value[:1] != " " and value[-1:] != " "
        if not plain and _ODD.search(value) is not None:
            raise OddHeader(name)
        lines.append(f"{name.lower()}: {value}")
    lines.append(f"content-length: {len(reply.body)}")
    if dated:
        lines.append(_date(int(time.time())))
    lines.append("\r\n")
    return "\r\n".join(lines).encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _date(now: int) -> str:
    return f"date: {format_date_time(now)}"


Lane = Callable[[trio.SocketStream, FaceConfig, Mapping[str, object]], FastConnection]
"""(stream, limits, state of the socket it came in on) -> what serves it first."""
