"""Owns the router: a network namespace of lambox's own between sandboxes and the host, and who lives in it.

    sandbox ── eth0 ═══ sN ── router's namespace ── up ═══ lamboxN ── host ── the outside
               10.219.0.8/32   filter (rules)                masquerade

One thread lives there. The namespace, all of its interfaces and their other ends are gone when that thread
is, however the server ends; what the host's namespace has besides is `hostside`'s. Each sandbox has a pair of
interfaces, an address and static neighbours: nobody asks or answers ARP. All calls into the kernel are
made by the thread, in batches; nothing of it blocks the event loop.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import trio

from sandbox.confine.network import links, resolvers, rules
from sandbox.confine.network import nftables as nft
from sandbox.confine.network.hostside import HOST_HARDWARE, ROUTER_HARDWARE, HostSide, has_ipv6
from sandbox.confine.network.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Netlink,
    NetlinkError,
)
from sandbox.confine.network.relay import PORT, Doors, relay
from sandbox.confine.spec import ConfineError, IsolationUnavailable

log = logging.getLogger(__name__)
CLONE_NEWNET = 0x40000000
"""linux/sched.h"""
RANGES = tuple(map(IPv4Network, ("10.219.0.0/16", "172.27.0.0/16", "100.127.0.0/16")))
"""Where addresses come from unless configured: the first that no route of the host knows."""
SLICE = 20
"""Prefix length of one server's share of a range: 4096 addresses."""
SANDBOX_HARDWARE = bytes.fromhex("020000000002")
"""Every sandbox's: each is alone with the router, and this tells it nothing."""
UP_INDEX, INSIDE_INDEX, FIRST_INDEX = 2, 100, 1000
PROBE_TRIES, PROBE_WAIT_S = 100, 0.002
LOOK_S = 2.0
"""How often the host's resolv.conf is looked at."""
MOST_NAMES = 100

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lease:
    """One sandbox's place: its address, and where that stands in the plan."""

    address: IPv4Address
    position: int


