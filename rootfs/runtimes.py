"""Owns which runtimes this host has: AWS's identifier -> interpreter, and how it is started inside.

    RuntimeUnavailable      the identifier is not to be had here: what is found, how to mend it

Discovery starts no interpreter (a `python3 --version` costs 15 ms, and there may be ten): versions
come from file names, real paths and header files. Only a node without any such sign is asked, once.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Family = Literal["python", "nodejs", "provided"]

PYTHON_FILE = re.compile(r"python3\.(\d{1,2})\Z")
PYTHON = re.compile(r"python3\.\d{1,2}\Z")
PROVIDED = re.compile(r"provided(\.[a-z0-9]+)?\Z")
PROVIDED_KNOWN = ("provided.al2023", "provided.al2")
NODE_HEADER = re.compile(r"#define NODE_(MAJOR|MINOR|PATCH)_VERSION (\d+)")
OLDEST_PYTHON = 8
"""python3.N with the oldest client AWS still names (SPEC 5.5)."""


class RuntimeUnavailable(Exception):
    """This host cannot run `identifier`; the message says what it has and how to mend it."""

    def __init__(self, identifier: str, message: str) -> None:
        super().__init__(message)
        self.identifier = identifier


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime of this host. `problem` says why it cannot be used, empty if it can."""

    identifier: str
    """AWS's: python3.11, nodejs20.x, provided.al2023."""
    family: Family
    interpreter: str = ""
    """Real path on the host; empty for provided."""
    prefix: str = ""
    """Installation prefix on the host: /usr, /root/.pyenv/versions/3.11.7."""
    version: str = ""
    client: str = ""
    """Host folder that holds the runtime interface client; empty if there is none to mount."""
    problem: str = ""
    shared: bool = False
    """A Python with its own libpython3.x.so in prefix/lib."""
    note: str = ""
    """Something worth telling about a runtime that works, such as which client it runs on."""

    @property
    def minor(self) -> str:
        """`3.11` of a Python."""
        return self.identifier.removeprefix("python")


@dataclass(frozen=True, slots=True)
class Runtimes:
    """What `discover` found, best candidate per identifier."""

    found: Mapping[str, Runtime]
    default: str
    """The server's own Python."""

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self.found.values())

    def resolve(self, identifier: str) -> Runtime:
        """The runtime of that name. Raises RuntimeUnavailable."""
        runtime = self.found.get(identifier)
        if runtime is not None:
            if runtime.problem:
                raise RuntimeUnavailable(identifier, f"runtime {identifier}: {runtime.problem}")
            return runtime
        if PROVIDED.match(identifier):
            return Runtime(identifier, "provided")
        usable = ", ".join(r.identifier for r in self if not r.problem) or "none"
        raise RuntimeUnavailable(
            identifier,
            f"runtime {identifier} is not on this host (found: {usable}). {_mend(identifier)}",
        )

    def newest(self, family: Family) -> Runtime | None:
        """The best usable runtime of a family, None if there is none."""
        usable = [r for r in self if r.family == family and not r.problem]
        return max(usable, key=lambda r: _numbers(r.version), default=None)


def _mend(identifier: str) -> str:
    if PYTHON.match(identifier):
        minor = identifier.removeprefix("python")
        return (
            f"Hint: install it (`uv python install {minor}` or `pyenv install {minor}`), run "
            "`make setup`, restart lambox; or name a found one as `runtime`."
        )
    if identifier.startswith("nodejs"):
        return (
            f"Hint: install Node.js {identifier.removeprefix('nodejs').removesuffix('.x')} so that "
            "`node` is on PATH, run `make setup`, restart lambox; or name a found one as `runtime`."
        )
    return (
        "Hint: lambox runs python3.x, nodejsN.x and, for any other language, provided.al2023 with "
        "an executable bootstrap."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def support_folder() -> Path:
    """Where `python -m rootfs.provision` put the clients of the runtimes."""
    return Path(sys.prefix, "share", "lambox")


def discover(
    *,
    support: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    own_prefix: str = sys.base_prefix,
    own_minor: int = sys.version_info.minor,
    system: Sequence[str] = ("/usr/bin", "/usr/local/bin"),
) -> Runtimes:
    """Look at the host. Earlier places win: the server's own Python, PATH, system, pyenv, uv."""
    support = support_folder() if support is None else support
    home = environ.get("HOME") or os.path.expanduser("~")
    path = [folder for folder in environ.get("PATH", "").split(":") if folder.startswith("/")]
    found: dict[str, Runtime] = {}
    places = [f"{own_prefix}/bin", *path, *system, *_managed_pythons(environ, home)]
    for minor, interpreter in _pythons(places):
        identifier = f"python3.{minor}"
        if identifier not in found:
            found[identifier] = _python(identifier, interpreter, support)
    node_places = [*path, *system, *_managed_nodes(environ, home)]
    for interpreter, version in _nodes(node_places):
        identifier = f"nodejs{version.partition('.')[0]}.x"
        if identifier not in found:
            found[identifier] = _node(identifier, interpreter, version, support)
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].family, _numbers(item[0]))))
    ordered.update({name: Runtime(name, "provided") for name in PROVIDED_KNOWN})
    return Runtimes(ordered, default=f"python3.{own_minor}")


