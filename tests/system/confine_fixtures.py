"""Sandboxes for the tests of `sandbox.confine`: a small root with the host's /usr and this Python."""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import trio

from rootfs import environ
from rootfs.host import hidden
from rootfs.layout import INSIDE, Bind, Dev, Directory, Entry, Proc, Symlink, Tmpfs
from rootfs.runtimes import discover
from sandbox.confine import cgroup, privilege
from sandbox.confine.launcher import BwrapLauncher, open_launcher
from sandbox.confine.network.router import Router
from sandbox.confine.pool import PoolLimits
from sandbox.confine.process import BwrapSandbox
from sandbox.confine.spec import MIB, Limits, Preparation, Program, SandboxSpec
from sandbox.confine.storage import open_storage
from tests.waiting import until

PYTHON = "/var/lang/bin/python3"
TMP_BYTES = 32 * MIB
ROOT: tuple[Entry, ...] = (
    Bind("/usr", "/usr"),
    *(Symlink(f"usr/{name}", f"/{name}") for name in ("bin", "lib", "lib64", "sbin")),
    Bind(sys.base_prefix, "/var/lang"),
    Directory("/var/task"),
    Directory("/tmp"),
    Proc("/proc", *hidden()),
    Dev(),
)
MAKINGS = ["scratch", *(["ready", "forked"] if privilege.may_mount() else [])]
"""How a sandbox comes about: bwrap on demand; made ahead, its program executed by pid 1; made ahead with a
zygote's fork in it, which executes the program: whatever confines a forked runtime confines that. The first two
have their /tmp in memory, the last on disk where the host lets us."""
MAKING: ContextVar[str] = ContextVar("MAKING", default="scratch")
_FOUND = discover().resolve(f"python3.{sys.version_info.minor}")
CLIENT: tuple[Entry, ...] = (
    Bind(_FOUND.client, "/var/runtime"),
    Bind(f"{INSIDE}/python/lambox_bootstrap.py", "/var/runtime/bootstrap.py"),
)
PYTHON_FORKS = Preparation(
    (PYTHON, "-S", "/var/runtime/bootstrap.py"),
    tuple(environ.runtime_environment(_FOUND).items()),
    forks=True,
)
ENV = {"PATH": "/usr/bin:/bin"}

PRELUDE = """\
import ctypes, errno, json, os, signal, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def say(value):
    os.write(1, json.dumps(value).encode() + b"\\n")

def attempt(call, *args):
    "What came of it: the name of the errno, or 'done'."
    try:
        call(*args)
    except OSError as exc:
        return errno.errorcode.get(exc.errno, str(exc))
    return "done"

def syscall(number, *args):
    if libc.syscall(number, *(ctypes.c_long(arg) for arg in args)) == -1:
        raise OSError(ctypes.get_errno(), "")

def status():
    lines = open("/proc/self/status").read().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
"""


def uids_apart(count: int) -> int:
    """The first of so many uids that no server beside this test has or wants."""
    wanted = 1_950_000_000 + os.getpid() % 10_000 * count
    # Of an ordinary user the server has a namespace in which few are mapped; the test has not.
    there = privilege.may_change_uid() and any(wanted in part for part in privilege.mapped())
    return wanted if there else 2000 + os.getpid() % (30_000 // count) * count


class Box:
    """One sandbox and the lines its program says."""

    def __init__(self, launcher: BwrapLauncher, sandbox: BwrapSandbox) -> None:
        self.launcher = launcher
        self.sandbox = sandbox
        self._heard = b""

    async def run(self, *argv: str, cwd: str = "/", env: dict[str, str] | None = None) -> None:
        await self.sandbox.start(Program(argv, ENV if env is None else env, cwd))

    async def python(self, code: str) -> None:
        """Start Python on `code`, which may use what PRELUDE defines."""
        await self.run(PYTHON, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code))

    async def heard(self) -> Any:
        """The next line of standard output, as JSON. Raises EOFError with what came on stderr."""
        while b"\n" not in self._heard:
            await trio.lowlevel.wait_readable(self.sandbox.stdout)
            data = os.read(self.sandbox.stdout, 65536)
            if not data:
                raise EOFError(self.errors())
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    async def ask(self, expression: str) -> Any:
        """Start Python, and what the expression is there."""
        await self.python(f"say({expression})\nsignal.pause()")
        return await self.heard()

    async def emptied(self) -> None:
        """Wait until every process of the sandbox has gone by itself."""
        while self.inside():  # noqa: ASYNC110  cgroup v1 has no event for it
            await trio.sleep(0.001)

    def errors(self) -> str:
        try:
            return os.read(self.sandbox.stderr, 65536).decode()
        except BlockingIOError:
            return ""

    def inside(self) -> list[int]:
        """Host pids of what is in the sandbox now."""
        return self.sandbox._cgroup.pids()


