"""What lambox could leave behind on a host, listed."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from pathlib import Path

import psutil

from lambox import throwaway
from sandbox.confine import claims, loops
from sandbox.confine.cgroup import is_orphaned
from sandbox.confine.network import nftables
from sandbox.confine.network.netlink import NETLINK_NETFILTER, Netlink

UIDS_FILE = f"/run/{claims.NAME}"
"""Empty. There while any server lives, and after one was killed until the next has ended."""


def leftovers() -> set[str]:
    """Processes, cgroups, mounts, loop devices, network namespaces, interfaces, nftables' tables, temp folders.

    What a lambox that lives beside this test session holds is not left behind, and not listed.
    """
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        # Every program of a sandbox but an executed runtime has this in its command line, and no
        # runtime outlives them. (A fork has its zygote's.)
        words = process.info["cmdline"] or ()
        marks = ("/run/lambox", "--zygote")
        if any(word.endswith("/inside/init") or word.startswith(marks) for word in words):
            with contextlib.suppress(OSError, psutil.Error):
                groups = " ".join(words) + Path(f"/proc/{process.pid}/cgroup").read_text()
                if not _held_elsewhere(groups) and not _descends_elsewhere(process):
                    found.add(f"process {process.pid} {process.info['name']} {groups.split()[-1]}")
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        mine = [name for name in folders if name.startswith(("lambox", "as-user-"))]
        paths = [f"{top}/{name}" for name in mine]
        found.update(f"cgroup {path}" for path in paths if not _held_elsewhere(path))
        # In an ordinary user's (tools/as-user) are those of the servers that he started.
        folders[:] = [name for name in folders if not name.startswith("lambox")]
    for line in Path("/proc/mounts").read_text().splitlines():
        if "lambox" in line:
            found.add(f"mount {line}")
    # The file behind one has no name; the device has its supervisor's.
    for device, name in loops.named().items() if os.geteuid() == 0 else ():
        if name.startswith("lambox") and not _held_elsewhere(name):
            found.add(f"loop {device} {name}")
    tables = _tables()
    found.update(f"table {name}" for name in tables if not _held_elsewhere(name))
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name = line.partition(":")[0].strip()
        owners = [table for table in tables if table.endswith(f"-{name}")]
        if name.startswith("lambox") and not any(map(_held_elsewhere, owners)):
            found.add(f"interface {name}")
    found.update(f"netns {path}" for path in glob.glob("/run/netns/*lambox*"))
    found.update(
        f"temp {path}"
        for pattern in ("/tmp/lambox*", "/run/lambox*", "/tmp/as-user-*")
        for path in glob.glob(pattern)
        if path != UIDS_FILE and not throwaway.in_use(Path(path)) and not _held_elsewhere(path)
    )
    return found


def _tables() -> list[str]:
    """Of ours, in the network namespace we are in; none are seen without the right to."""
    try:
        with contextlib.closing(Netlink(NETLINK_NETFILTER)) as netlink:
            return [name for name in nftables.tables(netlink) if name.startswith("lambox-")]
    except OSError:
        return []


def _held_elsewhere(text: str) -> bool:
    """Whether the group named in `text` belongs to a living process that is not this one.

    Seen from a container, one of another pid namespace does: whether it lives cannot be told.
    """
    if (user := re.search(r"as-user-(\d+)\b", text)) and _lives_elsewhere(int(user[1])):
        return True
    match = re.search(r"lambox-(\d+)-(?:\d+-(\d+))?", text)
    if match is None:
        return False
    if match[2] and int(match[2]) != os.stat("/proc/self/ns/pid").st_ino:
        return not is_orphaned(match[0])
    return int(match[1]) != os.getpid() and psutil.pid_exists(int(match[1]))


def _lives_elsewhere(pid: int) -> bool:
    """Of tools/as-user's: whether it has neither been started by us nor runs us."""
    us = psutil.Process()
    try:
        above = [parent.pid for parent in psutil.Process(pid).parents()]
    except psutil.NoSuchProcess:
        return False
    return us.pid not in above and pid not in [us.pid, *(parent.pid for parent in us.parents())]


def _descends_elsewhere(process: psutil.Process) -> bool:
    """A zygote is in no group of ours: whose it is shows by who started it."""
    above = [parent.pid for parent in process.parents()]
    ours = [pid for pid in above if "lambox" in " ".join(psutil.Process(pid).cmdline())]
    return bool(ours) and os.getpid() not in above


def traces(pid: int) -> set[str]:
    """What is left of the server that had this pid: its groups, and sandboxes of them."""
    return {line for line in leftovers() if f"lambox-{pid}-" in line}
