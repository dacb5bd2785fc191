"""An internet of the tests' own: network namespaces, joined by virtual interfaces, with servers in them.

    host ── eth0 203.0.113.2 ═══ 203.0.113.1 ── internet: HTTP, echo, a name server, cloud metadata

lambox runs in `host`; the machine's own network is never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from sandbox.confine.network import links
from sandbox.confine.network.netlink import NETLINK_ROUTE, Netlink

CLONE_NEWNET = 0x40000000
INTERNET, HOST, NAME_SERVER = "203.0.113.1", "203.0.113.2", "203.0.113.53"
METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192")
ANSWER = b"from the internet"
ANSWERED = IPv4Address("198.51.100.7")
"""What the name server says of every name."""
_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Namespace:
    """A network namespace and the thread in it, which does what it is asked to."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]
        self._orders = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.fd = self.do(self._make)
        self.route: Netlink = self.do(lambda: Netlink(NETLINK_ROUTE))
        self.do(lambda: self.route.send([links.up(1)]))

    def do(self, action: Callable[[], T]) -> T:
        future: Future[T] = Future()
        self._orders.put((action, future))
        return future.result(10)

    def close(self) -> None:
        self.route.close()
        os.close(self.fd)
        self._orders.put(None)
        self._thread.join()

    def listen(self, address: str, port: int) -> socket.socket:
        return self.do(lambda: socket.create_server((address, port)))

    def bound(self, address: str, port: int) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((address, port))
            return made

        return self.do(make)

    def _make(self) -> int:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            action, future = order
            try:
                future.set_result(action())
            except BaseException as exc:
                future.set_exception(exc)


class World:
    """`host` and `internet`, and what was asked of the servers there."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.host, self.internet = Namespace(), Namespace()
        self.stack.callback(self.internet.close)
        self.stack.callback(self.host.close)
        self.seen: list[tuple[str, str]] = []
        """(who connected, to which address)"""
        self.asked: list[str] = []
        """Names asked of the name server."""
        self._served: set[tuple[Namespace, str, int]] = set()
        self._join()
        for address in (INTERNET, *METADATA):
            self.serve(self.internet, address, 80)
        self.answer_names(self.internet, NAME_SERVER)

    def close(self) -> None:
        self.stack.close()

    def _join(self) -> None:
        here, there = bytes.fromhex("060000000001"), bytes.fromhex("060000000002")
        ends = (
            links.End("eth0", here, 10),
            links.End("eth0", there, 10, self.internet.fd),
        )
        gateway = IPv4Address(INTERNET)
        self.host.route.send(
            [
                links.pair(*ends, 1500),
                links.up(10),
                links.address(10, IPv4Address(HOST)),
                links.route(10, IPv4Network(INTERNET)),
            ]
        )
        outside = (INTERNET, NAME_SERVER, *METADATA)
        self.internet.route.send(
            [
                links.up(10),
                *(links.address(10, IPv4Address(one)) for one in outside),
                links.route(10, IPv4Network(HOST)),
                # Whatever comes with an address that was not translated finds its way back too.
                links.route(10, links.EVERYWHERE, IPv4Address(HOST)),
            ]
        )
        self.host.route.send([links.route(10, links.EVERYWHERE, gateway)])

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and what it starts, is on the host meanwhile."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        enter(self.host.fd)
        try:
            yield
        finally:
            enter(own)
            os.close(own)

    @contextlib.contextmanager
    def datagrams(self) -> Iterator[list[bytes]]:
        """What has come to port 9 of any address of the internet, once the block is over."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind(("0.0.0.0", 9))
            return made

        server = self.internet.do(make)
        found: list[bytes] = []

        def mark() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"the end", (INTERNET, 9))

        with server:
            yield found
            self.host.do(mark)
            server.settimeout(5)
            while (data := server.recv(2048)) != b"the end":
                found.append(data)
            # Another processor may have been handling one that was sent before.
            server.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                while True:
                    found.append(server.recv(2048))

    def tracked(self) -> int:
        """How many connections the host's conntrack knows."""
        path = "/proc/sys/net/netfilter/nf_conntrack_count"
        return self.host.do(lambda: int(Path(path).read_text()))

    def serve(self, where: Namespace, address: str, port: int) -> None:
        """Say ANSWER to whoever connects, from now on."""
        if (where, address, port) in self._served:
            return
        self._served.add((where, address, port))
        self._thread(where.listen(address, port), self._answer)

    def answer_names(self, where: Namespace, address: str) -> None:
        """A name server, from now on."""
        self._thread(where.bound(address, 53), self._name_server)

    def attach(self, other: Namespace, name: str, here: str, there: str) -> None:
        """One more network of the host: `other`, whose way to everywhere is the host."""
        index = 20
        ends = (
            links.End(name, bytes.fromhex("060000000003"), index),
            links.End("eth0", bytes.fromhex("060000000004"), index, other.fd),
        )
        self.host.route.send(
            [
                links.pair(*ends, 1500),
                links.up(index),
                links.address(index, IPv4Address(here)),
                links.route(index, IPv4Network(there)),
            ]
        )
        other.route.send(
            [
                links.up(index),
                links.address(index, IPv4Address(there)),
                links.route(index, IPv4Network(here)),
                links.route(index, links.EVERYWHERE, IPv4Address(here)),
            ]
        )

    def _thread(self, server: socket.socket, work: Callable[[socket.socket], None]) -> None:
        thread = threading.Thread(target=work, args=(server,), daemon=True)
        thread.start()
        self.stack.callback(thread.join)
        self.stack.callback(server.close)
        self.stack.callback(lambda: _shut(server))

    def _answer(self, server: socket.socket) -> None:
        while True:
            try:
                connection, who = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self.seen.append((who[0], connection.getsockname()[0]))
                connection.sendall(ANSWER)

    def _name_server(self, server: socket.socket) -> None:
        while True:
            question, who = server.recvfrom(4096)
            if not question:
                return
            name, at = [], 12
            while question[at]:
                name.append(question[at + 1 : at + 1 + question[at]].decode())
                at += 1 + question[at]
            self.asked.append(".".join(name))
            kind = question[at + 1 : at + 3]
            answers = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + ANSWERED.packed if kind == b"\0\1" else b""
            head = question[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, bool(answers), 0, 0)
            server.sendto(head + question[12 : at + 5] + answers, who)


def _shut(server: socket.socket) -> None:
    """Wake up whoever waits on it."""
    if server.type == socket.SOCK_DGRAM:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
    else:
        server.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()
