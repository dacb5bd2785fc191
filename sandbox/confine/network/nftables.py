"""Owns the encoding of nftables' tables, chains, rules and sets (linux/netfilter/nf_tables.h).

Numbers are big-endian. A rule is a sequence of expressions, each of which goes on to the next or ends the
rule; `nft -a list ruleset` prints them as a rule of nft(8).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from sandbox.confine.network.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    Netlink,
    attribute,
    attributes,
    nested,
    text,
)

SUBSYSTEM = 10 << 8
NEW_TABLE, GET_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE, GET_RULE, DELETE_RULE, NEW_SET = (
    SUBSYSTEM | kind for kind in (0, 1, 2, 3, 6, 7, 8, 9)
)
BATCH_BEGIN, BATCH_END = 16, 17
NFPROTO_INET = 1
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
"""linux/netfilter.h: hooks of the inet family."""
RAW, DNAT, FILTER, SNAT, LATE = -300, -100, 0, 100, 200
"""linux/netfilter_ipv4.h: priorities; the last is after the translation of sources."""
OWNER = 2
"""NFT_TABLE_F_OWNER (Linux 5.12): nobody else may change the table, and it goes with our socket."""
DROP, ACCEPT = 0, 1
VERDICT, REGISTER = 0, 1
META = {"iifname": 6, "oifname": 7, "nfproto": 15, "l4proto": 16}
EQUAL, UNEQUAL = 0, 1
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
CT_STATE, CT_STATUS = 0, 2
INVALID, ESTABLISHED, RELATED, NEW = 1, 2, 4, 8
"""linux/netfilter/nf_conntrack_common.h: NF_CT_STATE_BIT."""
TRANSLATED = 1 << 5
"""IPS_DST_NAT."""
RTN_LOCAL = 2
"""linux/rtnetlink.h"""
SET_TIMEOUT, SET_EVAL = 0x10, 0x20
Expression = tuple[bytes, ...]
"""Several are one after the other."""


def commit(netlink: Netlink, messages: Sequence[Message]) -> None:
    """All of them or none. Raises NetlinkError."""
    frame = _header(socket.AF_UNSPEC, 10)
    netlink.send(
        [
            Message(BATCH_BEGIN, 0, frame, "changing nftables"),
            *messages,
            Message(BATCH_END, 0, frame, "changing nftables"),
        ]
    )


def table(name: str, *, flags: int = 0, data: bytes = b"") -> Message:
    """`data`: kept with it (NFTA_TABLE_USERDATA), for whoever finds it."""
    body = _header() + text(1, name) + _number(2, flags)
    if data:
        body += attribute(6, data)
    return Message(NEW_TABLE, NLM_F_ACK | NLM_F_CREATE, body, f"making nftables' table {name}")


def delete_table(name: str) -> Message:
    return Message(DELETE_TABLE, NLM_F_ACK, _header() + text(1, name), f"removing table {name}")


def tables(netlink: Netlink) -> dict[str, bytes]:
    """Our family's tables, and what is kept with each."""
    found = {}
    for body in netlink.dump(GET_TABLE, _header(), "listing nftables' tables"):
        values = dict(attributes(body[4:]))
        found[values[1].rstrip(b"\0").decode("utf-8", "replace")] = values.get(6, b"")
    return found


def chain(
    where: str, name: str, hook: int, priority: int, policy: int = ACCEPT, kind: str = "filter"
) -> Message:
    """`kind`: filter or nat."""
    body = _header() + text(1, where) + text(3, name)
    body += nested(4, _number(1, hook), attribute(2, struct.pack(">i", priority)))
    body += _number(5, policy) + text(7, kind)
    return Message(NEW_CHAIN, NLM_F_ACK | NLM_F_CREATE, body, f"making chain {name} of {where}")


def rule(where: str, chain_: str, *expressions: Expression) -> Message:
    """After those that are there. Its place in an error is all that tells it from others."""
    body = _header() + text(1, where) + text(2, chain_)
    body += nested(4, *(nested(1, part) for one in expressions for part in one))
    flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND
    return Message(NEW_RULE, flags, body, f"a rule of chain {chain_} of {where}")


def clear(where: str, chain_: str) -> Message:
    """Remove all rules of a chain."""
    body = _header() + text(1, where) + text(2, chain_)
    return Message(DELETE_RULE, NLM_F_ACK, body, f"clearing chain {chain_} of {where}")


def counted(netlink: Netlink, where: str, chain_: str) -> int:
    """Packets that the counters of a chain's rules have seen. Raises NetlinkError."""
    body = _header() + text(1, where) + text(2, chain_)
    packets = 0
    for data in netlink.dump(GET_RULE, body, f"reading chain {chain_} of {where}"):
        values = dict(attributes(data[4:]))
        for _, element in attributes(values.get(4, b"")):
            expression = dict(attributes(element))
            if expression.get(1, b"").rstrip(b"\0") == b"counter":
                packets += int.from_bytes(dict(attributes(expression[2]))[2], "big")
    return packets


def addresses(where: str, name: str, number: int, size: int, *, timeout_ms: int = 0) -> Message:
    """A set of IPv4 addresses that rules add to (`each`)."""
    body = _header() + text(1, where) + text(2, name)
    body += _number(3, SET_EVAL | (SET_TIMEOUT if timeout_ms else 0))
    body += _number(4, 7) + _number(5, 4) + nested(9, _number(1, size)) + _number(10, number)
    if timeout_ms:
        body += attribute(11, struct.pack(">Q", timeout_ms))
    return Message(NEW_SET, NLM_F_ACK | NLM_F_CREATE, body, f"making set {name} of {where}")


