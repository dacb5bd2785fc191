"""Owns which FunctionVersion a name and a qualifier mean: folders' functions and those of the registry.

A version is *made ready* (package unpacked, runtime there, layers merged) before it can run; that blocks, so it is
done in a thread when the registry says so, not when somebody invokes. A function of the registry goes before a
folder of its name.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from rootfs.codestore import BadPackage, CodeStore
from rootfs.extensions import external
from rootfs.runtimes import Runtimes, RuntimeUnavailable
from rootfs.trees import LayerProblem, LayerStore
from sandbox.catalog import Catalog
from sandbox.errors import (
    CallerError,
    FunctionFailed,
    FunctionNotFound,
    InvalidRuntime,
)
from sandbox.eventconfig import EventConfig
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.functiontoml import FunctionDefaults
from sandbox.registry.eventinvoke import event_config
from sandbox.registry.records import LATEST, AliasRecord, FunctionRecord, VersionRecord
from sandbox.registry.registry import Registry

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""(function, version)"""


@dataclass(frozen=True, slots=True)
class NotReady:
    """A version that cannot run; `error` is what an invocation of it raises, `code` AWS's StateReasonCode."""

    error: CallerError
    code: str


Ready = FunctionVersion | NotReady


class AllFunctions:
    """Implements `runtimeapi.ports.Functions`."""

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        *,
        code: CodeStore,
        layers: LayerStore,
        runtimes: Runtimes,
        defaults: FunctionDefaults,
        unavailable: Mapping[str, str] = MappingProxyType({}),
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`unavailable`: networks this host does not give, and why. `draw` gives numbers from 0 to below 1: which
        version a weighted alias goes to."""
        self._catalog = catalog
        self._registry = registry
        self._code = code
        self._layers = layers
        self._runtimes = runtimes
        self._defaults = defaults
        self._unavailable = unavailable
        self._draw = draw
        self._ready: dict[Key, Ready] = {}
        self._shadowed: set[str] = set()
        """Folders that were told to be hidden by a function of the registry."""
        self._news = trio.Event()
        registry.on_change(self._changed)
        self._settled: dict[
            Key, tuple[FunctionVersion, int | None, int | None, FunctionVersion]
        ] = {}
        """What `_with_settings` made last of which: each invocation asks for it."""
        self._reserved = (-1, -1), 0
        """Generations of catalog and registry, and the sum as it was then."""

    # --- what the engine asks (runtimeapi.ports.Functions)

    @property
    def generation(self) -> tuple[int, int]:
        return self._catalog.generation, self._registry.generation

    def refresh(self) -> None:
        self._catalog.refresh()

    def reload(self) -> None:
        """Read all folders anew; what the registry has is what it has."""
        self._catalog.reload()

    async def changed(self) -> None:
        """Return when something may have changed, on disk or in the registry."""
        news = self._news
        async with trio.open_nursery() as nursery:

            async def on_disk() -> None:
                await self._catalog.changed()
                nursery.cancel_scope.cancel()

            nursery.start_soon(on_disk)
            await news.wait()
            nursery.cancel_scope.cancel()

    def get(self, name: str) -> FunctionVersion:
        """$LATEST. Raises FunctionNotFound (bare name) or what `resolve` raises."""
        return self.resolve(name, None)

    def resolve(self, name: str, qualifier: str | None) -> FunctionVersion:
        """The version to run now: an alias with weights draws one each time. Raises CallerError."""
        record = self._registry.function(name)
        if record is None:
            return self._catalog.resolve(name, qualifier)
        if qualifier in (None, LATEST):
            return self._latest(record)
        assert qualifier is not None
        alias = record.aliases.get(qualifier)
        number = self._pick(alias) if alias is not None else qualifier
        if number == LATEST:
            return self._latest(record)
        version = record.versions.get(number)
        if version is None:
            raise FunctionNotFound(name)
        return self._of(record, version)

    def event_config(self, name: str, qualifier: str | None) -> EventConfig:
        """Of asynchronous invocations. Raises CallerError where there is no such function."""
        record = self._registry.function(name)
        if record is None:
            return self._catalog.resolve(name, qualifier).events
        folder = None
        if record.latest is None:
            one = self.folder(name)  # gone or broken: what was published of it still runs
            folder = one.events if isinstance(one, FunctionVersion) else None
        return event_config(record, folder, qualifier)

    def all(self) -> Sequence[FunctionVersion | BrokenFunction]:
        """Every $LATEST, by name."""
        found = {one.name: one for one in self._catalog.all()}
        self._tell_shadowed(found)
        for record in self._registry.functions():
            if record.latest is not None:
                found[record.name] = self._shown(record, record.latest)
            elif record.name in found and record.reserved_concurrency is not None:
                one = found[record.name]
                if isinstance(one, FunctionVersion):
                    found[record.name] = self._with_settings(record, one, LATEST)
        return [found[name] for name in sorted(found)]

    def live(self) -> Sequence[FunctionVersion]:
        """Every version that may be invoked."""
        latest = [one for one in self.all() if isinstance(one, FunctionVersion)]
        published = [
            self._shown(record, version)
            for record in self._registry.functions()
            for version in record.versions.values()
        ]
        return [*latest, *(one for one in published if isinstance(one, FunctionVersion))]

    @property
    def reserved_total(self) -> int:
        """Sum of all reserved concurrency. Asked for at every invocation, so it is not summed up anew."""
        generation = self.generation
        if self._reserved[0] != generation:
            total = sum(
                one.reserved_concurrency or 0
                for one in self.all()
                if isinstance(one, FunctionVersion)
            )
            self._reserved = generation, total
        return self._reserved[1]

    # --- making ready

    def make(self, record: FunctionRecord, version: VersionRecord) -> Ready:
        """Blocks: unpacks and merges what is not there yet. What was ready before stays until `keep_ready`."""
        try:
            return self._made(record, version)
        except RuntimeUnavailable as exc:
            return NotReady(InvalidRuntime(str(exc)), "InvalidRuntime")
        except (LayerProblem, OSError) as exc:
            return NotReady(FunctionFailed(f"{record.name}: {exc}"), "InternalError")
        except Exception as exc:  # what is unforeseen is this version's trouble, not the server's
            log.exception("function %s, version %s", record.name, version.version)
            return NotReady(FunctionFailed(f"{record.name}: {exc!r}"), "InternalError")

    def keep_ready(self, record: FunctionRecord, version: VersionRecord, ready: Ready) -> None:
        """From now on this is what runs."""
        self._ready[record.name, version.version] = ready

    def ready(self, record: FunctionRecord, version: VersionRecord) -> Ready | None:
        """What `keep_ready` was given last."""
        return self._ready.get((record.name, version.version))

    def folder(self, name: str) -> FunctionVersion | BrokenFunction | None:
        """The folder of this name, whether the registry has a function of that name or not."""
        return self._catalog.find(name)

    def prepare_all(self) -> None:
        """At the start: everything the registry has."""
        for record in self._registry.functions():
            for version in (record.latest, *record.versions.values()):
                if version is not None:
                    self.keep_ready(record, version, self.make(record, version))

    def _made(self, record: FunctionRecord, version: VersionRecord) -> FunctionVersion:
        config = version.config
        code = self._tree(version.code.tree)
        runtime = config["Runtime"]
        self._runtimes.resolve(runtime)
        network = version.here.get("network", self._defaults.network or "none")
        if why := self._unavailable.get(network):
            raise OSError(f'it was published with network = "{network}": {why}')
        opt = self._layers.merge(self._layer_trees(version))
        logged = config.get("LoggingConfig", {})
        here = version.here
        return FunctionVersion(
            name=record.name,
            version=version.version,
            runtime=runtime,
            handler=config.get("Handler", ""),
            code=code,
            revision=version.identity,
            layers=(opt,) if opt else (),
            extensions=external(opt),
            timeout_s=config["Timeout"],
            memory_mb=config["MemorySize"],
            ephemeral_storage_mb=config["EphemeralStorage"]["Size"],
            idle_timeout_s=here.get("idle_timeout_s", self._defaults.idle_timeout),
            network=network,
            freeze=here.get("freeze", self._defaults.freeze),
            description=config.get("Description", ""),
            environment=MappingProxyType(dict(_variables(config))),
            log_format=logged.get("LogFormat", "Text"),
            application_log_level=logged.get("ApplicationLogLevel"),
            system_log_level=logged.get("SystemLogLevel"),
            log_group=logged.get("LogGroup"),
        )

    def _layer_trees(self, version: VersionRecord) -> list[Path]:
        """Layers as their packages were when the function was configured: a deleted one keeps working."""
        packages = [one["tree"] for one in version.config.get("Layers", ())]
        if "opt" in version.here:
            packages.append(version.here["opt"])
        return [self._tree(package) for package in packages]

    def _tree(self, name: str) -> Path:
        """Where a package is unpacked. Raises OSError."""
        tree = self._code.tree(name)
        if not tree.is_dir():
            try:
                self._code.restore(name)
            except (BadPackage, FileNotFoundError) as exc:
                raise OSError(f"its package {name} is not in {self._code.folder}: {exc}") from exc
        return tree

    def prepared(self) -> list[FunctionVersion]:
        """What is ready to run, whatever the registry says by now: the old code while an update is under way."""
        return [one for one in self._ready.values() if isinstance(one, FunctionVersion)]

    def folders(self) -> list[FunctionVersion]:
        return [one for one in self._catalog.all() if isinstance(one, FunctionVersion)]

    # --- resolving

    def _latest(self, record: FunctionRecord) -> FunctionVersion:
        if record.latest is None:
            return self._with_settings(record, self._catalog.get(record.name), LATEST)
        if record.latest.state == "Pending":
            raise FunctionFailed(
                "The operation cannot be performed at this time. "
                "The function is currently in the following state: Pending"
            )
        return self._of(record, record.latest)

    def _of(self, record: FunctionRecord, version: VersionRecord) -> FunctionVersion:
        found = self._ready.get((record.name, version.version))
        if found is None:
            raise FunctionFailed(
                "The operation cannot be performed at this time. "
                "The function is currently in the following state: Pending"
            )
        if isinstance(found, NotReady):
            raise found.error
        return self._with_settings(record, found, version.version)

    def _shown(
        self, record: FunctionRecord, version: VersionRecord
    ) -> FunctionVersion | BrokenFunction:
        try:
            return self._of(record, version)
        except CallerError as exc:
            return BrokenFunction(record.name, self._code.tree(version.code.tree), exc.message)

    def _with_settings(
        self, record: FunctionRecord, function: FunctionVersion, version: str
    ) -> FunctionVersion:
        """What is the function's rather than the version's, and may change while environments run."""
        provisioned = _provisioned(record, version)
        reserved = self._reservation(record)
        if provisioned is None and reserved in (None, function.reserved_concurrency):
            return function
        before = self._settled.get((record.name, version))
        if before is not None and before[0] is function and before[1:3] == (reserved, provisioned):
            return before[3]
        found = replace(
            function,
            reserved_concurrency=function.reserved_concurrency if reserved is None else reserved,
            provisioned_concurrency=provisioned or function.provisioned_concurrency,
        )
        self._settled[record.name, version] = function, reserved, provisioned, found
        return found

    def _reservation(self, record: FunctionRecord) -> int | None:
        """All versions share it: those of a folder what its function.toml says now."""
        if record.reserved_concurrency is not None or record.latest is not None:
            return record.reserved_concurrency
        one = self.folder(record.name)
        return one.reserved_concurrency if isinstance(one, FunctionVersion) else None

    def _tell_shadowed(self, folders: Container[str]) -> None:
        hidden = {
            record.name
            for record in self._registry.functions()
            if record.latest is not None and record.name in folders
        }
        for name in sorted(hidden - self._shadowed):
            log.warning(
                "function %s was made by the Lambda API and goes before the folder of that name. "
                "Hint: rename the folder, or `aws lambda delete-function --function-name %s`",
                name,
                name,
            )
        self._shadowed = hidden

    def _pick(self, alias: AliasRecord) -> str:
        """SPEC 7: a version per request at random, by AdditionalVersionWeights."""
        drawn = self._draw()
        for version, weight in alias.weights.items():
            if drawn < weight:
                return version
            drawn -= weight
        return alias.version

    def _changed(self) -> None:
        known = {
            (record.name, version.version): version.identity
            for record in self._registry.functions()
            for version in (record.latest, *record.versions.values())
            if version is not None
        }
        for key in self._ready.keys() - known.keys():
            del self._ready[key]
        self._settled.clear()
        self._news.set()
        self._news = trio.Event()


def _variables(config: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = config.get("Environment", {}).get("Variables", {})
    return found


def _provisioned(record: FunctionRecord, version: str) -> int | None:
    """Of this version, whether it was asked for by its number or by an alias."""
    wanted = None
    for qualifier, document in record.attached.get("provisioned", {}).items():
        alias = record.aliases.get(qualifier)
        if (alias.version if alias is not None else qualifier) == version:
            wanted = int(document["RequestedProvisionedConcurrentExecutions"])
    return wanted
