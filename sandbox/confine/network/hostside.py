"""Owns what the host's own network namespace gets while there are sandboxes with a way out, and gets back.

    lamboxN                   the interface to the router; gone with the router's namespace
    table inet NAME-lamboxN   owned by our socket: gone with it, even after a SIGKILL (Linux 5.12)
    table inet NAME-lamboxNguard   only where interfaces had to be made to forward: keeps anything else from
                              being forwarded by them, and tells the next start which ones to set back

NAME is the supervisor's (`cgroup.own_name`), by which a dead one's tables are told from a living one's.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path

from sandbox.confine import cgroup
from sandbox.confine.network import links, rules
from sandbox.confine.network import nftables as nft
from sandbox.confine.network.netlink import (
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    Netlink,
    NetlinkError,
)

log = logging.getLogger(__name__)
GUARD = "guard"
CONF = Path("/proc/sys/net/ipv4/conf")


class HostSide:
    """Used by one thread, which is in the host's network namespace when it makes, gives back and closes this."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.route = Netlink(NETLINK_ROUTE)
        try:
            self._filter = Netlink(NETLINK_NETFILTER)
        except OSError:
            self.route.close()
            raise
        self._interface = ""
        self._index = 0
        self._table = ""
        self._made_forward: list[str] = []

    def sweep(self) -> None:
        """Set back and remove what dead supervisors left."""
        names = {one.name: one.index for one in links.interfaces(self.route)}
        for name, data in nft.tables(self._filter).items():
            if not cgroup.is_orphaned(name):
                continue
            with suppress(NetlinkError):
                nft.commit(self._filter, [nft.delete_table(name)])
                if name.endswith(GUARD):
                    self._set_back(data.decode().split(), names)
                log.info("removed nftables' table %s of a dead server", name)

    def uplinks(self) -> tuple[list[IPv4Network], list[links.Interface]]:
        """The host's IPv4 routes, and the interfaces they lead out by: those of a default route come first."""
        there = {one.index: one for one in links.interfaces(self.route) if not one.loopback}
        found = list(links.routes(self.route))
        found.sort(key=lambda route: route[0] != links.EVERYWHERE)
        used = dict.fromkeys(index for _, index in found if index in there)
        return [to for to, _ in found], [
            there[index] for index in used if not there[index].name.startswith("lambox")
        ]

    def claim(self, plan: rules.Plan, interface: str) -> None:
        """The router's other end stands: its addresses. Raises NetlinkError, EEXIST: they are another server's."""
        names = {one.name: one.index for one in links.interfaces(self.route)}
        self._interface, self._index = interface, names[interface]
        self.route.send(
            [
                links.configure(self._index, forwards=True, ipv6=has_ipv6()),
                links.up(self._index),
                links.address(self._index, plan.host),
                links.neighbour(self._index, plan.router, ROUTER_HARDWARE),
                links.route(self._index, IPv4Network(plan.router)),
                links.route(self._index, plan.network, plan.router),
            ]
        )

    def unclaim(self) -> None:
        self.route.send([links.remove(self._index)])
        self._index = 0

    def install(self, plan: rules.Plan, outward: Iterable[links.Interface]) -> tuple[str, ...]:
        """Rules, then forwarding; nothing is connected yet. Returns what was made to forward. Raises OSError."""
        self._table = f"{cgroup.own_name()}-{self._interface}"
        self._rules(plan)
        self._forward(list(outward))
        return tuple(self._made_forward)

    def passed(self) -> int:
        """How many packets to `rules.PROBE` were forwarded all the way."""
        return nft.counted(self._filter, self._table, "probe")

    def _rules(self, plan: rules.Plan) -> None:
        try:
            messages = rules.host(self._table, plan, self._interface, flags=nft.OWNER)
            nft.commit(self._filter, messages)
        except NetlinkError as exc:
            if exc.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # Before Linux 5.12: the next start sweeps it, should we be killed.
            nft.commit(self._filter, rules.host(self._table, plan, self._interface, flags=0))

    def _forward(self, outward: list[links.Interface]) -> None:
        """Let replies in: what comes by `outward` may leave by ours."""
        shared = self._guarded()
        changed = [one for one in outward if not _forwards(one.name) or one.name in shared]
        if not changed:
            return
        names = [one.name for one in changed]
        # The guard comes first and goes last.
        data = " ".join(names).encode()
        nft.commit(self._filter, rules.guard(self._table + GUARD, names, data))
        self._made_forward = names
        self.route.send([links.forward(one.index, True) for one in changed])

    def _guarded(self) -> set[str]:
        """Interfaces that other living servers made forward."""
        return {
            interface
            for name, data in nft.tables(self._filter).items()
            if name.endswith(GUARD) and name != self._table + GUARD and not cgroup.is_orphaned(name)
            for interface in data.decode("utf-8", "replace").split()
        }

    def _set_back(self, names: list[str], indexes: dict[str, int]) -> None:
        """What somebody else needs by now stays: another server of ours, or who made the whole host forward."""
        if _forwards("all"):
            return
        kept = self._guarded()
        for name in names:
            if name in indexes and name not in kept:
                self.route.send([links.forward(indexes[name], False)])

    def close(self) -> None:
        """Give everything back. Raises nothing."""
        try:
            names = {one.name: one.index for one in links.interfaces(self.route)}
            if self._index:
                with suppress(NetlinkError):
                    self.route.send([links.remove(self._index)])
            if self._made_forward:
                nft.commit(self._filter, [nft.delete_table(self._table + GUARD)])
                self._set_back(self._made_forward, names)
            if self._table in nft.tables(self._filter):
                nft.commit(self._filter, [nft.delete_table(self._table)])
        except OSError as exc:
            log.error("the host's network could not be set back: %s", exc)
        finally:
            self.route.close()
            self._filter.close()


ROUTER_HARDWARE = bytes.fromhex("020000000001")
HOST_HARDWARE = bytes.fromhex("020000000003")


def has_ipv6() -> bool:
    return os.path.exists("/proc/sys/net/ipv6")


def _forwards(interface: str) -> bool:
    """Of the network namespace the calling thread is in."""
    return cgroup.read_int(str(CONF / interface / "forwarding")) == 1
