"""Owns what is let through: the filter between sandboxes and the host, and the host's own part of it.

The router's filter stands in a network namespace of lambox's own, where nobody else's firewall is; what the
host gets are three chains that touch nothing but the router's one interface.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sandbox.confine.network import nftables as nft
from sandbox.confine.network.links import EVERYWHERE
from sandbox.confine.network.netlink import Message

TABLE = "lambox"
"""In the router's namespace."""
UPLINK = "up"
"""The router's interface towards the host; all others but loopback are sandboxes'."""
PROBE = IPv4Network("192.0.0.8/32")
"""The IPv4 dummy address (RFC 7600): never anybody's. What is sent there shows how far packets get."""
DNS = 53
REFUSED = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # "this host", RFC 1122
            "127.0.0.0/8",  # the host's loopback, where route_localnet is set
            "169.254.0.0/16",  # link-local: AWS, GCP, Azure metadata (169.254.169.254), ECS (169.254.170.2)
            "100.100.100.200/32",  # Alibaba Cloud's metadata
            "168.63.129.16/32",  # Azure's WireServer (its name service is led to all the same)
            "192.0.0.0/24",  # protocol assignments; Oracle Cloud's old metadata (192.0.0.192)
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
"""Where no sandbox gets, whatever the host's routes say. IPv6 is refused altogether, with fd00:ec2::254."""
CONNECTIONS = 1024
"""Open at a time, per sandbox. Closed ones (TIME_WAIT) do not count; as many as descriptors of a process."""
NEW_PER_SECOND, NEW_AT_ONCE = 250, 1000
"""Connections and UDP flows begun, per sandbox: a closed one stays in conntrack's table for two minutes."""
ASKED_PER_SECOND, ASKED_AT_ONCE = 50, 200
"""Packets to lambox's own relay of name service, per sandbox."""
CLOSED_KEPT_S = 120
"""How long conntrack knows a closed connection: nf_conntrack_tcp_timeout_time_wait."""
KEPT_MS = 60_000
_CONNECTIONS, _NEW, _ASKED = ("connections", 1), ("new", 2), ("asked", 3)
_BACK = nft.state(nft.ESTABLISHED | nft.RELATED)
_REFUSE, _DROP, _ACCEPT = nft.refuse(), nft.verdict(nft.DROP), nft.verdict(nft.ACCEPT)


@dataclass(frozen=True, slots=True)
class Plan:
    """Who has which address: all are out of `network`, of which no route of the host knew."""

    network: IPv4Network
    link: IPv4Network | None = None
    """Between the router and a process that speaks for it (`tapside`), where there is one."""

    @property
    def gateways(self) -> tuple[IPv4Address, IPv4Address]:
        """The router, towards sandboxes; also the name servers they are told."""
        return self.network[1], self.network[2]

    @property
    def host(self) -> IPv4Address:
        return self.network[3]

    @property
    def router(self) -> IPv4Address:
        """Towards the host."""
        return self.network[4]

    @property
    def sandboxes(self) -> range:
        """Positions in `network`."""
        return range(8, self.network.num_addresses - 1)


