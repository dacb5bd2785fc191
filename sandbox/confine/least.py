"""Owns giving up what a supervisor started by the host's root does not need: capabilities, and core dumps.

CAP_SYS_ADMIN has to stay, so this is no wall against somebody who has taken the supervisor over. It takes away what
a mistake could use without one: modules, clocks, raw sockets, I/O ports, rebooting, the kernel's log.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

from sandbox.confine import privilege

KEPT = {
    0: "chown: log pipes and /tmp belong to the environment's own uid",
    1: "dac_override: functions and the state folder are anybody's",
    2: "dac_read_search: the same, for folders on the way",
    3: "fowner: modes of what was given away",
    5: "kill: sandboxes have other uids",
    6: "setgid: a sandbox's bwrap is started as its gid",
    7: "setuid: and as its uid",
    8: "setpcap: bwrap drops capabilities for the zygote; this module",
    10: "net_bind_service: a port below 1024",
    12: "net_admin: the way out of sandboxes, loopback of the zygote's network namespace",
    18: "sys_chroot: setns(2) into a mount namespace",
    19: "sys_ptrace: /proc/PID/ns of pid 1s, which are not dumpable",
    21: "sys_admin: mounts, namespaces, loop devices",
    24: "sys_resource: one descriptor limit for all sandboxes",
    27: "mknod: nodes of loop devices, in a container whose /dev has none",
    31: "setfcap: user namespaces that map uid 0, where sandboxes have no uids of their own",
}
"""linux/capability.h -> who needs it."""
PR_CAPBSET_DROP, CAPABILITY_VERSION_3 = 24, 0x20080522
"""linux/prctl.h, linux/capability.h"""
_libc = ctypes.CDLL(None, use_errno=True)


def give_up() -> None:
    """For the process and everything it starts. Before its second thread. Raises OSError.

    Only where the capabilities are the host's: in a user namespace or a container's they reach no further than that.
    """
    # bwrap and its kind get what they are started with; a core of ours would hold the functions' secrets.
    limit = no_core()
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    if not privilege.of_the_host():
        return
    for capability in range(64):
        if capability in KEPT:
            continue
        zero = ctypes.c_ulong(0)
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), zero, zero, zero) == -1:
            if ctypes.get_errno() == errno.EINVAL:
                break  # the kernel's last one was the one before
            raise _error("PR_CAPBSET_DROP")
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    if _libc.capget(header, held) == -1:
        raise _error("capget")
    # effective, permitted, inheritable of the capabilities 0 to 31, then of the others
    effective, permitted, inheritable, *_ = struct.unpack("=6I", held.raw)
    kept = sum(1 << capability for capability in KEPT)
    fewer = struct.pack("=6I", effective & kept, permitted & kept, inheritable & kept, 0, 0, 0)
    if _libc.capset(header, fewer) == -1:
        raise _error("capset")


def no_core() -> int:
    """A core_pattern that starts a program ignores a limit of 0; 1 it takes for "none" (core(5))."""
    with open("/proc/sys/kernel/core_pattern", "rb") as file:
        return 1 if file.read(1) == b"|" else 0


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
