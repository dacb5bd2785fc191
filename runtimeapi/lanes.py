"""Owns the two faces on the fast lane: what a caller's and a runtime's plain requests do (`wire.py`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import cast

import trio

from runtimeapi.connection import PACE_KEY, FaceConfig
from runtimeapi.gate import Head, caller_head, runtime_head, signed_head
from runtimeapi.gojson import ACCEPTED, refusal
from runtimeapi.guard import Claim, Guard, is_loopback_name
from runtimeapi.intake import (
    CHECKED_INLINE,
    Ask,
    check_json,
    check_json_aside,
    find_function,
    read_ask,
)
from runtimeapi.pace import REFUSAL, Pace
from runtimeapi.ports import Functions, Invoker, RuntimeFace
from runtimeapi.rapi import ON_HOST_NETWORK, fault, for_the_caller, next_reply
from runtimeapi.replies import (
    Reply,
    aws_error,
    aws_success,
    blame,
    friendly_error,
    friendly_success,
    with_ids,
)
from runtimeapi.room import SMALL, Place, place_of
from runtimeapi.urls.names import is_url_host
from runtimeapi.wire import FastConnection, Lane, OddHeader, write_head
from sandbox.errors import InvalidRequest, PlatformFault
from sandbox.function import FunctionVersion
from sandbox.lifecycle import NextEvent, Refused
from sandbox.ticket import Ticket

_ACCEPTED = write_head(ACCEPTED, dated=False)


def caller_lane(
    functions: Functions,
    invoker: Invoker,
    *,
    region: str,
    account: str,
    guard: Guard | None = None,
) -> Lane:
    """For `running_app` of `make_invoke_app`, with the same arguments."""

    refreshed = Refreshed()
    at_the_door = guard or Guard()

    def connect(
        stream: trio.SocketStream, config: FaceConfig, state: Mapping[str, object]
    ) -> FastConnection:
        return CallerConnection(
            stream,
            config,
            functions,
            refreshed,
            invoker,
            region,
            account,
            at_the_door,
            place_of(state),
        )

    return connect


class Refreshed:
    """In which of the hub's turns the functions were last refreshed: one look at the disk serves them all."""

    __slots__ = ("turn",)

    def __init__(self) -> None:
        self.turn = 0


def runtime_lane(
    stream: trio.SocketStream, config: FaceConfig, state: Mapping[str, object]
) -> FastConnection:
    """For `running_app` of `make_rapi_app`: the environment is the socket's."""
    environment = cast(RuntimeFace, state["environment"])
    pace = cast("Pace | None", state.get(PACE_KEY))
    on_host_network = bool(state.get(ON_HOST_NETWORK))
    return RuntimeConnection(stream, config, environment, pace, place_of(state), on_host_network)


