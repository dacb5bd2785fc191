"""Owns `<venv>/share/lambox/nodejsN.x`: AWS's client aws-lambda-ric, where npm can build it.

It carries a native part (its own curl and aws-lambda-cpp, 43 s of compiling on two cores), so it
needs npm, cmake, make and a C++ compiler. Wherever it does not install, the reason is written down
for `discover` to show, and functions run on lambox's own client (`rootfs/inside/node`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rootfs.runtimes import Runtime, discover

PACKAGE = Path(__file__).resolve().parent / "node-runtime"
VERSION = "4.0.2"
OLDEST_NODE = 22
"""aws-lambda-ric 4 says `engines: node >= 22`, and refuses callback handlers, which Node 20 has."""
TOOLS = ("npm", "cmake", "make", "c++")
BUILD_TIMEOUT_S = 240
SHIPPED = ("index.mjs", "rapid-client.node", "package.json", "LICENSE", "NOTICE")
"""What running needs, of 19 MB installed."""

Say = Callable[[str], None]


class NotInstalled(Exception):
    """Why aws-lambda-ric cannot serve this Node.js."""


def provision(support: Path, say: Say) -> None:
    """Best effort for every Node.js found; never raises."""
    for runtime in discover(support=support):
        if runtime.family != "nodejs":
            continue
        folder = support / runtime.identifier
        problem = support / f"{runtime.identifier}.problem"
        try:
            install(runtime, folder, say)
            problem.unlink(missing_ok=True)
        except NotInstalled as exc:
            shutil.rmtree(folder, ignore_errors=True)
            problem.write_text(f"{exc}\n", encoding="utf-8")
            say(f"{runtime.identifier}: on lambox's own client: {exc}")


def obstacle(runtime: Runtime) -> str:
    """What stands in the way before anything is tried; empty if nothing does."""
    major = int(runtime.version.partition(".")[0])
    if major < OLDEST_NODE:
        return (
            f"aws-lambda-ric {VERSION} requires Node.js >= {OLDEST_NODE} (here: {runtime.version}) "
            "and refuses callback handlers; 3.3.0, the last for older Node.js, makes its curl with "
            "autotools (`./buildconf: exec: autoreconf: not found`)"
        )
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return (
            f"aws-lambda-ric {VERSION} compiles a native part and {', '.join(missing)} is missing"
        )
    return ""


def install(runtime: Runtime, folder: Path, say: Say) -> None:
    """Fill `folder`. Raises NotInstalled."""
    if reason := obstacle(runtime):
        raise NotInstalled(reason)
    lock = (PACKAGE / "package-lock.json").read_bytes()
    stamp = f"{hashlib.sha256(lock).hexdigest()[:16]} {runtime.interpreter} {runtime.version}"
    try:
        if (folder / ".stamp").read_text(encoding="utf-8") == stamp:
            say(f"{runtime.identifier}: ready")
            return
    except OSError:
        pass  # not installed yet
    say(f"{runtime.identifier}: building aws-lambda-ric {VERSION}, about a minute")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lambox-node-") as work:
        built = build(runtime, Path(work))
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o755)
        for name in SHIPPED:
            shutil.copy(built / name, fresh / name)
        (fresh / ".stamp").write_text(stamp, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    say(f"{runtime.identifier}: installed in {time.monotonic() - started:.0f} s")


def build(runtime: Runtime, work: Path) -> Path:
    """`npm ci` in `work` with this Node.js; the package's folder. Raises NotInstalled."""
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGE / name, work / name)
    environment = {**os.environ, "PATH": f"{Path(runtime.interpreter).parent}:{os.environ['PATH']}"}
    if os.path.exists(f"{runtime.prefix}/include/node/node_api.h"):
        # node-gyp would fetch the headers from nodejs.org otherwise.
        environment["npm_config_nodedir"] = runtime.prefix
    argv = ["npm", "ci", "--foreground-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(
            argv,
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            umask=0o022,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise NotInstalled(f"`npm ci` took more than {BUILD_TIMEOUT_S} s") from exc
    except OSError as exc:
        raise NotInstalled(f"npm cannot be run: {exc.strerror}") from exc
    package = work / "node_modules" / "aws-lambda-ric"
    if done.returncode or not (package / "rapid-client.node").is_file():
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise NotInstalled(f"`npm ci` failed: {' '.join(lines[:3])[:400] or done.returncode}")
    return package
