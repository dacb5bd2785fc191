"""Owns one execution environment from launch to reaping, and its deadlines.

An environment is a sandbox, the Runtime API on its listener, its log pipes, its extensions and one timer.
The timer means something else in each phase: the init limit, the function's timeout, the wait before an idle
environment is frozen, its idle time-out. When it fires the *host* kills; nothing asks user code to
leave, but where there are extensions: they have the time of a Shutdown phase first (SPEC 6.3), and the host
has the last word. The caller is answered first, the tree is reaped after.
"""

from __future__ import annotations

import logging
import math
import secrets
from dataclasses import replace
from typing import Any, Protocol

import trio

from sandbox import events, failures
from sandbox.confine.spec import (
    ConfineError,
    Exit,
    Program,
    ProgramNotStarted,
    RefusedCall,
    Sandbox,
)
from sandbox.conversation import Conversation
from sandbox.errors import PlatformFault
from sandbox.extensions import Extension, Reason
from sandbox.failures import Failure
from sandbox.function import FunctionVersion
from sandbox.lifecycle import Event, State
from sandbox.logpipes import TOLD_LINE_COST, LogPipes
from sandbox.surroundings import Surroundings
from sandbox.telemetry import Subscription
from sandbox.ticket import Ticket

log = logging.getLogger(__name__)
LAST_WORDS_S = 0.1
"""How long a dead runtime's last request may still be on its way through our sockets."""
FLUSH_S = 0.5
"""How long an idle environment waits at most, before it is frozen, for its telemetry to be taken."""
LAST_WORDS_OF_INIT_S = 1.0
"""How long who reported that its init failed may take to exit by itself."""
LINGER_S = 0.1
"""How long after its answer a runtime is counted on to ask again: one period of the CPU quota."""
PROVISIONED_INIT_S = 130.0
"""Least time for the init of a provisioned environment (SPEC 3.6)."""
MIB = 1024 * 1024


class Owner(Protocol):
    """Who holds environments: told, synchronously, when one is free or lost."""

    def environment_answered(self, environment: Environment) -> None:
        """Its invocation has ended for the caller; `next` should follow in a moment."""

    def environment_lingers(self, environment: Environment) -> None:
        """Answered a while ago and `next` has not come: do not count on it."""

    def environment_ready(self, environment: Environment) -> None:
        """It waits for an invocation: `dispatch` one, `retire` it, or leave it idle."""

    def environment_lost(
        self, environment: Environment, failure: Failure | Exception | None
    ) -> None:
        """It takes no further invocation. `failure` is set when it never came to its first `next`."""


