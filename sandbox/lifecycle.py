"""Owns the states of one environment's runtime, and which Runtime API call is legal in which.

A sans-IO machine (SPEC 1.6): no sockets, no clock, no HTTP. `TABLE` is the whole of it; a call that
is not in the table is refused with 403 and changes nothing. Ids are checked before states, as AWS
does: a wrong or stale id is 400 whatever the state.

    Started --next--> Ready --invoke--> Running --response--> InvocationResponse --sent--> ResponseSent
       |               ^                   |  \\--error--> ResponseSent                        |
       init_error      |                   next (same event again)                            |
       v               \\------------------------------- next ---------------------------------/
    InitError

`python -m sandbox.lifecycle` prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """The value is AWS's own name, as it stands in the text of a 403."""

    STARTED = "Started"
    READY = "Ready"
    RUNNING = "Running"
    RESPONDING = "InvocationResponse"
    RESPONSE_SENT = "RuntimeResponseSentState"
    INIT_ERROR = "InitError"
    EXITED = "Exited"
    __hash__ = object.__hash__
    """Members are their own only equals; Enum's hash is Python, and each step of an invocation asks it."""


class Event(Enum):
    """What happens to a runtime. The value names the state AWS says it was heading for."""

    NEXT = "Ready"
    INVOKE = "Running"
    RESPONSE = "InvocationResponse"
    SENT = "RuntimeResponseSentState"
    ERROR = "InvocationErrorResponse"
    INIT_ERROR = "InitError"
    EXIT = "Exited"
    __hash__ = object.__hash__


TABLE: dict[tuple[State, Event], State] = {
    (State.STARTED, Event.NEXT): State.READY,
    (State.STARTED, Event.INIT_ERROR): State.INIT_ERROR,
    # A second `next` while idle parks as well; it is not an error.
    (State.READY, Event.NEXT): State.READY,
    (State.READY, Event.INVOKE): State.RUNNING,
    # `next` again while the event is out: the same event again (a client retrying a broken read).
    (State.RUNNING, Event.NEXT): State.RUNNING,
    (State.RUNNING, Event.RESPONSE): State.RESPONDING,
    (State.RUNNING, Event.ERROR): State.RESPONSE_SENT,
    (State.RESPONDING, Event.SENT): State.RESPONSE_SENT,
    (State.RESPONSE_SENT, Event.NEXT): State.READY,
    **{(state, Event.EXIT): State.EXITED for state in State},
}


@dataclass(frozen=True, slots=True)
class NextEvent:
    """What `GET /runtime/invocation/next` answers with (SPEC 1.3)."""

    request_id: str
    invocation_id: str
    deadline_ms: int
    """Unix time in milliseconds."""
    invoked_arn: str
    trace_id: str
    client_context: str | None
    cognito_identity: str | None
    content_type: str
    payload: bytes


class Refused(Exception):
    """The Runtime API says no: HTTP `status` and the body {errorMessage, errorType} of SPEC 1.5."""

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type
        self.message = message


class Lifecycle:
    """The machine of one runtime. `event` is the invocation that is out, from INVOKE to NEXT."""

    def __init__(self) -> None:
        self.state = State.STARTED
        self.event: NextEvent | None = None

    def __repr__(self) -> str:
        request = self.event.request_id if self.event else None
        return f"<Lifecycle {self.state.value} {request}>"

    def step(self, event: Event) -> None:
        """Go where the table says. Raises Refused(403) and stays put where it says nothing."""
        target = TABLE.get((self.state, event))
        if target is None:
            raise Refused(
                403,
                "InvalidStateTransition",
                f"State transition from {self.state.value} to {event.value} failed for runtime. "
                "Error: State transition is not allowed",
            )
        if event is Event.NEXT and self.state is State.RESPONSE_SENT:
            self.event = None
        self.state = target

    def invoke(self, event: NextEvent) -> None:
        """An invocation is given to the idle runtime."""
        self.step(Event.INVOKE)
        self.event = event

    def check_id(self, request_id: str, invocation_id: str | None) -> None:
        """Raises Refused: 400 for an id that is not out now, 410 for another attempt's invocation id."""
        if self.event is None or request_id != self.event.request_id:
            raise Refused(400, "InvalidRequestID", "Invalid request ID")
        if invocation_id and invocation_id != self.event.invocation_id:
            raise Refused(410, "InvokeTimeout", "Invoke timeout")


def main() -> None:
    for (state, event), target in TABLE.items():
        print(f"{state.value:26} --{event.name.lower()}--> {target.value}")  # noqa: T201


if __name__ == "__main__":
    main()
