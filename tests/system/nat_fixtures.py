"""Sandboxes with a way out, on a host and an internet of the tests' own."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rootfs.layout import Entry, Text
from sandbox.confine.network import resolvers
from sandbox.confine.network.router import Router, open_router, try_out
from sandbox.confine.spec import IsolationUnavailable
from tests.system.confine_fixtures import ROOT, Box, confined
from tests.system.internet import NAME_SERVER, World, world


def _lacking() -> str:
    """What this host has not got for a way out, tried on a host of the tests' own."""
    if os.geteuid() != 0:
        return "not root, no namespaces to build in"
    try:
        with world() as made, made.entered():
            try_out()
    except OSError as exc:
        return f"no network of the tests' own can be built: {exc}"
    except IsolationUnavailable as exc:
        return str(exc)
    return ""


LACKING = _lacking()
needs_network = pytest.mark.skipif(bool(LACKING), reason=f"host: {LACKING}")
BUILT = [pytest.mark.system, needs_network]
"""Marks of every test that builds networks."""
if "not supported" in LACKING:
    # The kernel's modules are nothing that a container or a guest could bring.
    BUILT.append(pytest.mark.optional)
TRY = """
def reach(address, port, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
    "What the other end said, or the errno."
    try:
        with socket.socket(family, kind, protocol) as s:
            s.settimeout(1)
            s.connect((address, port))
            return s.recv(100).decode()
    except TimeoutError:
        return "timeout"
    except OSError as exc:
        return errno.errorcode.get(exc.errno, str(exc))
"""


@contextlib.contextmanager
def named(folder: Path, *servers: str) -> Iterator[Path]:
    """The host's resolv.conf, for this process."""
    etc, behind = folder / "resolv.conf", folder / "behind.conf"
    etc.write_text("".join(f"nameserver {one}\n" for one in servers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolvers, "FILES", (etc, behind))
        yield etc


@pytest.fixture(scope="module")
def earth() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def on_host(earth: World, tmp_path: Path) -> Iterator[World]:
    """This thread is on the tests' host meanwhile."""
    earth.seen.clear()
    earth.asked.clear()
    with earth.entered(), named(tmp_path, NAME_SERVER):
        yield earth


def root(router: Router) -> tuple[Entry, ...]:
    text = "".join(f"nameserver {one}\n" for one in router.plan.gateways)
    return (*ROOT, Text(text, "/etc/resolv.conf"), Text("hosts: files dns\n", "/etc/nsswitch.conf"))


@contextlib.asynccontextmanager
async def routed(count: int = 1) -> AsyncIterator[Sequence[Box]]:
    """Sandboxes with a way out, made as `making` says."""
    async with contextlib.AsyncExitStack() as stack:
        router = await stack.enter_async_context(open_router())
        boxes = []
        for number in range(count):
            how = {"name": f"nat-{number}", "network": "nat"}
            box = confined(None, root(router), router=router, **how)
            boxes.append(await stack.enter_async_context(box))
        yield boxes


async def asked(box: Box, code: str) -> Any:
    """The next line that `code` says; it may use `reach`."""
    await box.python(TRY + textwrap.dedent(code))
    return await box.heard()


__all__ = ["BUILT", "asked", "earth", "named", "on_host", "root", "routed"]
