"""Owns which name servers sandboxes with a way out are led to.

Inside, /etc/resolv.conf names the router, always. It leads questions on to the host's name servers of the
moment (nftables, nothing of ours in between), so that a change of the host's reaches what runs already. Where
a host's server cannot be led to (it listens on loopback, is the host itself, link-local, or has an IPv6
address only), lambox relays (`relay`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""The second has systemd-resolved's own servers (systemd-resolved.service(8)): used where the first names
nothing but its address on loopback."""
MOST = 2
"""As many as there are gateways that stand for them."""
Server = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Resolvers:
    """`servers`: the host's, at most MOST. `direct`: packets can be led to all of them."""

    servers: tuple[Server, ...]
    direct: bool

    @property
    def led_to(self) -> list[IPv4Address]:
        """For `rules.name_service`: none where lambox relays."""
        return [one for one in self.servers if isinstance(one, IPv4Address)] if self.direct else []

    def describe(self) -> str:
        names = ", ".join(map(str, self.servers))
        return names if self.direct else f"relayed to {names}"


def find(is_ours: Callable[[IPv4Address], bool], files: tuple[Path, Path]) -> Resolvers:
    """`is_ours`: whether the host itself has an address. Without any server, as resolv.conf(5): 127.0.0.1."""
    named, behind = map(read, files)
    if behind and all(one.is_loopback for one in named):
        named = behind
    servers = tuple(named[:MOST]) or (IPv4Address("127.0.0.1"),)

    def direct(server: Server) -> bool:
        if not isinstance(server, IPv4Address) or server.is_loopback or server.is_link_local:
            return False
        return not (server.is_unspecified or server.is_multicast or is_ours(server))

    return Resolvers(servers, all(map(direct, servers)))


def read(path: Path) -> list[Server]:
    """The `nameserver` lines of a resolv.conf(5); what is no address is passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Server] = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(ip_address(words[1]))
            except ValueError:
                continue
    return found
