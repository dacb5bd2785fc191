"""Owns which functions exist: the folders under `functions/`, read where they are and watched.

`refresh` is called before every invocation, so it costs one ioctl when nothing changed, and an edit
made before an invocation is always seen by it. Where inotify is not to be had, it compares stat
fingerprints of everything instead. One broken folder is a `BrokenFunction`, never an exception.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import trio

from rootfs.fingerprint import Fingerprint, fingerprint
from rootfs.runtimes import Runtimes, RuntimeUnavailable
from rootfs.trees import LayerProblem, LayerStore
from rootfs.watch import EVERYTHING, Watch, WatchUnavailable
from sandbox.errors import CallerError, FunctionFailed, FunctionNotFound, InvalidRuntime
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.functiontoml import Description, FunctionDefaults, FunctionTomlError, read

log = logging.getLogger("lambox.catalog")

NAME = re.compile(r"[a-zA-Z0-9-_]{1,64}\Z")
TOML = "function.toml"
POLL_S = 2.0
SETTLE_S = 0.1
ROOT = ""
"""Owner of the watch on the functions' folder itself; no function has this name."""


class _Broken(Exception):
    """This folder is no function as it stands; `error` is what an invoke of it raises."""

    def __init__(self, problem: str, error: type[CallerError] = FunctionFailed) -> None:
        super().__init__(problem)
        self.problem = problem
        self.error = error


@dataclass(frozen=True, slots=True)
class _Entry:
    function: FunctionVersion | BrokenFunction
    sources: tuple[Path, ...]
    """Files and folders beside the code that it depends on: its layers."""
    seen: str
    """Fingerprint of everything read; compared where there is no inotify."""
    error: type[CallerError] = FunctionFailed


class Catalog:
    """Implements `runtimeapi.ports.Functions`. Close it: it holds an inotify descriptor.

    `layers` is where layers are merged; without it a function may have one folder as layer, no more.
    A FunctionVersion's `layers` holds at most one folder: what is to be bound at /opt.
    """

    def __init__(
        self,
        folder: Path,
        runtimes: Runtimes,
        *,
        defaults: FunctionDefaults | None = None,
        layers: LayerStore | None = None,
        watch: bool = True,
    ) -> None:
        self.folder = folder.absolute()
        self._runtimes = runtimes
        self._defaults = defaults or FunctionDefaults()
        self._layers = layers
        self._entries: dict[str, _Entry] = {}
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

    def all(self) -> Sequence[FunctionVersion | BrokenFunction]:
        return [self._entries[name].function for name in sorted(self._entries)]

    def refresh(self) -> None:
        """Take in what changed on disk since the last call. Never raises."""
        if self._watch is None or not self._root_watched:
            self._refresh_all()
            return
        touched = self._watch.touched()
        # A missing layer may appear where no watch could be set.
        touched.update(name for name, entry in self._entries.items() if _lacks_source(entry))
        if not touched:
            return
        if EVERYTHING in touched or ROOT in touched:
            self._root_watched = self._root_watched and self.folder.is_dir()
            self._refresh_all(only=None if EVERYTHING in touched else touched)
            return
        for name in touched:
            self._reread(name)

    async def changed(self) -> None:
        """Return when something may have changed on disk; `refresh` then takes it in.

        Changes come in bursts (an unpacked archive, an editor's save), so it waits a moment more.
        Without inotify it returns every two seconds.
        """
        if self._watch is None:
            await trio.sleep(POLL_S)
            return
        await trio.lowlevel.wait_readable(self._watch.fileno())
        await trio.sleep(SETTLE_S)

    def _refresh_all(self, only: set[str] | None = None) -> None:
        """Compare the folder's list with what is known; re-read `only` these and new ones, or all."""
        if self._watch is not None and not self._root_watched and self.folder.is_dir():
            self._watched(lambda watch: watch.add_folder(ROOT, self.folder))
            self._root_watched = self._watch is not None
        names = self._names()
        for gone in self._entries.keys() - names:
            self._drop(gone)
        for name in sorted(names):
            if only is None or name in only or name not in self._entries:
                self._reread(name)

    def _names(self) -> set[str]:
        try:
            with os.scandir(self.folder) as entries:
                return {e.name for e in entries if _may_be_function(e.name) and e.is_dir()}
        except OSError:
            return set()

    def _drop(self, name: str) -> None:
        self._entries.pop(name, None)
        if self._watch is not None:
            self._watch.forget(name)

    def _reread(self, name: str) -> None:
        code = self.folder / name
        if not code.is_dir():
            self._drop(name)
            return
        entry = self._entries.get(name)
        if (
            self._watch is None
            and entry is not None
            and entry.seen == _look(code, entry.sources)[0]
        ):
            return
        if self._watch is not None:
            self._watch.forget(name)
            # Watched before it is read: a change while we read is told by the next refresh.
            self._watched(lambda watch: watch.add_tree(name, code.resolve()))
        entry = self._read(name, code)
        self._entries[name] = entry
        for source in entry.sources:
            self._watched(lambda watch, source=source: _watch_source(watch, name, source))

    def _watched(self, action: object) -> None:
        if self._watch is None:
            return
        try:
            action(self._watch)  # type: ignore[operator]
        except WatchUnavailable as exc:
            self.close()
            self._give_up_watching(exc)

    def _give_up_watching(self, exc: WatchUnavailable) -> None:
        log.warning("%s. Until then every invocation compares the files' times instead.", exc)

    def _read(self, name: str, code: Path) -> _Entry:
        sources: tuple[Path, ...] = ()
        try:
            seen, prints = _look(code, ())
            _check_name(name, code)
            description = _read_description(code, self._defaults)
            sources = tuple(_source(code, layer) for layer in description.layers)
            seen, prints = _look(code, sources)
            _check_readable(prints)
            runtime, handler = _program(code, description, self._runtimes)
            opt = self._opt(code, sources)
        except _Broken as broken:
            return _Entry(
                BrokenFunction(name, code, broken.problem),
                sources,
                _seen(code, sources),
                broken.error,
            )
        except OSError as exc:
            problem = f"{exc.filename or code}: cannot be read: {exc.strerror}. Hint: chmod -R a+rX {code}"
            return _Entry(BrokenFunction(name, code, problem), sources, _seen(code, sources))
        function = _function(name, code.resolve(), description, runtime, handler, opt, seen)
        return _Entry(function, sources, seen)

    def _opt(self, code: Path, sources: tuple[Path, ...]) -> Path | None:
        if not sources:
            return None
        try:
            if self._layers is not None:
                return self._layers.opt(sources)
        except LayerProblem as exc:
            raise _Broken(f"{code / TOML}: layers: {exc}") from exc
        if len(sources) == 1 and sources[0].is_dir():
            return sources[0]
        raise _Broken(f"{code / TOML}: layers: there is no state folder to merge them in")


