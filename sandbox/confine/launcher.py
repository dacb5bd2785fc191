"""Owns making sandboxes: cgroup, uid, pipes, bwrap, in this order, and undoing them when one fails."""

from __future__ import annotations

import logging
import os
import re
import resource
import secrets
import subprocess
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import prctl
import trio

import rootfs.inside
from rootfs.layout import Bind, Tmpfs
from sandbox.confine import (
    bwrap,
    cgroup,
    identity,
    mounts,
    overseer,
    peers,
    privilege,
    seccomp,
    staging,
    userns,
)
from sandbox.confine.aside import aside_or_here
from sandbox.confine.bwrap import Bwrap, Descriptors
from sandbox.confine.cgroup import Cgroup, CgroupTree
from sandbox.confine.cgroup_none import WatchedTree
from sandbox.confine.control import Control
from sandbox.confine.identity import Identities, NoUid
from sandbox.confine.latemounts import Folders
from sandbox.confine.network.router import Router
from sandbox.confine.overseer import Overseer
from sandbox.confine.parked import Parked
from sandbox.confine.pool import Pool, PoolLimits
from sandbox.confine.process import BwrapSandbox, Pipes, discard
from sandbox.confine.roots import Roots
from sandbox.confine.seccomp import Filters
from sandbox.confine.spawner import Spawner
from sandbox.confine.spec import ConfineError, IsolationUnavailable, Limits, SandboxSpec
from sandbox.confine.staging import Bridge
from sandbox.confine.storage import Storage, open_storage
from sandbox.confine.strays import Strays
from sandbox.confine.zygote import Zygote, Zygotes

log = logging.getLogger(__name__)
LAUNCH_LIMIT_S = 10.0
READY_LIMIT_S = 1.0
"""How long a launch waits for a prepared sandbox before it makes its own: a zygote may stand still."""
MOST_READY = 64
"""Of all kinds together: functions that differ in runtime or network are a kind each."""
NAME = re.compile(r"[a-z0-9-]{1,64}")


