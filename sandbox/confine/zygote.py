"""Owns the zygotes as the supervisor sees them: starting, asking for forks, their children's exit statuses.

The process itself, its protocol and what a fork does are rootfs/inside/python/zygote.py. A zygote that
dies takes nothing along: its children become ours (we are the subreaper), are waited for here, and the next
fork is asked of a fresh one.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import trio

from rootfs import layout
from rootfs.layout import Entry
from sandbox.confine import bwrap
from sandbox.confine.bwrap import Bwrap, Descriptors
from sandbox.confine.calls import Family
from sandbox.confine.seccomp import Filters
from sandbox.confine.spawner import Spawner, Started
from sandbox.confine.spec import MOST_ERRNO, MOST_STATUS, ConfineError, Preparation
from sandbox.confine.strays import Strays, children, is_inside

log = logging.getLogger(__name__)
REQUEST = struct.Struct("=cIII")
REPLY = struct.Struct("=cII")
ENDED = struct.Struct("=cIIQQ")
NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")
"""Of a sandbox's pid 1, in the order of the zygote's FDS. "user" is the inner of bwrap's two."""
MOST_FORKS = 1000
"""After so many a fresh zygote takes over: the hash seed and the memory layout are the same in all forks of one."""
MOST_PID = 1 << 22
"""PID_MAX_LIMIT of linux/threads.h"""
START_LIMIT_S = 20.0
ANSWER_LIMIT_S = 5.0
ORPHANS_LIMIT_S = 5.0
BWRAP_LIMIT_S = 1.0
HANDOVER_S = 0.002
"""Between looks whether the dying zygote's children are ours yet: no event tells."""


