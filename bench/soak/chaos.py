"""Owns what happens to a server under load from outside: processes killed, code replaced. Seeded."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import trio

from bench import observe
from bench.soak import functions
from bench.soak.ledger import Ledger

KILL_EVERY_S = 1.0
RELOAD_EVERY_S = 1.5
ZYGOTE_SHARE = 0.08


class Chaos:
    """`run` until cancelled. Only descendants of the server are ever killed."""

    def __init__(
        self, seed: int, server: int, folder: Path, ledger: Ledger, revisions: dict[str, int]
    ) -> None:
        self._dice = random.Random(f"{seed}/chaos")
        self._server = server
        self._folder = folder
        self._ledger = ledger
        self.revisions = revisions
        """Function -> the newest revision that is in place. Ours to raise, once it is."""
        self.killed: Counter[str] = Counter()
        """What, by the program's name."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill)
            nursery.start_soon(self._reload)

    async def _kill(self) -> None:
        while True:
            await trio.sleep(self._dice.expovariate(1 / KILL_EVERY_S))
            trees = observe.trees(self._server)
            if self._dice.random() < ZYGOTE_SHARE:
                self._kill_one(observe.helpers(self._server, trees), sandboxed=False)
            elif trees:
                self._kill_one(self._dice.choice(trees).pids, sandboxed=True)

    def _kill_one(self, pids: list[int], *, sandboxed: bool) -> None:
        if not pids:
            return
        pid = self._dice.choice(sorted(pids))
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            fd = os.pidfd_open(pid)
            try:
                # Looked at again now that the number cannot become another process's.
                group = Path(f"/proc/{pid}/cgroup").read_text()
                if not sandboxed or f"/lambox-{self._server}-" in group:
                    self._ledger.kills.append(trio.current_time())
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    self.killed[name if sandboxed else f"helper {name}"] += 1
            finally:
                os.close(fd)

    async def _reload(self) -> None:
        while True:
            await trio.sleep(self._dice.expovariate(1 / RELOAD_EVERY_S))
            name = self._dice.choice(sorted(self.revisions))
            functions.reload(self._folder, name, self.revisions[name] + 1)
            self.revisions[name] += 1
