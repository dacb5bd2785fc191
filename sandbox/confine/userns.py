"""Owns becoming root in a user and mount namespace of one's own, which is how an ordinary user runs lambox.

In it the user may do what sandboxes made ahead need (mounting, setns(2), putting roots together), on nothing
but what is his anyway. It is the same process before and after: unshare(2) asks for no exec, so the pid, the
exit status, signals, standard streams and the environment are what they were. The price: it has to be done
before the first thread is started (EINVAL otherwise).

Where newuidmap(1), newgidmap(1), /etc/subuid and /etc/subgid give the user a range, it is mapped to 1 and up,
and sandboxes get uids of their own out of it. Where they do not, only the user himself is mapped (as 0).

It cannot be undone, and some hosts grant the namespace but nothing in it (Ubuntu's AppArmor profile
unprivileged_userns): so a child tries it first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.confine import hosts, mounts, privilege
from sandbox.confine.attempts import attempt, child
from sandbox.confine.spec import IsolationUnavailable
from sandbox.confine.staging import STAGE

CLONE_NEWUSER = 0x10000000
"""linux/sched.h"""
ANSWER_LIMIT_S = 10.0
FEWEST = 1000
"""A smaller range is not worth it: 16 supervisors share one, some hundred environments each."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Range:
    """Subordinate ids of one user (subuid(5))."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Ids:
    """The ranges that a user namespace gets besides the user himself."""

    uids: Range
    gids: Range


@dataclass(frozen=True, slots=True)
class Entered:
    """What `enter` came to. `refused`: we are who we were; `lacking`: why there is no range. Both with the mend."""

    refused: str = ""
    lacking: str = ""
    remedy: str = ""


def enter() -> Entered:
    """Become root of a namespace of our own, if we are not privileged already. Takes 10 to 40 ms.

    Where the host refuses, nothing has changed, and the answer says why.
    """
    if privilege.may_mount() or privilege.may_change_uid():
        return Entered()  # root, of whatever: more than we could give ourselves
    if len(os.listdir("/proc/self/task")) > 1:
        return Entered(refused="this process has more than one thread")
    ids, lacking, remedy = subordinate()
    if ids is not None and (said := attempt(lambda: _try(ids))):
        ids, lacking, remedy = None, said, "chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap"
    if ids is None and (said := attempt(lambda: _try(None))):
        trouble = hosts.explain(said)
        return Entered(refused=f"{said}: {trouble.cause}", remedy=trouble.mend)
    # Without HOME the home folder is looked up by uid, and ours is about to be 0.
    with suppress(KeyError):
        os.environ.setdefault("HOME", pwd.getpwuid(os.getuid()).pw_dir)
    try:
        _become(ids)
    except OSError as exc:
        # A child could, a moment ago; and now we are nobody.
        raise IsolationUnavailable(f"the user namespace is half made: {exc}") from exc
    return Entered(lacking=lacking, remedy=remedy)


def subordinate(uid: int | None = None, etc: Path = Path("/etc")) -> tuple[Ids | None, str, str]:
    """The user's ids for sandboxes, or None, why, and the command that gives him some."""
    uid = os.getuid() if uid is None else uid
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return None, f"uid {uid} has no name, which newuidmap asks for", f"useradd -u {uid} lambox"
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            return None, f"{program} is not there", "apt-get install uidmap"
    found = [_largest(etc / file, uid, name) for file in ("subuid", "subgid")]
    for file, ids in zip(("subuid", "subgid"), found, strict=True):
        if ids is None or ids.count < FEWEST:
            span = "100000-165535"
            mend = f"usermod --add-subuids {span} --add-subgids {span} {name}"
            return None, f"{etc / file} has no {FEWEST} ids for {name}", mend
    uids, gids = found
    assert uids is not None
    assert gids is not None
    # A sandbox's gid is the same number as its uid.
    count = min(uids.count, gids.count)
    return Ids(Range(uids.first, count), Range(gids.first, count)), "", ""


def _largest(file: Path, uid: int, name: str) -> Range | None:
    ranges = []
    with suppress(OSError):
        for line in file.read_text().splitlines():
            owner, _, rest = line.partition(":")
            first, _, count = rest.partition(":")
            if owner in (name, str(uid)) and first.isdigit() and count.isdigit():
                ranges.append(Range(int(first), int(count)))
    return max(ranges, key=lambda one: one.count, default=None)


def _try(ids: Ids | None) -> None:
    _become(ids)
    if ids is not None:
        os.setgroups([])
    mounts.mount("lambox", STAGE, "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "size=64k")


def _become(ids: Ids | None) -> None:
    """Raises OSError naming the step; afterwards only an end of the process makes sense."""
    uid, gid, pid = os.getuid(), os.getgid(), os.getpid()
    if ids is None:
        _unshare()
        _write("setgroups", "deny")  # or else gid_map is refused (user_namespaces(7))
        _write("uid_map", f"0 {uid} 1")
        _write("gid_map", f"0 {gid} 1")
        return
    # newuidmap has to be run by a process outside. Made before: afterwards all our children are inside.
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    said_read, said_write = os.pipe2(os.O_CLOEXEC)

    def map_ids() -> None:
        os.close(go_write)
        if os.read(go_read, 1) != b"1":
            os._exit(0)
        for tool, own, more in (("newuidmap", uid, ids.uids), ("newgidmap", gid, ids.gids)):
            _map(tool, pid, own, more)

    mapper = child(map_ids, said_write)
    os.close(go_read)
    os.close(said_write)
    try:
        _unshare()
        os.write(go_write, b"1")
    finally:
        os.close(go_write)
        with os.fdopen(said_read) as pipe:
            said = pipe.read()
        _, status = os.waitpid(mapper, 0)
    if status:
        raise OSError(errno.EPERM, said or f"newuidmap ended with {status:#x}")


def _map(tool: str, pid: int, own: int, more: Range) -> None:
    argv = [tool, str(pid), "0", str(own), "1", "1", str(more.first), str(more.count)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=ANSWER_LIMIT_S
        )
    except subprocess.SubprocessError as exc:
        raise OSError(errno.ETIMEDOUT, f"{tool}: {exc}") from exc
    if done.returncode:
        raise OSError(errno.EPERM, done.stderr.strip() or f"{tool} failed")


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWUSER | mounts.CLONE_NEWNS):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare(CLONE_NEWUSER): {os.strerror(number)}")


def _write(name: str, text: str) -> None:
    path = f"/proc/self/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc
    finally:
        os.close(fd)


def main() -> None:
    """`python -m sandbox.confine.userns COMMAND...`: the command, in such a namespace."""
    entered = enter()
    if entered.refused:
        sys.exit(f"no user namespace: {entered.refused}\nHint: {entered.remedy}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
