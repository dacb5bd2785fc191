"""Owns the choice of networks at start: whether functions have a way out, and what is said when they have none."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from lambox.config import Config
from rootfs.answering import Answering
from sandbox.confine.network.router import Router, open_router
from sandbox.confine.spec import IsolationUnavailable
from sandbox.function import Network
from sandbox.functiontoml import FunctionDefaults, FunctionTomlError, read

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WayOut:
    """What this node gives functions. `problem` and `remedy`: why there is no router; both empty: nobody wants one."""

    router: Router | None
    defaults: FunctionDefaults
    problem: str = ""
    remedy: str = ""

    @property
    def default(self) -> Network:
        """What a function without `network` gets."""
        return self.defaults.network or "none"

    @property
    def unavailable(self) -> dict[str, str]:
        """Networks that no function can have here, and what is said to one that asks."""
        if self.router is not None:
            return {}
        if self.problem:
            return {"nat": f"cannot be had on this host: {self.problem}. Hint: {self.remedy}"}
        return {"nat": "no function asked for it when the server was started. Hint: restart it"}

    @property
    def resolv_conf(self) -> str:
        """Inside, without the host's own network: the router, which leads to the host's name servers."""
        if self.router is None:
            return ""
        return "".join(f"nameserver {gateway}\n" for gateway in self.router.plan.gateways)

    def describe(self) -> str:
        if self.router is not None:
            return self.router.describe()
        return f"no way out ({self.problem})" if self.problem else "no way out"


@asynccontextmanager
async def open_way_out(config: Config) -> AsyncIterator[WayOut]:
    """The router is opened only where it may be used. Where it is merely the default, doing without is no error."""
    defaults = config.defaults
    async with AsyncExitStack() as stack:
        if defaults.network not in (None, "nat") and not _asked_for(config):
            yield WayOut(None, defaults)
            return
        try:
            router = await stack.enter_async_context(open_router(config.nat_range))
        except IsolationUnavailable as exc:
            problem = str(exc).partition("\nHint: ")[0]
            chosen = replace(defaults, network=defaults.network or "none")
            if defaults.network is None:
                log.warning('functions have network = "none": %s. Hint: %s', problem, exc.remedy)
            yield WayOut(None, chosen, problem, exc.remedy)
        else:
            for name in router.made_forward:
                log.warning(
                    "net.ipv4.conf.%s.forwarding = 1 while this server runs, for replies to functions "
                    "with a way out; nothing else is forwarded",
                    name,
                )
            yield WayOut(router, replace(defaults, network=defaults.network or "nat"))


def _asked_for(config: Config) -> bool:
    """Whether some function's own function.toml says network = "nat"."""
    try:
        folders = [config.functions / name for name in os.listdir(config.functions)]
    except OSError:
        return False
    silent = Answering().silent(folders)
    for folder in folders:
        try:
            if folder not in silent and read(folder / "function.toml").network == "nat":
                return True
        except FunctionTomlError:
            continue
    return False