class Router:
    """Made by `open_router`. Its methods without `async` are the thread's alone."""

    def __init__(self, ranges: Sequence[IPv4Network]) -> None:
        self._ranges = ranges
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._made = ExitStack()
        self._free: deque[int] = deque()
        self._next_index = FIRST_INDEX
        self.doors: tuple[Doors, ...] = ()
        self.resolvers = resolvers.Resolvers((), direct=False)
        self.made_forward: tuple[str, ...] = ()
        """Interfaces of the host that forward (IPv4) only since and while this router stands."""

    async def do(self, action: Callable[[], T]) -> T:
        """In the thread. Shielded: what has begun is not forgotten. Raises what `action` raises."""
        order = _Order(action, trio.lowlevel.current_trio_token())
        self._orders.put(order)
        with trio.CancelScope(shield=True):
            await order.done.wait()
        if order.fault is not None:
            raise order.fault
        result: T = order.result
        return result

    def stop(self) -> None:
        """Let the thread end, and with it the namespace."""
        self._orders.put(None)

    async def join(self, pidfd: int) -> Lease:
        """Give the network namespace of a process its way out. Raises ConfineError.

        End it with `leave`, when nothing of the sandbox lives: what is in the kernel goes with its namespace.
        """
        if not self._free:
            raise ConfineError(
                f"every address of {self.plan.network} is in use. Hint: a wider nat_range"
            )
        position = self._free.popleft()
        lease = Lease(self.plan.network[position], position)
        try:
            await self.do(lambda: self._connect(pidfd, lease))
        except OSError as exc:
            self._free.append(position)
            raise ConfineError(f"cannot give a sandbox its network: {exc}") from exc
        return lease

    def leave(self, lease: Lease) -> None:
        """For the event loop's thread, as `join`."""
        self._free.append(lease.position)

    def describe(self) -> str:
        return f"nat by {self.plan.network}, names from {self.resolvers.describe()}"

    async def follow(self) -> None:
        """Keep to the host's name servers, for ever."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.do(self._look)
            except OSError as exc:
                log.warning("the host's name servers cannot be followed: %s", exc)

    # -- in the thread

    def work(self) -> None:
        """The thread: until the orders end with None."""
        while (order := self._orders.get()) is not None:
            try:
                order.result = order.action()
            except Exception as exc:  # the thread must live: with it every way out would end
                order.fault = exc
            with suppress(trio.RunFinishedError):
                order.token.run_sync_soon(order.done.set)

    def open(self) -> None:
        """Raises IsolationUnavailable."""
        try:
            self._open()
        except NetlinkError as exc:
            self.close()
            raise IsolationUnavailable(str(exc), _mend(exc)) from exc
        except OSError as exc:
            self.close()
            raise IsolationUnavailable(
                f"no network namespace can be made: {exc.strerror}", _mend(exc)
            ) from exc
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._made = stack = ExitStack()
        self._home = _own_namespace()
        stack.callback(os.close, self._home)
        self._host = HostSide()
        stack.callback(self._host.close)
        # Closed first of what stands further up: the host is set back from within the host's namespace.
        stack.callback(lambda: _enter(self._home))
        self._host.sweep()
        taken, outward = self._host.uplinks()
        if links.EVERYWHERE not in taken or not outward:
            raise IsolationUnavailable(
                "this host has no default route", "ip route add default via GATEWAY"
            )
        self.resolvers = resolvers.find(resolvers.is_local, resolvers.FILES)
        _checked(_libc.unshare(CLONE_NEWNET))
        self._namespace = _own_namespace()
        stack.callback(os.close, self._namespace)
        self._route = Netlink(NETLINK_ROUTE)
        stack.callback(self._route.close)
        self._filter = Netlink(NETLINK_NETFILTER)
        stack.callback(self._filter.close)
        self._mtu = min(one.mtu for one in outward)
        self._ipv6 = has_ipv6()
        self._settle(taken)
        _enter(self._home)  # the kernel's settings are read in it
        self.made_forward = self._host.install(self.plan, outward)
        _enter(self._namespace)
        self._inside()
        self._probe()
        self._free.extend(self.plan.sandboxes)

    def _uplink(self) -> str:
        """Make the pair that leads to the host. Returns the host's end's name: the first that is free."""
        for number in range(MOST_NAMES):
            name = f"lambox{number}"
            ours = links.End(rules.UPLINK, ROUTER_HARDWARE, UP_INDEX)
            theirs = links.End(name, HOST_HARDWARE, namespace=self._home)
            try:
                self._route.send([links.pair(ours, theirs, self._mtu)])
            except NetlinkError as exc:
                if exc.errno != errno.EEXIST:
                    raise
            else:
                return name
        raise OSError(errno.EEXIST, "every name from lambox0 on is in use")

    def _settle(self, taken: Sequence[IPv4Network]) -> None:
        """Take the first share that is free. Raises IsolationUnavailable or OSError."""
        for network in _shares(self._ranges):
            if rules.overlaps(network, taken):
                continue
            self.plan = rules.Plan(network)
            try:
                self._host.claim(self.plan, self._uplink())
            except NetlinkError as exc:
                if exc.errno != errno.EEXIST:
                    raise
                # Another server was quicker.
                self._host.unclaim()
            else:
                return
        ranges = ", ".join(map(str, self._ranges))
        raise IsolationUnavailable(
            f"routes of this host cover all of {ranges}", "lambox serve --nat-range 10.77.0.0/16"
        )

    def _inside(self) -> None:
        # The kernel's own limit is six refusals per address, then one a second: functions would wait.
        with suppress(OSError):
            Path("/proc/sys/net/ipv4/icmp_ratemask").write_text("0")
        nft.commit(
            self._filter,
            [
                *rules.router(self.plan),
                *rules.name_service(self.plan, self.resolvers.led_to),
            ],
        )
        self._route.send(
            [
                links.up(1),
                *(links.address(1, gateway) for gateway in self.plan.gateways),
                links.configure(UP_INDEX, forwards=True, ipv6=self._ipv6),
                links.up(UP_INDEX),
                links.address(UP_INDEX, self.plan.router),
                links.neighbour(UP_INDEX, self.plan.host, HOST_HARDWARE),
                links.route(UP_INDEX, IPv4Network(self.plan.host)),
                links.route(UP_INDEX, links.EVERYWHERE, self.plan.host),
            ]
        )
        made: list[Doors] = []
        for gateway in self.plan.gateways:
            made.append(_doors(gateway))
            self._made.callback(made[-1].close)
        self.doors = tuple(made)

    def _probe(self) -> None:
        """Whether the host lets packets through: others' firewalls have their say too. Leaves the host never."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((str(self.plan.router), 0))
            with suppress(OSError):
                probe.sendto(b"lambox", (str(rules.PROBE.network_address), 9))
            for _ in range(PROBE_TRIES):
                if self._host.passed():
                    return
                time.sleep(PROBE_WAIT_S)
        raise IsolationUnavailable(
            "another firewall of this host lets nothing through (Docker's, for one, drops what it forwards "
            "and does not know)",
            "iptables -I FORWARD -i lambox+ -j ACCEPT; "
            "iptables -I FORWARD -o lambox+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        )

    def _connect(self, pidfd: int, lease: Lease) -> None:
        index = self._next_index
        self._next_index += 1
        _enter(pidfd)
        try:
            theirs = Netlink(NETLINK_ROUTE)
        finally:
            _enter(self._namespace)
        gateway = self.plan.gateways[0]
        try:
            theirs.send(
                [
                    links.pair(
                        links.End("eth0", SANDBOX_HARDWARE, INSIDE_INDEX),
                        links.End(f"s{index}", ROUTER_HARDWARE, index, self._namespace),
                        self._mtu,
                    ),
                    links.configure(INSIDE_INDEX, ipv6=self._ipv6),
                    links.up(INSIDE_INDEX),
                    links.address(INSIDE_INDEX, lease.address),
                    links.neighbour(INSIDE_INDEX, gateway, ROUTER_HARDWARE),
                    links.route(INSIDE_INDEX, IPv4Network(gateway)),
                    links.route(INSIDE_INDEX, links.EVERYWHERE, gateway),
                ]
            )
        finally:
            theirs.close()
        self._route.send(
            [
                links.configure(index, forwards=True, ipv6=self._ipv6),
                links.up(index),
                links.neighbour(index, lease.address, SANDBOX_HARDWARE),
                # Replaced: the last one who had the address may not be all gone.
                links.route(index, IPv4Network(lease.address), replace=True),
            ]
        )

    def _look(self) -> None:
        _enter(self._home)
        try:
            found = resolvers.find(resolvers.is_local, resolvers.FILES)
        finally:
            _enter(self._namespace)
        if found != self.resolvers:
            nft.commit(self._filter, rules.name_service(self.plan, found.led_to))
            self.resolvers = found
            log.info("functions' names come from %s now", found.describe())

    def close(self) -> None:
        self._made.close()


@dataclass
class _Order:
    action: Callable[[], Any]
    token: trio.lowlevel.TrioToken
    done: trio.Event
    result: Any = None
    fault: Exception | None = None

    def __init__(self, action: Callable[[], Any], token: trio.lowlevel.TrioToken) -> None:
        self.action, self.token, self.done = action, token, trio.Event()


@asynccontextmanager
async def open_router(range_: IPv4Network | None = None) -> AsyncIterator[Router]:
    """A router and its relay; leaving gives back what the host got. Raises IsolationUnavailable.

    `range_`: where addresses come from; None: the first of RANGES that is free. To be called by a thread
    that is in the host's network namespace.
    """
    async with AsyncExitStack() as stack:
        router = Router(RANGES if range_ is None else [range_])
        thread = threading.Thread(target=router.work, name="lambox-router", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(router.stop)
        await router.do(router.open)
        stack.push_async_callback(router.do, router.close)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(relay, router.doors, lambda: router.resolvers.servers)
        nursery.start_soon(router.follow)
        yield router


def try_out(range_: IPv4Network | None = None) -> str:
    """Make a router and take it away again; what it would be, in one line. Raises IsolationUnavailable.

    In a thread of its own; blocks for some 20 ms.
    """
    router = Router(RANGES if range_ is None else [range_])
    outcome: list[str | Exception] = []

    def attempt() -> None:
        try:
            router.open()
            outcome.append(router.describe())
            router.close()
        except Exception as exc:
            outcome.append(exc)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _doors(gateway: IPv4Address) -> Doors:
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        datagrams.bind((str(gateway), PORT))
        datagrams.setblocking(False)
        listener = socket.create_server((str(gateway), PORT))
        listener.setblocking(False)
    except OSError:
        datagrams.close()
        raise
    return Doors(datagrams, listener)


def _shares(ranges: Sequence[IPv4Network]) -> list[IPv4Network]:
    return [
        share
        for range_ in ranges
        for share in range_.subnets(new_prefix=max(SLICE, range_.prefixlen))
    ]


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(fd: int) -> None:
    """A network namespace, by its descriptor or a process's (Linux 5.8). Raises OSError."""
    _checked(_libc.setns(fd, CLONE_NEWNET))


def _checked(result: int) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mend(exc: OSError) -> str:
    if exc.errno in (errno.EPERM, errno.EACCES):
        return "sudo lambox serve   (in a container: docker run --privileged ...)"
    if exc.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL):
        return "modprobe -a nf_tables nft_masq nft_fib_inet nft_connlimit veth"
    return "lambox serve --verbose"
