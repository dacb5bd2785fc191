"""Owns the extensions of one environment: who they are, their states, and which call is legal in which.

A sans-IO machine (SPEC 6.1 to 6.3) beside `lifecycle.py`, whose runtime it stands next to: no sockets, no
processes, no clock. `TABLE` is the whole of one extension's states; a call that is not in it is refused
with 403 and changes nothing.

    Started --register--> Registered --next--> Ready --deliver--> Running --next--> Ready ...
       |                    |     |              |                   |   \\
       launch_error   init_error  exit_error     exit_error          |    exited | shutdown_failed
       v                    v          \\----------- ExitError ------/
    LaunchError         InitError

External extensions are known before they speak: the files of /opt/extensions, each of which has to
register under its own name. Any other name is an internal extension, a part of the runtime's process.
`python -m sandbox.extensions` prints the table.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from sandbox.lifecycle import Refused

MOST_EXTENSIONS = 10
"""Internal and external ones together (SPEC 6.1)."""
MOST_NAME = 255
"""Bytes of a name: a file's of most file systems (limits.h, NAME_MAX)."""
INTERNAL_BUDGET_S, EXTERNAL_BUDGET_S = 0.5, 2.0
"""What a shutdown may take where there are only internal, or any external extensions (SPEC 6.3)."""
CRASH, EXIT_ERROR, INIT_ERROR = "Extension.Crash", "Extension.ExitError", "Extension.InitError"
LAUNCH_ERROR = "Extension.LaunchError"

Reason = Literal["spindown", "timeout", "failure"]
"""Why an environment is shut down, as it stands in the SHUTDOWN event."""


class State(Enum):
    """The value is AWS's own name, as it stands in the text of a 403 and in the EXTENSION log line."""

    STARTED = "Started"
    REGISTERED = "Registered"
    READY = "Ready"
    RUNNING = "Running"
    INIT_ERROR = "InitError"
    EXIT_ERROR = "ExitError"
    SHUTDOWN_FAILED = "ShutdownFailed"
    EXITED = "Exited"
    LAUNCH_ERROR = "LaunchError"


class Event(Enum):
    """What happens to an extension. The value names the state that AWS says it was heading for."""

    REGISTER = "Registered"
    NEXT = "Ready"
    DELIVER = "Running"
    INIT_ERROR = "InitError"
    EXIT_ERROR = "Exited*"
    """AWS's text says Exited here, although the state is called ExitError."""
    SHUTDOWN_FAILED = "ShutdownFailed"
    EXITED = "Exited"
    LAUNCH_ERROR = "LaunchError"

    @property
    def target(self) -> str:
        return self.value.removesuffix("*")


TABLE: dict[tuple[State, Event], State] = {
    (State.STARTED, Event.REGISTER): State.REGISTERED,
    (State.STARTED, Event.LAUNCH_ERROR): State.LAUNCH_ERROR,
    (State.REGISTERED, Event.NEXT): State.READY,
    (State.REGISTERED, Event.INIT_ERROR): State.INIT_ERROR,
    (State.REGISTERED, Event.EXIT_ERROR): State.EXIT_ERROR,
    (State.READY, Event.DELIVER): State.RUNNING,
    (State.READY, Event.EXIT_ERROR): State.EXIT_ERROR,
    (State.RUNNING, Event.NEXT): State.READY,
    (State.RUNNING, Event.EXIT_ERROR): State.EXIT_ERROR,
    (State.RUNNING, Event.SHUTDOWN_FAILED): State.SHUTDOWN_FAILED,
    (State.RUNNING, Event.EXITED): State.EXITED,
    # Said once more, it is what it was.
    (State.INIT_ERROR, Event.INIT_ERROR): State.INIT_ERROR,
    (State.EXIT_ERROR, Event.EXIT_ERROR): State.EXIT_ERROR,
}


@dataclass(frozen=True, slots=True)
class InvokeEvent:
    """What `event/next` answers with at an invocation. `deadline_ms`: Unix time in milliseconds."""

    deadline_ms: int
    request_id: str
    invoked_arn: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class ShutdownEvent:
    deadline_ms: int
    reason: Reason


ExtensionEvent = InvokeEvent | ShutdownEvent


