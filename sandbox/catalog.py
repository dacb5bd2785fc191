"""Owns which functions exist: the folders under `functions/`, read where they are and watched.

`refresh` is called before every invocation, so it costs one ioctl when nothing changed, and an edit
made before an invocation is always seen by it. Where inotify is not to be had, it compares stat
fingerprints of everything instead. One broken folder is a `BrokenFunction`, never an exception.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import trio

from rootfs.answering import Answering
from rootfs.extensions import ExtensionProblem, external
from rootfs.fingerprint import fingerprint
from rootfs.handlers import NoProgram, detect
from rootfs.runtimes import Runtimes, RuntimeUnavailable
from rootfs.trees import LayerProblem, LayerStore
from rootfs.watch import EVERYTHING, Watch, WatchUnavailable
from sandbox.confine import privilege
from sandbox.errors import CallerError, FunctionFailed, FunctionNotFound, InvalidRuntime
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.functiontoml import Description, FunctionDefaults, FunctionTomlError, read

log = logging.getLogger("lambox.catalog")

NAME = re.compile(r"[a-zA-Z0-9-_]{1,64}\Z")
TOML = "function.toml"
POLL_S = 2.0
SETTLE_S = 0.1
RETRY_S = 1.0
"""Between two looks at a function that could not be read for a reason that need not show in its folder."""
OUTSIDE = frozenset(
    {
        "idle_timeout", "reserved_concurrency", "provisioned_concurrency", "warm", "waits_for_ping",
        "schedule", "description", "maximum_retry_attempts", "maximum_event_age", "on_success", "on_failure",
        "dead_letter", "recursive_loop", "environment",
        "url",
    }
)  # fmt: skip
"""Of a description, what an environment that runs already need not be another for: how many there may be and for
how long, when they are pinged, what becomes of Events, what people read. (`environment` is looked at apart.)"""
ROOT = ""
"""Owner of the watch on the functions' folder itself; no function has this name."""


