from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.confine.cgroup_v1 import mounted
from sandbox.confine.peers import Maker, maker_of, probe


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def own_group() -> int | None:
    found = mounted(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    return found[""].stat().st_ino if "" in found else None


def test_who_is_at_the_other_end(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as client:
        accepted, address = listener.accept()
        with accepted:
            assert address == client.getsockname()
            found = maker_of(address, listener.getsockname())
    assert found == probe()
    assert found.uid == os.getuid()
    if (group := own_group()) is not None:
        assert found == Maker(os.getuid(), group)


def test_who_speaks_ipv4_by_a_socket_for_ipv6_too(listener: socket.socket) -> None:
    """As Java does."""
    with socket.socket(socket.AF_INET6) as client:
        client.connect((f"::ffff:{listener.getsockname()[0]}", listener.getsockname()[1]))
        accepted, address = listener.accept()
        with accepted:
            assert maker_of(address, listener.getsockname()) == probe()


def test_who_is_gone_is_nobody_and_who_has_its_port_now_is_not_taken_for_it(
    listener: socket.socket,
) -> None:
    # Of an address of its own: a port of 127.0.0.1 may be another program's in no time.
    ours = ("127.45.67.89", 0)
    client = socket.create_connection(listener.getsockname(), source_address=ours)
    accepted, address = listener.accept()
    # No FIN: at once it is as if there had been no connection.
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()
    client.close()
    assert maker_of(address, listener.getsockname()) is None
    with socket.create_server(address):
        assert maker_of(address, listener.getsockname()) is None


WITHOUT_SOCK_DIAG = """
import pyseccomp, socket
from sandbox.confine import peers
rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(93), "socket", pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_NETLINK),
               pyseccomp.Arg(2, pyseccomp.EQ, 4))
rules.load()
try:
    peers.probe()
except OSError as exc:
    print(exc)
"""


def test_a_kernel_that_does_not_tell_is_named() -> None:
    """No fault of a server's start: functions on the host's network alone are refused (`launcher`)."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SOCK_DIAG], capture_output=True, text=True, check=True
    )
    assert "opening netlink for sockets: Protocol not supported" in done.stdout
