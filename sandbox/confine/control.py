"""Owns the supervisor's end of the socket to a sandbox's pid 1 (the protocol stands in init.c)."""

from __future__ import annotations

import errno
import os
import socket
import struct

import trio

from sandbox.confine.spec import MOST_ERRNO, MOST_STATUS, ConfineError, Program, ProgramNotStarted

FRAME = struct.Struct("=cI")
PID = struct.Struct("=iII")
"""struct ucred of unix(7)."""
MAX_MESSAGE = 4 << 20


class Control:
    """One socket. Resource handling: `close` it; the listener belongs to whoever called `listener`."""

    def __init__(self) -> None:
        """Raises OSError (no descriptor free)."""
        ours, self.theirs = socket.socketpair()
        # The kernel then says which process sends: its pid in *our* pid namespace.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket = trio.socket.from_stdlib_socket(ours)
        self._rest = b""
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
        strings = [program.cwd, *program.argv, *(f"{k}={v}" for k, v in program.env.items())]
        if any("\0" in text for text in strings):
            raise ProgramNotStarted(program.argv[0], errno.EINVAL, "NUL in argv or environment")
        body = struct.pack("=III", nofile, len(program.argv), len(program.env))
        body += b"".join(os.fsencode(text) + b"\0" for text in strings)
        if len(body) > MAX_MESSAGE:
            raise ProgramNotStarted(program.argv[0], errno.E2BIG, os.strerror(errno.E2BIG))
        try:
            await trio.SocketStream(self._socket).send_all(struct.pack("=I", len(body)) + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConfineError("the sandbox ended before its program was started") from exc
        frame = await self._frame()
        if frame is None or frame[0] != b"S" or frame[1] > MOST_ERRNO:
            raise ConfineError("the sandbox ended before its program was started")
        if frame[1]:
            raise ProgramNotStarted(program.argv[0], frame[1], os.strerror(frame[1]))

    async def exit_status(self) -> int | None:
        """The program's raw wait status; None when pid 1 went without a word (it was killed) that makes sense."""
        while (frame := await self._frame()) is not None:
            if frame[0] == b"X" and frame[1] <= MOST_STATUS:
                return frame[1]
        return None

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
