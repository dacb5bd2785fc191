"""Owns the checks of a host: what lambox needs of it, what is there, one command per trouble.

Where another part refuses with a message and a remedy, its words are used: `lambox serve` and
`lambox doctor` say the same thing about the same trouble.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lambox import throwaway
from lambox.config import Config
from rootfs import runtimes, watch
from sandbox.confine import (
    bwrap,
    cgroup,
    hosts,
    identity,
    launcher,
    overseer,
    privilege,
    seccomp,
    storage,
    userns,
)
from sandbox.confine.calls import FAMILIES
from sandbox.confine.images import Images
from sandbox.confine.network import router
from sandbox.confine.spec import ConfineError, IsolationUnavailable

Verdict = Literal["ok", "note", "missing"]
MARKS: dict[Verdict, str] = {"ok": "✓", "note": "!", "missing": "✗"}
OLDEST_KERNEL = (4, 18)
FULL_KERNEL = (5, 19)
"""cgroup.kill is 5.14's, memory.peak 5.19's (v2)."""
FEW_DESCRIPTORS = 4096
MANY_ZOMBIES = 100
FEW_WATCHES = 8192
PROBE_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """One check. `note`: lambox runs, but not in full; `missing`: it does not serve."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    """One command."""


def examine(config: Config) -> list[Result]:
    """Every check, in the order of what rests on what. Takes a fraction of a second."""
    checks: tuple[Callable[[Config], Iterator[Result]], ...] = (
        _kernel,
        _bwrap,
        _init,
        _switches,
        _sandbox,
        _orphans,
        _cgroup,
        _seccomp,
        _uids,
        _prepared,
        _network,
        _state,
        _tmp,
        _inotify,
        _descriptors,
        _runtimes,
    )
    return [result for check in checks for result in check(config)]


def require_sandbox(config: Config) -> None:
    """Try what no part below tries before the first invocation. Raises IsolationUnavailable."""
    for result in [*_switches(config), *_sandbox(config)]:
        if result.verdict == "missing":
            raise IsolationUnavailable(f"{result.name}: {result.found}", result.remedy)


def _kernel(_: Config) -> Iterator[Result]:
    release = platform.release()
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    mend = "apt-get install linux-image-amd64"
    if version < OLDEST_KERNEL:
        needed = ".".join(map(str, OLDEST_KERNEL))
        yield Result("kernel", "missing", f"{release}, {needed} is needed", mend)
    elif version < FULL_KERNEL:
        lacks = "no peak of memory in REPORT lines on cgroup v2"
        yield Result("kernel", "note", f"{release}: {lacks}", mend)
    else:
        yield Result("kernel", "ok", release)


def _bwrap(_: Config) -> Iterator[Result]:
    try:
        found = bwrap.find()
    except IsolationUnavailable as exc:
        yield _refused("bubblewrap", exc)
    else:
        yield Result("bubblewrap", "ok", f"{'.'.join(map(str, found.version))} at {found.path}")


def _init(_: Config) -> Iterator[Result]:
    try:
        yield Result("pid 1 of sandboxes", "ok", str(launcher.init_path()))
    except IsolationUnavailable as exc:
        yield _refused("pid 1 of sandboxes", exc)


def _switches(_: Config, sysctl: Path = hosts.SYSCTL) -> Iterator[Result]:
    forbidding = [(switch, said) for switch, said in hosts.forbidding(sysctl) if switch.certain]
    for switch, said in forbidding:
        yield Result("user namespaces", "missing", f"forbidden by {said}", switch.mend)
    if not forbidding:
        most = cgroup.read_int(str(sysctl / "user/max_user_namespaces"))
        yield Result("user namespaces", "ok", f"allowed (user.max_user_namespaces = {most})")


def _sandbox(config: Config) -> Iterator[Result]:
    """Make one as functions get them: same kinds of namespaces, same kind of user."""
    try:
        tool = bwrap.find()
    except IsolationUnavailable:
        return
    uids = identity.choose(config.uid_base, config.uid_count)
    kinds = ("user", "ipc", "pid", "uts", "cgroup", "net")
    argv = [
        tool.path,
        *(f"--unshare-{kind}" for kind in kinds),
        "--as-pid-1",  # else bwrap's process between us and pid 1 is left to whoever reaps orphans
        *("--disable-userns", "--uid", str(bwrap.UID), "--gid", str(bwrap.GID)),
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--chdir", "/"),
        *("--cap-drop", "ALL", "--", "true"),
    ]
    who = f"uid {uids[0] if uids else privilege.host_uid()}"
    try:
        done = _run(argv) if uids is None else _run(argv, user=uids[0], group=uids[0])
    except (OSError, subprocess.SubprocessError) as exc:
        yield Result(
            "a sandbox", "missing", f"cannot be tried as {who}: {exc}", hosts.CONTAINER_MEND
        )
        return
    if done.returncode == 0:
        yield Result("a sandbox", "ok", f"made as {who}")
        return
    said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    trouble = hosts.explain(said[0], hosts.refusals(uids[0] if uids else None))
    found = f"{who} may not make one: {said[0]} ({trouble.cause})"
    yield Result("a sandbox", "missing", found, trouble.mend)


def _orphans(_: Config) -> Iterator[Result]:
    """What a killed server leaves is its parent's to reap, and until then keeps its namespaces."""
    name = "orphans"
    many = {pid: count for pid, count in hosts.zombies().items() if count >= MANY_ZOMBIES}
    if many:
        pid, count = max(many.items(), key=lambda item: item[1])
        found = f"process {pid} has left {count} dead children unreaped; each holds a pid"
        yield Result(name, "note", found, "docker run --init ..." if pid == 1 else f"kill {pid}")
    elif parent := hosts.unreaped():
        found = f"{parent} does not reap within a second: what a killed server leaves stays a while"
        yield Result(name, "note", found, "docker run --init ...")
    else:
        yield Result(name, "ok", "are reaped")


