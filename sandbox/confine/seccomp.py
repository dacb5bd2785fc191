"""Owns the system call filter: which calls a sandbox is refused, and with which errno.

A first filter: everything is allowed but what stands in REFUSED, one reason per group. Built with
libseccomp through pyseccomp and exported as BPF, which bwrap loads just before it executes pid 1.
Calls of foreign architectures (i386, x32) end the process.
"""

from __future__ import annotations

import errno
import os
import socket

from sandbox.confine.spec import IsolationUnavailable

REFUSED: dict[str, tuple[str, ...]] = {
    "mounts: the root and its read-only binds are bwrap's alone": (
        "mount",
        "umount",
        "umount2",
        "pivot_root",
        "chroot",
        "open_tree",
        "move_mount",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "mount_setattr",
        "open_tree_attr",
        "listmount",
        "statmount",
    ),
    "namespaces: a fresh user namespace brings capabilities and their kernel paths": (
        "unshare",
        "setns",
    ),
    "looking into other processes: pid 1 holds the control socket": (
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "process_madvise",
        "pidfd_getfd",
        "kcmp",
    ),
    "kernel programming interfaces, a steady source of privilege escalations": (
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "fanotify_init",
        "fanotify_mark",
        "lookup_dcookie",
    ),
    "keyrings are shared by uid across namespaces": ("keyctl", "add_key", "request_key"),
    "the machine itself: modules, kernels, clocks, swap, accounting, consoles": (
        "init_module",
        "finit_module",
        "delete_module",
        "create_module",
        "kexec_load",
        "kexec_file_load",
        "reboot",
        "swapon",
        "swapoff",
        "settimeofday",
        "clock_settime",
        "clock_adjtime",
        "adjtimex",
        "stime",
        "acct",
        "quotactl",
        "quotactl_fd",
        "syslog",
        "iopl",
        "ioperm",
        "vhangup",
        "nfsservctl",
        "sethostname",
        "setdomainname",
        "uselib",
        "ustat",
        "_sysctl",
        "vm86",
        "vm86old",
        "modify_ldt",
    ),
    "file handles go round every mount": ("open_by_handle_at", "name_to_handle_at"),
    "NUMA placement of others' memory": ("move_pages", "migrate_pages", "mbind", "set_mempolicy"),
}

NOT_THERE = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup")
"""ENOSYS, so that C libraries fall back: clone3 (its flags are behind a pointer, which no filter can
read) to clone; io_uring (runs calls past this filter) to epoll; io_setup (takes from fs.aio-max-nr, which
the whole machine shares) to threads."""

CLONE_NEW = 0x7E020080
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME} of linux/sched.h."""
CLONE_PARENT = 0x8000
"""A child of our parent, which for a zygote's fork is outside: its pid namespace, and so the sandbox, could
not end before the zygote has reaped it (zap_pid_ns_processes of kernel/pid_namespace.c)."""

FAMILIES = (
    socket.AF_UNIX,
    socket.AF_INET,
    socket.AF_INET6,
    # getifaddrs(3) asks over route netlink; its own namespace is all it can see.
    socket.AF_NETLINK,
)
"""Address families a socket may have. All others (packet, vsock, alg, bluetooth, ...) are EAFNOSUPPORT."""
RAW = 3
"""SOCK_RAW of linux/net.h."""
TYPE_MASK = 0xF
NETLINK_ROUTE = 0
PERSONALITY_QUERY = 1 << 31
"""personality(0xffffffff) only asks; of linux/personality.h no flag has this bit."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
"""asm-generic/ioctls.h: put characters into a terminal's input (CVE-2017-5226 and its kin)."""


def export() -> bytes:
    """The filter as BPF. Raises IsolationUnavailable where libseccomp is missing."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as exc:
        raise IsolationUnavailable(
            f"libseccomp cannot be loaded: {exc}", "apt-get install libseccomp2"
        ) from exc
    refuse = pyseccomp.ERRNO(errno.EPERM)
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    # The default would end the calling thread only, and leave a program that waits for it.
    rules.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for names in REFUSED.values():
        for name in names:
            _refuse(rules, pyseccomp, refuse, name)
    for name in NOT_THERE:
        _refuse(rules, pyseccomp, pyseccomp.ERRNO(errno.ENOSYS), name)
    arg = pyseccomp.Arg
    for bit in range(32):
        if (CLONE_NEW | CLONE_PARENT) >> bit & 1:
            rules.add_rule(refuse, "clone", arg(0, pyseccomp.MASKED_EQ, 1 << bit, 1 << bit))
    # Allowed are 0 (Linux) and the query, so no bit may differ from the highest one. The others switch
    # off what protects a program (ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC) or reach rarely used kernel code.
    for bit in range(31):
        pair = PERSONALITY_QUERY | 1 << bit
        for alone in (1 << bit, PERSONALITY_QUERY):
            rules.add_rule(refuse, "personality", arg(0, pyseccomp.MASKED_EQ, pair, alone))
    no_family = pyseccomp.ERRNO(errno.EAFNOSUPPORT)
    known = sorted(int(family) for family in FAMILIES)
    for family in range(known[-1] + 1):
        if family not in known:
            rules.add_rule(no_family, "socket", arg(0, pyseccomp.EQ, family))
    rules.add_rule(no_family, "socket", arg(0, pyseccomp.GT, known[-1]))
    for family in (socket.AF_INET, socket.AF_INET6):
        rules.add_rule(
            refuse,
            "socket",
            arg(0, pyseccomp.EQ, int(family)),
            arg(1, pyseccomp.MASKED_EQ, TYPE_MASK, RAW),
        )
    rules.add_rule(
        no_family,
        "socket",
        arg(0, pyseccomp.EQ, int(socket.AF_NETLINK)),
        arg(2, pyseccomp.NE, NETLINK_ROUTE),
    )
    for request in (TIOCSTI, TIOCLINUX):
        # Compared in 32 bits, as the kernel does: a request with high bits set is the same request.
        rules.add_rule(refuse, "ioctl", arg(1, pyseccomp.MASKED_EQ, 0xFFFFFFFF, request))
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            rules.export_bpf(file)
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def _refuse(rules: object, pyseccomp: object, action: object, name: str) -> None:
    """A call this libseccomp or this architecture does not know needs no rule."""
    try:
        rules.add_rule(action, name)  # type: ignore[attr-defined]
    except (ValueError, OSError):
        return
