"""What lambox could leave behind on a host, listed."""

from __future__ import annotations

import glob
import os
from pathlib import Path

import psutil


def leftovers() -> set[str]:
    """Processes, cgroups, mounts, loop devices, network namespaces and temp folders of ours."""
    found = {
        f"process {process.pid} {process.info['name']}"
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] in ("bwrap", "lambox")
        or any("/run/lambox" in word for word in process.info["cmdline"] or ())
    }
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        found.update(f"cgroup {top}/{name}" for name in folders if name.startswith("lambox"))
    for line in Path("/proc/mounts").read_text().splitlines():
        if "lambox" in line:
            found.add(f"mount {line}")
    for backing in glob.glob("/sys/block/loop*/loop/backing_file"):
        if "lambox" in Path(backing).read_text():
            found.add(f"loop {backing}")
    found.update(f"netns {path}" for path in glob.glob("/run/netns/*lambox*"))
    found.update(f"temp {path}" for path in glob.glob("/tmp/lambox*") + glob.glob("/run/lambox*"))
    return found


def traces(pid: int) -> set[str]:
    """What is left of the server that had this pid: its groups, and sandboxes of them."""
    return {line for line in leftovers() if f"lambox-{pid}-" in line}