class _Broken(Exception):
    """This folder is no function as it stands; `error` is what an invoke of it raises.

    `passing`: what is wrong may pass with nothing changed in the folder.
    """

    def __init__(
        self,
        problem: str,
        error: type[CallerError] = FunctionFailed,
        *,
        passing: bool = False,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.error = error
        self.passing = passing


@dataclass(frozen=True, slots=True)
class _Entry:
    function: FunctionVersion | BrokenFunction
    sources: tuple[Path, ...]
    """Files and folders beside the code that it depends on: its layers."""
    seen: str
    """Fingerprint of everything read; compared where there is no inotify."""
    missing: tuple[Path, ...] = ()
    """Of the sources, those that did not exist."""
    error: type[CallerError] = FunctionFailed
    passing: bool = False


class Catalog:
    """Implements `runtimeapi.ports.Functions`. Close it: it holds an inotify descriptor.

    `layers` is where layers are merged; without it one folder is all a function can have.
    `unavailable`: networks this host does not give, and why.
    `account_concurrency`: more environments than that a function cannot have provisioned.
    A FunctionVersion's `layers` holds at most one folder: what is to be bound at /opt.
    """

    def __init__(
        self,
        folder: Path,
        runtimes: Runtimes,
        *,
        defaults: FunctionDefaults | None = None,
        layers: LayerStore | None = None,
        unavailable: Mapping[str, str] = MappingProxyType({}),
        account_concurrency: int = sys.maxsize,
        watch: bool = True,
        answering: Answering | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder.absolute()
        self._runtimes = runtimes
        self._defaults = defaults or FunctionDefaults()
        self._layers = layers
        self._unavailable = unavailable
        self._account_concurrency = account_concurrency
        self._entries: dict[str, _Entry] = {}
        self._incomplete: dict[str, tuple[Path, ...]] = {}
        """Of functions that lack a layer, what is missing."""
        self._again: set[str] = set()
        """Functions to be read again although nothing has changed, from `_again_at` on."""
        self._again_at = 0.0
        self._answering = answering or Answering()
        self._clock = clock
        self._reserved: int | None = None
        self.generation = 0
        """Grows with every change."""
        self._watch: Watch | None = None
        self._root_watched = False
        if watch:
            try:
                self._watch = Watch()
            except WatchUnavailable as exc:
                self._give_up_watching(exc)
        self._refresh_all()

    def close(self) -> None:
        if self._watch is not None:
            with contextlib.suppress(RuntimeError):  # not in trio: nobody waits for it either
                trio.lowlevel.notify_closing(self._watch.fileno())
            self._watch.close()
            self._watch = None

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def get(self, name: str) -> FunctionVersion:
        """Raises FunctionNotFound (bare name), FunctionFailed or InvalidRuntime."""
        entry = self._entries.get(name)
        if entry is None:
            raise FunctionNotFound(name)
        if isinstance(entry.function, BrokenFunction):
            raise entry.error(entry.function.problem)
        return entry.function

    def find(self, name: str) -> FunctionVersion | BrokenFunction | None:
        """The folder of this name, as it was when it was looked at last."""
        entry = self._entries.get(name)
        return None if entry is None else entry.function

    def resolve(self, name: str, qualifier: str | None) -> FunctionVersion:
        """A folder is a function's $LATEST and has no other version. Raises as `get` does."""
        function = self.get(name)
        if qualifier not in (None, function.version):
            raise FunctionNotFound(name)
        return function

    def all(self) -> Sequence[FunctionVersion | BrokenFunction]:
        return [self._entries[name].function for name in sorted(self._entries)]

    def live(self) -> Sequence[FunctionVersion]:
        """All that are not broken."""
        return [one for one in self.all() if isinstance(one, FunctionVersion)]

    @property
    def reserved_total(self) -> int:
        """Sum of all reserved concurrency. Asked for at every invocation, so it is not summed up anew."""
        if self._reserved is None:
            self._reserved = sum(
                entry.function.reserved_concurrency or 0
                for entry in self._entries.values()
                if isinstance(entry.function, FunctionVersion)
            )
        return self._reserved

    def refresh(self) -> None:
        """Take in what changed on disk since the last call. Never raises."""
        if self._watch is None or not self._root_watched:
            self._refresh_all()
            return
        touched = self._watch.touched()
        # A missing layer may appear where no watch could be set.
        touched.update(
            name
            for name, missing in self._incomplete.items()
            if any(path.exists() for path in missing)
        )
        if self._again and self._clock() >= self._again_at:
            touched |= self._again
        if EVERYTHING in touched or ROOT in touched:
            # Rare, so all are read again: folders came or went, links point elsewhere, events lost.
            self._root_watched = False
            self._refresh_all()
        elif touched:
            self._reread(touched)

    def reload(self) -> None:
        """Read everything anew, whether anything seems to have changed or not. Never raises."""
        self._root_watched = False
        self._entries = {name: replace(entry, seen="") for name, entry in self._entries.items()}
        self._refresh_all()

    async def changed(self) -> None:
        """Return when something may have changed on disk; `refresh` then takes it in.

        Changes come in bursts (an unpacked archive, an editor's save), so it waits a moment more.
        Without inotify it returns every two seconds.
        """
        if self._watch is None or not self._root_watched:
            await trio.sleep(POLL_S)
            return
        try:
            await trio.lowlevel.wait_readable(self._watch.fileno())
        except trio.ClosedResourceError:  # inotify was given up, or the catalog closed
            return
        await trio.sleep(SETTLE_S)

    def _refresh_all(self) -> None:
        """Drop what is gone, read all others."""
        if self._answering.silent([self.folder]):
            self._root_watched = False
            return
        if self._watch is not None and not self._root_watched and os.path.isdir(self.folder):
            self._watched(lambda watch: watch.add_folder(ROOT, self.folder))
            self._root_watched = self._watch is not None
        names = self._names()
        for gone in self._entries.keys() - names:
            self._drop(gone)
        self._reread(names)

    def _names(self) -> set[str]:
        try:
            with os.scandir(self.folder) as entries:
                return {e.name for e in entries if _may_be_function(e.name) and _may_be_folder(e)}
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                return set()
            # Out of descriptors, a disk's error: that is no reason to forget what there was.
            self._root_watched = False
            return set(self._entries)

    def _drop(self, name: str) -> None:
        self._entries.pop(name, None)
        self._incomplete.pop(name, None)
        self._again.discard(name)
        self._reserved = None
        self.generation += 1
        if self._watch is not None:
            self._watch.forget(name)

    def _reread(self, names: Iterable[str]) -> None:
        """What does not answer stays as it was, and is tried again."""
        names = sorted(names)
        self._again_at = self._clock() + RETRY_S
        silent = self._answering.silent(self.folder / name for name in names)
        for name in names:
            code = self.folder / name
            if code not in silent:
                self._reread_one(name, code)
                continue
            self._again.add(name)
            if name not in self._entries:
                broken = BrokenFunction(name, code, _silence(code))
                self._entries[name] = _Entry(broken, (), "", passing=True)

    def _reread_one(self, name: str, code: Path) -> None:
        if not os.path.isdir(code):
            self._drop(name)
            return
        entry = self._entries.get(name)
        if self._watch is None and _unchanged(entry, code):
            return
        if self._watch is not None:
            self._watch.forget(name)
            # Watched before it is read: a change while we read is told by the next refresh.
            self._watched(lambda watch: watch.add_tree(name, code.resolve()))
        entry = self._read(name, code)
        self._entries[name] = entry
        self._reserved = None
        self.generation += 1
        if entry.passing:
            self._again.add(name)
        else:
            self._again.discard(name)
        if entry.missing:
            self._incomplete[name] = entry.missing
        else:
            self._incomplete.pop(name, None)
        for source in entry.sources:
            self._watched(partial(_watch_source, name=name, source=source))

    def _watched(self, action: Callable[[Watch], None]) -> None:
        """Set watches; at the end of inotify's limits, do without from now on."""
        if self._watch is None:
            return
        try:
            action(self._watch)
        except WatchUnavailable as exc:
            self.close()
            self._give_up_watching(exc)

    def _give_up_watching(self, exc: WatchUnavailable) -> None:
        log.warning("%s. Until then every invocation compares the files' times instead.", exc)

    def _read(self, name: str, code: Path) -> _Entry:
        sources: tuple[Path, ...] = ()
        # Before it is read: a change while we read shows at the next look.
        code_seen, toml_seen = _look_at_code(code)
        layers_seen = ""
        try:
            _check_name(name, code)
            description = _read_description(code, self._defaults)
            _check_targets(name, code, description)
            if why := self._unavailable.get(description.network):
                raise _Broken(f'{code / TOML}: network = "{description.network}": {why}')
            if description.provisioned_concurrency > self._account_concurrency:
                raise _Broken(
                    f"{code / TOML}: provisioned_concurrency = "
                    f"{description.provisioned_concurrency}: must not be more than "
                    f"account_concurrency, which is {self._account_concurrency}. "
                    "Hint: lower the one, or raise the other in lambox.toml"
                )
            sources = tuple(_source(code, layer) for layer in description.layers)
            for source in self._answering.silent(sources):
                raise _Broken(_silence(source), passing=True)
            layers_seen = _look(*sources)
            _check_readable(code, *sources)
            runtime, handler = self._program(code, description)
            opt = self._opt(code, sources)
            extensions = _extensions(code, opt)
        except _Broken as broken:
            missing = tuple(source for source in sources if not source.exists())
            function = BrokenFunction(name, code, broken.problem)
            seen = code_seen + toml_seen + layers_seen
            return _Entry(function, sources, seen, missing, broken.error, broken.passing)
        except OSError as exc:
            where = exc.filename or code
            problem = f"{where}: cannot be read: {exc.strerror}. Hint: chmod -R a+rX {code}"
            return _Entry(BrokenFunction(name, code, problem), sources, "", passing=True)
        version = _function(
            name, code.resolve(), description, runtime, handler, opt, code_seen + layers_seen
        )
        version = replace(version, extensions=extensions)
        return _Entry(version, sources, code_seen + toml_seen + layers_seen)

    def _program(self, code: Path, description: Description) -> tuple[str, str]:
        """Runtime and handler, checked as far as that needs no running."""
        try:
            runtime, handler = detect(
                code,
                self._runtimes,
                runtime=description.runtime,
                handler=description.handler,
                preferred=self._defaults.runtime,
            )
            self._runtimes.resolve(runtime)
        except NoProgram as exc:
            raise _Broken(str(exc)) from exc
        except RuntimeUnavailable as exc:
            raise _Broken(f"{code}: {exc}", InvalidRuntime) from exc
        return runtime, handler

    def _opt(self, code: Path, sources: tuple[Path, ...]) -> Path | None:
        if not sources:
            return None
        try:
            if self._layers is not None:
                return self._layers.opt(sources)
        except LayerProblem as exc:
            # Read again: it may be our own disk that is full.
            raise _Broken(f"{code / TOML}: layers: {exc}", passing=True) from exc
        if len(sources) == 1 and sources[0].is_dir():
            return sources[0]
        raise _Broken(f"{code / TOML}: layers: there is no state folder to merge them in")


def _extensions(code: Path, opt: Path | None) -> tuple[str, ...]:
    try:
        return external(opt)
    except ExtensionProblem as exc:
        raise _Broken(f"{code / TOML}: layers: {exc}") from exc


def _may_be_function(name: str) -> bool:
    return not name.startswith((".", "_"))


def _unchanged(entry: _Entry | None, code: Path) -> bool:
    if entry is None or entry.passing:
        return False
    return entry.seen == "".join(_look_at_code(code)) + _look(*entry.sources)


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Where a link leads is not looked at here: it may be a file system that does not answer."""
    try:
        return entry.is_symlink() or entry.is_dir(follow_symlinks=False)
    except OSError:
        return True


def _silence(path: Path) -> str:
    return (
        f"{path}: its file system does not answer. "
        "Hint: look after the server or daemon behind it, or unmount it"
    )


def _look_at_code(code: Path) -> tuple[str, str]:
    """Of all but function.toml, and of that."""
    try:
        found = fingerprint(code, aside=TOML)
    except OSError as exc:
        return f"({exc.errno})", ""
    return found.digest, found.aside


def _look(*paths: Path) -> str:
    """Fingerprints of these; what is missing counts as such."""
    found = []
    for path in paths:
        try:
            found.append(fingerprint(path).digest)
        except OSError as exc:
            found.append(f"({exc.errno})")
    return "".join(found)


def _watch_source(watch: Watch, *, name: str, source: Path) -> None:
    if source.is_dir():
        watch.add_tree(name, source)
    else:
        watch.add_file(name, source)


def _check_name(name: str, code: Path) -> None:
    if not NAME.match(name):
        raise _Broken(
            f"{code}: {name!r} is no function name: letters, digits, - and _ only, 64 at most. "
            "Hint: rename the folder"
        )


def _check_targets(name: str, code: Path, description: Description) -> None:
    """SPEC 8.2, in AWS's words."""
    for key in ("on_success", "on_failure", "dead_letter"):
        target = getattr(description, key)
        if target is not None and target.kind == "function" and target.name == name:
            raise _Broken(
                f"{code / TOML}: {key}: You can't specify the function as a destination for itself."
            )


def _check_readable(*paths: Path) -> None:
    """Environments with uids of their own are nobody: they must be able to read code and layers."""
    if not privilege.may_change_uid():
        return
    for path in paths:
        found = fingerprint(path).unreadable if path.is_dir() else None
        if found:
            raise _Broken(
                f"{found}: cannot be read by the function's user. Hint: chmod -R a+rX {path}"
            )


def _read_description(code: Path, defaults: FunctionDefaults) -> Description:
    try:
        return read(code / TOML, defaults=defaults)
    except FunctionTomlError as exc:
        raise _Broken(str(exc), passing=isinstance(exc.__cause__, OSError)) from exc


def _source(code: Path, layer: str) -> Path:
    return Path(os.path.normpath(code / os.path.expanduser(layer)))


def _function(
    name: str,
    code: Path,
    description: Description,
    runtime: str,
    handler: str,
    opt: Path | None,
    seen: str,
) -> FunctionVersion:
    environment: Mapping[str, str] = MappingProxyType(dict(description.environment))
    told = [
        getattr(description, one.name) for one in fields(description) if one.name not in OUTSIDE
    ]
    settings = (told, sorted(environment.items()), runtime, handler, str(code), seen)
    return FunctionVersion(
        name=name,
        runtime=runtime,
        handler=handler,
        code=code,
        revision=hashlib.blake2b(repr(settings).encode(), digest_size=8).hexdigest(),
        layers=(opt,) if opt else (),
        timeout_s=description.timeout,
        memory_mb=description.memory_size,
        ephemeral_storage_mb=description.ephemeral_storage,
        idle_timeout_s=description.idle_timeout,
        reserved_concurrency=description.reserved_concurrency,
        provisioned_concurrency=description.provisioned_concurrency,
        warm=description.warm,
        schedule=description.schedule,
        waits_for_ping=description.waits_for_ping,
        network=description.network,
        freeze=description.freeze,
        description=description.description,
        events=description.events,
        environment=environment,
        log_format=description.log_format,
        application_log_level=description.application_log_level,
        system_log_level=description.system_log_level,
        log_group=description.log_group,
        url=description.url,
    )