def _managed_pythons(environ: Mapping[str, str], home: str) -> list[str]:
    """bin folders of pyenv's and uv's installations, newest first."""
    data = environ.get("XDG_DATA_HOME") or f"{home}/.local/share"
    roots = [
        f"{environ.get('PYENV_ROOT') or home + '/.pyenv'}/versions",
        environ.get("UV_PYTHON_INSTALL_DIR") or f"{data}/uv/python",
    ]
    return [f"{folder}/bin" for root in roots for folder in _versions(root)]


def _managed_nodes(environ: Mapping[str, str], home: str) -> list[str]:
    roots = [
        f"{environ.get('NVM_DIR') or home + '/.nvm'}/versions/node",
        f"{environ.get('NODENV_ROOT') or home + '/.nodenv'}/versions",
    ]
    return [f"{folder}/bin" for root in roots for folder in _versions(root)]


def _versions(root: str) -> list[str]:
    try:
        names = os.listdir(root)
    except OSError:
        return []
    return [f"{root}/{name}" for name in sorted(names, key=_numbers, reverse=True)]


def _pythons(folders: Iterable[str]) -> Iterator[tuple[int, str]]:
    seen: set[str] = set()
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            match = PYTHON_FILE.match(name)
            if match is None:
                continue
            interpreter = os.path.realpath(f"{folder}/{name}")
            if interpreter not in seen and _is_program(interpreter):
                seen.add(interpreter)
                yield int(match[1]), interpreter


def _is_program(path: str) -> bool:
    """An ELF file that may be executed: pyenv's shims are shell scripts and lead nowhere inside."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF" and os.access(path, os.X_OK)
    except OSError:
        return False


def _python(identifier: str, interpreter: str, support: Path) -> Runtime:
    prefix = os.path.dirname(os.path.dirname(interpreter))
    folder = support / identifier
    minor = int(identifier.rpartition(".")[2])
    reason = ""
    if minor < OLDEST_PYTHON:
        reason = f"awslambdaric, AWS's client, begins with python3.{OLDEST_PYTHON}"
    elif not os.path.exists(f"{prefix}/lib/{identifier}/os.py"):
        reason = f"no standard library at {prefix}/lib/{identifier}. Hint: install Python in full"
    elif not (folder / "awslambdaric").is_dir():
        reason = _recorded(support, identifier) or (
            f"awslambdaric, AWS's client, is not installed in {folder}. Hint: run `make setup`"
        )
    return Runtime(
        identifier,
        "python",
        interpreter,
        prefix,
        _python_version(prefix, identifier),
        "" if reason else str(folder),
        reason,
        os.path.exists(f"{prefix}/lib/lib{identifier}.so.1.0"),
    )


def _python_version(prefix: str, identifier: str) -> str:
    """pyenv and uv carry the full version in the folder's name, others only the minor."""
    match = re.search(r"3\.\d+\.\d+", os.path.basename(prefix))
    return match[0] if match else identifier.removeprefix("python")


def _recorded(support: Path, identifier: str) -> str:
    """What provisioning wrote down about this runtime."""
    try:
        return (support / f"{identifier}.problem").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _nodes(folders: Iterable[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for folder in folders:
        for name in ("node", "nodejs"):
            interpreter = os.path.realpath(f"{folder}/{name}")
            if interpreter in seen or not _is_program(interpreter):
                continue
            seen.add(interpreter)
            if version := node_version(interpreter):
                yield interpreter, version


def node_version(interpreter: str) -> str:
    """`20.20.2`; empty if even asking it does not help."""
    prefix = os.path.dirname(os.path.dirname(interpreter))
    if match := re.fullmatch(r"v?(\d+\.\d+\.\d+)", os.path.basename(prefix)):
        return match[1]
    for header in ("include/node/node_version.h", "include/nodejs/src/node_version.h"):
        try:
            with open(f"{prefix}/{header}", encoding="utf-8", errors="replace") as file:
                parts = dict(NODE_HEADER.findall(file.read()))
            return f"{parts['MAJOR']}.{parts['MINOR']}.{parts['PATCH']}"
        except (OSError, KeyError):
            continue
    return _ask_node(interpreter)


@functools.cache
def _ask_node(interpreter: str) -> str:
    try:
        done = subprocess.run(
            [interpreter, "--version"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().removeprefix("v")


def _node(identifier: str, interpreter: str, version: str, support: Path) -> Runtime:
    """AWS's client if provisioning could install it, else ours, with the reason as a note."""
    prefix = os.path.dirname(os.path.dirname(interpreter))
    folder = support / identifier
    if (folder / "rapid-client.node").is_file():
        # Version 4 refuses them for every Node.js; AWS's own nodejs22.x still takes them.
        note = "on AWS's aws-lambda-ric (no callback handlers)"
        return Runtime(
            identifier,
            "nodejs",
            interpreter,
            prefix,
            version,
            str(folder),
            note=note,
        )
    reason = (
        _recorded(support, identifier) or "aws-lambda-ric is not installed. Hint: run `make setup`"
    )
    return Runtime(
        identifier, "nodejs", interpreter, prefix, version, note=f"on lambox's own client: {reason}"
    )
