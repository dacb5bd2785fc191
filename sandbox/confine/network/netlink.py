"""Owns the encoding of netlink messages and the sockets they go through (netlink(7), libnl's core docs).

A library for this was looked at and not taken: docs/dependencies.md says why.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 0, 4, 12
PROTOCOLS = {
    NETLINK_ROUTE: "interfaces",
    NETLINK_SOCK_DIAG: "sockets",
    NETLINK_NETFILTER: "nftables",
}
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1
"""linux/netlink.h"""
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
ROOM = 1 << 20
ANSWER_LIMIT_S = 10


@dataclass(frozen=True, slots=True)
class Message:
    """One request; `what` says in an error what it was to do."""

    kind: int
    flags: int
    body: bytes
    what: str


def attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr and its value, padded to four bytes."""
    size = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, value) of each attribute in `data`."""
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        size, kind = ATTRIBUTE.unpack_from(data, at)
        if size < ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[at + ATTRIBUTE.size : at + size]
        at += size + -size % 4


class NetlinkError(OSError):
    """The kernel refused a request; the text has what was asked and what the kernel said to it."""

    def __init__(self, number: int, what: str, said: str = "") -> None:
        super().__init__(number, f"{what}: {os.strerror(number)}{said and f' ({said})'}")


class Netlink:
    """One socket, of the network namespace in which its thread was when it was made. Calls block.

    Resource handling: `close` it. Used by one thread at a time.
    """

    def __init__(self, protocol: int) -> None:
        """Raises OSError."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        except OSError as exc:  # EPROTONOSUPPORT: the kernel has none of it, nor a module
            what = f"opening netlink for {PROTOCOLS[protocol]}"
            raise NetlinkError(exc.errno or 0, what) from exc
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            limit = struct.pack("ll", ANSWER_LIMIT_S, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        except OSError:
            self._socket.close()
            raise
        self._next = 1

    def close(self) -> None:
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> None:
        """All in one system call; returns when each is answered. Raises NetlinkError of the first that failed.

        Those after a failed one are carried out all the same, but in a batch of nfnetlink, of which all or
        nothing is: there a message whose `flags` are 0 frames the others, and is answered only to say that
        the whole has failed.
        """
        first = self._next
        data = bytearray()
        waiting = set()
        for message in messages:
            number, size = self._take(), HEADER.size + len(message.body)
            flags = NLM_F_REQUEST
            if message.flags:
                flags |= message.flags
                waiting.add(number)
            data += HEADER.pack(size, message.kind, flags, number, 0)
            data += message.body + bytes(-size % 4)
        self._socket.send(data)
        fault: NetlinkError | None = None
        while waiting:
            for kind, flags, number, body in self._receive():
                if kind != NLMSG_ERROR or not first <= number < self._next:
                    continue
                waiting.discard(number)
                if (code := -struct.unpack_from("=i", body)[0]) == 0:
                    continue
                if fault is None:
                    fault = NetlinkError(code, messages[number - first].what, _said(flags, body))
                if not messages[number - first].flags:
                    waiting.clear()
        if fault is not None:
            raise fault

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        """The bodies of all answers to a request for a list. Raises NetlinkError."""
        number = self._take()
        flags = NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, flags, number, 0) + body)
        found: list[bytes] = []
        while True:
            for answer, _, whose, data in self._receive():
                if whose != number:
                    continue
                if answer == NLMSG_DONE:
                    return found
                if answer == NLMSG_ERROR:
                    raise NetlinkError(-struct.unpack_from("=i", data)[0], what)
                found.append(data)

    def ask(self, kind: int, body: bytes, what: str) -> bytes:
        """The body of the one answer to a request. Raises NetlinkError."""
        number = self._take()
        self._socket.send(
            HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, number, 0) + body
        )
        while True:
            for answer, _, whose, data in self._receive():
                if whose != number:
                    continue
                if answer == NLMSG_ERROR:
                    raise NetlinkError(-struct.unpack_from("=i", data)[0], what)
                return data

    def _take(self) -> int:
        number = self._next
        self._next += 1
        return number

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        data = self._socket.recv(ROOM)
        if not data:
            raise OSError(errno.EIO, "netlink says nothing more")
        at = 0
        while at + HEADER.size <= len(data):
            size, kind, flags, number, _ = HEADER.unpack_from(data, at)
            yield kind, flags, number, data[at + HEADER.size : at + size]
            at += size + -size % 4


def _said(flags: int, body: bytes) -> str:
    """What the kernel adds to an errno (extended acknowledgement), if anything."""
    if not flags & NLM_F_ACK_TLVS:
        return ""
    # The errno, and the header of the request: its body is not sent back (NETLINK_CAP_ACK).
    for kind, value in attributes(body[4 + HEADER.size :]):
        if kind == NLMSGERR_ATTR_MSG:
            return value.rstrip(b"\0").decode("utf-8", "replace")
    return ""
