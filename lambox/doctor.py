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

from lambox.config import Config
from rootfs import runtimes, watch
from sandbox.confine import bwrap, cgroup, identity, launcher, overseer, seccomp
from sandbox.confine.calls import FAMILIES
from sandbox.confine.spec import ConfineError, IsolationUnavailable

Verdict = Literal["ok", "note", "missing"]
MARKS: dict[Verdict, str] = {"ok": "✓", "note": "!", "missing": "✗"}
OLDEST_KERNEL = (4, 18)
FULL_KERNEL = (5, 19)
"""cgroup.kill is 5.14's, memory.peak 5.19's (v2)."""
FEW_DESCRIPTORS = 4096
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
        _cgroup,
        _seccomp,
        _uids,
        _prepared,
        _state,
        _loop,
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


@dataclass(frozen=True, slots=True)
class _Switch:
    path: str
    forbids: Callable[[int], bool]
    mend: str
    certain: bool = True
    """Whether it forbids by itself; AppArmor's has exceptions, which only a try shows."""


SWITCHES = (
    _Switch(
        "user/max_user_namespaces",
        lambda value: value == 0,
        "sysctl -w user.max_user_namespaces=15000",
    ),
    _Switch(
        "kernel/unprivileged_userns_clone",
        lambda value: value == 0,
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    _Switch(
        "kernel/apparmor_restrict_unprivileged_userns",
        lambda value: value != 0,
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        certain=False,
    ),
)


def _forbidding(sysctl: Path) -> Iterator[tuple[_Switch, str]]:
    for switch in SWITCHES:
        value = cgroup.read_int(str(sysctl / switch.path))
        if value is not None and switch.forbids(value):
            yield switch, f"{switch.path.replace('/', '.')} = {value}"


def _switches(_: Config, sysctl: Path = Path("/proc/sys")) -> Iterator[Result]:
    forbidding = [(switch, said) for switch, said in _forbidding(sysctl) if switch.certain]
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
        *("--disable-userns", "--uid", str(bwrap.UID), "--gid", str(bwrap.GID)),
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--chdir", "/"),
        *("--cap-drop", "ALL", "--", "true"),
    ]
    who = f"uid {uids[0] if uids else os.getuid()}"
    try:
        done = _run(argv) if uids is None else _run(argv, user=uids[0], group=uids[0])
    except (OSError, subprocess.SubprocessError) as exc:
        yield Result("a sandbox", "missing", f"cannot be tried as {who}: {exc}", _container_mend())
        return
    if done.returncode == 0:
        yield Result("a sandbox", "ok", f"made as {who}")
        return
    said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    doubted = [switch.mend for switch, _ in _forbidding(Path("/proc/sys")) if not switch.certain]
    mend = doubted[0] if doubted else _container_mend()
    yield Result("a sandbox", "missing", f"{who} may not make one: {said[0]}", mend)


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


def _container_mend() -> str:
    return (
        "docker run --privileged ... (in a container; or --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined)"
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
    if os.geteuid() != 0:
        found = f"all sandboxes have uid {os.getuid()}; started by root, each has one of its own"
        yield Result("uids", "note", found, "sudo lambox serve")
        return
    uids = identity.choose(config.uid_base, config.uid_count)
    if uids is None:
        found = "too few are mapped here for sandboxes to have their own"
        yield Result("uids", "note", found, "docker run --userns=host ...")
    else:
        yield Result("uids", "ok", f"{uids[0]} to {uids[-1]}, each live sandbox has its own")


def _state(config: Config) -> Iterator[Result]:
    folder = config.state.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Result("state folder", "ok", str(folder))
    else:
        mend = f"install -d -o {os.getuid()} {folder}"
        yield Result("state folder", "missing", f"{folder} cannot be written", mend)


def _prepared(config: Config) -> Iterator[Result]:
    name = "made ahead"
    if not config.zygote:
        yield Result(
            name, "note", "switched off: every cold start is one of bubblewrap and interpreter"
        )
    elif reason := launcher.unready(
        watched="cgroups" in config.allow_weaker and not _has_cgroups()
    ):
        mend = "sudo lambox serve" if os.geteuid() else "apt-get install linux-image-amd64"
        yield Result(name, "note", f"no ({reason}): cold starts take about ten times as long", mend)
    else:
        most = f"{config.pool_min} to {config.pool_max} sandboxes per kind of runtime"
        yield Result(name, "ok", f"{most}; Python is forked from a zygote")


def _has_cgroups() -> bool:
    try:
        cgroup.detect().close()
    except ConfineError:
        return False
    return True


def _loop(_: Config) -> Iterator[Result]:
    devices = [path for path in Path("/dev").glob("loop[0-9]*") if path.is_block_device()]
    if devices or Path("/dev/loop-control").exists():
        busy = len(list(Path("/sys/block").glob("loop*/loop/backing_file")))
        yield Result("loop devices", "ok", f"{len(devices)}, {busy} in use")
    else:
        yield Result("loop devices", "note", "none (not needed yet)", "modprobe loop")


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
