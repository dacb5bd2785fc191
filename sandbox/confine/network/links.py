"""Owns what is said over rtnetlink(7): interfaces, IPv4 addresses, routes and neighbours."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sandbox.confine.network.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    attribute,
    attributes,
    nested,
    text,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH = 20, 22, 24, 26, 28
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = (
    1,
    3,
    4,
    18,
    26,
    28,
)
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING = 1, 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFF_UP, IFF_LOOPBACK = 1, 8
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, RT_TABLE_LOCAL, RTPROT_STATIC = 254, 255, 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 0, 253, 1
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
"""linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, if.h, ip.h, veth.h"""
LINK = struct.Struct("=BxHiII")
ADDRESS = struct.Struct("=BBBBI")
ROUTE = struct.Struct("=BBBBBBBBI")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
MAKE = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a pair of virtual interfaces (veth(4)).

    `index`: 0 lets the kernel choose; `namespace`: descriptor of where it is to be, None: the socket's own.
    """

    name: str
    hardware: bytes
    index: int = 0
    namespace: int | None = None


def pair(one: End, other: End, mtu: int) -> Message:
    """Make `one` in the socket's namespace and `other` where it says. Both are down."""

    def end(which: End) -> bytes:
        parts = [
            text(IFLA_IFNAME, which.name),
            attribute(IFLA_ADDRESS, which.hardware),
            _u32(IFLA_MTU, mtu),
            # A queue for every possible processor otherwise, of which none is needed.
            _u32(IFLA_NUM_TX_QUEUES, 1),
            _u32(IFLA_NUM_RX_QUEUES, 1),
        ]
        if which.namespace is not None:
            parts.append(_u32(IFLA_NET_NS_FD, which.namespace))
        return LINK.pack(socket.AF_UNSPEC, 0, which.index, 0, 0) + b"".join(parts)

    info = nested(
        IFLA_LINKINFO,
        text(IFLA_INFO_KIND, "veth"),
        nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, end(other))),
    )
    return Message(RTM_NEWLINK, MAKE, end(one) + info, f"making interface {one.name}")


def configure(
    index: int, *, forwards: bool = False, ipv6: bool = True, mtu: int | None = None
) -> Message:
    """Before it is switched on: it gets no IPv6 address, and so has no way out by IPv6.

    `forwards`: what comes in by it may leave by another one (net.ipv4.conf.IFACE.forwarding; needs no
    writable /proc/sys). `ipv6`: whether the kernel has it at all.
    """
    spec = [_forwarding(True)] if forwards else []
    if ipv6:
        mode = bytes([IN6_ADDR_GEN_MODE_NONE])
        spec.append(nested(socket.AF_INET6, attribute(IFLA_INET6_ADDR_GEN_MODE, mode)))
    body = LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + nested(IFLA_AF_SPEC, *spec)
    if mtu is not None:
        body += _u32(IFLA_MTU, mtu)
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"setting up interface {index}")


def up(index: int) -> Message:
    body = LINK.pack(socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP)
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"switching interface {index} on")


def forward(index: int, on: bool) -> Message:
    """Set net.ipv4.conf.IFACE.forwarding."""
    spec = nested(IFLA_AF_SPEC, _forwarding(on))
    body = LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + spec
    return Message(RTM_NEWLINK, NLM_F_ACK, body, f"forwarding of interface {index}")


def _forwarding(on: bool) -> bytes:
    return nested(socket.AF_INET, nested(IFLA_INET_CONF, _u32(IPV4_DEVCONF_FORWARDING, int(on))))


def remove(index: int) -> Message:
    body = LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    return Message(RTM_DELLINK, NLM_F_ACK, body, f"removing interface {index}")


def address(index: int, value: IPv4Address) -> Message:
    """One address, without a network around it."""
    body = ADDRESS.pack(socket.AF_INET, 32, 0, RT_SCOPE_UNIVERSE, index)
    body += attribute(IFA_ADDRESS, value.packed) + attribute(IFA_LOCAL, value.packed)
    return Message(RTM_NEWADDR, MAKE, body, f"address {value}")


def route(
    index: int, to: IPv4Network, via: IPv4Address | None = None, *, replace: bool = False
) -> Message:
    """`via` None: `to` is at the other end of the interface."""
    scope = RT_SCOPE_LINK if via is None else RT_SCOPE_UNIVERSE
    body = ROUTE.pack(
        *(socket.AF_INET, to.prefixlen, 0, 0),
        *(RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0),
    )
    if to != EVERYWHERE:
        body += attribute(RTA_DST, to.network_address.packed)
    body += _u32(RTA_OIF, index)
    if via is not None:
        body += attribute(RTA_GATEWAY, via.packed)
    flags = NLM_F_ACK | NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Message(RTM_NEWROUTE, flags, body, f"route to {to}")


def neighbour(index: int, whose: IPv4Address, hardware: bytes) -> Message:
    """Known for good: nobody is asked over ARP, and nobody can answer."""
    body = NEIGHBOUR.pack(socket.AF_INET, index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, whose.packed) + attribute(NDA_LLADDR, hardware)
    return Message(
        RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body, f"neighbour {whose}"
    )


@dataclass(frozen=True, slots=True)
class Interface:
    """What is there."""

    index: int
    name: str
    mtu: int
    loopback: bool


def interfaces(netlink: Netlink) -> list[Interface]:
    found = []
    body = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for data in netlink.dump(RTM_GETLINK, body, "listing interfaces"):
        _, _, index, flags, _ = LINK.unpack_from(data)
        values = dict(attributes(data[LINK.size :]))
        name = values[IFLA_IFNAME].rstrip(b"\0").decode("utf-8", "replace")
        (mtu,) = struct.unpack("=I", values[IFLA_MTU])
        found.append(Interface(index, name, mtu, bool(flags & IFF_LOOPBACK)))
    return found


def addresses(netlink: Netlink) -> Iterator[IPv4Address]:
    """Every IPv4 address that the namespace has."""
    body = ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)
    for data in netlink.dump(RTM_GETADDR, body, "listing addresses"):
        values = dict(attributes(data[ADDRESS.size :]))
        if data[0] == socket.AF_INET and IFA_LOCAL in values:
            yield IPv4Address(values[IFA_LOCAL])


def routes(netlink: Netlink) -> Iterator[tuple[IPv4Network, int]]:
    """(where to, by which interface) of every IPv4 route but those to the host's own addresses."""
    body = ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    for data in netlink.dump(RTM_GETROUTE, body, "listing routes"):
        family, length, _, _, table, _, _, _, _ = ROUTE.unpack_from(data)
        values = dict(attributes(data[ROUTE.size :]))
        if RTA_TABLE in values:
            (table,) = struct.unpack("=I", values[RTA_TABLE])
        if family != socket.AF_INET or table == RT_TABLE_LOCAL:
            continue
        to = IPv4Network((values.get(RTA_DST, bytes(4)), length))
        (index,) = struct.unpack("=I", values.get(RTA_OIF, bytes(4)))
        yield to, index


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))
