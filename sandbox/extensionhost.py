"""Owns one environment's extensions as they live: launch, calls of `next`, what they print, their end.

Which call is legal in which state is `extensions.py`'s; this is what it is done with. The environment
is told (`Hooks`) when it may go on and when an extension failed it. An environment without extensions has
one of these too, which costs it an empty dict and no system call.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from rootfs import environ
from rootfs.extensions import FOLDER
from sandbox import failures
from sandbox.confine.spec import Companion, Exit, Program, ProgramNotStarted, Sandbox
from sandbox.extensions import (
    LAUNCH_ERROR,
    MOST_EXTENSIONS,
    Extension,
    ExtensionEvent,
    Extensions,
    InvokeEvent,
    Reason,
    ShutdownEvent,
)
from sandbox.failures import Failure
from sandbox.function import FunctionVersion
from sandbox.logpipes import Budget, LogPipes

RUNTIMES_SHARE = 0.3
"""Of a shutdown's budget: what the runtime has between SIGTERM and SIGKILL (SPEC 6.3)."""

FLUSH_SHARE = 0.15
"""Of it, twice: what subscribers of telemetry have to take what waits for them."""

Deliver = Callable[[ExtensionEvent], None]


class Hooks(Protocol):
    """What the environment is told, synchronously, in the middle of an extension's call."""

    def extensions_ready(self) -> None:
        """One more has called `next`: init, or the invocation, may be over."""

    def extension_failed_init(self) -> None:
        """It said so (`first_fatal`), and is still being told 202."""

    def extension_exited(self, extension: Extension, failure: Failure) -> None:
        """Unasked: its process is no more."""

    def extension_printed(self, extension: Extension, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Registration:
    """What a call of `register` answers with."""

    identifier: str
    function_name: str
    function_version: str
    handler: str
    account: str


class ExtensionHost:
    """Implements runtimeapi's ExtensionsFace."""

    def __init__(self, function: FunctionVersion, hooks: Hooks, *, account: str = "") -> None:
        self.all = Extensions(function.extensions)
        self.request_id = ""
        """Of the last invocation that they were told of."""
        self._function = function
        self._hooks = hooks
        self._account = account
        self._parked: dict[Extension, Deliver] = {}
        self._companions: dict[Extension, Companion] = {}
        """The processes of external ones that have not ended."""
        self._ending = False
        self._changed = trio.Event()

    # --- what they say (ExtensionsFace)

    def register(self, name: str | None, events: Sequence[str]) -> Registration:
        """Raises Refused, as all of these do."""
        one = self.all.register(name, events)
        self._tell()
        return Registration(
            one.identifier,
            self._function.name,
            self._function.version,
            self._function.handler,
            self._account,
        )

    async def next(self, identifier: str | None) -> ExtensionEvent:
        """Blocks until there is an event. Cancelled, it may be asked again."""
        was_busy = self.all.busy
        one, event = self.all.next(identifier)
        came = trio.Event()
        found: list[ExtensionEvent] = []

        def deliver(event: ExtensionEvent) -> None:
            found.append(event)
            came.set()

        if event is None:
            # Before anybody is told: the next invocation may begin in the middle of that.
            self._parked[one] = deliver
        if was_busy != self.all.busy or not self.all.init_ended:
            self._hooks.extensions_ready()
        if event is not None:
            return event
        try:
            await came.wait()
        finally:
            if not found and self._parked.get(one) is deliver:
                del self._parked[one]
                self.all.forget_next(one)
        return found[0]

    def init_error(self, identifier: str | None, error_type: str | None) -> None:
        self.all.init_error(identifier, error_type)
        self._hooks.extension_failed_init()

    def exit_error(self, identifier: str | None, error_type: str | None) -> None:
        """Its exit is then called Extension.ExitError; until it comes, nothing happens."""
        self.all.exit_error(identifier, error_type)
        if not self.all.init_ended:
            self._hooks.extension_failed_init()

    # --- what is done with them

    async def launch(
        self, sandbox: Sandbox, program: Program, nursery: trio.Nursery, budget: Budget
    ) -> Failure | None:
        """Start the external ones, and wait until all have registered. Returns what kept one from starting.

        `program` is the runtime's; `budget` is what may be read of the logs of both. Raises ConfineError.
        """
        external = self.all.external
        if len(external) > MOST_EXTENSIONS:
            self.all.launch_failed(external[MOST_EXTENSIONS], "TooManyExtensions")
            return Failure("error", LAUNCH_ERROR, f"Extension limit ({MOST_EXTENSIONS}) reached")
        env = environ.extension_environment(program.env)
        for one in external:
            path = f"{FOLDER}/{one.name}"
            try:
                companion = await sandbox.start_companion(Program([path], env, "/"))
            except ProgramNotStarted as exc:
                denied = exc.errno == errno.EACCES
                self.all.launch_failed(one, "PermissionDenied" if denied else "UnknownError")
                reason = f"fork/exec {path}: {os.strerror(exc.errno).lower()}"
                return Failure("error", LAUNCH_ERROR, reason)
            self._companions[one] = companion
            # Now: who ends the sandbox closes the pipe.
            on_line = partial(self._hooks.extension_printed, one)
            pipe = LogPipes((companion.output,), None, on_line, budget=budget)
            nursery.start_soon(self._attend, one, companion, pipe)
        while not self.all.all_registered:
            await self._changed.wait()
        return None

    async def _attend(self, one: Extension, companion: Companion, pipe: LogPipes) -> None:
        """One process to its end, and what it prints, beyond that if it left children."""
        with pipe:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipe.read)
                exit_ = await companion.wait()
                pipe.drain()
                self._exited(one, exit_)

    def _exited(self, one: Extension, exit_: Exit) -> None:
        del self._companions[one]
        if self._ending:
            self.all.exited(one, by_itself=exit_.code == 0)
        elif exit_.code is not None or exit_.signal is not None:
            # Else it went with all the rest, which is not its failure.
            failure = failures.extension_exited(exit_, self.all.first_fatal)
            self._hooks.extension_exited(one, failure)
        self._tell()

    def invoke(self, event: InvokeEvent) -> None:
        """Tell those that are subscribed to INVOKE."""
        self.request_id = event.request_id
        for one in self.all.invoke(event):
            self._parked.pop(one)(event)

    async def shut_down(
        self,
        sandbox: Sandbox,
        reason: Reason,
        wall: Callable[[], float],
        *,
        runtime: bool,
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        """The Shutdown phase, within its budget (SPEC 6.3); what is left then is the caller's to kill.

        `runtime`: it was started. `flush`: telemetry is delivered, before whoever takes it is told to go.
        The sandbox must not be frozen. Raises ConfineError.
        """
        self._ending = True
        budget = self.all.shutdown_budget_s
        began = trio.current_time()
        event = ShutdownEvent(int((wall() + budget) * 1000), reason)
        with trio.move_on_after(budget):
            with trio.move_on_after(budget * FLUSH_SHARE):
                await flush()  # an internal extension goes with the runtime
            if runtime:
                await sandbox.signal(signal.SIGTERM)
                with trio.move_on_at(began + budget * RUNTIMES_SHARE) as patience:
                    await sandbox.wait()
                if patience.cancelled_caught:
                    await sandbox.signal(signal.SIGKILL)
                with trio.move_on_after(budget * FLUSH_SHARE):
                    await flush()  # its last words
            for one, companion in list(self._companions.items()):
                if "SHUTDOWN" not in one.events:
                    await companion.signal(signal.SIGKILL)
            for one in self.all.shutdown(event):
                self._parked.pop(one)(event)
            while self._companions:
                await self._changed.wait()
        for one in self._companions:
            self.all.exited(one, by_itself=False)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
