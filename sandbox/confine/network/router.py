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
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import trio

from sandbox.confine import cgroup
from sandbox.confine.network import links, resolvers, rules
from sandbox.confine.network import nftables as nft
from sandbox.confine.network.hostside import HostSide
from sandbox.confine.network.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Message,
    Netlink,
    NetlinkError,
)
from sandbox.confine.network.relay import PORT, Doors, relay
from sandbox.confine.network.tapside import TapSide
from sandbox.confine.network.uplink import ROUTER_HARDWARE, Uplink, first_free, has_ipv6, look
from sandbox.confine.network.worker import Worker
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
INSIDE_INDEX, FIRST_INDEX = 100, 1000
TRACKED, FEW_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_max"), 65536
"""The file is there once conntrack is; the other number is of a host with little memory."""
PROBE_TRIES, PROBE_WAIT_S = 100, 0.002
LOOK_S = 2.0
"""How often the host's resolv.conf is looked at."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Lease:
    """One sandbox's place: its address, and where that stands in the plan."""

    address: IPv4Address
    position: int


class Router:
    """Made by `open_router`. Its methods without `async` are its thread's alone, but for `leave` and `describe`."""

    def __init__(self, ranges: Sequence[IPv4Network], host: Worker) -> None:
        """`host`: a thread that stays on the host."""
        self._ranges = ranges
        self._host = host
        self.thread = Worker("lambox-router")
        self._made = ExitStack()
        self._free: deque[int] = deque()
        self._next_index = FIRST_INDEX
        self.doors: tuple[Doors, ...] = ()
        self.resolvers = resolvers.Resolvers((), direct=False)
        self.made_forward: tuple[str, ...] = ()
        """Interfaces of the host that forward (IPv4) only since and while this router stands."""

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
            await self.thread.call(lambda: self._connect(pidfd, lease))
        except OSError as exc:
            self._free.append(position)
            raise ConfineError(f"cannot give a sandbox its network: {exc}") from exc
        return lease

    def leave(self, lease: Lease) -> None:
        """For the event loop's thread, as `join`."""
        self._free.append(lease.position)

    def describe(self) -> str:
        how = self._uplink.describe()
        return f"nat {how} from {self.plan.network}, names from {self.resolvers.describe()}"

    async def follow(self) -> None:
        """Keep to what changes on the host, for ever: its name servers, its addresses, the process that helps."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                await self.thread.call(self.look)
            except (OSError, IsolationUnavailable) as exc:
                log.warning("the host's network cannot be followed: %s", exc)

    # -- in the thread

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
        stack = self._made
        self._home = _own_namespace()
        stack.callback(os.close, self._home)
        self._outside = Netlink(NETLINK_ROUTE)
        stack.callback(self._outside.close)
        around = look(self._outside)
        if links.EVERYWHERE not in around.taken or not around.outward:
            raise IsolationUnavailable(
                "this host has no default route", "ip route add default via GATEWAY"
            )
        self._uplink = self._choose(min(one.mtu for one in around.outward))
        stack.callback(self._uplink.close)
        on_host = isinstance(self._uplink, HostSide)
        if isinstance(self._uplink, HostSide):
            self._uplink.sweep()
            # What is given back is given back from within the host's namespace.
            stack.callback(_enter, self._home)
        self.resolvers = resolvers.find(self._is_local, resolvers.FILES)
        _checked(_libc.unshare(CLONE_NEWNET))
        self._namespace = _own_namespace()
        stack.callback(os.close, self._namespace)
        self._route = Netlink(NETLINK_ROUTE)
        stack.callback(self._route.close)
        self._filter = Netlink(NETLINK_NETFILTER)
        stack.callback(self._filter.close)
        self._ipv6 = has_ipv6()
        self._tracked = cgroup.read_int(str(TRACKED)) or FEW_TRACKED
        setting = self._settle(around.taken)
        if on_host:
            _enter(self._home)  # whose settings are read
        self.made_forward = self._uplink.install(self.plan, around.outward)
        if on_host:
            _enter(self._namespace)
        self._inside(setting)
        self._probe()
        self._free.extend(self.plan.sandboxes)

    def _choose(self, mtu: int) -> Uplink:
        """The host's own means where we have the right to them. Raises IsolationUnavailable or OSError."""
        route = Netlink(NETLINK_ROUTE)
        try:
            try:
                return HostSide(route, self._home, mtu)
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.EACCES):
                    raise
                return TapSide(route, self._host)
        except BaseException:
            route.close()
            raise

    def _settle(self, taken: Sequence[IPv4Network]) -> list[Message]:
        """Take the first share that is free. Raises IsolationUnavailable or OSError."""
        for network in first_free(_shares(self._ranges), taken):
            self.plan = self._uplink.plan(network, taken)
            try:
                return self._uplink.join(self.plan, self._route, self._namespace)
            except NetlinkError as exc:
                if exc.errno != errno.EEXIST:  # another server was quicker
                    raise
        ranges = ", ".join(map(str, self._ranges))
        raise IsolationUnavailable(
            f"routes of this host cover all of {ranges}", "lambox serve --nat-range 10.77.0.0/16"
        )

    def _inside(self, setting: list[Message]) -> None:
        # The kernel's own limit is six refusals per address, then one a second: functions would wait.
        with suppress(OSError):
            Path("/proc/sys/net/ipv4/icmp_ratemask").write_text("0")
        self._hidden = self._uplink.own_addresses()
        nft.commit(
            self._filter,
            [
                *rules.router(self.plan, self._tracked),
                *rules.name_service(self.plan, self.resolvers.led_to),
                *rules.hidden(self._hidden),
                *(rules.one_source() if self._uplink.masquerades else []),
            ],
        )
        self._route.send(
            [
                links.up(1),
                *(links.address(1, gateway) for gateway in self.plan.gateways),
                *setting,
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
            if isinstance(self._uplink, HostSide):
                probe.bind((str(self.plan.router), 0))
                with suppress(OSError):
                    probe.sendto(b"lambox", (str(rules.PROBE.network_address), 9))
            for _ in range(PROBE_TRIES):
                if self._uplink.passed():
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
                        self._uplink.mtu,
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

    def look(self) -> None:
        """Take in what has changed on the host. Raises OSError or IsolationUnavailable."""
        if self._uplink.is_gone():
            log.error(
                "what speaks for functions has ended (%s): it is started anew",
                self._uplink.describe(),
            )
            setting = self._uplink.join(self.plan, self._route, self._namespace)
            self._route.send(setting)
        if (hidden := self._uplink.own_addresses()) != self._hidden:
            nft.commit(self._filter, rules.hidden(hidden))
            self._hidden = hidden
        found = resolvers.find(self._is_local, resolvers.FILES)
        if found != self.resolvers:
            nft.commit(self._filter, rules.name_service(self.plan, found.led_to))
            self.resolvers = found
            log.info("functions' names come from %s now", found.describe())

    def _is_local(self, address: IPv4Address) -> bool:
        return address in set(links.addresses(self._outside))

    def close(self) -> None:
        self._made.close()


@asynccontextmanager
async def open_router(range_: IPv4Network | None = None) -> AsyncIterator[Router]:
    """A router and its relay; leaving gives back what the host got. Raises IsolationUnavailable.

    `range_`: where addresses come from; None: the first of RANGES that is free. To be called by a thread
    that is in the host's network namespace.
    """
    async with AsyncExitStack() as stack:
        host = Worker("lambox-host")
        stack.callback(host.stop)
        router = Router(RANGES if range_ is None else [range_], host)
        stack.callback(router.thread.stop)
        await router.thread.call(router.open)
        stack.push_async_callback(router.thread.call, router.close)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(relay, router.doors, lambda: router.resolvers.servers)
        nursery.start_soon(router.follow)
        yield router


def try_out(range_: IPv4Network | None = None) -> str:
    """Make a router and take it away again; what it would be, in one line. Raises IsolationUnavailable.

    Blocks for some 20 ms.
    """
    with ExitStack() as stack:
        host = Worker("lambox-host")
        stack.callback(host.stop)
        router = Router(RANGES if range_ is None else [range_], host)
        stack.callback(router.thread.stop)
        router.thread.do(router.open)
        stack.callback(router.thread.do, router.close)
        return router.describe()


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