class Extension:
    """One extension. Equal to itself only."""

    def __init__(self, name: str, *, external: bool) -> None:
        self.name = name
        self.external = external
        self.identifier = str(uuid.uuid4())
        self.state = State.STARTED
        self.events: tuple[str, ...] = ()
        """INVOKE, SHUTDOWN: as they were subscribed to."""
        self.error_type = ""
        """As it named it in init/error or exit/error, or why it could not be launched."""
        self.was_ready = False
        """It has called `next`: for it, init is over."""
        self.waits = False
        """A call of `next` is open. (In Ready without one the connection was lost: it may ask again.)"""
        self.pending: ExtensionEvent | None = None
        """For its next `next`."""

    def __repr__(self) -> str:
        kind = "external" if self.external else "internal"
        return f"<Extension {self.name} {kind} {self.state.value}>"

    def step(self, event: Event, who: str) -> None:
        """Go where the table says. Raises Refused(403), in which it is called `who`, and stays put."""
        target = TABLE.get((self.state, event))
        if target is None:
            raise Refused(
                403,
                "Extension.InvalidExtensionState",
                f"State transition from {self.state.value} to {event.target} failed for extension "
                f"{who}. Error: State transition is not allowed",
            )
        self.state = target


class Extensions:
    """All extensions of one environment, from before its init to its end."""

    def __init__(self, external: Sequence[str] = ()) -> None:
        """`external`: the names of the files in /opt/extensions, in the order of their launch."""
        self._all = {name: Extension(name, external=True) for name in external}
        self._awaited: set[Extension] = set()
        """Those that were given the INVOKE event and have not called `next` since."""
        self._subscribers: tuple[Extension, ...] = ()
        self.registration_open = True
        """Until the runtime's first `next`."""
        self.init_ended = False
        """The runtime and all extensions have called `next`; telemetry can no longer be subscribed to."""
        self.first_fatal = ""
        """Type of the first error that one of them reported: what its exit is then called."""

    def __iter__(self) -> Iterator[Extension]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    @property
    def external(self) -> list[Extension]:
        return [one for one in self if one.external]

    @property
    def all_registered(self) -> bool:
        """Every external extension has spoken: the runtime may be started."""
        return all(one.state is not State.STARTED for one in self if one.external)

    @property
    def all_ready(self) -> bool:
        return all(one.was_ready for one in self)

    @property
    def busy(self) -> bool:
        """An INVOKE subscriber has not called `next` since the last invocation began."""
        return bool(self._awaited)

    @property
    def shutdown_budget_s(self) -> float:
        if not self._all:
            return 0.0
        return EXTERNAL_BUDGET_S if self.external else INTERNAL_BUDGET_S

    # --- who speaks

    def find(self, identifier: str | None) -> Extension:
        """Whose `Lambda-Extension-Identifier` this is. Raises Refused(403) as SPEC 6.2 has it."""
        one, asked = self._look_up(identifier)
        if one is None:
            raise _no("Extension.UnknownExtensionIdentifier", f"Unknown extension {asked}")
        return one

    def _look_up(self, identifier: str | None) -> tuple[Extension | None, str]:
        if not identifier:
            raise _no(
                "Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header"
            )
        try:
            asked = str(uuid.UUID(identifier))
        except ValueError:
            raise _no(
                "Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier"
            ) from None
        return next((one for one in self if one.identifier == asked), None), asked

    # --- what they say

    def register(self, name: str | None, events: Sequence[str]) -> Extension:
        """`name` is the header's, `events` the body's. Raises Refused(403)."""
        check_name(name)
        assert name
        one = self._all.get(name)
        external = one is not None and one.external
        for event in events:
            _check_event(event, external=external)
        if external:
            assert one is not None
            one.step(Event.REGISTER, name)
        else:
            one = self._create_internal(name)
        one.events = tuple(dict.fromkeys(events))
        return one

    def _create_internal(self, name: str) -> Extension:
        if not self.registration_open:
            raise _no("Extension.RegistrationClosed", "Extension registration closed already")
        if len(self._all) >= MOST_EXTENSIONS:
            raise _no("Extension.TooManyExtensions", f"Extension limit ({MOST_EXTENSIONS}) reached")
        if name in self._all:
            raise _no(
                "Extension.InvalidExtensionState", "Extension with this name already registered"
            )
        one = self._all[name] = Extension(name, external=False)
        one.step(Event.REGISTER, name)
        return one

    def next(self, identifier: str | None) -> tuple[Extension, ExtensionEvent | None]:
        """The event it is owed, or None: then it waits, until `invoke` or `shutdown` names it.

        Raises Refused(403).
        """
        one = self.find(identifier)
        if one.state is not State.READY or one.waits:
            one.step(Event.NEXT, one.identifier)
        one.was_ready = True
        self._awaited.discard(one)
        event, one.pending = one.pending, None
        if event is None:
            one.waits = True
        else:
            self._deliver(one, event)
        return one, event

    def forget_next(self, one: Extension) -> None:
        """The connection on which it waited is gone; it may ask again."""
        one.waits = False

    def init_error(self, identifier: str | None, error_type: str | None) -> Extension:
        """Raises Refused(403). Said again it is the same."""
        return self._fail(identifier, error_type, Event.INIT_ERROR, INIT_ERROR)

    def exit_error(self, identifier: str | None, error_type: str | None) -> Extension:
        return self._fail(identifier, error_type, Event.EXIT_ERROR, EXIT_ERROR)

    def _fail(
        self, identifier: str | None, error_type: str | None, event: Event, fatal: str
    ) -> Extension:
        one, _ = self._look_up(identifier)
        if not error_type:
            raise _no("Extension.MissingHeader", "Lambda-Extension-Function-Error-Type not found")
        if one is None:
            raise _no("Extension.UnknownExtensionIdentifier", "Unknown Lambda-Extension-Identifier")
        one.step(event, one.identifier)
        one.error_type = error_type
        self.first_fatal = self.first_fatal or fatal
        return one

    # --- what is done with them

    def launch_failed(self, one: Extension, why: str) -> None:
        """It could not be started: PermissionDenied, TooManyExtensions or UnknownError."""
        one.step(Event.LAUNCH_ERROR, one.name)
        one.error_type = why

    def close_registration(self) -> None:
        self.registration_open = False

    def end_init(self) -> None:
        """Who is subscribed to what does not change any more."""
        self.registration_open = False
        self.init_ended = True
        self._subscribers = tuple(one for one in self if "INVOKE" in one.events)

    def invoke(self, event: InvokeEvent) -> list[Extension]:
        """An invocation begins: those that wait and are to be told `event` now."""
        told = []
        for one in self._subscribers:
            if one.state is State.READY:
                self._awaited.add(one)
                told += self._give(one, event)
        return told

    def shutdown(self, event: ShutdownEvent) -> list[Extension]:
        """The end begins: those that wait and are to be told `event` now; others at their next `next`."""
        self._awaited.clear()
        told = []
        for one in self.external:
            if "SHUTDOWN" in one.events:
                told += self._give(one, event)
        return told

    def exited(self, one: Extension, *, by_itself: bool) -> None:
        """Its process has ended, after it was told to."""
        event = Event.EXITED if by_itself else Event.SHUTDOWN_FAILED
        if (one.state, event) in TABLE:
            one.step(event, one.name)

    def _give(self, one: Extension, event: ExtensionEvent) -> list[Extension]:
        if one.state is not State.READY or not one.waits:
            one.pending = event  # never asked for by one that has failed
            return []
        self._deliver(one, event)
        return [one]

    def _deliver(self, one: Extension, event: ExtensionEvent) -> None:
        one.waits = False
        one.step(Event.DELIVER, one.name)
        if isinstance(event, InvokeEvent):
            self._awaited.add(one)

    def describe(self) -> list[dict[str, Any]]:
        """For `lambox ps`."""
        return [
            {
                "name": one.name,
                "type": "external" if one.external else "internal",
                "state": one.state.value,
                "events": list(one.events),
            }
            for one in self
        ]


def check_name(name: str | None) -> None:
    """Of a `Lambda-Extension-Name` header. Raises Refused(403)."""
    if not name:
        raise _no("Extension.InvalidExtensionName", "Empty extension name")
    if len(name.encode("utf-8", "replace")) > MOST_NAME:
        raise _no(
            "Extension.InvalidExtensionName", f"Extension name is longer than {MOST_NAME} bytes"
        )


def _check_event(event: str, *, external: bool) -> None:
    if event == "SHUTDOWN" and not external:
        raise _no(
            "Extension.InvalidEventType",
            "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension",
        )
    if event not in ("INVOKE", "SHUTDOWN"):
        raise _no("Extension.InvalidEventType", f"{event[:MOST_NAME]}: ErrorInvalidEventType")


def _no(error_type: str, message: str) -> Refused:
    return Refused(403, error_type, message)


def main() -> None:
    for (state, event), target in TABLE.items():
        print(f"{state.value:16} --{event.name.lower()}--> {target.value}")  # noqa: T201


if __name__ == "__main__":
    main()