def init_path() -> Path:
    """The compiled rootfs/inside/init.c. Raises IsolationUnavailable."""
    path = Path(next(iter(rootfs.inside.__path__)), "init")
    if not os.access(path, os.X_OK):
        raise IsolationUnavailable(f"{path} has not been built", "make setup")
    return path


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sandboxes of one kind that are ready. `program`: the runtime that waits in them; empty: none does."""

    program: str
    network: str
    ready: int
    wanted: int
    memory_bytes: int


class BwrapLauncher:
    """Implements `spec.Launcher`. Made by `open_launcher`."""

    def __init__(
        self,
        tree: CgroupTree,
        identities: Identities,
        tool: Bwrap,
        init: Path,
        filters: Filters | None,
        spawner: Spawner,
        router: Router | None,
        storage: Storage | None,
        overseer: Overseer | None,
        unavailable: Mapping[str, str],
    ) -> None:
        """`storage` None: what bwrap can mount must do for /tmp. `overseer`: for filters in log mode.

        `unavailable`: networks that no sandbox can have here, and why, with the mend.
        """
        self.unavailable = unavailable
        self._tree = tree
        self._identities = identities
        self._bwrap = tool
        self._init = str(init)
        self._filters = filters
        self._spawner = spawner
        self._overseer = overseer
        self._router = router
        self._storage = storage
        self._live: set[BwrapSandbox] = set()
        self._strays = Strays()
        self._folders = Folders()
        self._roots = Roots(spawner)
        self._zygotes: Zygotes | None = None
        self._pool: Pool[BwrapSandbox] | None = None

    def make_ready(self, limits: PoolLimits, zygotes: trio.Nursery, makers: trio.Nursery) -> None:
        """Keep sandboxes ready from now on. Only where `unready()` says nothing.

        Tasks of `makers` may be cancelled at any time, those of `zygotes` end with `close`.
        """
        self._zygotes = Zygotes(self._spawner, self._bwrap, self._filters, self._strays, zygotes)

        def of(kind: SandboxSpec) -> PoolLimits:
            # A prepared process of its own costs tens of MB, a fork or nothing but namespaces a few.
            own = kind.preparation is not None and not kind.preparation.forks
            return PoolLimits(min(limits.least, 1), min(limits.most, 4)) if own else limits

        most = max(MOST_READY, limits.most)
        uids = self._identities
        self._pool = Pool(self._make_ahead, of, makers, most_held=most, free=lambda: uids.free)

    def unready(self) -> str:
        """Why sandboxes cannot be made ahead here; empty if they can."""
        return unready()

    def describe(self) -> str:
        version = ".".join(map(str, self._bwrap.version))
        users = "own uid each" if self._identities.any else f"uid {privilege.host_uid()}"
        calls = "no seccomp" if self._filters is None else "seccomp"
        if self._overseer is not None:
            calls = "seccomp in log mode"
        tmp = self._storage.describe() if self._storage else "/tmp in memory"
        return f"bubblewrap {version}, {self._tree.describe()}, {users}, {calls}, {tmp}"

    def places(self) -> float:
        """How many sandboxes can live at a time: those made ahead give way to those that are launched."""
        return self._identities.count

    async def launch(self, spec: SandboxSpec) -> BwrapSandbox:
        if not NAME.fullmatch(spec.name):
            raise ConfineError(f"{spec.name!r} cannot name a sandbox: a-z, 0-9 and -, at most 64")
        if why := self.unavailable.get(spec.network):
            raise ConfineError(f'network = "{spec.network}" {why}')
        if self._storage is not None:
            for tmp in _tmpfs(spec):
                self._storage.expect(tmp.size)
        if self._pool is not None and _poolable(spec) and self._pool.offers(_kind(spec)):
            try:
                return await self._adopt(self._pool, spec)
            except NoUid:
                raise
            except (ConfineError, OSError) as exc:
                # What is wrong with it may be wrong with every sandbox: then the next line says so.
                log.warning(
                    "no prepared sandbox for %s, one is made from scratch: %s", spec.name, exc
                )
        return await self._make(replace(spec, preparation=None))

    async def _adopt(self, pool: Pool[BwrapSandbox], spec: SandboxSpec) -> BwrapSandbox:
        assert self._storage is not None
        binds = [entry for entry in spec.late if isinstance(entry, Bind)]
        # Where a uid has to come back first, nothing stands still.
        limit_s = READY_LIMIT_S if self._identities.free > 0 else identity.WAIT_LIMIT_S
        async with self._folders.copied(binds) as trees:
            try:
                with trio.fail_after(limit_s):
                    sandbox = await pool.take(_kind(spec))
            except trio.TooSlowError as exc:
                raise ConfineError(f"there was none within {limit_s:.0f} s") from exc
            async with AsyncExitStack() as undo:
                undo.push_async_callback(sandbox.kill)
                await sandbox.adopt(spec, self._spawner, trees, self._storage)
                undo.pop_all()
        return sandbox

    def keep(self, specs: Iterable[SandboxSpec]) -> None:
        """Have sandboxes like these ready from now on, and in time no others."""
        specs = list(specs)
        if self._pool is not None:
            self._pool.keep({_kind(spec) for spec in specs if _poolable(spec)})
        if self._storage is not None:
            self._storage.keep({one.size for spec in specs for one in _tmpfs(spec)})

    def prepared(self) -> list[Prepared]:
        """What stands ready."""
        if self._pool is None or self._zygotes is None:
            return []
        rows = []
        for kind, ready, wanted in self._pool.held():
            used = [sandbox.usage().memory_bytes or 0 for sandbox in ready]
            program = kind.preparation.argv[0] if kind.preparation else ""
            rows.append(
                Prepared(os.path.basename(program), kind.network, len(ready), wanted, sum(used))
            )
        return rows

    async def _make_ahead(self, kind: SandboxSpec) -> BwrapSandbox:
        """For the pool: a sandbox and, where one is asked for, the prepared runtime in it. Raises ConfineError."""
        return await self._make(replace(kind, name=f"ready-{secrets.token_hex(4)}"))

    async def _make(self, spec: SandboxSpec) -> BwrapSandbox:
        zygote = None
        if spec.preparation and spec.preparation.forks and self._zygotes:
            zygote = await self._zygotes.get(spec.root, spec.preparation, spec.calls)
        async with AsyncExitStack() as stack:
            composed = None
            if self._spawner.staged:
                init = Bind(self._init, bwrap.INIT_INSIDE)
                composed = await stack.enter_async_context(self._roots.use((*spec.root, init)))
            return await self._make_on(spec, composed, zygote)

    async def _make_on(
        self, spec: SandboxSpec, composed: str | None, zygote: Zygote | None
    ) -> BwrapSandbox:
        tmp = _tmpfs(spec) if self._storage else []
        spec = replace(spec, late=tuple(entry for entry in spec.late if entry not in tmp))
        bridges = await self._bridges(spec, composed)
        try:
            sandbox = await self._spawn(spec, bridges, composed)
            async with AsyncExitStack() as undo:
                undo.push_async_callback(sandbox.kill)
                await self._open(sandbox, zygote)
                if self._storage:
                    await sandbox.attach(tmp, self._spawner, (), self._storage)
                undo.pop_all()
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            raise ConfineError(f"cannot make a sandbox: {exc}") from exc
        finally:
            self._spawner.take_down(bridges.values())
        return sandbox

    async def _uid(self) -> int | None:
        """Whoever is made ahead, for nobody yet, gives way."""
        if self._identities.free <= 0 and self._pool is not None:
            self._pool.give_up()
        return await self._identities.take()

    async def _spawn(
        self, spec: SandboxSpec, bridges: dict[str, Bridge], composed: str | None
    ) -> BwrapSandbox:
        async with AsyncExitStack() as undo:
            uid = await self._uid()
            given = undo.enter_context(ExitStack())
            given.callback(self._identities.give_back, uid)
            group = self._tree.create(spec.name, spec.limits)
            undo.push_async_callback(self._discard, group, given, uid)
            control = Control()
            undo.callback(control.close)
            pipes = Pipes(uid)
            undo.callback(pipes.close)
            parked = Parked() if spec.preparation else None
            if parked is not None:
                undo.callback(parked.close)
            with Descriptors() as fds:
                argv = self._command(
                    spec, group, control, pipes, parked, fds, bridges, composed, uid
                )
                out, err = pipes.writes[:2]
                started = await self._spawner.spawn(argv, fds.fds, out, err, bridges.values())
            group.joined(started.process.pid)
            control.theirs.close()

            def gone(sandbox: BwrapSandbox) -> None:
                self._live.discard(sandbox)
                self._identities.give_back(uid)

            def stuck() -> None:
                self._identities.keep(uid)

            sandbox = BwrapSandbox(
                spec,
                group,
                started,
                control,
                pipes,
                parked,
                uid,
                self._strays,
                self._overseer,
                gone,
                stuck,
            )
            self._live.add(sandbox)
            undo.pop_all()
        return sandbox

    async def _discard(self, group: Cgroup, given: ExitStack, uid: int | None) -> None:
        """A group that cannot be emptied keeps the uid: something of it lives."""
        with trio.CancelScope(shield=True), given.pop_all() as after:
            try:
                await discard(group)
            except BaseException:
                after.pop_all()
                self._identities.keep(uid)
                raise

    def _command(
        self,
        spec: SandboxSpec,
        group: Cgroup,
        control: Control,
        pipes: Pipes,
        parked: Parked | None,
        fds: Descriptors,
        bridges: dict[str, Bridge],
        composed: str | None,
        uid: int | None,
    ) -> list[str]:
        inside = fds.take(os.dup(control.theirs.fileno()))
        telemetry = fds.take(os.dup(pipes.writes[2]))
        # A zygote's fork gets its end from us.
        executed = (
            parked is not None and spec.preparation is not None and not spec.preparation.forks
        )
        # Where a fork comes in, pid 1 does nothing but wait: it is not asked about.
        asks = self._overseer is not None and (parked is None or executed)
        filters = self._filters
        who = str(-1 if uid is None else uid)
        return [
            *(self._init, "launch", who, who, str(telemetry), *group.procs, "--"),
            *bwrap.command(
                spec,
                self._bwrap,
                self._init,
                inside,
                fds,
                seccomp=filters.enforced[spec.calls] if filters and not asks else None,
                observe=filters.observed[spec.calls] if filters and asks else None,
                places=bridges,
                composed=composed,
                parked=fds.take(os.dup(parked.theirs.fileno())) if executed and parked else None,
            ),
        ]

    def _way_out(self) -> Router:
        if self._router is None:
            raise IsolationUnavailable('this server gives no sandbox the network "nat"')
        return self._router

    async def _open(self, sandbox: BwrapSandbox, zygote: Zygote | None) -> None:
        try:
            with trio.fail_after(LAUNCH_LIMIT_S):
                await sandbox.open()
                if sandbox.spec.network == "nat":
                    await sandbox.connect(self._way_out())
                await sandbox.prepare(zygote)
        except trio.TooSlowError as exc:
            raise ConfineError(
                f"bubblewrap did not make a sandbox within {LAUNCH_LIMIT_S:.0f} s"
            ) from exc

    async def _bridges(self, spec: SandboxSpec, composed: str | None) -> dict[str, Bridge]:
        """Whoever walks these paths next (bwrap, the spawner's thread) finds that they answer."""
        sources = bwrap.sources(spec, self._init, composed=composed is not None)
        if not sources:
            return {}

        def walk(sources: Sequence[str]) -> dict[str, Bridge]:
            if self._identities.any:
                return staging.bridges(sources, spec.name)
            for source in sources:
                os.path.isdir(source)
            return {}

        try:
            return await self._folders.reach(sources, walk)
        except OSError as exc:
            raise ConfineError(f"cannot mount {exc.filename}: {exc.strerror}") from exc

    async def close(self) -> None:
        """Kill whatever its owner has not. Raises nothing: what is left over is logged."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for sandbox in list(self._live):
                    nursery.start_soon(_kill, sandbox)
            if self._zygotes is not None:
                self._zygotes.close()


def unready() -> str:
    """Why this host does not let sandboxes be made ahead; empty if it does."""
    if not privilege.may_mount():
        return "no user namespace of our own: nothing can be mounted into a sandbox that stands"
    return mounts.probe()


def _poolable(spec: SandboxSpec) -> bool:
    return spec.network != "host"


def _kind(spec: SandboxSpec) -> SandboxSpec:
    """What is the same in all sandboxes that could become this one."""
    # A program that looked at its limits when it started has to have been started under them.
    looked = spec.preparation is not None and not spec.preparation.forks
    return replace(spec, name="", late=(), limits=spec.limits if looked else Limits())


def _tmpfs(spec: SandboxSpec) -> list[Tmpfs]:
    return [entry for entry in spec.late if isinstance(entry, Tmpfs)]


async def _kill(sandbox: BwrapSandbox) -> None:
    try:
        await sandbox.kill()
    except ConfineError as exc:
        log.error("%s", exc)


@asynccontextmanager
async def open_launcher(
    *,
    uid_base: int | None = None,
    uid_count: int | None = None,
    weaker: Collection[str] = (),
    tree: CgroupTree | None = None,
    bwrap_path: str = "bwrap",
    pool: PoolLimits | None = None,
    router: Router | None = None,
    storage: Storage | None = None,
    calls: seccomp.Mode = "enforce",
) -> AsyncIterator[BwrapLauncher]:
    """A launcher that owns its sandboxes: leaving kills them and removes the cgroups.

    With `pool`, sandboxes are made ahead where this host allows it (`unready`). `router`: the way out of
    those with the network "nat"; `storage`: what their /tmp is taken from. Both are to be closed later.
    `calls` "log": system calls that only the family's list lacks are let through and told
    (`BwrapSandbox.refused`).

    Sweeps what dead supervisors left. Raises IsolationUnavailable with the remedy, but for those of
    "cgroups" and "seccomp" that `weaker` says may be gone without.
    """
    tool = await trio.to_thread.run_sync(bwrap.find, bwrap_path)
    init = init_path()
    filters = await trio.to_thread.run_sync(_filter, calls, weaker)
    uids = identity.choose(uid_base, uid_count)
    _raise_descriptor_limit()
    if tree is None:
        tree = await trio.to_thread.run_sync(_tree, weaker)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, tree)
        await trio.to_thread.run_sync(tree.sweep)
        stack.callback(prctl.set_child_subreaper, prctl.get_child_subreaper())
        prctl.set_child_subreaper(1)
        spawner = Spawner(stage=uids is not None or privilege.may_mount())
        stack.callback(spawner.close)
        identities = await trio.to_thread.run_sync(identity.claim, uids)
        stack.callback(identities.close)
        looking = await stack.enter_async_context(trio.open_nursery())
        stack.callback(looking.cancel_scope.cancel)
        looking.start_soon(identities.regain)
        if unready():
            storage = None
        elif storage is None:
            storage = await stack.enter_async_context(open_storage("memory", None))
        asked = None
        if filters is not None and filters.mode == "log":
            watches = await stack.enter_async_context(trio.open_nursery())
            stack.callback(watches.cancel_scope.cancel)
            asked = Overseer(filters, watches)
        unavailable = await trio.to_thread.run_sync(_unavailable, identities, tree)
        launcher = BwrapLauncher(
            tree, identities, tool, init, filters, spawner, router, storage, asked, unavailable
        )
        if isinstance(tree, WatchedTree):
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(tree.watch)
        ready = pool is not None and not launcher.unready()
        zygotes = await stack.enter_async_context(trio.open_nursery()) if ready else None
        stack.push_async_callback(launcher.close)
        if pool is not None and zygotes is not None:
            # Left first: nothing more is made when what there is is killed, and zygotes reap it.
            makers = await stack.enter_async_context(trio.open_nursery())
            stack.callback(makers.cancel_scope.cancel)
            launcher.make_ready(pool, zygotes, makers)
        yield launcher


def _tree(weaker: Collection[str]) -> CgroupTree:
    try:
        return cgroup.detect()
    except IsolationUnavailable:
        if "cgroups" not in weaker:
            raise
        return WatchedTree()


def _filter(mode: seccomp.Mode, weaker: Collection[str]) -> Filters | None:
    try:
        filters = seccomp.filters(mode)
    except IsolationUnavailable:
        if "seccomp" not in weaker or mode == "log":
            raise
        return None
    if mode == "log":
        overseer.require(os.uname().release)
        log.warning(
            "seccomp is in log mode: system calls that functions would be refused run, and are logged"
        )
    return filters


def _unavailable(identities: Identities, tree: CgroupTree) -> dict[str, str]:
    """On the host's network anybody can connect to a Runtime API: it has to tell its own from others."""
    try:
        told = peers.probe()
    except OSError as exc:
        return {"host": f"cannot be had on this host: {exc}. Hint: modprobe tcp_diag"}
    if identities.any or (tree.numbered and told.cgroup is not None):
        return {}
    mend = userns.subordinate(privilege.host_uid())[2] or "lambox doctor"
    return {
        "host": "cannot be had on this host: environments have neither uids nor v2 cgroups of their own, so "
        f"their Runtime APIs could not tell them from others. Hint: {mend}"
    }


async def _close(tree: CgroupTree) -> None:
    with trio.CancelScope(shield=True):
        await aside_or_here(tree.close)


def _raise_descriptor_limit() -> None:
    """An environment costs the supervisor about ten descriptors; the usual soft limit of 1024 is for select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
