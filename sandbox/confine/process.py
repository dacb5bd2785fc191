"""Owns one live sandbox: its pids, pipes and cgroup, and the guarantee that `kill` leaves none of it.

Killing is one SIGKILL to pid 1 of the pid namespace: the kernel takes everything in it along, whatever it
ignores or blocks (pid_namespaces(7)). bwrap, the parent of pid 1, then reaps it and ends. What an out-of-memory
kill of the whole group leaves over (pid 1 orphaned, because bwrap died first) comes to us, the subreaper.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import trio

from rootfs.layout import Late, Tmpfs
from sandbox.confine import peers
from sandbox.confine.cgroup import Cgroup
from sandbox.confine.control import Control
from sandbox.confine.network.router import Lease, Router
from sandbox.confine.overseer import Overseer, Watch
from sandbox.confine.parked import Parked
from sandbox.confine.spawner import Spawner, Started
from sandbox.confine.spec import ConfineError, Exit, Program, RefusedCall, SandboxSpec, Usage
from sandbox.confine.storage import Storage, Tmp
from sandbox.confine.strays import Strays
from sandbox.confine.zygote import Child, Zygote

log = logging.getLogger(__name__)
KILL_LIMIT_S = 5.0
REMOVE_WAIT_S = 0.005
REMOVE_TRIES = 200
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
"""linux/pidfd.h, Linux 6.9"""


class Pipes:
    """stdout, stderr, telemetry: the read ends, non-blocking, and the write ends."""

    def __init__(self, owner: int | None) -> None:
        """`owner`: whose the pipes are, so that /dev/stderr can be opened inside. Raises OSError."""
        self.reads: list[int] = []
        self.writes: list[int] = []
        try:
            for _ in range(3):
                read, write = os.pipe2(os.O_CLOEXEC)
                self.reads.append(read)
                self.writes.append(write)
                os.set_blocking(read, False)
                if owner is not None:
                    os.fchown(write, owner, owner)
        except OSError:
            self.close()
            raise

    def close_writes(self) -> None:
        while self.writes:
            os.close(self.writes.pop())

    def close(self) -> None:
        self.close_writes()
        while self.reads:
            os.close(self.reads.pop())


async def discard(group: Cgroup) -> None:
    """Kill what is in a group and remove it. Raises ConfineError naming what is left."""
    for _ in range(REMOVE_TRIES):
        if group.remove():
            return
        # The last process has been reaped; its group learns so a moment later.
        group.kill()
        await trio.sleep(REMOVE_WAIT_S)
    raise ConfineError(f"{group.describe()} cannot be removed, in it are {group.pids()}")


class BwrapCompanion:
    """Implements `spec.Companion`. Made by `BwrapSandbox.start_companion`."""

    def __init__(
        self,
        control: Control,
        number: int,
        output: int,
        describe: Callable[[int | None], Exit],
    ) -> None:
        self.output = output
        self._control = control
        self._number = number
        self._describe = describe

    async def wait(self) -> Exit:
        return self._describe(await self._control.exit_status(self._number))

    async def signal(self, number: int) -> None:
        await self._control.signal(self._number, number)


class BwrapSandbox:
    """Implements `spec.Sandbox`. Made by `launcher.BwrapLauncher.launch`, which has filled all of it."""

    def __init__(
        self,
        spec: SandboxSpec,
        cgroup: Cgroup,
        started: Started,
        control: Control,
        pipes: Pipes,
        parked: Parked | None,
        uid: int | None,
        strays: Strays,
        overseer: Overseer | None,
        on_gone: Callable[[BwrapSandbox], None],
        on_stuck: Callable[[], None],
    ) -> None:
        """`started` is bwrap, `uid` its own on the host. `on_gone`: nothing of the sandbox is left.
        `on_stuck`: it could not be killed; `on_gone` may follow all the same, after a later try.
        `overseer`: in log mode, who answers what the filter asks.

        `parked`: the socket of the runtime that `prepare` is to put in, where the spec wants one.
        """
        self.name = spec.name
        self.spec = spec
        self._cgroup = cgroup
        self._process = started.process
        self._process_fd = started.fd
        self._control = control
        self._pipes = pipes
        self._parked = parked
        self._child: Child | None = None
        """The zygote's fork, where the runtime is one."""
        self._zygote: Zygote | None = None
        """Whose fork is in here, or was about to be."""
        self._tmp: Tmp | None = None
        """What is on /tmp, where bwrap has not mounted it."""
        self._uid = uid
        self._strays = strays
        self._overseer = overseer
        self._watch: Watch | None = None
        self._on_gone = on_gone
        self._on_stuck = on_stuck
        self._unknown: set[int] = set()
        """What was inside when it was killed before we knew its pid 1."""
        self._pid1: int | None = None
        self._pid1_fd: int | None = None
        self._listener: socket.socket | None = None
        self._port = 0
        self._stdout, self._stderr, self._telemetry = pipes.reads
        self._outputs: list[int] = []
        """Read ends of the companions' pipes."""
        self._lease: Lease | None = None
        self._router: Router | None = None
        self._exit: Exit | None = None
        self._exit_lock = trio.Lock()
        self._kill_lock = trio.Lock()
        self._killing = False
        self._gone = False
        self._last_usage = Usage(None, None, None)
        self._last_oom_kills = 0

    async def open(self) -> None:
        """Wait for the listener. Raises ConfineError with what bwrap said, or OSError."""
        found = await self._control.listener()
        if found is None:
            raise ConfineError(f"bubblewrap could not make a sandbox: {self._complaint()}")
        self._listener, self._port, pid1 = found
        self._oversee(self._control.watched)
        try:
            fd = os.pidfd_open(pid1)
        except ProcessLookupError as exc:
            raise ConfineError("the sandbox died while it was made") from exc
        if pid1 not in self._cgroup.pids():
            # Dead already, and its number another's: that one is not ours to kill.
            os.close(fd)
            raise ConfineError("the sandbox died while it was made")
        self._pid1, self._pid1_fd = pid1, fd

    async def connect(self, router: Router) -> None:
        """Give it its way out. Raises ConfineError."""
        assert self._pid1_fd is not None
        self._lease = await router.join(self._pid1_fd)
        self._router = router

    async def prepare(self, zygote: Zygote | None) -> None:
        """Put in the runtime that the spec's preparation describes. Raises ConfineError or OSError."""
        if self._parked is None:
            self._pipes.close_writes()
            return
        assert self.spec.preparation is not None
        assert self._pid1 is not None
        if zygote is not None:
            self._zygote = zygote
            fds = [self._parked.theirs.fileno(), *self._pipes.writes]
            self._child = await zygote.fork(
                self._pid1, fds, self._cgroup.procs, on_end=self._program_ended
            )
        else:
            preparation = self.spec.preparation
            program = Program(preparation.argv, dict(preparation.env), "/")
            await self._control.start(program, self.spec.limits.nofile)
        self._pipes.close_writes()
        await self._parked.ready(observed=self._child is not None and self._overseer is not None)
        self._oversee(self._parked.watched)
        # Not reaped yet: so its number was its own when the namespaces were opened by it.
        assert self._pid1_fd is not None
        signal.pidfd_send_signal(self._pid1_fd, 0)
        if self._child is not None:
            self._cgroup.joined(self._child.pid)
        if self._child is not None and self._child.pid not in self._cgroup.pids():
            raise ConfineError("the runtime died while it was prepared")

    def _program_ended(self) -> None:
        """Pid 1 goes when it hears no more of us: the program's end is the sandbox's, if it was alone."""
        if not self._control.companions:
            self._control.close()

    async def adopt(
        self,
        spec: SandboxSpec,
        spawner: Spawner,
        trees: Sequence[tuple[int, str]],
        storage: Storage,
    ) -> None:
        """Become what `spec` describes: its limits, its own folders, `trees`, and a /tmp out of `storage`.

        Raises ConfineError or OSError.
        """
        if spec.limits != self.spec.limits:
            self._cgroup.limit(spec.limits)
        self.spec = spec
        await self.attach(spec.late, spawner, trees, storage)

    async def attach(
        self,
        late: Sequence[Late],
        spawner: Spawner,
        trees: Sequence[tuple[int, str]],
        storage: Storage,
    ) -> None:
        """Put in `trees`, and for what is a Tmpfs of `late` one out of `storage`. Raises ConfineError or OSError."""
        new = []
        for entry in late:
            if isinstance(entry, Tmpfs):
                assert self._tmp is None
                self._tmp = await storage.take(entry.size)
                new = [(self._tmp.fd, entry.target)]
        if trees or new:
            # By descriptor: it may have stood on a shelf, and its number may be another's by now.
            assert self._pid1_fd is not None
            owner = -1 if self._uid is None else self._uid
            await spawner.attach(self._pid1_fd, trees, new, owner)

    @property
    def tmp(self) -> Literal["disk", "memory"]:
        return self._tmp.medium if self._tmp else "memory"

    def _oversee(self, listener: int) -> None:
        if listener < 0:
            return
        if self._overseer is None:
            os.close(listener)
            raise ConfineError("a sandbox sent a filter's listener that nobody asked for")
        self._watch = self._overseer.watch(listener, self.spec.calls)

    def refused(self, tell: Callable[[RefusedCall], None] | None = None) -> Sequence[RefusedCall]:
        if self._watch is None:
            return ()
        if tell is not None:
            self._watch.tell(tell)
        return self._watch.asked()

    def _complaint(self) -> str:
        said = ""
        with suppress(BlockingIOError):
            said = os.read(self._stderr, 4096).decode("utf-8", "replace").strip()
        if said:
            return said
        if self._cgroup.oom_kills():
            return f"it had more than its {self.spec.limits.memory_bytes} bytes of memory"
        return "no reason given"

    @property
    def listener(self) -> socket.socket:
        assert self._listener is not None
        return self._listener

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def stdout(self) -> int:
        return self._stdout

    @property
    def stderr(self) -> int:
        return self._stderr

    @property
    def telemetry(self) -> int:
        return self._telemetry

    def admits(self, peer: tuple[str, int]) -> bool:
        if self.spec.network != "host":
            return True
        maker = peers.maker_of(peer, ("127.0.0.1", self._port))
        if maker is None:
            return False
        if self._uid is not None:
            return maker.uid == self._uid
        return maker.cgroup is not None and maker.cgroup == self._cgroup.number

    async def start(self, program: Program) -> None:
        if self._parked is None:
            await self._control.start(program, self.spec.limits.nofile)
            return
        env = {**program.env, "AWS_LAMBDA_RUNTIME_API": self.address}
        await self._parked.start(replace(program, env=env), self.spec.limits.nofile)
        self._parked.close()

    async def start_companion(self, program: Program) -> BwrapCompanion:
        try:
            read, write = os.pipe2(os.O_CLOEXEC)
        except OSError as exc:
            raise ConfineError(f"cannot start {program.argv[0]}: {exc}") from exc
        try:
            self._outputs.append(read)
            os.set_blocking(read, False)
            if self._uid is not None:
                os.fchown(write, self._uid, self._uid)
            nofile = self.spec.limits.nofile
            number = await self._control.start_companion(program, nofile, write)
        finally:
            os.close(write)
        return BwrapCompanion(self._control, number, read, self._describe_exit)

    async def signal(self, number: int) -> None:
        if self._child is None:
            await self._control.signal(0, number)
            return
        for flags in (PIDFD_SIGNAL_PROCESS_GROUP, 0):
            try:
                signal.pidfd_send_signal(self._child.fd, number, None, flags)
            except ProcessLookupError:
                return
            except OSError as exc:
                if exc.errno != errno.EINVAL or not flags:
                    raise ConfineError(f"cannot signal the program: {exc}") from exc
            else:
                return

    async def dial(self, port: int) -> trio.SocketStream:
        made = trio.socket.from_stdlib_socket(await self._control.socket())
        try:
            await made.connect(("127.0.0.1", port))
        except BaseException:
            made.close()
            raise
        return trio.SocketStream(made)

    def settle(self) -> None:
        if not self._killing:
            self._try(lambda: self._cgroup.limit_cpu(self.spec.limits.cpu_cores))

    def freeze(self) -> None:
        if not self._killing:
            self._try(self._cgroup.freeze)

    def thaw(self) -> None:
        if not self._killing:
            self._try(self._cgroup.thaw)

    def _try(self, step: Callable[[], None]) -> None:
        """A group that somebody removed under us is no reason to stop serving."""
        try:
            step()
        except ConfineError as exc:
            log.warning("sandbox %s: %s", self.name, exc)

    async def wait(self) -> Exit:
        async with self._exit_lock:
            if self._exit is None:
                told = self._control.exit_status if self._child is None else self._child.wait
                self._exit = self._describe_exit(await told())
            return self._exit

    def _describe_exit(self, status: int | None) -> Exit:
        oom_kills, cpu_s = self.oom_kills(), self.usage().cpu_s
        if cpu_s is None:  # no account of the whole group is kept here
            cpu_s = (self._child and self._child.cpu_s) or 0.0
        if status is None:
            return Exit(oom_kills=oom_kills, killed=self._killing, cpu_s=cpu_s)
        if os.WIFSIGNALED(status):
            if self._killing and os.WTERMSIG(status) == signal.SIGKILL:
                return Exit(oom_kills=oom_kills, killed=True, cpu_s=cpu_s)
            return Exit(signal=os.WTERMSIG(status), oom_kills=oom_kills, cpu_s=cpu_s)
        return Exit(code=os.WEXITSTATUS(status), oom_kills=oom_kills, cpu_s=cpu_s)

    def usage(self) -> Usage:
        """The last one known, once the sandbox is gone."""
        if not self._gone:
            group = self._cgroup
            self._last_usage = Usage(group.memory(), group.memory_peak(), group.cpu_s())
        return self._last_usage

    def peak_memory(self) -> int | None:
        return self._last_usage.memory_peak_bytes if self._gone else self._cgroup.memory_peak()

    def oom_kills(self) -> int:
        if not self._gone:
            self._last_oom_kills = self._cgroup.oom_kills()
        return self._last_oom_kills

    async def kill(self) -> Exit:
        """Idempotent; calls at the same time share one killing. Raises ConfineError naming what is left."""
        self._killing = True
        with trio.CancelScope(shield=True):
            async with self._kill_lock:
                if not self._gone:
                    try:
                        await self._kill()
                    except ConfineError:
                        self._on_stuck()
                        raise
        return self._exit or Exit(killed=True, oom_kills=self._last_oom_kills)

    async def _kill(self) -> None:
        self._signal()
        with trio.move_on_after(KILL_LIMIT_S):
            with trio.move_on_after(KILL_LIMIT_S / 5) as patience:
                await trio.lowlevel.wait_readable(self._process_fd)
            if patience.cancelled_caught:
                self._process.kill()
                self._cgroup.kill()
                if self._zygote is not None:
                    self._zygote.kill()  # it does not reap what is dead in here
                await trio.lowlevel.wait_readable(self._process_fd)
            self._process.wait()
            await self._reap_orphan()
            # Nobody holds the other end any more: this is the exit status or the end of file.
            await self.wait()
            self.usage()
            await discard(self._cgroup)
            if self._tmp is not None:
                await self._tmp.kill()
            self._close()
            return
        raise ConfineError(
            f"sandbox {self.name} will not die: pid {self._process.pid}, pid 1 {self._pid1}, "
            f"in its cgroup {self._cgroup.pids()}"
        )

    def _signal(self) -> None:
        if self._pid1_fd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid1_fd, signal.SIGKILL)
        else:
            # Not yet told which process pid 1 is, and it may not have asked yet to die with bwrap.
            self._unknown.update(self._cgroup.pids())
            self._cgroup.kill()
            self._process.kill()
        # bwrap stands still with the rest, and cannot reap.
        with suppress(ConfineError):
            self._cgroup.thaw()

    async def _reap_orphan(self) -> None:
        if self._pid1_fd is None:
            for _ in range(REMOVE_TRIES):
                if not self._strays.reap(self._unknown):
                    return
                await trio.sleep(REMOVE_WAIT_S)
            raise ConfineError(f"what bubblewrap left of {self.name} will not die")
        await trio.lowlevel.wait_readable(self._pid1_fd)
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._pid1_fd, os.WEXITED | os.WNOHANG)

    def _close(self) -> None:
        self._gone = True
        self._control.close()
        self._pipes.close()
        while self._outputs:
            os.close(self._outputs.pop())
        if self._parked is not None:
            self._parked.close()
        if self._child is not None:
            self._child.release()
        if self._watch is not None:
            self._watch.close()
        os.close(self._process_fd)
        if self._pid1_fd is not None:
            os.close(self._pid1_fd)
        if self._listener is not None:
            with suppress(OSError):
                self._listener.close()
        if self._router is not None and self._lease is not None:
            self._router.leave(self._lease)
        self._on_gone(self)
