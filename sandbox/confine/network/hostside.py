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
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sandbox.confine import cgroup
from sandbox.confine.network import links, rules
from sandbox.confine.network import nftables as nft
from sandbox.confine.network.netlink import NETLINK_NETFILTER, Message, Netlink, NetlinkError
from sandbox.confine.network.uplink import HOST_HARDWARE, ROUTER_HARDWARE, has_ipv6

log = logging.getLogger(__name__)
GUARD = "guard"
UP_INDEX = 2
MOST_NAMES = 100
CONF = Path("/proc/sys/net/ipv4/conf")


class HostSide:
    """Implements `uplink.Uplink`. Its thread is on the host when it calls `install` and `close`."""

    masquerades = False

    def __init__(self, route: Netlink, home: int, mtu: int) -> None:
        """`route`: of the host's namespace, whose descriptor is `home`. Raises OSError (EPERM: not ours to change)."""
        self.route = route
        self._home = home
        self.mtu = mtu
        self._filter = Netlink(NETLINK_NETFILTER)
        self._interface = ""
        self._index = 0
        self._table = ""
        self._made_forward: list[str] = []
        try:
            nft.tables(self._filter)
        except OSError:
            self._filter.close()
            raise

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

    def plan(self, network: IPv4Network, taken: Sequence[IPv4Network]) -> rules.Plan:
        return rules.Plan(network)

    def join(self, plan: rules.Plan, route: Netlink, namespace: int) -> list[Message]:
        self._pair(route)
        names = {one.name: one.index for one in links.interfaces(self.route)}
        self._index = names[self._interface]
        try:
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
        except OSError:
            self.route.send([links.remove(self._index)])
            self._index = 0
            raise
        return [
            links.configure(UP_INDEX, forwards=True, ipv6=has_ipv6()),
            links.up(UP_INDEX),
            links.address(UP_INDEX, plan.router),
            links.neighbour(UP_INDEX, plan.host, HOST_HARDWARE),
            links.route(UP_INDEX, IPv4Network(plan.host)),
            links.route(UP_INDEX, links.EVERYWHERE, plan.host),
        ]

    def _pair(self, route: Netlink) -> None:
        """The host's end has the first name that is free."""
        for number in range(MOST_NAMES):
            self._interface = f"lambox{number}"
            ours = links.End(rules.UPLINK, ROUTER_HARDWARE, UP_INDEX)
            theirs = links.End(self._interface, HOST_HARDWARE, namespace=self._home)
            try:
                route.send([links.pair(ours, theirs, self.mtu)])
            except NetlinkError as exc:
                if exc.errno != errno.EEXIST:
                    raise
            else:
                return
        raise OSError(errno.ENOSPC, "every name from lambox0 on is in use")

    def install(self, plan: rules.Plan, outward: Sequence[links.Interface]) -> tuple[str, ...]:
        """Rules, then forwarding; nothing is connected yet."""
        self._table = f"{cgroup.own_name()}-{self._interface}"
        self._rules(plan)
        self._forward(list(outward))
        return tuple(self._made_forward)

    def passed(self) -> bool:
        return nft.counted(self._filter, self._table, "probe") > 0

    def own_addresses(self) -> list[IPv4Address]:
        """None: the host's own chain refuses whatever address it has at the moment."""
        return []

    def is_gone(self) -> bool:
        return False

    def describe(self) -> str:
        return f"by {self._interface}"

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


def _forwards(interface: str) -> bool:
    """Of the network namespace the calling thread is in."""
    return cgroup.read_int(str(CONF / interface / "forwarding")) == 1