@asynccontextmanager
async def confined(
    launcher: BwrapLauncher | None = None,
    root: Sequence[Entry] = ROOT,
    *,
    router: Router | None = None,
    images: Path | None = None,
    **how: Any,
) -> AsyncIterator[Box]:
    """A sandbox, killed at the end; 30 s at most. `how`: fields of SandboxSpec and of Limits, `tmp_bytes`.

    `images`: /tmp is on disk, its file in that folder.
    """
    of_limits = {key: how.pop(key) for key in list(how) if key in Limits.__dataclass_fields__}
    how.setdefault("name", "test")
    how["late"] = (*how.get("late", ()), Tmpfs("/tmp", how.pop("tmp_bytes", TMP_BYTES)))
    spec = SandboxSpec(root=tuple(root), limits=Limits(**of_limits), **how)
    if MAKING.get() == "forked":
        spec = replace(spec, root=(*spec.root, *CLIENT), preparation=PYTHON_FORKS)
    with trio.fail_after(30):
        async with opened(launcher, router, images) as maker:
            if launcher is None and MAKING.get() != "scratch":
                await made_ahead(maker, spec)
            sandbox = await maker.launch(spec)
            try:
                yield Box(maker, sandbox)
            finally:
                with trio.move_on_after(10) as scope:
                    scope.shield = True
                    await sandbox.kill()


@asynccontextmanager
async def opened(
    launcher: BwrapLauncher | None = None,
    router: Router | None = None,
    images: Path | None = None,
) -> AsyncIterator[BwrapLauncher]:
    if launcher is not None:
        yield launcher
        return
    pool = None if MAKING.get() == "scratch" else PoolLimits(1, 1)
    async with AsyncExitStack() as stack:
        storage = None
        if images is not None:
            storage = await stack.enter_async_context(open_storage("disk", images))
        elif MAKING.get() == "forked":
            made = tempfile.TemporaryDirectory(prefix="lambox-images-", dir="/var/tmp")
            images = Path(stack.enter_context(made))
            storage = await stack.enter_async_context(open_storage("auto", images))
        yield await stack.enter_async_context(
            open_launcher(pool=pool, router=router, storage=storage)
        )


async def made_ahead(launcher: BwrapLauncher, spec: SandboxSpec) -> None:
    """Wait until the next launch of `spec` is of a sandbox that stands already."""
    assert launcher.unready() == ""
    assert spec.network != "host"
    launcher.keep([spec])
    while not any(row.ready for row in launcher.prepared()):  # noqa: ASYNC110
        await trio.sleep(0.001)


def proc(pid: int, file: str) -> bytes:
    """Contents of /proc/PID/FILE; b"" once the process is gone."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def proc_status(pid: int, key: str) -> list[str]:
    """The words after `key:` in /proc/PID/status."""
    for line in proc(pid, "status").decode().splitlines():
        if line.startswith(f"{key}:"):
            return line.split()[1:]
    return []


def holdings() -> dict[str, Any]:
    """What this process has: descriptors, children (zombies too), its sandboxes' cgroups."""
    own = cgroup.own_name()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": sorted(map(_describe, psutil.Process().children(recursive=True))),
        "cgroups": sorted(
            str(Path(top, own, name))
            for top, folders, _ in os.walk("/sys/fs/cgroup")
            if own in folders
            for name in sorted(os.listdir(Path(top, own)))
            if Path(top, own, name).is_dir()
        ),
    }


def _describe(process: psutil.Process) -> str:
    try:
        zombie = process.status() == psutil.STATUS_ZOMBIE
        return f"{process.pid} {process.name()}{' (zombie)' * zombie}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails when the block leaves a descriptor, a process or a cgroup behind."""
    gc.collect()  # what earlier tests have dropped is not to go in the middle of this one
    before = holdings()
    yield
    # The thread that watches memory may be in the middle of a file of a process that has just gone.
    with suppress(AssertionError):
        until(lambda: holdings() == before, 1)
    after = holdings()
    assert after == before, {key: (before[key], after[key]) for key in before}
