"""Owns log mode: answers for the kernel what a sandbox's filter asks, and keeps account of it.

The filter (`seccomp.observe`) asks about every call that `seccomp.enforce` would refuse. What only the family's
list lacks is let through and told; what is dangerous is refused as always, and told. The decision rests on
the call's number and its registers, which the kernel has copied, never on memory that a program could change
meanwhile (seccomp_unotify(2), "Caveats"). When nobody answers any more (the supervisor is gone) the kernel
says ENOSYS. One descriptor per sandbox; only the supervisor ever holds it while function code runs.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from sandbox.confine import bpf
from sandbox.confine.calls import Family
from sandbox.confine.seccomp import Filters
from sandbox.confine.spec import IsolationUnavailable

log = logging.getLogger(__name__)
NOTIFICATION = struct.Struct("=QII64s")
"""struct seccomp_notif: id, pid, flags, the call (bpf.CALL)."""
ANSWER = struct.Struct("=QqiI")
"""struct seccomp_notif_resp: id, value, error, flags."""
RECEIVE, SEND = 0xC0502100, 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and _SEND of linux/seccomp.h."""
CONTINUE = 1
"""SECCOMP_USER_NOTIF_FLAG_CONTINUE, Linux 5.5."""
ACTIONS = "/proc/sys/kernel/seccomp/actions_avail"
OLDEST = (5, 5)
BURST = 1000
RATE = 2000
"""Calls per second, after the first BURST: a function that makes nothing else waits for its answers."""
BATCH = 50
"""Calls answered in one turn of the event loop."""
WITH_ARGUMENTS = {"clone": 1, "personality": 1, "socket": 3, "ioctl": 2, "mknod": 2, "mknodat": 3}
"""Calls that are refused for some arguments: how many of them tell which."""


def require(release: str, actions: str = ACTIONS) -> None:
    """Raises IsolationUnavailable where log mode cannot be. `release`: the kernel's, as uname(2) has it."""
    found = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    try:
        with open(actions) as file:
            known = file.read().split()
    except OSError:
        known = []
    if found < OLDEST or "user_notif" not in known:
        raise IsolationUnavailable(
            f"seccomp's log mode needs Linux 5.5 with user notification, this is {release}",
            "lambox serve --seccomp enforce",
        )


@dataclass
class Asked:
    """One kind of call that the filter asked about."""

    name: str
    arguments: str
    """For some: those of the first one."""
    family: Family
    number: int
    """0: it ran, and `enforce` would refuse it; else the errno that it got."""
    count: int = 0

    def line(self) -> str:
        """For the function's log, when it is first met."""
        if self.number:
            code = errno.errorcode[self.number]
            return f"seccomp: {self.name}{self.arguments} is refused ({code}), in log mode too"
        return (
            f"seccomp: {self.name}{self.arguments} would be refused by the filter for {self.family}"
        )

    def total(self) -> str:
        """For the function's log, when its environment ends."""
        what = "was refused" if self.number else "would have been refused"
        times = "once" if self.count == 1 else f"{self.count} times"
        return f"seccomp: {self.name}{self.arguments} {what} {times} in this environment"


class Watch:
    """One sandbox's listener. Resource handling: `close` it."""

    def __init__(self, fd: int, family: Family, filters: Filters) -> None:
        """Takes `fd` over."""
        self._fd = fd
        self._filters = filters
        self._family: Family = family
        self._scope = trio.CancelScope()
        self._asked: dict[tuple[str, int], Asked] = {}
        """(system call, errno) -> what is known of it. All that have no name here are one: a function may
        make up four billion of them."""
        self._tell: Callable[[Asked], None] | None = None
        self._credit = float(BURST)
        self._credited_at = trio.current_time()

    def asked(self) -> list[Asked]:
        """What has been asked about up to now, in the order of the first times."""
        return list(self._asked.values())

    def tell(self, whom: Callable[[Asked], None]) -> None:
        """Have `whom` told of each kind of call once: now of those there were, of others when they come."""
        self._tell = whom
        for asked in self.asked():
            whom(asked)

    def close(self) -> None:
        """Everything in the sandbox must be dead: what asks after this is told ENOSYS."""
        if self._fd >= 0:
            self._scope.cancel()
            trio.lowlevel.notify_closing(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def run(self) -> None:
        """Answer until `close`, or until no process has the filter any more."""
        ready = select.poll()
        if self._fd < 0:
            return
        ready.register(self._fd, select.POLLIN)
        with self._scope, suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                for _ in range(BATCH):
                    # Whoever asked may be dead by now, and receiving would wait for the next one.
                    events = ready.poll(0)
                    if not events:
                        break
                    if not events[0][1] & select.POLLIN:
                        return  # POLLHUP: the last process that had the filter has ended
                    if not self._answer():
                        return
                await self._pace()

    def _answer(self) -> bool:
        buffer = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(self._fd, RECEIVE, buffer)
            ticket, _, _, call = NOTIFICATION.unpack(buffer)
            number = self._judge(call)
            flags = 0 if number else CONTINUE
            fcntl.ioctl(self._fd, SEND, ANSWER.pack(ticket, 0, -number, flags))
        except OSError as exc:
            # ENOENT: it was killed, or a signal took it out of the call, which it may make again.
            if exc.errno not in (errno.ENOENT, errno.EINTR):
                log.error("log mode of a sandbox ends, its calls get ENOSYS: %s", exc)
                self.close()
                return False
        self._credit -= 1
        return True

    def _judge(self, call: bytes) -> int:
        """The errno it gets; 0: it may go on."""
        number, _, _, *arguments = bpf.CALL.unpack(call)
        verdict = bpf.run(self._filters.dangerous, call)
        name = self._filters.names.get(number)
        error = 0
        if verdict != bpf.ALLOW:
            error = verdict & bpf.DATA or errno.EPERM
        elif name is None:
            error = errno.ENOSYS  # of a kernel that is newer than we are: nothing is known of it
        asked = self._asked.get((name or "", error))
        if asked is None:
            shown = arguments[: WITH_ARGUMENTS.get(name or "", 0)]
            text = f"({', '.join(map(hex, shown))})" if shown else ""
            known = Asked(name, text, self._family, error) if name else None
            asked = known or Asked("system call", f" {number}, unknown here,", self._family, error)
            self._asked[name or "", error] = asked
            if self._tell is not None:
                self._tell(asked)
        asked.count += 1
        return error

    async def _pace(self) -> None:
        now = trio.current_time()
        self._credit = min(BURST, self._credit + (now - self._credited_at) * RATE)
        self._credited_at = now
        await trio.sleep(max(0.0, -self._credit / RATE))


class Overseer:
    """Makes the watches of one launcher; their tasks are in its nursery."""

    def __init__(self, filters: Filters, nursery: trio.Nursery) -> None:
        self._filters = filters
        self._nursery = nursery

    def watch(self, fd: int, family: Family) -> Watch:
        watch = Watch(fd, family, self._filters)
        self._nursery.start_soon(watch.run)
        return watch
