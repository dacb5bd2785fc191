"""Owns the answer to "whose process is at the other end of this loopback connection?"

A sandbox that shares the host's network (`network = "host"`) has its Runtime API on the host's loopback, where
every process can connect. Started by root, each sandbox has a uid of its own, and the kernel tells the
uid of every TCP socket in /proc/net/tcp (Documentation/networking/proc_net_tcp.rst).
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

TABLE = Path("/proc/net/tcp")


def uid_of(client: tuple[str, int], server: tuple[str, int], table: Path = TABLE) -> int | None:
    """The uid of the socket at `client`'s end of a connection to `server`; None if there is none."""
    wanted = f" {_hex(client)} {_hex(server)} "
    with table.open() as lines:
        for line in lines:
            if wanted in line:
                return int(line.split()[7])
    return None


def _hex(address: tuple[str, int]) -> str:
    """As the table has it: the address as a native integer, the port as a number."""
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"