class Environment(Conversation):
    """One execution environment. `run()` is its whole life; implements runtimeapi's RuntimeFace."""

    def __init__(
        self,
        id_: str,
        function: FunctionVersion,
        owner: Owner,
        surroundings: Surroundings,
        *,
        suppressed_init: bool = False,
        provisioned: bool = False,
    ) -> None:
        super().__init__(function, surroundings.logbook, surroundings.wall, surroundings.account)
        self.id = id_
        self.provisioned = provisioned
        self.suppressed_init = suppressed_init
        """A second try after a failed init: the function's own timeout is its limit (SPEC 3.6)."""
        self.born_at = self.turn_began_at = trio.current_time()
        self.idle_since = math.inf
        self.frozen = False
        self._flushing = False
        """Idle, and to be frozen when its telemetry has been taken."""
        self.connections = 0
        self._owner = owner
        self._around = surroundings
        self._stream.telemetry.on_quiet = self._flushed
        self._sandbox: Sandbox | None = None
        self._init_began_at = self.born_at
        self.metadata_token = secrets.token_urlsafe(32)
        self.gone = trio.Event()
        """Nothing of it is left on the host."""
        self._quiet = trio.Event()
        self._ending = trio.Event()
        self._reason: Reason = "spindown"
        """Why it ends, once it does."""
        self._starting = trio.CancelScope()
        self._started = False
        """The runtime has been told its function."""
        self._runtime_was_ready = False
        """Its first `next` has come, or it has been said that none will."""
        self._due = math.inf
        self._due_scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<Environment {self.id} {self.phase}>"

    @property
    def phase(self) -> str:
        """starting, idle, busy or dead, as `lambox ps` prints it."""
        if self.lost:
            return "dead"
        if self._initialising:
            return "starting"
        if self._life.state is State.READY and not self.extensions.all.busy:
            return "idle"
        return "busy"

    @property
    def _initialising(self) -> bool:
        """The init phase has neither ended nor failed."""
        waiting = self._life.state in (State.STARTED, State.READY)
        return waiting and not self.extensions.all.init_ended

    @property
    def _finishing(self) -> bool:
        """Its caller is answered; the runtime or an extension has not called `next` since."""
        if self._life.state is State.READY:
            return self.extensions.all.busy
        return self._life.state is State.RESPONSE_SENT

    @property
    def zone_id(self) -> str:
        return self._around.zone_id

    # --- its life

    async def run(self) -> None:
        """Launch, run and reap. Returns when nothing of the environment is left on the host."""
        try:
            await self._run()
        finally:
            self.gone.set()

    async def _run(self) -> None:
        try:
            spec, program = self._around.prepare(self.function, self.id, self.provisioned)
            sandbox = await self._around.launcher.launch(spec)
        except Exception as exc:
            # Told, not raised: whoever waits for this environment gets it as the answer.
            self._lose(exc)
            return
        except trio.Cancelled:
            self._lose(None)
            raise
        self._sandbox = sandbox
        try:
            if not self.lost:  # retired while it was launched
                await self._live(sandbox, program)
        except Exception as exc:
            self._lose(exc)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await sandbox.kill()

    async def _live(self, sandbox: Sandbox, program: Program) -> None:
        listener = sandbox.listener.dup()
        with (
            listener,
            LogPipes(
                (sandbox.stdout, sandbox.stderr),
                sandbox.telemetry,
                self._stream.line,
                self._stream.frame,
            ) as self._log,
        ):
            sandbox.refused(self._call_refused)
            async with trio.open_nursery() as nursery:
                if (courier := self._around.courier) is not None:
                    self._stream.telemetry.start(
                        nursery, lambda destination: courier(destination, sandbox.dial)
                    )
                try:
                    await nursery.start(self._around.serve, listener, self)
                    nursery.start_soon(self._log.read)
                    nursery.start_soon(self._watch_deadline)
                    with self._starting:
                        await self._start(sandbox, program, nursery)
                    nursery.start_soon(self._watch_exit, sandbox)
                    await self._ending.wait()
                    await self._shut_down(sandbox)
                except Exception as exc:
                    # Whoever waits gets it as the answer: a fresh environment would end the same way.
                    self._lose(exc)
                    raise
                except trio.Cancelled:
                    if nursery.cancel_scope.cancel_called:  # one of its own tasks has failed
                        self._lose(PlatformFault(f"environment {self.id} ended badly"))
                    raise
                finally:
                    # Before the nursery unwinds: its tasks may be writing to a process that will
                    # never read, and only its death wakes them.
                    with trio.CancelScope(shield=True):
                        self._lose(None)
                        await sandbox.kill()
                        for refused in sandbox.refused():
                            self._stream.write(refused.total())
                    nursery.cancel_scope.cancel()

    def _call_refused(self, refused: RefusedCall) -> None:
        """Log mode met a system call that it had not met in this environment."""
        key = self.function.name, refused.name
        if key not in self._around.told_calls:
            self._around.told_calls.add(key)
            self._stream.write(refused.line())
            log.warning("function %s: %s", self.function.name, refused.line())

    def adopt(self, function: FunctionVersion) -> None:
        """The same revision, for which other things are set outside: how long one may be idle."""
        assert function.revision == self.function.revision
        self.function = function
        if self.phase == "idle" and (self.frozen or not function.freeze):
            self._arm(self._idle_until)

    def retire(self, reason: Reason = "spindown") -> None:
        """No further invocation: the tree is killed and reaped in the background.

        If it has extensions they are told `reason` first.
        """
        self._lose(None)
        self._end(reason)

    def _end(self, reason: Reason) -> None:
        if not self._ending.is_set():
            self._reason = reason
            self._ending.set()
            self._starting.cancel()

    async def _shut_down(self, sandbox: Sandbox) -> None:
        """What extensions and the runtime beside them are given before the host kills (SPEC 6.3)."""
        if not self.extensions.all.shutdown_budget_s:
            return
        if self._reason != "spindown":
            try:
                self._around.failed.acquire_on_behalf_of_nowait(self)
            except trio.WouldBlock:
                return
        if self.frozen:
            sandbox.thaw()
            self.frozen = False
            self._stream.telemetry.thaw()
        try:
            await self.extensions.shut_down(
                sandbox,
                self._reason,
                self._around.wall,
                runtime=self._started and self._life.state is not State.EXITED,
                flush=self._stream.telemetry.drain,
            )
        except ConfineError as exc:
            log.info("environment %s had no orderly end: %s", self.id, exc)
        finally:
            if self._reason != "spindown":
                self._around.failed.release_on_behalf_of(self)

    async def _start(self, sandbox: Sandbox, program: Program, nursery: trio.Nursery) -> None:
        self._init_began_at = trio.current_time()
        limit = self.function.timeout_s if self.suppressed_init else self._around.init_timeout_s
        if self.provisioned:
            limit = max(limit, PROVISIONED_INIT_S, self.function.timeout_s)
        self._arm(self._init_began_at + limit)
        if self.suppressed_init:
            self._first_deadline = self._due
        function = self.function
        self._stream.platform(
            events.InitStart(*self._init, function.runtime, function.name, function.version)
        )
        metadata = {
            "AWS_LAMBDA_METADATA_API": sandbox.address,
            "AWS_LAMBDA_METADATA_TOKEN": self.metadata_token,
        }
        program = replace(program, env={**program.env, **metadata})
        try:
            if self.function.extensions:
                assert self._log is not None
                failure = await self.extensions.launch(sandbox, program, nursery, self._log.budget)
                if failure is not None:
                    self._init_failed(failure)
                    return
            self._started = True
            await sandbox.start(program)
        except ProgramNotStarted as exc:
            self._init_failed(failures.not_executable(exc.program, str(exc)))
        except ConfineError as exc:
            self._lose(exc)
            self._end("failure")

    async def _watch_exit(self, sandbox: Sandbox) -> None:
        exit_ = await sandbox.wait()
        if self._life.state in (State.RUNNING, State.RESPONDING, State.STARTED):
            # The runtime may have answered in its last moment: let what it sent be read first.
            with trio.move_on_after(LAST_WORDS_S):
                while self.connections:
                    await self._quiet.wait()
        self._exited(exit_)

    def _exited(self, exit_: Exit) -> None:
        if self.lost:
            self._end("failure")
            return
        initialising = self._initialising
        self._life.step(Event.EXIT)
        self._failed(failures.exited(exit_), initialising=initialising)

    def _failed(self, failure: Failure, *, initialising: bool) -> None:
        if initialising:
            self._init_failed(failure)
        elif self._turn is not None:
            self._fail_invocation(failure)
        else:
            self._runtime_done(failure.status, failure.report_type)
        self.retire("timeout" if failure.status == "timeout" else "failure")

    async def _watch_deadline(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._due) as self._due_scope:
                await trio.sleep_forever()
            # Between the clock reaching a deadline and this task being run, somebody else may have
            # armed another one (a dispatch at the very moment of freezing): then nothing is due.
            if trio.current_time() >= self._due:
                self._due = math.inf
                self._on_due()

    def _arm(self, deadline: float) -> None:
        """A later deadline only is noted: the timer wakes up at the old one and sees it. An invocation
        changes it three times, and almost none of these deadlines is ever reached."""
        self._due = deadline
        if deadline < self._due_scope.deadline:
            self._due_scope.deadline = deadline

    def _on_due(self) -> None:
        if self.lost:
            self._end("failure")
        elif self._initialising:
            if self.extensions.all.first_fatal:
                self._init_failed(failures.extension_reported(self.extensions.all))
            else:
                self._init_failed(failures.timed_out(self.function.timeout_s))
        elif self._finishing:
            if trio.current_time() < self._deadline:
                self._arm(self._deadline)
                self._owner.environment_lingers(self)
            else:
                # SPEC 1.6: answered, but a `next` never came. The caller has its response.
                self._stream.log(events.Fault(self._finishing_id, "timeout", unanswered=False))
                self._runtime_done("timeout", failures.TIMED_OUT)
                self.retire("timeout")
        elif self._turn is not None:
            self._failed(failures.timed_out(self.function.timeout_s), initialising=False)
        elif self._life.state is State.READY and self.function.freeze and not self.frozen:
            self._freeze()
        else:
            self.retire()

    def _freeze(self) -> None:
        """Once its telemetry is out, or FLUSH_S later: a frozen environment takes nothing."""
        telemetry = self._stream.telemetry
        if not self._flushing and telemetry.flush():
            self._flushing = True
            self._arm(trio.current_time() + FLUSH_S)
            return
        self._flushing = False
        assert self._sandbox is not None
        telemetry.freeze()
        self._sandbox.freeze()
        self.frozen = True
        self._arm(self._idle_until)

    def _flushed(self) -> None:
        if self._flushing and self._life.state is State.READY and not self.lost:
            self._arm(trio.current_time())

    @property
    def _finishing_id(self) -> str:
        return self._request_id or self.extensions.request_id

    def _lose(self, failure: Failure | Exception | None) -> None:
        if not self.lost:
            self.lost = True
            if self._turn is not None:
                self._fail_invocation(
                    Failure("failure", "Sandbox.Failure", "Sandbox was shut down")
                )
            self.finish_turn()
            self._runtime_done()
            self._tell_report()
            self._owner.environment_lost(self, failure)

    # --- what its runtime says (RuntimeFace)

    def admits(self, peer: tuple[str, int]) -> bool:
        """Whether a connection to the Runtime API comes from inside this environment. Raises OSError."""
        return self._sandbox is not None and self._sandbox.admits(peer)

    def count_connection(self, change: int) -> None:
        """The Runtime API tells how many connections of the runtime are open."""
        self.connections += change
        self._quiet.set()
        self._quiet = trio.Event()

    def subscribe(self, extension: str, subscription: Subscription) -> None:
        """To the Telemetry or Logs API. Raises Refused."""
        if self._stream.telemetry.subscribe(extension, subscription):
            if self._log is not None:
                self._log.budget.line_cost = TOLD_LINE_COST
            self._stream.platform(
                events.TelemetrySubscription(extension, subscription.types, subscription.api)
            )

    # --- init

    def _init_ended(self) -> None:
        init_ms = (trio.current_time() - self._init_began_at) * 1000
        self._init_done(init_ms, "success")
        if not (self.provisioned or self.suppressed_init):
            self._init_ms = init_ms
        assert self._sandbox is not None
        self._sandbox.settle()
        self._owner_decides()

    def _init_failed(self, failure: Failure, *, at_once: bool = True) -> None:
        """`at_once` False: the runtime is still being told 202 and will exit by itself."""
        if self.lost:
            return
        self._drain()
        init_ms = (trio.current_time() - self._init_began_at) * 1000
        self._init_done(init_ms, failure.status, failure.report_type)
        self._lose(failure)
        if at_once:
            self._end("timeout" if failure.status == "timeout" else "failure")
        else:
            self._arm(trio.current_time() + LAST_WORDS_OF_INIT_S)

    def _write_extensions(self) -> None:
        for one in self.extensions.all:
            self._stream.platform(
                events.Extension(one.name, one.state.value, one.events, one.error_type)
            )

    # --- what its extensions say (extensionhost.Hooks)

    def extension_failed_init(self) -> None:
        """It has a moment to exit, which says more than its word."""
        if self._initialising and not self.lost:
            self._arm(min(self._due, trio.current_time() + LAST_WORDS_OF_INIT_S))

    def extension_exited(self, extension: Extension, failure: Failure) -> None:
        if self.lost or self._ending.is_set():
            return
        log.warning(
            "function %s: its extension %s ended by itself: %s",
            self.function.name,
            extension.name,
            failure.reason,
        )
        self._failed(failure, initialising=self._initialising)

    def _runtime_initialised(self, status: str = "success", error_type: str = "") -> None:
        if not self._runtime_was_ready:
            self._runtime_was_ready = True
            self._stream.platform(events.InitRuntimeDone(*self._init, status, error_type))

    def _init_done(self, init_ms: float, status: str, error_type: str = "") -> None:
        self._runtime_initialised(status, error_type)
        self._write_extensions()
        self._stream.platform(events.InitReport(*self._init, status, init_ms, error_type))
        self._stream.init_ended()

    @property
    def _init(self) -> tuple[str, str]:
        """(AWS's initialization type, phase), as events of the init have them."""
        kind = "provisioned-concurrency" if self.provisioned else "on-demand"
        return kind, "invoke" if self.suppressed_init else "init"

    def _owner_decides(self) -> None:
        self.idle_since = trio.current_time()
        self._owner.environment_ready(self)
        if self._life.state is State.READY and not self.lost:
            if self.function.freeze:
                self._arm(self.idle_since + self._around.freeze_delay_s)
            else:
                self._arm(self._idle_until)

    @property
    def _idle_until(self) -> float:
        limit = math.inf if self.provisioned else self._around.idle_limit(self.function)
        return self.idle_since + limit

    # --- one invocation

    @property
    def worn_out(self) -> bool:
        return trio.current_time() - self.born_at >= self._around.max_age_s

    def dispatch(self, ticket: Ticket) -> None:
        """Give it an invocation. The environment must be idle (its runtime parked in `next`)."""
        self._flushing = False
        if self.frozen:
            assert self._sandbox is not None
            self._sandbox.thaw()
            self.frozen = False
            self._stream.telemetry.thaw()
        now = trio.current_time()
        deadline = min(now + self.function.timeout_s, self._first_deadline)
        self._first_deadline = math.inf
        ticket.dispatched = True
        self._give(ticket, now=now, deadline=deadline)

    def _answered(self) -> None:
        self._arm(min(self._deadline, trio.current_time() + LINGER_S))
        self._owner.environment_answered(self)

    def _peak_memory(self) -> int | None:
        return self._sandbox.peak_memory() if self._sandbox else None

    def describe(self) -> dict[str, Any]:
        """One row of `lambox ps`."""
        usage = self._sandbox.usage() if self._sandbox and not self._ending.is_set() else None
        return {
            "id": self.id,
            "sandbox": self._sandbox.name if self._sandbox else None,
            "function": self.function.name,
            "version": self.function.version,
            "type": "provisioned" if self.provisioned else "on-demand",
            "state": "frozen" if self.frozen and not self.lost else self.phase,
            "age_s": round(trio.current_time() - self.born_at, 3),
            "invocations": self.invocations,
            "extensions": self.extensions.all.describe(),
            "memory_mb": None
            if not usage or usage.memory_bytes is None
            else round(usage.memory_bytes / MIB, 1),
            "memory_size_mb": self.function.memory_mb,
            "tmp": self._sandbox.tmp if self._sandbox else None,
            "cpu_s": None if not usage or usage.cpu_s is None else round(usage.cpu_s, 3),
        }
