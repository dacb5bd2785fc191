"""Owns what an environment and its runtime say to each other: `next`, the event, its response.

One invocation at a time. This is the environment's half of the Runtime API (`runtimeapi.ports.RuntimeFace`),
without its life: `environment.py` adds launch, deadlines and death. It comes in two forms that do the same:
coroutines that take a body as it arrives, and plain calls that take a body that is there already. The
latter spare a warm invocation three turns of the event loop: a parked `next` is answered by the task that
dispatches, and the caller by the task that took the response.

The order at the end of an invocation: the caller has its answer, the runtime its 202, and only then
the log is read, END and REPORT are written and memory is measured (`finish_turn`), unless the answer itself
carries them. All of it happens before the next START.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from sandbox import events, failures, responses
from sandbox.extensionhost import ExtensionHost
from sandbox.extensions import Extension, InvokeEvent
from sandbox.failures import Failure
from sandbox.function import FunctionVersion
from sandbox.invocation import MAX_PAYLOAD, BodyTruncated, ResponseBody, new_request_id
from sandbox.lifecycle import Event, Lifecycle, NextEvent, Refused, State
from sandbox.logpipes import LogPipes
from sandbox.logs import LogBook
from sandbox.logstream import LogStream
from sandbox.responses import TooLarge
from sandbox.ticket import Ticket
from sandbox.turn import Ending, Turn

Deliver = Callable[[NextEvent], None]
"""Called in the middle of a dispatch: quick, raises nothing, asks nothing of the environment."""


class Conversation:
    """The half of an `Environment` that speaks with the runtime."""

    def __init__(
        self,
        function: FunctionVersion,
        logbook: LogBook,
        wall: Callable[[], float],
        account: str = "",
    ) -> None:
        self.function = function
        self.provisioned = False
        """Initialised ahead of any invocation; no idle time ends it."""
        self.invocations = 0
        self.lost = False
        self._stream = LogStream(function, logbook, wall)
        self._wall = wall
        self._life = Lifecycle()
        self._log: LogPipes | None = None
        self._turn: Turn | None = None
        self._unwritten: Turn | None = None
        """Answered; END and REPORT are still to be written."""
        self._undone: Turn | None = None
        """Answered; the runtime has not asked for the next event yet, and somebody wants to know when."""
        self._unreported: tuple[events.Report, float, float] | None = None
        """For subscribers, with the moment (the loop's clock, Unix time) at which the runtime was done."""
        self._parked: list[Deliver] = []
        self.extensions = ExtensionHost(function, self, account=account)
        self._init_ms: float | None = None
        self._first_deadline = math.inf
        self._deadline = math.inf

    # --- what the other half does

    def _runtime_initialised(self, status: str = "success", error_type: str = "") -> None:
        """The runtime waits for an event, for the first time; or (`status`) it never will."""
        raise NotImplementedError

    def _init_ended(self) -> None:
        """The runtime waits for an event, and so does every extension, for the first time."""
        raise NotImplementedError

    def extension_failed_init(self) -> None:
        raise NotImplementedError

    def extension_exited(self, extension: Extension, failure: Failure) -> None:
        raise NotImplementedError

    def _init_failed(self, failure: Failure, *, at_once: bool = True) -> None:
        raise NotImplementedError

    def _owner_decides(self) -> None:
        """The runtime waits for an event, and no extension is at work."""
        raise NotImplementedError

    def _answered(self) -> None:
        """The invocation is over for its caller; `next` should follow."""
        raise NotImplementedError

    def _arm(self, deadline: float) -> None:
        raise NotImplementedError

    def _peak_memory(self) -> int | None:
        raise NotImplementedError

    # --- next

    async def next(self) -> NextEvent:
        """Blocks until there is an event. Cancelled, it leaves the event to the next who asks."""
        came = trio.Event()
        found: list[NextEvent] = []

        def deliver(event: NextEvent) -> None:
            found.append(event)
            came.set()

        event = self.ask_next(deliver)
        if event is not None:
            return event
        try:
            await came.wait()
        finally:
            self.forget_next(deliver)
        return found[0]

    @property
    def event_is_out(self) -> bool:
        """An event has been given and not been answered: `next` gives it again."""
        return self._life.state is State.RUNNING

    def ask_next(self, deliver: Deliver) -> NextEvent | None:
        """`next` without waiting: the event that is out, or None, and `deliver` is called with it.

        The first call ends the init phase. Raises Refused.
        """
        before = self._life.state
        self._life.step(Event.NEXT)
        if before is State.STARTED:
            self._runtime_initialised()
            self.extensions.all.close_registration()
            self.extensions_ready()
        elif before is State.RESPONSE_SENT:
            if self._undone is not None:
                self._runtime_done()
            self.extensions_ready()
        if self._life.event is None:
            self._parked.append(deliver)
        return self._life.event

    def extensions_ready(self) -> None:
        """The runtime or an extension has called `next`: was it the last that init, or a turn, waited for?"""
        extensions = self.extensions.all
        if self.lost or self._life.state is not State.READY or extensions.busy:
            return
        if extensions.init_ended:
            if self._unreported is not None:
                self._tell_report()
            self._owner_decides()
        elif extensions.all_ready:
            extensions.end_init()
            self._init_ended()

    def forget_next(self, deliver: Deliver) -> None:
        """Who asked has gone away."""
        if deliver in self._parked:
            self._parked.remove(deliver)

    def _give(self, ticket: Ticket, *, now: float, deadline: float) -> None:
        """Begin a turn: the event goes to the runtime, which waits in `next`."""
        self.finish_turn()
        # What was written since the last invocation is not this one's.
        self._drain()
        self.invocations += 1
        init_ms, self._init_ms = self._init_ms, None
        invocation = ticket.invocation
        turn = self._turn = Turn(
            ticket,
            self.function,
            began_at=now,
            cold=self.invocations == 1 and not self.provisioned,
            init_ms=init_ms,
        )
        self._stream.tail = turn.tail
        event = NextEvent(
            request_id=invocation.request_id,
            invocation_id=new_request_id(),
            deadline_ms=int((self._wall() + deadline - now) * 1000),
            invoked_arn=invocation.invoked_arn,
            trace_id=invocation.trace_id,
            client_context=invocation.client_context,
            cognito_identity=invocation.cognito_identity,
            content_type=invocation.content_type,
            payload=invocation.payload,
        )
        self._life.invoke(event)
        self._deadline = deadline
        self._arm(deadline)
        parked, self._parked = self._parked, []
        for deliver in parked:
            deliver(event)
        if len(self.extensions.all):
            self.extensions.invoke(
                InvokeEvent(event.deadline_ms, event.request_id, event.invoked_arn, event.trace_id)
            )
        self._stream.platform(
            events.Start(
                invocation.request_id,
                self.function.version,
                invocation.invoked_arn,
                invocation.trace_id,
            )
        )

    @property
    def _request_id(self) -> str:
        return self._life.event.request_id if self._life.event else ""

    # --- response

    async def respond(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        response_mode: str | None,
        content_type: str | None,
        body: ResponseBody,
    ) -> None:
        turn = self._begin_response(request_id, invocation_id, response_mode)
        try:
            if response_mode == "streaming" and turn.ticket.invocation.sink is not None:
                await self._forward(turn, content_type, body)
            else:
                await self._collect(turn, content_type, body)
        except BodyTruncated:
            self._truncated(turn)
            raise Refused(
                400, "TruncatedHTTPRequest", "HTTP request detected as truncated"
            ) from None
        finally:
            # Left by cancellation: the connection broke in the middle of the body.
            self._truncated(turn)
            self.finish_turn()

    def take_response(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None:
        """`respond` with a body of no mode that is complete, at most MAX_PAYLOAD long, without trailers.

        Call `finish_turn` once the runtime has been told. Raises Refused.
        """
        assert len(body) <= MAX_PAYLOAD
        turn = self._begin_response(request_id, invocation_id, None)
        self._collected(turn, content_type, body, None)

    def _check_id(self, request_id: str, invocation_id: str | None) -> None:
        self._life.check_id(request_id, invocation_id)
        if self.lost and self._turn is None:
            # It timed out, or the environment failed; the runtime lives on to the end of its shutdown.
            raise Refused(410, "InvokeTimeout", "Invoke timeout")

    def _begin_response(
        self, request_id: str, invocation_id: str | None, response_mode: str | None
    ) -> Turn:
        self._check_id(request_id, invocation_id)
        if response_mode and response_mode != "streaming":
            self._life.step(Event.ERROR)
            self._fail_invocation(
                Failure(
                    "error", "Runtime.InvalidResponseModeHeader", "Invalid response mode header"
                )
            )
            raise Refused(400, "InvalidFunctionResponseMode", "Invalid function response mode")
        self._life.step(Event.RESPONSE)
        assert self._turn is not None
        if self._stream.detailed:
            self._turn.responding(trio.current_time())
        return self._turn

    async def _collect(self, turn: Turn, content_type: str | None, body: ResponseBody) -> None:
        try:
            payload = await responses.collect(body)
        except TooLarge as exc:
            if self._turn is turn:
                self._life.step(Event.SENT)
                self._finish(
                    Ending(
                        "error",
                        failures.too_large(exc.limit),
                        error_type=failures.RESPONSE_TOO_LARGE,
                    )
                )
            raise Refused(413, "RequestEntityTooLarge", str(exc)) from exc
        self._collected(turn, content_type, payload, responses.midstream_error(body))

    def _collected(
        self,
        turn: Turn,
        content_type: str | None,
        payload: bytes,
        midstream: tuple[str, bytes] | None,
    ) -> None:
        if self._turn is not turn:
            return
        self._life.step(Event.SENT)
        if midstream is None:
            self._finish(Ending("success", payload, content_type or "application/octet-stream"))
        else:
            self._finish(Ending("error", midstream[1], error_type=midstream[0]))

    async def _forward(self, turn: Turn, content_type: str | None, body: ResponseBody) -> None:
        sink = turn.ticket.invocation.sink
        assert sink is not None
        sink.opened(content_type)
        try:
            size = await responses.forward(body, sink)
        except TooLarge as exc:
            self._stream_ended(turn, exc.limit, (failures.RESPONSE_TOO_LARGE, str(exc)))
            raise Refused(413, "RequestEntityTooLarge", str(exc)) from exc
        midstream = responses.midstream_error(body)
        self._stream_ended(
            turn, size, midstream and (midstream[0], midstream[1].decode("utf-8", "replace"))
        )

    def _stream_ended(self, turn: Turn, size: int, error: tuple[str, str] | None) -> None:
        if self._turn is not turn:
            return
        self._life.step(Event.SENT)
        self._finish(
            Ending(
                "error" if error else "success",
                b"",
                error_type=error[0] if error else "",
                streamed=True,
                stream_error=error,
                streamed_bytes=size,
            )
        )

    def _truncated(self, turn: Turn) -> None:
        if self._turn is turn and self._life.state is State.RESPONDING:
            self._life.step(Event.SENT)
            self._fail_invocation(Failure("error", failures.TRUNCATED, "Response was truncated"))

    # --- error

    async def error(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        error_type: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None:
        try:
            self.take_error(
                request_id,
                invocation_id=invocation_id,
                error_type=error_type,
                content_type=content_type,
                body=body,
            )
        finally:
            self.finish_turn()

    def take_error(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        error_type: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None:
        """`error` for a caller that calls `finish_turn` once the runtime has been told. Raises Refused."""
        self._check_id(request_id, invocation_id)
        self._life.step(Event.ERROR)
        assert self._turn is not None
        if self._stream.detailed:
            self._turn.responding(trio.current_time())
        self._finish(
            Ending(
                "error",
                body,
                content_type or "application/json",
                error_type=failures.normalise_type(error_type),
            )
        )

    async def init_error(self, *, error_type: str | None, body: bytes) -> None:
        self._life.step(Event.INIT_ERROR)
        self._init_failed(
            Failure("error", failures.normalise_type(error_type), payload=body), at_once=False
        )

    # --- the end of a turn

    def _fail_invocation(self, failure: Failure) -> None:
        body = failure.body(self._request_id)
        self._finish(
            Ending(
                failure.status,
                body,
                error_type=failure.error_type,
                logged_type=failure.report_type,
                stream_error=(failure.error_type, body.decode("utf-8", "replace")),
            )
        )
        self.finish_turn()

    def _finish(self, ending: Ending) -> None:
        """The caller is answered. Logs first where the answer has them, so that the tail has them all."""
        turn = self._turn
        assert turn is not None
        invocation = turn.ticket.invocation
        if invocation.wants_tail:
            self._drain()
        self._turn = None
        self._undone = turn if self._stream.detailed else None
        turn.end(ending, now=trio.current_time())
        if invocation.wants_memory or invocation.wants_tail:
            turn.measured(self._peak_memory())
        if invocation.wants_tail:
            self._write_end(turn)
        else:
            self._unwritten = turn
        turn.ticket.resolve(turn.outcome())
        if self._life.state is State.RESPONSE_SENT and not self.lost:
            self._answered()

    def finish_turn(self) -> None:
        """What could wait for the answer: the log is read to here, END and REPORT are written."""
        turn, self._unwritten = self._unwritten, None
        if turn is None:
            return
        self._drain()
        if turn.memory_mb is None:
            turn.measured(self._peak_memory())
        self._write_end(turn)

    def _write_end(self, turn: Turn) -> None:
        for event in turn.last_events():
            self._stream.log(event)
        self._stream.tail = None

    def _runtime_done(self, status: str = "", error_type: str = "") -> None:
        """The runtime asked for the next event, or (`status`) failed before it did.

        Subscribers are told of END and REPORT now: for them an invocation's report is its last event, and
        waits for the extensions that are at work on it.
        """
        turn, self._undone = self._undone, None
        if turn is None:
            return
        self.finish_turn()
        now, wall = trio.current_time(), self._wall()
        done, fault = turn.done(now=now, wall=wall, status=status, error_type=error_type)
        end, report = turn.last_events()
        self._stream.platform(done)
        if fault is not None:
            self._stream.hear(fault)
        self._stream.hear(end)
        if self.extensions.all.busy:
            self._unreported = report, now, wall
        else:
            self._stream.hear(report)

    def _tell_report(self) -> None:
        if self._unreported is not None:
            (report, since, wall), self._unreported = self._unreported, None
            overhead = events.Span("extensionOverhead", wall, (trio.current_time() - since) * 1000)
            self._stream.hear(report._replace(spans=(overhead,)))

    # --- logs

    def extension_name(self, identifier: str | None) -> str:
        """Whose this is. Raises Refused."""
        return self.extensions.all.find(identifier).name

    def extension_printed(self, extension: Extension, line: str) -> None:
        self._stream.extension(line)

    def _drain(self) -> None:
        if self._log is not None:
            self._log.drain()
