"""Owns the supervisor's end of the socket to a sandbox's pid 1 (the protocol stands in init.c)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import trio

from sandbox.confine.spec import MOST_ERRNO, MOST_STATUS, ConfineError, Program, ProgramNotStarted

FRAME = struct.Struct("=cI")
PID = struct.Struct("=iII")
"""struct ucred of unix(7)."""
MAX_MESSAGE = 4 << 20
MOST_COMPANIONS = 10
SIGNAL = 0x53
SOCKET = 0x4E
SEND_S = 1.0
"""For a few bytes that the socket's buffer takes at once."""
WHAT = 24
"""Bits of a message's length; above them stands what it is about."""


class Control:
    """One socket. Resource handling: `close` it; the listener belongs to whoever called `listener`."""

    def __init__(self) -> None:
        """Raises OSError (no descriptor free)."""
        ours, self.theirs = socket.socketpair()
        # The kernel then says which process sends: its pid in *our* pid namespace.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket = trio.socket.from_stdlib_socket(ours)
        self._rest = b""
        self._reading = trio.Lock()
        self._writing = trio.Lock()
        self._torn = False
        """A message was begun and not finished: pid 1 waits for the rest of it."""
        self._answers: list[int] = []
        self._statuses: dict[int, int] = {}
        """Raw wait status of what has ended: 0 is the program, 1 and up are its companions."""
        self._ended = False
        self.companions = 0
        """How many have been started, or tried to."""
        self.watched = -1
        """The listener of log mode's filter, once `listener` has returned; the caller's to close."""

    def close(self) -> None:
        self.theirs.close()
        self._socket.close()

    async def listener(self) -> tuple[socket.socket, int, int] | None:
        """(listening socket, its port, host pid of pid 1); None when the sandbox ended instead.

        Raises OSError when no descriptor was free for it.
        """
        self.theirs.close()
        room = socket.CMSG_SPACE(PID.size) + socket.CMSG_SPACE(2 * 4)
        data, extras, flags, _ = await self._socket.recvmsg(3, room, socket.MSG_CMSG_CLOEXEC)
        pid, fd = 0, -1
        for level, kind, value in extras:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid = PID.unpack(value)[0]
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fd, *more = struct.unpack(f"={len(value) // 4}i", value[: len(value) // 4 * 4])
                self.watched = more[0] if more else -1
        if len(data) != 3 or data[:1] != b"L" or fd < 0 or pid <= 0:
            for received in (fd, self.watched):
                if received >= 0:
                    os.close(received)
            self.watched = -1
            if data and flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return None
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
        return listener, struct.unpack("=H", data[1:])[0], pid

    async def start(self, program: Program, nofile: int) -> None:
        """Raises ProgramNotStarted, or ConfineError when pid 1 is gone."""
        await self._start(0, program, nofile, -1)

    async def start_companion(self, program: Program, nofile: int, output: int) -> int:
        """Its number. `output` is its standard output and error, of which pid 1 keeps nothing.

        Raises ProgramNotStarted, or ConfineError when pid 1 is gone or has as many as it takes.
        """
        if self.companions == MOST_COMPANIONS:
            raise ConfineError(f"a sandbox has {MOST_COMPANIONS} companions at most")
        self.companions += 1
        number = self.companions
        await self._start(number, program, nofile, output)
        return number

    async def _start(self, number: int, program: Program, nofile: int, output: int) -> None:
        strings = [program.cwd, *program.argv, *(f"{k}={v}" for k, v in program.env.items())]
        if any("\0" in text for text in strings):
            raise ProgramNotStarted(program.argv[0], errno.EINVAL, "NUL in argv or environment")
        body = struct.pack("=III", nofile, len(program.argv), len(program.env))
        body += b"".join(os.fsencode(text) + b"\0" for text in strings)
        if len(body) > MAX_MESSAGE:
            raise ProgramNotStarted(program.argv[0], errno.E2BIG, os.strerror(errno.E2BIG))
        try:
            await self._send(number, body, output)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConfineError("the sandbox ended before its program was started") from exc
        await self._read_until(lambda: bool(self._answers))
        if not self._answers or self._answers[0] > MOST_ERRNO:
            raise ConfineError("the sandbox ended before its program was started")
        if reason := self._answers.pop(0):
            raise ProgramNotStarted(program.argv[0], reason, os.strerror(reason))

    async def signal(self, number: int, signal: int) -> None:
        """To the process group of the program (0) or of a companion, if it lives. Raises ConfineError."""
        try:
            await self._send(SIGNAL, struct.pack("=II", number, signal), -1)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConfineError("the sandbox has ended") from exc

    async def socket(self) -> socket.socket:
        """A TCP socket of the sandbox's network namespace, not connected. Waits while pid 1 is frozen.

        Raises ConfineError, or OSError when pid 1 could make none or no descriptor was free for it.
        """
        ours, theirs = socket.socketpair()
        with trio.socket.from_stdlib_socket(ours) as answers, theirs:
            # Who asks may be cancelled any time, and a message that was begun has to be finished.
            with trio.move_on_after(SEND_S) as patience:
                patience.shield = True
                try:
                    await self._send(SOCKET, b"", theirs.fileno())
                except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                    raise ConfineError("the sandbox has ended") from exc
            theirs.close()
            room = socket.CMSG_SPACE(4)
            data, extras, flags, _ = await answers.recvmsg(4, room, socket.MSG_CMSG_CLOEXEC)
        if flags & socket.MSG_CTRUNC:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if len(data) != 4:
            raise ConfineError("the sandbox has ended")
        if not extras:
            (number,) = struct.unpack("=I", data)
            raise OSError(number, os.strerror(number & MOST_ERRNO))
        (fd,) = struct.unpack("=i", extras[0][2][:4])
        given = socket.socket(fileno=fd)
        if (given.family, given.type) != (socket.AF_INET, socket.SOCK_STREAM):
            given.close()
            raise ConfineError("pid 1 sent what is no TCP socket")
        return given

    async def _send(self, what: int, body: bytes, descriptor: int) -> None:
        head = struct.pack("=I", len(body) | what << WHAT)
        async with self._writing:
            if self._torn:
                raise ConfineError("a message to the sandbox was broken off")
            self._torn = True
            if descriptor >= 0:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", descriptor))
                await self._socket.sendmsg([head], [rights])
                head = b""
            await trio.SocketStream(self._socket).send_all(head + body)
            self._torn = False

    async def exit_status(self, number: int = 0) -> int | None:
        """The raw wait status of the program (0) or of a companion.

        None when pid 1 went without a word (it was killed) that makes sense.
        """
        await self._read_until(lambda: number in self._statuses)
        return self._statuses.get(number)

    async def _read_until(self, done: Callable[[], bool]) -> None:
        """Whoever waits for something reads for all: what is another's is put down for him."""
        while not done() and not self._ended:
            async with self._reading:
                if not done() and not self._ended:
                    self._take(await self._frame())

    def _take(self, frame: tuple[bytes, int] | None) -> None:
        if frame is None:
            self._ended = True
            return
        kind, value = frame
        number, status = divmod(value, MOST_STATUS + 1)
        if kind == b"S":
            self._answers.append(value)
            self._ended = value > MOST_ERRNO  # it talks nonsense: no more is believed of it
        elif kind == b"X" and not number:
            self._statuses[0] = status
        elif kind == b"Y" and 0 < number <= self.companions:
            self._statuses[number] = status

    async def _frame(self) -> tuple[bytes, int] | None:
        while len(self._rest) < FRAME.size:
            try:
                data = await self._socket.recv(64)
            except (OSError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._rest += data
        frame, self._rest = self._rest[: FRAME.size], self._rest[FRAME.size :]
        kind, value = FRAME.unpack(frame)
        return kind, value