def _run(
    argv: list[str], user: int | None = None, group: int | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PROBE_LIMIT_S,
        check=False,
        cwd="/",
        user=user,
        group=group,
        extra_groups=None if user is None else [],
    )


def _cgroup(config: Config) -> Iterator[Result]:
    try:
        tree = cgroup.detect()
    except ConfineError as exc:
        yield _weaker("control groups", exc, "cgroups" in config.allow_weaker)
        return
    try:
        yield Result("control groups", "ok", f"{tree.describe()}, writable")
    finally:
        tree.close()


def _seccomp(config: Config) -> Iterator[Result]:
    name = "system call filter"
    try:
        longest = max(len(seccomp.enforce(family)) // 8 for family in FAMILIES)
        if config.seccomp == "log":
            overseer.require(platform.release())
    except ConfineError as exc:
        yield _weaker(name, exc, "seccomp" in config.allow_weaker and config.seccomp != "log")
        return
    found = f"libseccomp, a list of allowed calls per runtime, up to {longest} instructions"
    if config.seccomp == "log":
        found += "; log mode: what only the list lacks runs, and is logged"
        yield Result(name, "note", found, "lambox serve --seccomp enforce")
    else:
        yield Result(name, "ok", found)


def _weaker(name: str, exc: ConfineError, allowed: bool) -> Result:
    refused = _refused(name, exc)
    if not allowed:
        return refused
    return Result(name, "note", f"{refused.found} (allow_weaker: gone without)", refused.remedy)


def _uids(config: Config) -> Iterator[Result]:
    try:
        uids = identity.choose(config.uid_base, config.uid_count)
    except IsolationUnavailable as exc:
        yield _refused("uids", exc)
        return
    if uids is not None:
        share = len(identity.shares(uids)[0])
        found = f"{uids[0]} to {uids[-1]}, each live sandbox has its own; a server takes {share}"
        yield Result("uids", "ok", found)
    elif os.geteuid() != 0 or not privilege.owns_files():
        _, lacking, mend = userns.subordinate(privilege.host_uid())
        lacking = lacking or "the range could not be mapped"
        found = f"all sandboxes have uid {privilege.host_uid()} ({lacking})"
        yield Result(
            "uids", "note", found, mend or "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap"
        )
    else:
        found = "too few are mapped here for sandboxes to have their own"
        yield Result("uids", "note", found, "docker run --userns=host ...")


def _state(config: Config) -> Iterator[Result]:
    folder = throwaway.place(config.state).absolute()
    existing = _existing(folder)
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Result("state folder", "ok", str(folder))
    else:
        mend = f"install -d -o {privilege.host_uid()} {folder}"
        yield Result("state folder", "missing", f"{folder} cannot be written", mend)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _prepared(config: Config) -> Iterator[Result]:
    name = "made ahead"
    if not config.zygote:
        yield Result(
            name, "note", "switched off: every cold start is one of bubblewrap and interpreter"
        )
    elif reason := launcher.unready():
        mend = "apt-get install linux-image-amd64" if privilege.may_mount() else _entry_mend()
        yield Result(name, "note", f"no ({reason}): cold starts take about ten times as long", mend)
    else:
        most = f"{config.pool_min} to {config.pool_max} sandboxes per kind of runtime"
        yield Result(name, "ok", f"{most}; Python is forked from a zygote")


def _entry_mend() -> str:
    """What lets an ordinary user have a user namespace of his own."""
    return userns.enter().remedy or "sudo lambox serve"


def _network(config: Config) -> Iterator[Result]:
    """Made and taken away: what another firewall lets through shows only so."""
    default = config.defaults.network
    name = "way out (nat)"
    try:
        found = router.try_out(config.nat_range)
    except IsolationUnavailable as exc:
        refused = _refused(name, exc)
        without = (
            'functions have network = "none"' if default is None else "no function can have it"
        )
        yield Result(name, "note", f"{refused.found}: {without}", refused.remedy)
    else:
        yield Result(name, "ok", found + (f" (default: {default})" if default else ""))


def _tmp(config: Config) -> Iterator[Result]:
    """Make one as environments get them, in the state folder or, as it may not be there yet, above it."""
    name = "/tmp of functions"
    in_memory = "in memory, and counts as the function's"
    if config.tmp == "memory":
        yield Result(name, "note", f'{in_memory} (tmp = "memory")', "lambox serve --tmp auto")
        return
    try:
        storage.try_out(Images(_existing(throwaway.place(config.state)), cgroup.own_name()))
    except IsolationUnavailable as exc:
        said = f"{exc}".partition("\nHint: ")[0]
        verdict: Verdict = "missing" if config.tmp == "disk" else "note"
        yield Result(name, verdict, f"{in_memory}: {said}", exc.remedy)
    else:
        yield Result(
            name, "ok", "on disk: an ext4 of its own each, and no memory of the function's"
        )


def _inotify(_: Config) -> Iterator[Result]:
    most = cgroup.read_int("/proc/sys/fs/inotify/max_user_watches")
    try:
        watch.Watch().close()
    except watch.WatchUnavailable as exc:
        yield Result("file watches", "note", f"{exc}".partition(" Hint: ")[0], watch.REMEDY)
        return
    if most is not None and most < FEW_WATCHES:
        found = f"fs.inotify.max_user_watches = {most}: further files are compared at each call"
        yield Result("file watches", "note", found, watch.REMEDY)
    else:
        yield Result("file watches", "ok", f"inotify, {most} watches")


def _descriptors(_: Config) -> Iterator[Result]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < FEW_DESCRIPTORS:
        found = f"at most {hard}: enough for about {hard // 12} environments"
        yield Result("file descriptors", "note", found, "ulimit -n 65536")
    else:
        count = "unlimited" if hard == resource.RLIM_INFINITY else f"up to {hard}"
        yield Result("file descriptors", "ok", count)


def _runtimes(_: Config) -> Iterator[Result]:
    found = runtimes.discover()
    for runtime in found:
        if runtime.family == "provided":
            continue
        name = f"runtime {runtime.identifier}"
        where = f"{runtime.version} at {runtime.interpreter}"
        if runtime.problem:
            said, mend = _hint(runtime.problem)
            yield Result(name, "note", f"{where}: {said}", mend)
            continue
        said, mend = _hint(runtime.note)
        default = " (default)" if runtime.identifier == found.default else ""
        yield Result(
            name,
            "ok",
            f"{where}{default}" + (f"; {said}" if said else ""),
            mend,
        )
    if found.newest("nodejs") is None:
        yield Result("runtime nodejs", "note", "no Node.js is found", "apt-get install nodejs")


def _hint(message: str) -> tuple[str, str]:
    said, _, mend = message.partition(" Hint: ")
    return said, mend.removeprefix("run ").strip("`")


def _refused(name: str, exc: ConfineError) -> Result:
    message = str(exc).partition("\nHint: ")[0]
    return Result(name, "missing", message, getattr(exc, "remedy", ""))
