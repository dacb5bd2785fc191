"""Owns the way out without any right to the host's network: pasta(1), else slirp4netns(1).

One process for all sandboxes. It takes packets from a tap interface in the router's namespace and speaks
for them with ordinary sockets of the user's on the host. It knows one address, so the router masquerades;
it reaches all that the user reaches, so the router refuses the host's own addresses, which are looked up
every two seconds. Nothing on the host is forwarded inward. It is started by a thread that stays on the host and
waits for it, and is killed when that thread is gone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import rootfs.inside
from sandbox.confine import mounts
from sandbox.confine.network import links, rules
from sandbox.confine.network.netlink import Message, Netlink
from sandbox.confine.network.uplink import first_free, has_ipv6
from sandbox.confine.network.worker import Worker
from sandbox.confine.spec import IsolationUnavailable
from sandbox.confine.staging import STAGE

MTU = 65520
"""Of pasta and slirp4netns, who are no wire."""
LINKS = tuple(map(IPv4Network, ("198.18.219.0/24", "192.168.219.0/24", "10.218.219.0/24")))
"""The first that no route of the host knows is between the process and the router; nobody else sees it."""
START_LIMIT_S, LOOK_S = 5.0, 0.002
INIT = os.path.join(next(iter(rootfs.inside.__path__)), "init")
MEND = "apt-get install passt"


@dataclass(frozen=True, slots=True)
class Tool:
    """One of the two programs."""

    path: str
    name: str

    def command(self, link: IPv4Network, namespace: str) -> list[str]:
        """`link`: the network between it and the router, whose ends are at the places that slirp4netns gives."""
        if self.name == "slirp4netns":
            how = [
                "--disable-host-loopback",
                "--disable-dns",
                "--enable-sandbox",
                "--enable-seccomp",
            ]
            how += [f"--mtu={MTU}", f"--cidr={link}", "--netns-type=path"]
            return [self.path, *how, namespace, rules.UPLINK]
        how = ["--foreground", "--quiet", "--ipv4-only", "--netns-only", "--no-netns-quit"]
        # The gateway's address is not the host; no port of either side is forwarded to the other.
        how += ["--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]
        how += ["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"]
        how += ["-a", str(inner(link)), "-n", str(link.prefixlen), "-g", str(outer(link))]
        return [self.path, *how, "--ns-ifname", rules.UPLINK, "--netns", namespace]


def inner(link: IPv4Network) -> IPv4Address:
    return link[100]


def outer(link: IPv4Network) -> IPv4Address:
    return link[2]


def find() -> Tool:
    """Raises IsolationUnavailable."""
    for name in ("pasta", "slirp4netns"):
        if (path := shutil.which(name)) is not None:
            return Tool(path, name)
    raise IsolationUnavailable("neither pasta nor slirp4netns is there", MEND)


class TapSide:
    """Implements `uplink.Uplink`."""

    mtu = MTU
    masquerades = True

    def __init__(self, route: Netlink, host: Worker) -> None:
        """`route`: of the host's namespace; closed by `close`. `host`: a thread that is there.

        Raises IsolationUnavailable.
        """
        self.route = route
        self._host = host
        self._tool = find()
        self._process: subprocess.Popen[bytes] | None = None
        self._staged = False
        self._errors = os.memfd_create("lambox-tap", os.MFD_CLOEXEC)

    def plan(self, network: IPv4Network, taken: Sequence[IPv4Network]) -> rules.Plan:
        free = first_free(LINKS, taken)
        if not free:
            raise IsolationUnavailable(
                f"routes of this host cover all of {', '.join(map(str, LINKS))}", "ip route"
            )
        return rules.Plan(network, free[0])

    def join(self, plan: rules.Plan, route: Netlink, namespace: int) -> list[Message]:
        assert plan.link is not None
        link = plan.link
        self._end()
        self._process = self._host.do(lambda: self._start(link, namespace))
        ends = time.monotonic() + START_LIMIT_S
        while True:
            there = [one.index for one in links.interfaces(route) if one.name == rules.UPLINK]
            if there:
                break
            if self.is_gone() or time.monotonic() > ends:
                raise self._refusal()
            time.sleep(LOOK_S)
        (index,) = there
        return [
            links.configure(index, forwards=True, mtu=MTU, ipv6=has_ipv6()),
            links.up(index),
            links.address(index, inner(link)),
            links.route(index, IPv4Network(outer(link))),
            links.route(index, links.EVERYWHERE, outer(link)),
        ]

    def _start(self, link: IPv4Network, namespace: int) -> subprocess.Popen[bytes]:
        """On the host. It finds the router's namespace by a path, which only this thread and it can see."""
        place = f"{STAGE}/router"
        if not self._staged:
            mounts.unshare()
            flags = mounts.MS_NOSUID | mounts.MS_NODEV
            mounts.mount("lambox", STAGE, "tmpfs", flags, "mode=0755,size=64k")
            os.close(os.open(place, os.O_CREAT | os.O_CLOEXEC))
            mounts.mount(f"/proc/self/fd/{namespace}", place, None, mounts.MS_BIND)
            self._staged = True
        os.truncate(self._errors, 0)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            # `init launch` has it die with this thread; the descriptor is what its telemetry would be.
            launch = [INIT, "launch", "-1", "-1", str(null), "--"]
            return subprocess.Popen(
                [*launch, *self._tool.command(link, place)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[null],
                env={},
            )
        finally:
            os.close(null)

    def _refusal(self) -> IsolationUnavailable:
        said = os.pread(self._errors, 4096, 0).decode("utf-8", "replace").strip()
        said, mend = said.splitlines()[-1] if said else "it gave no reason", MEND
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            said, mend = "/dev/net/tun cannot be opened", "chmod 666 /dev/net/tun"
        self._end()
        return IsolationUnavailable(f"{self._tool.name} made no interface: {said}", mend)

    def install(self, plan: rules.Plan, outward: Sequence[links.Interface]) -> tuple[str, ...]:
        return ()

    def passed(self) -> bool:
        """Its packets are the user's own: no firewall treats them in another way."""
        return not self.is_gone()

    def own_addresses(self) -> list[IPv4Address]:
        return sorted(set(links.addresses(self.route)))

    def is_gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def describe(self) -> str:
        return f"through {self._tool.name}"

    def close(self) -> None:
        self._end()
        self.route.close()
        os.close(self._errors)

    def _end(self) -> None:
        """Its interface goes with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
