"""Owns throwing away: packages and merged layers that nothing refers to any more.

Something refers to a package: a record of the registry, what is ready to run, an environment or an invocation that
waits, a request that is about to commit it (`CodeStore.hold`). All of them are looked at inside an edit of the
registry, so none can come up meanwhile; and a commit is refused whose package is gone. Nothing is thrown away while
not all records could be read, or while another server uses the folder.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from rootfs.codestore import CodeStore
from rootfs.trees import LayerStore
from sandbox.errors import CallerError, PlatformFault
from sandbox.function import FunctionVersion
from sandbox.registry.database import Database
from sandbox.registry.registry import Registry
from sandbox.registry.resolving import AllFunctions

log = logging.getLogger(__name__)
AGAIN_S = 1.0
"""Until the next look at what only environments still used."""

InUse = Callable[[], Iterable[Path]]
"""Folders of code and layers that environments have or may yet get."""


class Garbage:
    def __init__(
        self,
        database: Database,
        registry: Registry,
        functions: AllFunctions,
        code: CodeStore,
        layers: LayerStore,
    ) -> None:
        self._database = database
        self._registry = registry
        self._functions = functions
        self._code = code
        self._layers = layers
        self._news = trio.Event()
        registry.on_change(self._changed)
        code.on_release = self._changed

    async def run(self, in_use: InUse = tuple) -> None:
        """Throw away at the start and after every change, until cancelled."""
        while True:
            news = self._news
            try:
                waits = await self.collect(in_use)
            except Exception:  # keeping too much ends nobody's work
                log.exception("packages that nothing refers to cannot be removed")
                waits = True
            with trio.move_on_after(AGAIN_S if waits else math.inf):
                await news.wait()

    async def collect(self, in_use: InUse = tuple) -> bool:
        """Once. Returns whether something is left that only what still runs has a use for."""
        if not self._registry.complete:
            return False
        try:
            async with self._registry.edit():
                places = {*in_use(), *_places(self._functions.prepared())}
                referred = self._registry.packages()
                used = referred | {
                    place.name for place in places if place.parent == self._code.trees
                }
                graves = await trio.to_thread.run_sync(self._retire, used)
        except (CallerError, PlatformFault):
            return False  # another server's folder
        except OSError as exc:
            log.warning("packages that nothing refers to cannot be removed: %s", exc)
            return False
        # Their names are gone: the rest may take its time, and what a killed server leaves goes with the next start.
        await trio.to_thread.run_sync(self._code.destroy, graves)
        await self._sweep_layers(places)
        if graves:
            log.info("%d zips and trees that nothing refers to are removed", len(graves))
        return used != referred

    def _retire(self, used: set[str]) -> list[Path]:
        with self._database.alone() as alone:
            if not alone or self._database.damaged():
                return []
            return self._code.retire(used)

    async def _sweep_layers(self, places: set[Path]) -> None:
        used = {place.name for place in places | _places(self._functions.folders())}

        def sweep() -> int:
            with self._database.alone() as alone:
                return self._layers.sweep(used) if alone else 0

        try:
            gone = await trio.to_thread.run_sync(sweep)
        except OSError as exc:
            log.warning("merged layers that nothing uses cannot be removed: %s", exc)
            return
        if gone:
            log.info("%d merged layers that nothing uses are removed", gone)

    def _changed(self) -> None:
        self._news.set()
        self._news = trio.Event()


def _places(functions: Iterable[FunctionVersion]) -> set[Path]:
    return {place for one in functions for place in (one.code, *one.layers)}
