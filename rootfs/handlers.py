"""Owns telling from a folder's files which runtime and handler it wants.

NoProgram       nothing in the folder that could be run, or a bootstrap that is not executable
"""

from __future__ import annotations

import os
from pathlib import Path

from rootfs.runtimes import Runtimes

NODE_FILES = ("index.js", "index.mjs", "index.cjs", "handler.js", "handler.mjs", "handler.cjs")


class NoProgram(Exception):
    """The folder names no program; the message says what to add."""


def detect(
    code: Path,
    runtimes: Runtimes,
    *,
    runtime: str | None = None,
    handler: str | None = None,
    preferred: str | None = None,
) -> tuple[str, str]:
    """Runtime and handler: as given, the missing one told from the files. Raises NoProgram.

    `preferred` is the server-wide runtime: it decides the version where the files fit its family.
    """
    if runtime is None:
        runtime = _runtime(code, runtimes)
        if preferred is not None and _family(preferred) == _family(runtime):
            runtime = preferred
    if runtime.startswith("provided"):
        return runtime, handler or "bootstrap"
    if handler is None and runtime.startswith("nodejs"):
        found = [name for name in NODE_FILES if (code / name).is_file()]
        handler = f"{found[0].partition('.')[0]}.handler" if found else "index.handler"
    return runtime, handler or "handler.handler"


def _family(identifier: str) -> str:
    return identifier.rstrip("0123456789.x").partition(".")[0]


def _runtime(code: Path, runtimes: Runtimes) -> str:
    if (code / "handler.py").is_file():
        return runtimes.default
    if any((code / name).is_file() for name in NODE_FILES):
        newest = runtimes.newest("nodejs")
        return newest.identifier if newest else "nodejs22.x"
    bootstrap = code / "bootstrap"
    if bootstrap.is_file():
        if not os.access(bootstrap, os.X_OK):
            raise NoProgram(f"{bootstrap}: is not executable. Hint: chmod a+x {bootstrap}")
        return "provided.al2023"
    raise NoProgram(
        f"{code}: no handler.py, index.js, index.mjs, handler.js or executable bootstrap in it. "
        "Hint: add one, or set runtime and handler in its function.toml"
    )