# -- expressions


def interface(key: str, name: str, *, but: bool = False) -> Expression:
    """`key`: iifname, oifname; `but`: any but this one."""
    padded = name.encode().ljust(16, b"\0")
    return _meta(key) + _compare(padded, UNEQUAL if but else EQUAL)


def is_ipv4(*, but: bool = False) -> Expression:
    return _meta("nfproto") + _compare(bytes([socket.AF_INET]), UNEQUAL if but else EQUAL)


def protocol(number: int, *, but: bool = False) -> Expression:
    return _meta("l4proto") + _compare(bytes([number]), UNEQUAL if but else EQUAL)


def source(network: IPv4Network) -> Expression:
    return is_ipv4() + _within(12, network)


def destination(network: IPv4Network) -> Expression:
    return is_ipv4() + _within(16, network)


def port_to(number: int) -> Expression:
    """Of TCP or UDP: after `protocol`."""
    return _payload(TRANSPORT_HEADER, 2, 2) + _compare(struct.pack(">H", number))


def spoofed() -> Expression:
    """The route back to the source does not lead by the interface it came in by (nft's `fib`)."""
    look = _expression("fib", _number(1, REGISTER), _number(2, 1), _number(3, 1 | 1 << 3))
    return look + _compare(bytes(4))


def to_ourselves() -> Expression:
    """Its destination is an address of this namespace's own, whichever that has at the moment."""
    look = _expression("fib", _number(1, REGISTER), _number(2, 3), _number(3, 1 << 1))
    return look + _compare(struct.pack("=I", RTN_LOCAL))


def state(bits: int) -> Expression:
    """Conntrack's state is one of `bits`."""
    return _tracked(CT_STATE) + _masked(bits) + _compare(bytes(4), UNEQUAL)


def translated(yes: bool = True) -> Expression:
    """Whether the destination of its first packet was rewritten (by `lead_to`)."""
    return _tracked(CT_STATUS) + _masked(TRANSLATED) + _compare(bytes(4), UNEQUAL if yes else EQUAL)


def each(set_: str, number: int, expression: Expression, timeout_ms: int = 0) -> Expression:
    """Goes on when `expression`, kept in a set for the packet's source, does."""
    return _payload(NETWORK_HEADER, 12, 4) + _expression(
        "dynset",
        text(1, set_),
        _number(2, number),
        _number(3, 1 if timeout_ms else 0),
        _number(4, REGISTER),
        *([attribute(6, struct.pack(">Q", timeout_ms))] if timeout_ms else []),
        nested(7, *expression),
    )


def more_connections_than(count: int) -> Expression:
    return _expression("connlimit", _number(1, count), _number(2, 1))


def faster_than(per_second: int, burst: int) -> Expression:
    return _expression(
        "limit",
        attribute(1, struct.pack(">Q", per_second)),
        attribute(2, struct.pack(">Q", 1)),
        _number(3, burst),
        _number(4, 0),
        _number(5, 1),
    )


def counter() -> Expression:
    return _expression("counter")


def verdict(code: int) -> Expression:
    return _expression("immediate", _number(1, VERDICT), nested(2, nested(2, _number(1, code))))


def refuse() -> Expression:
    """ICMP "administratively prohibited": a connection fails at once, with EHOSTUNREACH."""
    return _expression("reject", _number(1, 2), attribute(2, b"\x03"))


def reset() -> Expression:
    """TCP's own refusal, which no limit of ICMP holds back: a connection fails with ECONNREFUSED."""
    return _expression("reject", _number(1, 1))


def masquerade() -> Expression:
    """The source becomes the address of the interface it leaves by."""
    return _expression("masq")


def lead_to(address: IPv4Address) -> Expression:
    """The destination becomes this one, its port stays."""
    load = _expression("immediate", _number(1, REGISTER), nested(2, attribute(1, address.packed)))
    return load + _expression(
        "nat", _number(1, 1), _number(2, socket.AF_INET), _number(3, REGISTER)
    )


def _meta(key: str) -> Expression:
    return _expression("meta", _number(1, REGISTER), _number(2, META[key]))


def _payload(base: int, offset: int, size: int) -> Expression:
    parts = (REGISTER, base, offset, size)
    return _expression("payload", *(_number(kind, part) for kind, part in enumerate(parts, 1)))


def _tracked(key: int) -> Expression:
    return _expression("ct", _number(1, REGISTER), _number(2, key))


def _within(offset: int, network: IPv4Network) -> Expression:
    mask = network.netmask.packed
    return (
        _payload(NETWORK_HEADER, offset, 4) + _bits(mask) + _compare(network.network_address.packed)
    )


def _masked(bits: int) -> Expression:
    """Of a number in the host's byte order, as conntrack's are."""
    return _bits(struct.pack("=I", bits))


def _bits(mask: bytes) -> Expression:
    return _expression(
        "bitwise",
        *(_number(1, REGISTER), _number(2, REGISTER), _number(3, 4)),
        *(nested(4, attribute(1, mask)), nested(5, attribute(1, bytes(4)))),
    )


def _compare(value: bytes, how: int = EQUAL) -> Expression:
    return _expression("cmp", _number(1, REGISTER), _number(2, how), nested(3, attribute(1, value)))


def _expression(name: str, *parts: bytes) -> Expression:
    return (text(1, name) + nested(2, *parts),)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _header(family: int = NFPROTO_INET, resource: int = 0) -> bytes:
    return struct.pack(">BBH", family, 0, resource)