class CallerConnection(FastConnection):
    """Buffered invocations, AWS's way and the friendly one."""

    def __init__(
        self,
        stream: trio.SocketStream,
        config: FaceConfig,
        functions: Functions,
        refreshed: Refreshed,
        invoker: Invoker,
        region: str,
        account: str,
        guard: Guard,
        place: Place | None,
    ) -> None:
        super().__init__(stream, config, caller_head)
        self._guard = guard
        self._place = place
        self._claim: Claim | None = None
        self._functions = functions
        self._refreshed = refreshed
        self._invoker = invoker
        self._region = region
        self._account = account
        self._ask: Ask
        self._function: FunctionVersion
        self._body = b""
        self._payload = b""
        self._friendly = False
        self._path = ""
        self._ticket: Ticket | None = None

    def _accepts(self, head: Head) -> bool:
        """As the app does, before the body is here. What is refused here the app refuses again."""
        guard = self._guard
        host = head.fields["host"]
        if not guard.knows(host) or is_url_host(host):
            return False
        try:
            if not guard.takes_anyone:
                self._claim = guard.claim(signed_head(self._raw))
            self._ask = read_ask(
                head.name,
                head.qualifier,
                head.fields,
                region=self._region,
                account=self._account,
            )
            turn = self._turn
            stale = turn == 0 or turn != self._refreshed.turn
            self._function = find_function(self._functions, self._ask.ref, refresh=stale)
            self._refreshed.turn = turn
        except Exception:
            return False
        self._friendly = head.kind == "friendly"
        return head.length <= SMALL or self._place is None or self._place.take()

    def _serve(self, head: Head, body: bytes) -> None:
        self._payload = body or b"{}"
        claim, self._claim = self._claim, None
        if len(body) > CHECKED_INLINE:
            self._body = body
            # A large one keeps its place until that is done.
            self._job = partial(_check_aside, claim, body)
            return
        try:
            if claim is not None:
                _prove(claim, body)
            check_json(self._payload)
        except Unproven:
            self._hand_over_again(body)
        except Exception as exc:
            self._refuse(exc)
        else:
            self._submit()

    def _worked(self, error: Exception | None) -> None:
        body, self._body = self._body, b""
        if isinstance(error, Unproven):
            self._payload = b""
            self._hand_over_again(body)
            return
        if self._place is not None:
            self._place.leave()
        if error is None:
            self._submit()
        else:
            self._refuse(error)

    def _submit(self) -> None:
        payload, self._payload = self._payload, b""
        if self._waited:
            # Since the head was here code may have changed, an alias have moved.
            try:
                self._function = find_function(self._functions, self._ask.ref, refresh=False)
            except Exception as exc:
                self._refuse(exc)
                return
        invocation = self._ask.invocation(self._function, payload, memory=self._friendly)
        self._asked = True
        try:
            ticket = self._invoker.submit(invocation, self._ended)
        except Exception as exc:
            self._asked = False
            self._refuse(exc)
            return
        self._ticket = ticket
        if ticket.done:
            self._ended()

    def _ended(self) -> None:
        """Called by whoever ended the invocation, in the middle of his work: nothing is raised."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return  # withdrawn, or ended before `submit` returned
        try:
            self._tell(ticket)
        except Exception as exc:
            self._fail(exc)
        self._settle()

    def _tell(self, ticket: Ticket) -> None:
        try:
            outcome = ticket.result()
        except Exception as exc:
            self._refuse(exc)
            return
        if self._friendly:
            self._answer(friendly_success(outcome, self._ask.request_id))
        else:
            self._answer(self._with_ids(aws_success(outcome, tail=self._ask.tail)))

    def _refuse(self, error: Exception) -> None:
        words = self._raw.split(b" ", 2)
        found = blame(error, words[0].decode(), words[1].decode().partition("?")[0])
        if self._friendly:
            self._answer(friendly_error(found, self._ask.request_id))
        else:
            self._answer(self._with_ids(aws_error(found)))

    def _with_ids(self, reply: Reply) -> Reply:
        return with_ids(reply, self._ask.request_id, self._ask.trace_id)

    def _answer(self, reply: Reply) -> None:
        try:
            self._send(reply)
        except OddHeader as exc:
            # No header of a runtime's gets here with such a value: h11 and the gate refuse them.
            self._refuse(PlatformFault(f"a header cannot be written: {exc}"))

    def _forget(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._invoker.withdraw(ticket)


class Unproven(Exception):
    """The signature is not of this request: the app says so, once more looking at all of it."""


def _prove(claim: Claim, body: bytes) -> None:
    try:
        claim.check(hashlib.sha256(body).hexdigest())
    except InvalidRequest as exc:
        raise Unproven from exc


def _check_aside(claim: Claim | None, body: bytes) -> None:
    """For a thread."""
    if claim is not None:
        _prove(claim, body)
    check_json_aside(body)


class RuntimeConnection(FastConnection):
    """`next`, `response` and `error` of one environment's runtime."""

    def __init__(
        self,
        stream: trio.SocketStream,
        config: FaceConfig,
        environment: RuntimeFace,
        pace: Pace | None,
        place: Place | None,
        on_host_network: bool,
    ) -> None:
        super().__init__(stream, config, runtime_head)
        self._on_host_network = on_host_network
        self._environment = environment
        self._pace = pace
        self._place = place

    def _accepts(self, head: Head) -> bool:
        if self._on_host_network and not is_loopback_name(head.fields["host"]):
            return False
        # Who is in debt waits, on the other lane, to the end of the connection.
        if self._pace is not None and self._pace.wait_s:
            return False
        return head.length <= SMALL or self._place is None or self._place.take()

    def _serve(self, head: Head, body: bytes) -> None:
        try:
            if head.kind == "next":
                self._next()
            elif head.kind == "response":
                self._response(head, body)
            else:
                self._error(head, body)
        except Refused as exc:
            if self._pace is not None:
                self._pace.charge(REFUSAL)
            self._send(refusal(exc.status, exc.error_type, exc.message))
        except Exception as exc:
            words = self._raw.split(b" ", 2)
            self._send(fault(exc, words[0].decode(), words[1].decode()))
        if self._place is not None:
            self._place.leave()

    def _next(self) -> None:
        if self._pace is not None and self._environment.event_is_out:
            self._pace.charge(REFUSAL)
        event = self._environment.ask_next(self._deliver)
        if event is None:
            self._asked = True
        else:
            self._tell(event)

    def _deliver(self, event: NextEvent) -> None:
        try:
            self._tell(event)
        except Exception as exc:
            self._fail(exc)
        self._settle()

    def _tell(self, event: NextEvent) -> None:
        try:
            self._send(next_reply(event))
        except OddHeader:
            self._hand_over_again()  # the event stays out: whoever asks again gets it

    def _response(self, head: Head, body: bytes) -> None:
        try:
            self._environment.take_response(
                head.name,
                invocation_id=head.fields.get("lambda-runtime-invocation-id"),
                content_type=head.fields.get("content-type"),
                body=body,
            )
            self._write(_ACCEPTED, ACCEPTED.body)
        finally:
            self._environment.finish_turn()

    def _error(self, head: Head, body: bytes) -> None:
        content_type, body = for_the_caller(head.fields.get("content-type"), body, self._pace)
        try:
            self._environment.take_error(
                head.name,
                invocation_id=head.fields.get("lambda-runtime-invocation-id"),
                error_type=head.fields.get("lambda-runtime-function-error-type"),
                content_type=content_type,
                body=body,
            )
            self._write(_ACCEPTED, ACCEPTED.body)
        finally:
            self._environment.finish_turn()

    def _worked(self, error: Exception | None) -> None:
        raise AssertionError("nothing of a runtime's is left to a thread")

    def _forget(self) -> None:
        self._environment.forget_next(self._deliver)
