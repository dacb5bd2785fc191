"""Owns what is kept between runs, in .cache/lambox-bench: compiled C programs, AWS's emulator.

The folder can be removed at any time; LAMBOX_BENCH_CACHE names another one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MACHINE = {"x86_64": "aws-lambda-rie-x86_64", "aarch64": "aws-lambda-rie-arm64"}
PIP = [sys.executable, "-m", *["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]]
WHEEL_PATIENCE_S = 180


class Unavailable(Exception):
    """Why a contender cannot take part."""


def cache() -> Path:
    folder = Path(os.environ.get("LAMBOX_BENCH_CACHE") or HERE.parent / ".cache" / "lambox-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compiled(name: str) -> Path:
    """The program of bench/NAME.c, compiled once per version of it. Raises SystemExit with cc's words."""
    source = HERE / f"{name}.c"
    program = cache() / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        fresh = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            ["cc", "-O2", "-Wall", "-o", str(fresh), str(source)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"bench: cannot compile {source}:\n{done.stderr}")
        fresh.rename(program)
    return program


def emulator(named: str | None) -> Path:
    """AWS's Runtime Interface Emulator: as named, cached, or out of the wheel of aws-sam-cli."""
    if named:
        if not os.access(named, os.X_OK):
            raise Unavailable(f"{named} is not a program")
        return Path(named)
    name = MACHINE.get(platform.machine())
    if name is None:
        raise Unavailable(f"AWS has no emulator for {platform.machine()}")
    kept = cache() / name
    if not kept.exists():
        _unpack(name, kept)
    return kept


def _unpack(name: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        try:
            subprocess.run(
                [*PIP, "--dest", folder, "aws-sam-cli"],
                capture_output=True,
                text=True,
                check=True,
                timeout=WHEEL_PATIENCE_S,
            )
            wheel = next(Path(folder).glob("*.whl"))
            fresh = Path(folder, name)
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"samcli/local/rapid/{name}") as packed,
                fresh.open("wb") as file,
            ):
                shutil.copyfileobj(packed, file)
        except subprocess.CalledProcessError as exc:
            last = (exc.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise Unavailable(f"pip download aws-sam-cli: {last}") from exc
        except (OSError, subprocess.TimeoutExpired, StopIteration, KeyError) as exc:
            raise Unavailable(f"the wheel of aws-sam-cli: {exc!r}") from exc
        fresh.chmod(0o755)
        fresh.rename(target)