class Child:
    """One fork. `wait` for its raw wait status; `release` lets go of the descriptor."""

    def __init__(self, strays: Strays, ticket: int, on_end: Callable[[], None]) -> None:
        self.pid = 0
        self.fd = -1
        self.cpu_s: float | None = None
        """What the process used, without its children that it did not wait for; told at its end."""
        self.ticket = ticket
        self._strays = strays
        self._on_end = on_end
        self._forked = trio.Event()
        self._ended = trio.Event()
        self._errno = 0
        self._status: int | None = None
        self._released = False

    async def wait(self) -> int | None:
        """None when nobody could tell (the zygote was killed, and the child with it)."""
        await self._ended.wait()
        return self._status

    def forked(self, pid: int) -> None:
        self.pid = pid
        if not self._released:
            self._strays.waited_for.add(pid)
            try:
                self.fd = os.pidfd_open(pid)
            except OSError as exc:
                self._errno = exc.errno or errno.ESRCH
        self._forked.set()

    def ended(self, status: int | None, number: int = 0) -> None:
        if self._ended.is_set():
            return
        self._strays.waited_for.discard(self.pid)
        self._status = status
        self._errno = self._errno or number
        self._forked.set()
        self._ended.set()
        self._on_end()

    async def until_forked(self) -> None:
        """Raises ConfineError."""
        await self._forked.wait()
        if self._errno or self.fd < 0:
            reason = os.strerror(self._errno) if self._errno else "the zygote is gone"
            raise ConfineError(f"cannot fork a runtime: {reason}")

    async def reap(self) -> None:
        """Its zygote is gone, or going: then it is ours in a moment."""
        while self.fd >= 0 and not self._ended.is_set():
            await trio.lowlevel.wait_readable(self.fd)
            try:
                result = os.waitid(os.P_PIDFD, self.fd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                try:
                    signal.pidfd_send_signal(self.fd, 0)
                except ProcessLookupError:
                    break  # its zygote reaped it, and died before it told
                await trio.sleep(HANDOVER_S)
            else:
                self.ended(None if result is None else _wait_status(result))
        self.ended(self._status)

    @property
    def lives(self) -> bool:
        """Asked of the kernel."""
        if self.fd < 0:
            return False
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(0)

    def release(self) -> None:
        self._released = True
        self._strays.waited_for.discard(self.pid)
        if self.fd >= 0:
            trio.lowlevel.notify_closing(self.fd)
            os.close(self.fd)
            self.fd = -1


def _wait_status(result: os.waitid_result) -> int:
    """As wait(2) gives it."""
    if result.si_code == os.CLD_EXITED:
        return result.si_status << 8
    return result.si_status | (0x80 if result.si_code == os.CLD_DUMPED else 0)


class Zygote:
    """One living zygote. `run` is its whole life."""

    def __init__(self, started: Started, channel: socket.socket, strays: Strays) -> None:
        self._strays = strays
        self._started = started
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._children: dict[int, Child] = {}
        self.forks = 0
        self.alive = True
        self.ready = trio.Event()
        """Set too when it ended before it was."""
        self._retired = False
        self._interpreters: dict[int, int] = {}
        """By pid, a descriptor: where bwrap is killed by somebody else, it is ours to reap."""
        self._orphanage = trio.CancelScope()

    @property
    def pid(self) -> int:
        """bwrap's; the interpreter is its child."""
        return self._started.process.pid

    @property
    def worn_out(self) -> bool:
        return not self.alive or self._retired or self.forks >= MOST_FORKS

    def kill(self) -> None:
        """SIGKILL to the interpreter; bwrap reaps it and ends. (Killed itself, it would leave that to us.)"""
        if self._started.process.returncode is not None:
            return  # its number may be another's by now
        self._meet()
        for fd in self._interpreters.values():
            with suppress(OSError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        if not self._interpreters:
            self._started.process.kill()

    def _meet(self) -> None:
        for pid in set(children(self.pid)).difference(self._interpreters):
            with suppress(OSError):
                fd = os.pidfd_open(pid)
                if pid in children(self.pid):
                    self._interpreters[pid] = fd
                else:
                    os.close(fd)

    def close(self) -> None:
        """Its children must be dead."""
        self.kill()
        self._orphanage.deadline = trio.current_time() + ORPHANS_LIMIT_S

    def retire(self) -> None:
        """Fork no more; go when the last child has."""
        self._retired = True
        if not self._children:
            self.kill()

    async def run(self) -> None:
        """Take its messages until it ends (`kill`, not cancellation, ends it); then see to its children."""
        with trio.CancelScope(shield=True):
            with suppress(OSError):
                while data := await self._channel.recv(64):
                    if problem := self._take(data):
                        log.error("a zygote is ended, it %s: %r", problem, data)
                        break
            self.alive = False
            self.ready.set()
            self._channel.close()
            self.kill()
            with trio.move_on_after(BWRAP_LIMIT_S):
                await trio.lowlevel.wait_readable(self._started.fd)
            self._started.process.kill()
            await trio.lowlevel.wait_readable(self._started.fd)
            self._started.process.wait()
            os.close(self._started.fd)
            await self._reap_interpreters()
            with self._orphanage:
                async with trio.open_nursery() as nursery:
                    if any(child.fd < 0 for child in self._children.values()):
                        nursery.start_soon(self._reap_untold)
                    for child in self._children.values():
                        nursery.start_soon(child.reap)
            for child in self._children.values():
                child.ended(None)

    async def _reap_interpreters(self) -> None:
        while self._interpreters:
            _, fd = self._interpreters.popitem()
            with trio.move_on_after(BWRAP_LIMIT_S):
                await trio.lowlevel.wait_readable(fd)
            with suppress(ChildProcessError):  # bwrap has reaped it, as is usual
                os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
            os.close(fd)

    async def _reap_untold(self) -> None:
        """It died before it said that it had forked, or nobody wanted the fork any more.

        Beside the others: some strays only die after them.
        """
        with trio.move_on_after(ORPHANS_LIMIT_S):
            while self._strays.reap():  # noqa: ASYNC110  no event tells
                await trio.sleep(HANDOVER_S)

    def _take(self, data: bytes) -> str:
        """What is wrong with the message; empty if nothing is. It is root's, and still not believed:
        a pid is waited for, so it has to be a fork of this zygote's."""
        if data == b"R":
            self._meet()
            self.ready.set()
            return ""
        if len(data) not in (REPLY.size, ENDED.size):
            return "said what it has no word for"
        what, ticket, value = REPLY.unpack_from(data)
        child = self._children.get(ticket)
        if child is None:
            return "speaks of a fork that nobody has asked for"
        if what == b"C" and len(data) == REPLY.size:
            if child.pid or not 0 < value <= MOST_PID or not is_inside(value, self.pid):
                return "named a process that is no fork of its"
            child.forked(value)
            return ""
        if what == b"E" and len(data) == REPLY.size and value <= MOST_ERRNO:
            del self._children[ticket]
            child.ended(None, value or errno.EAGAIN)
        elif what == b"X" and len(data) == ENDED.size and _is_wait_status(value):
            if child.lives:
                return "calls a process ended that lives"
            del self._children[ticket]
            user_us, system_us = ENDED.unpack(data)[3:]
            child.cpu_s = (user_us + system_us) / 1e6
            child.ended(value)
        else:
            return "said what it has no word for"
        if self._retired and not self._children:
            self.kill()
        return ""

    async def fork(
        self, pid1: int, fds: Sequence[int], procs: Sequence[str], on_end: Callable[[], None]
    ) -> Child:
        """A fork in the namespaces of `pid1`; `fds`: its control, stdout, stderr, telemetry.

        Raises ConfineError or OSError. The child's end is told by `Child.wait`, whatever becomes of us.
        """
        self.forks += 1
        child = Child(self._strays, self.forks, on_end)
        with ExitStack() as opened:
            given = list(fds)
            spaces = [f"/proc/{pid1}/ns/{name}" for name in NAMESPACES]
            given += [_open(path, os.O_RDONLY, opened) for path in spaces]
            given += [_open(path, os.O_WRONLY, opened) for path in procs]
            packet = REQUEST.pack(b"F", self.forks, bwrap.UID, bwrap.GID)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(given)}i", *given))
            self._children[self.forks] = child
            try:
                await self._channel.sendmsg([packet], [rights])
            except BaseException as exc:  # a cancellation too: then it was not sent
                self._children.pop(child.ticket, None)
                if isinstance(exc, OSError | trio.ClosedResourceError):
                    raise ConfineError(f"the zygote is gone: {exc}") from exc
                raise
        try:
            with trio.fail_after(ANSWER_LIMIT_S):
                await child.until_forked()
        except trio.TooSlowError as exc:
            child.release()
            self.kill()
            raise ConfineError(f"the zygote did not fork within {ANSWER_LIMIT_S:.0f} s") from exc
        except BaseException:
            child.release()
            raise
        return child


def _is_wait_status(value: int) -> bool:
    """Of a process that has ended."""
    return value <= MOST_STATUS and (os.WIFEXITED(value) or os.WIFSIGNALED(value))


def _open(path: str, how: int, opened: ExitStack) -> int:
    fd = os.open(path, how | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


class Zygotes:
    """The zygotes of one launcher, one per file system and preparation. Its nursery holds their tasks."""

    def __init__(
        self,
        spawner: Spawner,
        tool: Bwrap,
        filters: Filters | None,
        strays: Strays,
        nursery: trio.Nursery,
    ) -> None:
        self._spawner = spawner
        self._bwrap = tool
        self._filters = filters
        self._strays = strays
        self._nursery = nursery
        self._living: dict[tuple[tuple[Entry, ...], Preparation, Family], Zygote] = {}
        self._all: list[Zygote] = []
        """Those that died or were retired too: their children may live."""
        self._starting = trio.Lock()

    def pids(self) -> list[int]:
        return [zygote.pid for zygote in self._living.values() if zygote.alive]

    async def get(self, root: tuple[Entry, ...], preparation: Preparation, calls: Family) -> Zygote:
        """One that is ready. Raises ConfineError with what it said, or OSError."""
        key = layout.zygote(root), preparation, calls
        zygote = self._living.get(key)
        if zygote is not None and not zygote.worn_out:
            return zygote  # whatever becomes of another that is just being started
        async with self._starting:
            zygote = self._living.get(key)
            if zygote is not None and not zygote.worn_out:
                return zygote
            if zygote is not None:
                zygote.retire()
            fresh = self._living[key] = await self._start(*key)
            return fresh

    async def _start(
        self, root: tuple[Entry, ...], preparation: Preparation, calls: Family
    ) -> Zygote:
        filters = self._filters
        observed = filters.observed.get(calls) if filters is not None else None
        with ExitStack() as stack:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.callback(theirs.close)
            ours.setblocking(False)
            complaint, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, complaint)
            stack.callback(os.close, write)
            try:
                with Descriptors() as fds:  # closed before the wait: its end shows on the channel
                    numbers = (
                        fds.take(os.dup(theirs.fileno())),
                        fds.take(os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)),
                        -1 if filters is None else fds.data(observed or filters.enforced[calls]),
                        int(observed is not None),
                    )
                    argv = bwrap.zygote_command(root, preparation, numbers, self._bwrap, fds)
                    started = await self._spawner.spawn(argv, fds.fds, write, write)
            except BaseException:
                ours.close()
                raise
            zygote = Zygote(started, ours, self._strays)
            self._nursery.start_soon(self._run, zygote)
            theirs.close()
            try:
                with trio.move_on_after(START_LIMIT_S):
                    await zygote.ready.wait()
            except trio.Cancelled:
                zygote.kill()
                raise
            if not zygote.alive or not zygote.ready.is_set():
                zygote.kill()
                said = _said(complaint) or "it did not get ready, and does not say why"
                raise ConfineError(f"no zygote for {preparation.argv[0]}: {said}")
            if said := _said(complaint):
                log.warning("%s: %s", preparation.argv[0], said)
            return zygote

    async def _run(self, zygote: Zygote) -> None:
        self._all.append(zygote)
        await zygote.run()
        self._all.remove(zygote)

    def close(self) -> None:
        """End all of them; every sandbox must be gone."""
        for zygote in self._all:
            zygote.close()


def _said(pipe: int) -> str:
    with suppress(BlockingIOError):
        return os.read(pipe, 4096).decode("utf-8", "replace").strip()
    return ""
