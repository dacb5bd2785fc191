"""Owns the supervisor's end of the socket to a parked runtime (the protocol stands in
rootfs/inside/python/zygote.py): it has everything but its function, and waits to be told which.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct

import trio

from sandbox.confine.spec import MOST_ERRNO, ConfineError, Program, ProgramNotStarted

FRAME = struct.Struct("=cI")
MAX_MESSAGE = 4 << 20


class Parked:
    """One socket. Resource handling: `close` it."""

    def __init__(self) -> None:
        """Raises OSError (no descriptor free)."""
        ours, self.theirs = socket.socketpair()
        self._socket = trio.socket.from_stdlib_socket(ours)
        self.watched = -1
        """The listener of log mode's filter, once `ready` has returned; the caller's to close."""

    def close(self) -> None:
        self.theirs.close()
        self._socket.close()

    async def ready(self, *, observed: bool = False) -> None:
        """Wait until the runtime is parked. Raises ConfineError with what kept it from that.

        `observed`: it is a fork in log mode, and sends its filter's listener (`watched`).
        """
        self.theirs.close()
        data = b""
        try:
            room = socket.CMSG_SPACE(4) if observed else 0
            data, extras, *_ = await self._socket.recvmsg(1024, room, socket.MSG_CMSG_CLOEXEC)
        except (OSError, trio.ClosedResourceError):
            extras = []
        for level, kind, value in extras:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                (self.watched,) = struct.unpack("=i", value[:4])
        if data == b"P" and observed == (self.watched >= 0):
            return
        if self.watched >= 0:
            os.close(self.watched)
            self.watched = -1
        if data[:1] == b"E" and len(data) >= FRAME.size:
            text = data[FRAME.size :].decode("utf-8", "replace")
            raise ConfineError(f"a runtime could not be put into its sandbox: {text}")
        raise ConfineError("a prepared runtime ended before it was ready")

    async def start(self, program: Program, nofile: int) -> None:
        """Raises ProgramNotStarted, or ConfineError when the runtime is gone."""
        strings = (program.cwd, *program.argv, *program.env, *program.env.values())
        if any("\0" in text for text in strings):
            raise ProgramNotStarted(program.argv[0], errno.EINVAL, "NUL in argv or environment")
        told = {
            "argv": list(program.argv),
            "env": dict(program.env),
            "cwd": program.cwd,
            "nofile": nofile,
        }
        body = json.dumps(told).encode()
        if len(body) > MAX_MESSAGE:
            raise ProgramNotStarted(program.argv[0], errno.E2BIG, os.strerror(errno.E2BIG))
        try:
            await trio.SocketStream(self._socket).send_all(struct.pack("=I", len(body)) + body)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise ConfineError("the runtime ended before it was told its function") from exc
        answer = await self._recv(FRAME.size)
        if answer[:1] == b"G":
            answer = await self._recv(FRAME.size)
            if not answer:
                return  # its end was closed by a successful execve
        if len(answer) != FRAME.size or answer[:1] != b"S":
            raise ConfineError("the runtime ended before it was told its function")
        _, number = FRAME.unpack(answer)
        if number > MOST_ERRNO:
            raise ConfineError(f"the runtime said it could not start, and not why: {number}")
        if number:
            raise ProgramNotStarted(program.argv[0], number, os.strerror(number))

    async def _recv(self, size: int) -> bytes:
        """b"" when the other end is gone."""
        try:
            return await self._socket.recv(size)
        except (OSError, trio.ClosedResourceError):
            return b""
