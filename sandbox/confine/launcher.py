"""Owns making sandboxes: cgroup, uid, pipes, bwrap, in this order, and undoing them when one fails."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import prctl
import trio

import rootfs.inside
from sandbox.confine import bwrap, cgroup, identity, seccomp, staging
from sandbox.confine.bwrap import Bwrap, Descriptors
from sandbox.confine.cgroup import CgroupTree
from sandbox.confine.control import Control
from sandbox.confine.identity import Identities
from sandbox.confine.process import BwrapSandbox, Pipes
from sandbox.confine.spawner import Spawner
from sandbox.confine.spec import ConfineError, IsolationUnavailable, SandboxSpec
from sandbox.confine.staging import Bridge

LAUNCH_LIMIT_S = 10.0


def init_path() -> Path:
    """The compiled rootfs/inside/init.c. Raises IsolationUnavailable."""
    path = Path(next(iter(rootfs.inside.__path__)), "init")
    if not os.access(path, os.X_OK):
        raise IsolationUnavailable(f"{path} has not been built", "make setup")
    return path


class BwrapLauncher:
    """Implements `spec.Launcher`. Made by `open_launcher`."""

    def __init__(
        self,
        tree: CgroupTree,
        identities: Identities,
        tool: Bwrap,
        init: Path,
        filter_: bytes | None,
        spawner: Spawner,
    ) -> None:
        self._tree = tree
        self._identities = identities
        self._bwrap = tool
        self._init = str(init)
        self._filter = filter_
        self._spawner = spawner
        self._live: set[BwrapSandbox] = set()

    def describe(self) -> str:
        version = ".".join(map(str, self._bwrap.version))
        users = "own uid each" if self._identities.any else f"uid {os.getuid()}"
        calls = "seccomp" if self._filter else "no seccomp"
        return f"bubblewrap {version}, {self._tree.describe()}, {users}, {calls}"

    async def launch(self, spec: SandboxSpec) -> BwrapSandbox:
        bridges = self._bridges(spec)
        uid = self._identities.take()
        with ExitStack() as undo:
            undo.callback(self._identities.give_back, uid)
            group = self._tree.create(spec.name, spec.limits)
            undo.callback(group.remove)
            control = Control()
            undo.callback(control.close)
            pipes = Pipes()
            undo.callback(pipes.close)
            with Descriptors() as fds:
                inside = fds.take(os.dup(control.theirs.fileno()))
                telemetry = fds.take(os.dup(pipes.pairs[2][1]))
                argv = [
                    self._init,
                    "launch",
                    *(2 * [str(-1 if uid is None else uid)]),
                    str(telemetry),
                    *group.procs,
                    "--",
                    *bwrap.command(
                        spec,
                        self._bwrap,
                        self._init,
                        inside,
                        fds,
                        seccomp=self._filter,
                        places=bridges,
                    ),
                ]
                try:
                    process = await self._spawner.spawn(
                        argv,
                        fds.fds,
                        pipes.pairs[0][1],
                        pipes.pairs[1][1],
                        bridges=bridges.values(),
                    )
                except OSError as exc:
                    self._spawner.take_down(bridges.values())
                    raise ConfineError(f"cannot start a sandbox: {exc}") from exc
            pipes.close_writes()
            sandbox = BwrapSandbox(spec, group, process, control, pipes, self._identities, uid)
            undo.pop_all()
        self._live.add(sandbox)
        try:
            with trio.fail_after(LAUNCH_LIMIT_S):
                await sandbox.open()
        except BaseException as exc:
            await self._kill(sandbox)  # noqa: ASYNC102  kill() shields itself, and is bounded
            if isinstance(exc, trio.TooSlowError):
                raise ConfineError(
                    f"bubblewrap did not make a sandbox within {LAUNCH_LIMIT_S:.0f} s"
                ) from exc
            raise
        finally:
            self._spawner.take_down(bridges.values())
        return sandbox

    def _bridges(self, spec: SandboxSpec) -> dict[str, Bridge]:
        if not self._identities.any:
            return {}
        try:
            return staging.bridges(bwrap.sources(spec, self._init), spec.name)
        except OSError as exc:
            raise ConfineError(f"cannot mount {exc.filename}: {exc.strerror}") from exc

    async def _kill(self, sandbox: BwrapSandbox) -> None:
        await sandbox.kill()
        self._live.discard(sandbox)

    async def close(self) -> None:
        """Kill whatever its owner has not."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for sandbox in list(self._live):
                    nursery.start_soon(self._kill, sandbox)


@asynccontextmanager
async def open_launcher(
    *,
    uid_base: int | None = None,
    uid_count: int | None = None,
    use_seccomp: bool = True,
    tree: CgroupTree | None = None,
    bwrap_path: str = "bwrap",
) -> AsyncIterator[BwrapLauncher]:
    """A launcher that owns its sandboxes: leaving kills them and removes the cgroups.

    Sweeps what dead supervisors left. Raises IsolationUnavailable with the remedy.
    """
    tool = await trio.to_thread.run_sync(bwrap.find, bwrap_path)
    init = init_path()
    filter_ = seccomp.export() if use_seccomp else None
    uids = identity.choose(uid_base, uid_count)
    _raise_descriptor_limit()
    if tree is None:
        tree = await trio.to_thread.run_sync(cgroup.detect)
    await trio.to_thread.run_sync(tree.sweep)
    was_subreaper = prctl.get_child_subreaper()
    prctl.set_child_subreaper(1)
    spawner = Spawner(stage=uids is not None)
    launcher = BwrapLauncher(tree, Identities(uids), tool, init, filter_, spawner)
    try:
        yield launcher
    finally:
        await launcher.close()  # noqa: ASYNC102  it shields itself
        spawner.close()
        prctl.set_child_subreaper(was_subreaper)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(tree.close)


def _raise_descriptor_limit() -> None:
    """An environment costs the supervisor about ten descriptors; the usual soft limit of 1024 is for select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