def _may_be_function(name: str) -> bool:
    return not name.startswith((".", "_"))


def _look(code: Path, sources: tuple[Path, ...]) -> tuple[str, list[Fingerprint]]:
    prints = [fingerprint(path) for path in (code, *sources)]
    return "".join(found.digest for found in prints), prints


def _seen(code: Path, sources: tuple[Path, ...]) -> str:
    """`_look` for a broken function, part of which may be missing."""
    try:
        return _look(code, sources)[0]
    except OSError:
        return ""


def _lacks_source(entry: _Entry) -> bool:
    return isinstance(entry.function, BrokenFunction) and any(not s.exists() for s in entry.sources)


def _watch_source(watch: Watch, name: str, source: Path) -> None:
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


def _check_readable(prints: list[Fingerprint]) -> None:
    """Started by root, environments run as nobody: they must be able to read the code."""
    if os.geteuid() != 0:
        return
    for found in prints:
        if found.unreadable:
            raise _Broken(
                f"{found.unreadable}: cannot be read by the function's user. "
                f"Hint: chmod -R a+rX {found.unreadable}"
            )


def _read_description(code: Path, defaults: FunctionDefaults) -> Description:
    try:
        return read(code / TOML, defaults=defaults)
    except FunctionTomlError as exc:
        raise _Broken(str(exc)) from exc


def _source(code: Path, layer: str) -> Path:
    return Path(os.path.normpath(code / os.path.expanduser(layer)))


def _program(code: Path, description: Description, runtimes: Runtimes) -> tuple[str, str]:
    """Runtime and handler, as written or told from the files; checked as far as that needs no running."""
    runtime, handler = description.runtime, description.handler
    guess_runtime, guess_handler = _guess(code, runtimes)
    if runtime is None:
        runtime = guess_runtime
    if runtime is None:
        raise _Broken(
            f"{code}: no handler.py, index.js, index.mjs, handler.js or executable bootstrap in it. "
            f"Hint: add one, or set runtime and handler in {code / TOML}"
        )
    if handler is None:
        handler = guess_handler if guess_runtime == runtime or guess_runtime is None else None
        handler = handler or _usual_handler(code, runtime)
    try:
        runtimes.resolve(runtime)
    except RuntimeUnavailable as exc:
        raise _Broken(f"{code}: {exc}", InvalidRuntime) from exc
    return runtime, handler


NODE_FILES = ("index.js", "index.mjs", "index.cjs", "handler.js", "handler.mjs", "handler.cjs")


def _guess(code: Path, runtimes: Runtimes) -> tuple[str | None, str | None]:
    if (code / "handler.py").is_file():
        return runtimes.default, "handler.handler"
    for name in NODE_FILES:
        if (code / name).is_file():
            newest = runtimes.newest("nodejs")
            return (
                newest.identifier if newest else "nodejs22.x"
            ), f"{name.partition('.')[0]}.handler"
    bootstrap = code / "bootstrap"
    if bootstrap.is_file():
        if not os.access(bootstrap, os.X_OK):
            raise _Broken(f"{bootstrap}: is not executable. Hint: chmod a+x {bootstrap}")
        return "provided.al2023", "bootstrap"
    return None, None


def _usual_handler(code: Path, runtime: str) -> str:
    if runtime.startswith("provided"):
        return "bootstrap"
    if runtime.startswith("nodejs"):
        found = [name for name in NODE_FILES if (code / name).is_file()]
        return f"{found[0].partition('.')[0]}.handler" if found else "index.handler"
    return "handler.handler"


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
    settings = (description, dict(environment), runtime, handler, str(code), seen)
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
        network=description.network,
        freeze=description.freeze,
        description=description.description,
        environment=environment,
    )
