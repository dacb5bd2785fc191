"""Owns what a router needs to know of its way to the outside, whichever of the two it is.

hostside    of the host's root: an interface of the host, and rules
tapside     of an ordinary user: a process on the host that speaks for the router (pasta, slirp4netns)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from sandbox.confine.network import links, rules
from sandbox.confine.network.netlink import Message, Netlink

ROUTER_HARDWARE = bytes.fromhex("020000000001")
HOST_HARDWARE = bytes.fromhex("020000000003")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the host's network is like. `outward`: interfaces with routes, the default one's first."""

    taken: tuple[IPv4Network, ...]
    outward: tuple[links.Interface, ...]


class Uplink(Protocol):
    """Used by the router's thread alone."""

    mtu: int
    masquerades: bool
    """Whether the router has to give all packets one source: the other side knows no more than one."""

    def plan(self, network: IPv4Network, taken: Sequence[IPv4Network]) -> rules.Plan:
        """Who has which address, out of `network`. Raises IsolationUnavailable."""

    def join(self, plan: rules.Plan, route: Netlink, namespace: int) -> list[Message]:
        """Make the interface `rules.UPLINK` in the router's namespace; returns what sets it up there.

        Raises NetlinkError (EEXIST: the addresses are another server's), IsolationUnavailable or OSError.
        """

    def install(self, plan: rules.Plan, outward: Sequence[links.Interface]) -> tuple[str, ...]:
        """What the host needs besides. Returns interfaces that forward only since then."""

    def passed(self) -> bool:
        """Whether what was sent to `rules.PROBE` has come as far as it can."""

    def own_addresses(self) -> list[IPv4Address]:
        """Those of the host that the router has to refuse itself."""

    def is_gone(self) -> bool:
        """Whether it has ended by itself: `join` then makes it anew."""

    def describe(self) -> str: ...
    def close(self) -> None:
        """Give everything back. Raises nothing."""


def look(route: Netlink) -> Surroundings:
    there = {one.index: one for one in links.interfaces(route) if not one.loopback}
    found = sorted(links.routes(route), key=lambda one: one[0] != links.EVERYWHERE)
    used = dict.fromkeys(index for _, index in found if index in there)
    outward = [there[index] for index in used if not there[index].name.startswith("lambox")]
    return Surroundings(tuple(to for to, _ in found), tuple(outward))


def has_ipv6() -> bool:
    return os.path.exists("/proc/sys/net/ipv6")


def first_free(shares: Sequence[IPv4Network], taken: Sequence[IPv4Network]) -> list[IPv4Network]:
    """Those that no route knows, in their order."""
    return [share for share in shares if not rules.overlaps(share, taken)]
