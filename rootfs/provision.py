"""Owns `<venv>/share/lambox`: the clients that environments run on. `python -m rootfs.provision`

Per Python found on the host one folder `python3.x`, laid out as AWS's /var/runtime: awslambdaric
with its dependencies for exactly that version, boto3 hard-linked from one shared copy, and byte
code compiled by that very interpreter (the folder is read-only inside: no later chance).
Node's is `rootfs.provision_node`. Re-running does nothing when the stamps match.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rootfs import provision_node
from rootfs.runtimes import Runtime, discover, support_folder

HERE = Path(__file__).resolve().parent
CLIENT = HERE / "python-runtime.txt"
COMMON = HERE / "python-common.txt"
OLDEST_WITH_CLIENT = 10
"""awslambdaric 4 requires Python 3.10."""
PIP_TIMEOUT_S = 300

Say = Callable[[str], None]


class ProvisionFailed(Exception):
    """Installing failed; the message has pip's last lines and a hint."""


def provision(support: Path, say: Say) -> bool:
    """Provide every Python found, the server's own first. False if that one could not be."""
    runtimes = discover(support=support)
    pythons = [r for r in runtimes if r.family == "python"]
    pythons.sort(key=lambda r: r.identifier != runtimes.default)
    support.mkdir(parents=True, exist_ok=True)
    works = True
    for runtime in pythons:
        try:
            provide_python(runtime, support, say)
        except ProvisionFailed as exc:
            if (support / runtime.identifier).is_dir():
                say(f"{runtime.identifier}: kept as it was: {exc}")
                continue
            record_problem(support, runtime.identifier, str(exc))
            say(f"{runtime.identifier}: not usable: {exc}")
            works = works and runtime.identifier != runtimes.default
    return works


def provide_python(runtime: Runtime, support: Path, say: Say) -> None:
    """Fill `support/python3.x` for this interpreter. Raises ProvisionFailed."""
    minor = int(runtime.minor.partition(".")[2])
    if minor < OLDEST_WITH_CLIENT:
        raise ProvisionFailed(
            f"awslambdaric {pinned(CLIENT, 'awslambdaric')} needs Python "
            f"3.{OLDEST_WITH_CLIENT} or newer"
        )
    folder = support / runtime.identifier
    stamp = f"{digest(CLIENT)} {digest(COMMON)} {runtime.interpreter} {runtime.version}"
    if _read(folder / ".stamp") == stamp:
        say(f"{runtime.identifier}: ready")
        return
    started = time.monotonic()
    common = _common(support)
    with _published(folder) as work:
        pip_install(CLIENT, work, python_version=runtime.minor)
        _link_tree(common, work)
        # What plan() binds lambox_bootstrap.py on: a read-only folder cannot grow a mount point.
        (work / "bootstrap.py").touch()
        _compile(runtime, work)
        (work / ".stamp").write_text(stamp, encoding="utf-8")
    (support / f"{runtime.identifier}.problem").unlink(missing_ok=True)
    say(
        f"{runtime.identifier}: installed for {runtime.interpreter} "
        f"in {time.monotonic() - started:.1f} s"
    )


def record_problem(support: Path, identifier: str, reason: str) -> None:
    """What `discover` will show."""
    (support / f"{identifier}.problem").write_text(reason + "\n", encoding="utf-8")


class _published:
    """A working folder that takes the place of `folder` if the block ends well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        self.work = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", dir=self.folder.parent))
        self.work.chmod(0o755)
        return self.work

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.work.rename(self.folder)
        else:
            shutil.rmtree(self.work, ignore_errors=True)


def _common(support: Path) -> Path:
    """The shared copy of boto3 and its dependencies."""
    folder = support / "common"
    stamp = digest(COMMON)
    if _read(folder / ".stamp") != stamp:
        with _published(folder) as work:
            pip_install(COMMON, work, python_version="3.10")
            (work / ".stamp").write_text(stamp, encoding="utf-8")
    return folder


def pip_install(requirements: Path, target: Path, *, python_version: str) -> None:
    """`pip install --target`, wheels only, hashes checked. Raises ProvisionFailed."""
    argv = [
        sys.executable, "-m", "pip", "install", "--target", str(target),
        "--requirement", str(requirements), "--require-hashes", "--no-deps", "--no-compile",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python_version,
        "--disable-pip-version-check", "--no-warn-conflicts",
    ]  # fmt: skip
    try:
        done = _run(argv)
    except subprocess.TimeoutExpired as exc:
        raise ProvisionFailed(f"pip took more than {PIP_TIMEOUT_S} s") from exc
    if done.returncode:
        raise ProvisionFailed(_reason(done.stderr, python_version))


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # Nobody's umask may make the tree unreadable for the environments' uids.
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, umask=0o022, check=False
    )


def _reason(stderr: str, python_version: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    text = " ".join(line.removeprefix("ERROR: ") for line in errors[-2:]) or stderr.strip()[-400:]
    network = (
        "Connection",
        "ProxyError",
        "Temporary failure in name resolution",
        "Max retries",
        "timed out",
    )
    if any(word in stderr for word in network):
        return f"the package index cannot be reached ({text}). Hint: get online, run `make setup`"
    if "No matching distribution" in stderr:
        return (
            f"PyPI has no wheels of awslambdaric {pinned(CLIENT, 'awslambdaric')} and its needs "
            f"for Python {python_version} on {platform.machine()}"
        )
    return f"pip failed: {text}"


def _compile(runtime: Runtime, folder: Path) -> None:
    """Byte code that needs no check against the source at start."""
    argv = [
        runtime.interpreter, "-I", "-m", "compileall", "-q", "-j", "0",
        "--invalidation-mode", "unchecked-hash", str(folder),
        "-s", str(folder), "-p", "/var/runtime",
    ]  # fmt: skip
    _run(argv)  # a file that does not compile is compiled at import, or fails there


def _link_tree(source: Path, target: Path) -> None:
    """Hard links, so that five interpreters hold one boto3 (24 MB); copies across file systems."""
    for folder, _, names in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(exist_ok=True)
        for name in names:
            if name == ".stamp":
                continue
            try:
                os.link(f"{folder}/{name}", into / name)
            except FileExistsError:
                continue
            except OSError:
                shutil.copyfile(f"{folder}/{name}", into / name)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def pinned(path: Path, name: str) -> str:
    """The version of `name` in a requirements file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}=="):
            return line.removeprefix(f"{name}==").split()[0]
    return "?"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def main() -> int:
    support = support_folder()
    ok = provision(support, _print)
    provision_node.provision(support, _print)
    return 0 if ok else 1


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
