"""Owns what the HTTP faces ask of the rooms behind them; `node.py` hands the real ones in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sandbox.extensionhost import Registration
from sandbox.extensions import ExtensionEvent
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.invocation import BodyTruncated, Invocation, Outcome, ResponseBody
from sandbox.lifecycle import NextEvent
from sandbox.telemetry import Subscription
from sandbox.ticket import Ticket

__all__ = [
    "BodyTruncated",
    "Console",
    "ExtensionsFace",
    "Functions",
    "Invoker",
    "ResponseBody",
    "RuntimeFace",
]


class ExtensionsFace(Protocol):
    """The extensions of one environment as they speak to it. Every method may raise Refused."""

    def register(self, name: str | None, events: Sequence[str]) -> Registration: ...
    async def next(self, identifier: str | None) -> ExtensionEvent:
        """Blocks until there is an event. Cancelled when the extension's connection goes away."""

    def init_error(self, identifier: str | None, error_type: str | None) -> None: ...
    def exit_error(self, identifier: str | None, error_type: str | None) -> None: ...


class RuntimeFace(Protocol):
    """One environment as its runtime speaks to it. Every method may raise `sandbox.lifecycle.Refused`."""

    async def next(self) -> NextEvent:
        """Blocks until there is an event. The first call ends the init phase.

        Cancelled when the runtime's connection goes away while it is parked here.
        """

    async def respond(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        response_mode: str | None,
        content_type: str | None,
        body: ResponseBody,
    ) -> None:
        """Takes the response; returns when the body is complete (then 202 is due).

        A connection that breaks inside the body is told by BodyTruncated, not by cancellation: let
        it out (or raise Refused) and the runtime, if it only half-closed, is answered. A body
        that is left unread is dropped by the connection.
        """

    async def error(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        error_type: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None: ...

    async def init_error(self, *, error_type: str | None, body: bytes) -> None: ...

    # Of its extensions, and what any of its programs may ask.

    @property
    def extensions(self) -> ExtensionsFace: ...
    def extension_name(self, identifier: str | None) -> str:
        """Whose `Lambda-Extension-Identifier` this is."""

    def subscribe(self, extension: str, subscription: Subscription) -> None:
        """The Telemetry or Logs API, during init."""

    @property
    def metadata_token(self) -> str:
        """Whoever has it may ask the metadata endpoint."""

    @property
    def zone_id(self) -> str:
        """Of the availability zone; empty: not known yet."""

    @property
    def event_is_out(self) -> bool:
        """An event has been given and not been answered: `next` gives it again."""

    # The same without waiting, for the fast lane.

    def ask_next(self, deliver: Callable[[NextEvent], None]) -> NextEvent | None:
        """`next`: the event that is out, or None, and `deliver` is called with the next one.

        `deliver` is called in the middle of somebody else's work: it must be quick and raise nothing.
        """

    def forget_next(self, deliver: Callable[[NextEvent], None]) -> None:
        """The connection that asked went away. Nothing happens if it was answered."""

    def take_response(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None:
        """`respond` with no mode and a whole body of at most MAX_PAYLOAD bytes."""

    def take_error(
        self,
        request_id: str,
        *,
        invocation_id: str | None,
        error_type: str | None,
        content_type: str | None,
        body: bytes,
    ) -> None: ...

    def finish_turn(self) -> None:
        """Call it after `take_response` and `take_error`, once the runtime has its answer."""


class Functions(Protocol):
    """Every function there is, as the Invoke API and the node need it."""

    @property
    def generation(self) -> object:
        """Equal to what it was: no function has come, changed or gone meanwhile."""

    def refresh(self) -> None:
        """Take in what changed on disk since the last call; cheap when nothing did."""

    def resolve(self, name: str, qualifier: str | None) -> FunctionVersion:
        """The version that this call means: None or "$LATEST", a number, or an alias.

        An alias with weights is another version from call to call. Raises FunctionNotFound (message
        is the bare name), FunctionFailed, or another CallerError that says why not now.
        """

    def all(self) -> Sequence[FunctionVersion | BrokenFunction]:
        """Every function's $LATEST."""

    def live(self) -> Sequence[FunctionVersion]:
        """Every version that may be invoked now or is to be kept provisioned."""


class Invoker(Protocol):
    """The scheduler, as the Invoke API needs it."""

    async def invoke(self, invocation: Invocation) -> Outcome:
        """Raises CallerError (429 ...) or PlatformFault. Cancelling it does not stop a started invocation."""

    def submit(self, invocation: Invocation, on_end: Callable[[], None]) -> Ticket:
        """`invoke` without waiting; raises what it raises at once. `on_end`: see `Ticket`."""

    def withdraw(self, ticket: Ticket) -> None:
        """The caller has gone away: as cancelling `invoke`."""

    async def accept(self, invocation: Invocation) -> None:
        """Take an Event invocation: once this returns it will be run, now or after a restart."""


@dataclass(frozen=True, slots=True)
class Console:
    """What lambox's own verbs (ps, logs, list) ask of a running node."""

    environments: Any
    """() -> list of JSON-able dicts, one per live environment."""
    log_lines: Any
    """(function name | None) -> list[str]: the lines kept, oldest first."""
    follow_logs: Any
    """(function name | None) -> async iterator of str lines as they come."""
    prepared: Any = list
    """() -> list of JSON-able dicts, one per kind of sandbox that is kept ready."""
