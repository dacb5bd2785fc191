"""Owns the answer to "who made the socket at the other end of this loopback connection?"

A sandbox that shares the host's network (`network = "host"`) has its Runtime API on the host's loopback, where
every process can connect. Where each sandbox has a uid of its own, the socket's uid tells; where all have ours,
the cgroup in which it was made: the kernel notes it with the socket, for good, and nothing in a sandbox
can leave its group. Both come from one question to the kernel (sock_diag(7)), whatever else is connected, and
a sandbox can make neither dear, as a search through its descriptors could be made.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass

from sandbox.confine.network.netlink import (
    NETLINK_SOCK_DIAG,
    Netlink,
    NetlinkError,
    attributes,
)

SOCK_DIAG_BY_FAMILY, INET_DIAG_CGROUP_ID = 20, 21
"""linux/sock_diag.h, linux/inet_diag.h; the attribute is Linux 5.9's."""
ANY_STATE, NO_COOKIE = 0xFFFFFFFF, 0xFFFFFFFF
REQUEST = struct.Struct("=BBBxI")
"""struct inet_diag_req_v2: family, protocol, extensions, states; an inet_diag_sockid follows."""
PORTS = struct.Struct("!HH")
REST = struct.Struct("=16s16sIII")
"""struct inet_diag_sockid: ports, then addresses, interface, cookie."""
UID_AT, ATTRIBUTES_AT = 64, 72
"""In struct inet_diag_msg, whose sockid comes after four bytes."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Of a socket. `cgroup`: the inode of its folder in the v2 tree (1: the top); None: this kernel does not tell."""

    uid: int
    cgroup: int | None


def maker_of(client: tuple[str, int], server: tuple[str, int]) -> Maker | None:
    """Who made the socket at `client`'s end of a connection to `server`; None if it is gone. Some 40 us.

    It is the answer for *this* connection if that is found to be connected afterwards: until then nobody else
    can have one of the same addresses. Raises OSError where the kernel cannot be asked.
    """
    ports = PORTS.pack(client[1], server[1])
    addresses = (socket.inet_aton(client[0]), socket.inet_aton(server[0]))
    request = REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, ANY_STATE)
    request += ports + REST.pack(*addresses, 0, NO_COOKIE, NO_COOKIE)
    with contextlib.closing(Netlink(NETLINK_SOCK_DIAG)) as netlink:
        try:
            answer = netlink.ask(SOCK_DIAG_BY_FAMILY, request, "ask whose a socket is")
        except NetlinkError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise
    if answer[4 : 4 + PORTS.size] != ports:
        return None  # who listens at the client's port, as there is no connection
    found = dict(attributes(answer[ATTRIBUTES_AT:])).get(INET_DIAG_CGROUP_ID)
    (uid,) = struct.unpack_from("=I", answer, UID_AT)
    return Maker(uid, None if found is None else struct.unpack("=Q", found)[0])


def probe() -> Maker:
    """What the kernel tells of a socket of ours. Raises OSError."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        found = maker_of(client.getsockname(), listener.getsockname())
    if found is None:
        raise OSError(errno.ENOENT, "the kernel does not know a socket of ours")
    return found