def router(plan: Plan, tracked: int) -> list[Message]:
    """Everything but `name_service`'s rules. `tracked`: the size of conntrack's table (nf_conntrack_max)."""
    # All together fill half of the host's table at most with what they have closed.
    all_new = nft.faster_than(max(tracked // 2 // CLOSED_KEPT_S, 1), max(tracked // 8, 1))
    size = plan.network.num_addresses
    theirs = nft.interface("iifname", UPLINK, but=True)

    def spoof(*what: nft.Expression) -> Message:
        return nft.rule(TABLE, "spoof", *what)

    def forward(*what: nft.Expression) -> Message:
        return nft.rule(TABLE, "forward", *what)

    def inward(*what: nft.Expression) -> Message:
        return nft.rule(TABLE, "input", *what)

    return [
        nft.table(TABLE),
        nft.addresses(TABLE, *_CONNECTIONS, size),
        nft.addresses(TABLE, *_NEW, size, timeout_ms=KEPT_MS),
        nft.addresses(TABLE, *_ASKED, size, timeout_ms=KEPT_MS),
        # Before conntrack knows of a packet.
        nft.chain(TABLE, "spoof", nft.PREROUTING, nft.RAW),
        spoof(nft.is_ipv4(but=True), _DROP),
        spoof(theirs, nft.interface("iifname", "lo", but=True), nft.spoofed(), _DROP),
        nft.chain(TABLE, "names", nft.PREROUTING, nft.DNAT, kind="nat"),
        nft.chain(TABLE, "hidden", nft.FORWARD, nft.FILTER - 10),
        nft.chain(TABLE, "forward", nft.FORWARD, nft.FILTER, nft.DROP),
        forward(nft.interface("iifname", UPLINK), _BACK, _ACCEPT),
        forward(nft.interface("iifname", UPLINK), _DROP),
        # To a neighbour.
        forward(nft.interface("oifname", UPLINK, but=True), _REFUSE),
        forward(_BACK, _ACCEPT),
        forward(
            nft.state(nft.NEW),
            nft.protocol(socket.IPPROTO_UDP, but=True),
            nft.protocol(socket.IPPROTO_TCP, but=True),
            _REFUSE,
        ),
        *(
            forward(nft.destination(network), nft.translated(False), _REFUSE)
            for network in (*REFUSED, plan.network, *([plan.link] if plan.link else []))
        ),
        forward(
            nft.state(nft.NEW),
            nft.each(*_NEW, nft.faster_than(NEW_PER_SECOND, NEW_AT_ONCE), KEPT_MS),
            _REFUSE,
        ),
        forward(nft.state(nft.NEW), all_new, _REFUSE),
        forward(
            nft.state(nft.NEW),
            nft.each(*_CONNECTIONS, nft.more_connections_than(CONNECTIONS)),
            _REFUSE,
        ),
        forward(nft.state(nft.NEW), _ACCEPT),
        nft.chain(TABLE, "input", nft.INPUT, nft.FILTER, nft.DROP),
        inward(nft.each(*_ASKED, nft.faster_than(ASKED_PER_SECOND, ASKED_AT_ONCE), KEPT_MS), _DROP),
        *(
            inward(
                theirs,
                nft.destination(IPv4Network(gateway)),
                nft.protocol(number),
                nft.port_to(DNS),
                _ACCEPT,
            )
            for gateway in plan.gateways
            for number in (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
        ),
        inward(theirs, _REFUSE),
    ]


def name_service(plan: Plan, servers: Sequence[IPv4Address]) -> list[Message]:
    """Lead questions to each gateway to one of `servers`; without any they come to the relay there."""
    messages = [nft.clear(TABLE, "names")]
    for number, gateway in enumerate(plan.gateways if servers else ()):
        server = servers[number % len(servers)]
        messages += [
            nft.rule(
                TABLE,
                "names",
                nft.interface("iifname", UPLINK, but=True),
                nft.destination(IPv4Network(gateway)),
                nft.protocol(protocol),
                nft.port_to(DNS),
                nft.lead_to(server),
            )
            for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
        ]
    return messages


def hidden(addresses: Sequence[IPv4Address]) -> list[Message]:
    """The host's own addresses, where no rule of the host's can keep sandboxes from them."""
    return [
        nft.clear(TABLE, "hidden"),
        *(
            nft.rule(
                TABLE,
                "hidden",
                nft.interface("iifname", UPLINK, but=True),
                nft.destination(IPv4Network(address)),
                _REFUSE,
            )
            for address in addresses
        ),
    ]


def one_source() -> list[Message]:
    """What leaves has the router's own address."""
    return [
        nft.chain(TABLE, "source", nft.POSTROUTING, nft.SNAT, kind="nat"),
        nft.rule(TABLE, "source", nft.interface("oifname", UPLINK), nft.masquerade()),
    ]


def host(table: str, plan: Plan, interface: str, *, flags: int) -> list[Message]:
    """The host's part: out with the host's own address, and nothing else in either direction."""
    ours = nft.interface("iifname", interface)
    # Refusing as early as that is Linux 5.9's.
    early = bool(flags & nft.OWNER)
    reset = (ours, nft.protocol(socket.IPPROTO_TCP))

    def rule(chain: str, *what: nft.Expression) -> Message:
        return nft.rule(table, chain, *what)

    return [
        nft.table(table, flags=flags),
        # Before somebody rewrites destinations: what Docker publishes has an address of the host's too.
        nft.chain(table, "prerouting", nft.PREROUTING, nft.DNAT - 10),
        rule("prerouting", *reset, nft.to_ourselves(), nft.reset() if early else _DROP),
        rule("prerouting", ours, nft.to_ourselves(), _REFUSE if early else _DROP),
        # None of the host's own addresses: not those it has now, not those it may get.
        nft.chain(table, "input", nft.INPUT, nft.FILTER - 10),
        rule("input", *reset, nft.reset()),
        rule("input", ours, _REFUSE),
        nft.chain(table, "forward", nft.FORWARD, nft.FILTER - 10),
        rule("forward", ours, nft.interface("oifname", interface), _DROP),
        rule("forward", nft.interface("oifname", interface), _BACK, _ACCEPT),
        rule("forward", nft.interface("oifname", interface), _DROP),
        nft.chain(table, "probe", nft.POSTROUTING, nft.SNAT - 10),
        rule("probe", nft.source(plan.network), nft.destination(PROBE), nft.counter(), _DROP),
        nft.chain(table, "postrouting", nft.POSTROUTING, nft.SNAT, kind="nat"),
        rule(
            "postrouting",
            nft.source(plan.network),
            nft.interface("oifname", interface, but=True),
            nft.masquerade(),
        ),
    ]


def guard(table: str, interfaces: Sequence[str], data: bytes) -> list[Message]:
    """For interfaces that forward only since we made them: nothing begins there that did not before.

    Replies come back through them, and what somebody else publishes (a translated destination) goes on.
    """
    fresh = (nft.state(nft.NEW), nft.translated(False))
    return [
        nft.table(table, data=data),
        nft.chain(table, "forward", nft.FORWARD, nft.FILTER - 10),
        *(
            nft.rule(table, "forward", nft.interface("iifname", name), *fresh, _DROP)
            for name in interfaces
        ),
    ]


def overlaps(network: IPv4Network, routes: Sequence[IPv4Network]) -> bool:
    """Whether a route of the host, but a default one, knows part of `network`."""
    return any(to.overlaps(network) for to in routes if to != EVERYWHERE)
