"""Owns the system call filters: the tables of `calls` as BPF, one program per family of runtimes.

A program is two in a row. The first goes by the call's number alone: what the family may use goes on,
what this libseccomp knows and is not among it is EPERM, all else (calls of kernels newer than it) ENOSYS,
as on the older kernel that C libraries know how to live with. The second looks at arguments. Container engines
decide alike: runc answers ENOSYS above the highest number its profile names, Podman's profile to all that
it does not name.

    enforce(family)     what sandboxes have
    observe(family)     log mode's: where `enforce` refuses, the supervisor is asked (`overseer`)
    dangerous()         what is refused in log mode too, as the supervisor looks it up

Built with libseccomp through pyseccomp, exported as BPF. Calls of foreign architectures (i386, x32) end the
process in every mode.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sandbox.confine import bpf, calls
from sandbox.confine.calls import Family
from sandbox.confine.spec import IsolationUnavailable

CLONE_NEW = 0x7E020080
"""CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME} of linux/sched.h."""
CLONE_PARENT = 0x8000
"""A child of our parent, which for a zygote's fork is outside: its pid namespace, and so the sandbox, could
not end before the zygote has reaped it (zap_pid_ns_processes of kernel/pid_namespace.c)."""

SOCKETS = (
    socket.AF_UNIX,
    socket.AF_INET,
    socket.AF_INET6,
    # getifaddrs(3) asks over route netlink; its own namespace is all it can see.
    socket.AF_NETLINK,
)
"""Address families a socket may have. All others (packet, vsock, alg, bluetooth, ...) are EAFNOSUPPORT."""
STREAM, DATAGRAM, RAW, PACKET = 1, 2, 3, 10
"""SOCK_* of linux/net.h. SOCK_PACKET of AF_INET is AF_PACKET (__sock_create of net/socket.c); of the types that are
not here SOCK_DCCP and SOCK_SEQPACKET load DCCP and SCTP without naming a protocol."""
TYPE_MASK = 0xF
HIGHEST_PROTOCOL = 58
"""IPPROTO_ICMPV6 of linux/in.h: of 0, ICMP, TCP, UDP and this one. Above are SCTP, L2TP, UDP-Lite, MPTCP and SMC, whose
modules the kernel loads for whoever asks (CVE-2021-23133 and its kin), as DCCP's (CVE-2017-6074)."""
DCCP = 33
NETLINK_ROUTE = 0
PERSONALITY_QUERY = 1 << 31
"""personality(0xffffffff) only asks; of linux/personality.h no flag has this bit."""
TIOCSTI, TIOCLINUX, TIOCSETD = 0x5412, 0x541C, 0x5423
"""asm-generic/ioctls.h: put characters into a terminal's input (CVE-2017-5226 and its kin); give it a line
discipline (n_gsm, slip...: the kernel loads the module for whoever asks, CVE-2023-6546 and its kin)."""
MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB = 0x40000, 4, 0o4000
"""asm-generic/mman-common.h, linux/memfd.h, linux/shm.h: pages of the host's pool, which no memory cgroup counts."""
S_IFMT, S_IFCHR, S_IFBLK = 0o170000, 0o020000, 0o060000
"""linux/stat.h"""
NUMBERS = 1024
"""Call numbers that are looked at: the highest of x86-64, aarch64 and riscv64 is below 500."""
BINARY_TREE = 2
"""SCMP_FLTATR_CTL_OPTIMIZE: 9 comparisons for a call instead of up to 370."""

Mode = Literal["enforce", "log"]
Refusal = Callable[[int], int]
"""errno -> SECCOMP_RET_*"""


@dataclass(frozen=True, slots=True)
class Filters:
    """The programs of one launcher, made once."""

    mode: Mode
    enforced: Mapping[Family, bytes]
    observed: Mapping[Family, bytes]
    dangerous: bytes
    names: Mapping[int, str]
    """Number -> name of every call known here."""


def filters(mode: Mode) -> Filters:
    """Every program that a launcher of this mode needs, 10 ms each. Raises IsolationUnavailable."""
    log = mode == "log"
    return Filters(
        mode,
        {family: enforce(family) for family in calls.FAMILIES},
        {family: observe(family) for family in calls.FAMILIES if log},
        dangerous() if log else b"",
        names() if log else {},
    )


def enforce(family: Family, arch: int = 0) -> bytes:
    """The filter of a family. `arch`: a SCMP_ARCH_*, the host's if 0. Raises IsolationUnavailable."""
    return _family(family, arch, log=False)


def observe(family: Family) -> bytes:
    """Like `enforce`, but what would be refused is SECCOMP_RET_USER_NOTIF. Raises IsolationUnavailable."""
    return _family(family, 0, log=True)


def _family(family: Family, arch: int, *, log: bool) -> bytes:
    builder = _Builder(arch)

    def refusal(number: int) -> int:
        return bpf.NOTIFY if log else bpf.ERRNO | number

    rules = builder.rules(refusal(errno.ENOSYS), BINARY_TREE)
    allowed = calls.allowed(family)
    for name in allowed:
        builder.add(rules, bpf.ALLOW, name)
    for name in calls.NOT_THERE:
        silent = name in calls.UNREMARKABLE
        builder.add(rules, bpf.ERRNO | errno.ENOSYS if silent else refusal(errno.ENOSYS), name)
    for name in builder.known() - allowed - set(calls.NOT_THERE):
        builder.add(rules, refusal(errno.EPERM), name)
    return bpf.chain(builder.export(rules), _arguments(builder, refusal))


def dangerous() -> bytes:
    """Allows all but REFUSED, NOT_THERE and what the argument rules refuse. Raises IsolationUnavailable."""
    builder = _Builder(0)
    rules = builder.rules(bpf.ALLOW, BINARY_TREE)
    for names in calls.REFUSED.values():
        for name in names:
            builder.add(rules, bpf.ERRNO | errno.EPERM, name)
    for name in calls.NOT_THERE:
        builder.add(rules, bpf.ERRNO | errno.ENOSYS, name)
    return bpf.chain(builder.export(rules), _arguments(builder, lambda number: bpf.ERRNO | number))


def names() -> dict[int, str]:
    """Number -> name of every call known here. Raises IsolationUnavailable."""
    return _Builder(0).numbers


def _arguments(builder: _Builder, refusal: Refusal) -> bytes:
    """Allows every call but for some arguments."""
    arg, rules = builder.api.Arg, builder.rules(bpf.ALLOW)
    masked, equal = builder.api.MASKED_EQ, builder.api.EQ
    refuse, no_family = refusal(errno.EPERM), refusal(errno.EAFNOSUPPORT)
    # Namespaces: a fresh user namespace brings capabilities.
    for bit in range(32):
        if (CLONE_NEW | CLONE_PARENT) >> bit & 1:
            builder.add(rules, refuse, "clone", arg(0, masked, 1 << bit, 1 << bit))
    # Allowed are 0 (Linux) and the query, so no bit may differ from the highest one. The others switch
    # off what protects a program (ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC) or reach rarely used kernel code.
    for bit in range(31):
        pair = PERSONALITY_QUERY | 1 << bit
        for alone in (1 << bit, PERSONALITY_QUERY):
            builder.add(rules, refuse, "personality", arg(0, masked, pair, alone))
    known = sorted(int(family) for family in SOCKETS)
    for family in range(known[-1] + 1):
        if family not in known:
            builder.add(rules, no_family, "socket", arg(0, equal, family))
    builder.add(rules, no_family, "socket", arg(0, builder.api.GT, known[-1]))
    # A pair of any other family is made, and its module loaded, before the kernel sees that there are none.
    not_unix = arg(0, builder.api.NE, int(socket.AF_UNIX))
    builder.add(rules, no_family, "socketpair", not_unix)
    for family in (socket.AF_INET, socket.AF_INET6):
        for kind in {*range(TYPE_MASK + 1)} - {STREAM, DATAGRAM}:
            # Raw sockets make packets that nobody checked (no capability for it: this is the second bolt).
            answer = refuse if kind in (RAW, PACKET) else refusal(errno.ESOCKTNOSUPPORT)
            typed = arg(1, masked, TYPE_MASK, kind)
            builder.add(rules, answer, "socket", arg(0, equal, int(family)), typed)
        # As a kernel without them answers: Go asks for MPTCP, and is content with TCP.
        none = refusal(errno.EPROTONOSUPPORT)
        builder.add(rules, none, "socket", arg(0, equal, int(family)), arg(2, equal, DCCP))
        above = arg(2, builder.api.GT, HIGHEST_PROTOCOL)
        builder.add(rules, none, "socket", arg(0, equal, int(family)), above)
    other = arg(2, builder.api.NE, NETLINK_ROUTE)
    builder.add(rules, no_family, "socket", arg(0, equal, int(socket.AF_NETLINK)), other)
    for request in (TIOCSTI, TIOCLINUX, TIOCSETD):
        # Compared in 32 bits, as the kernel does: a request with high bits set is the same request.
        builder.add(rules, refuse, "ioctl", arg(1, masked, 0xFFFFFFFF, request))
    # As where the host has no huge pages.
    no_memory = refusal(errno.ENOMEM)
    for name, place, flag in (
        ("mmap", 3, MAP_HUGETLB),
        ("memfd_create", 1, MFD_HUGETLB),
        ("shmget", 2, SHM_HUGETLB),
    ):
        builder.add(rules, no_memory, name, arg(place, masked, flag, flag))
    # Device nodes (no capability for it either); mkfifo and sockets are made with mknod too.
    for name, place in (("mknod", 1), ("mknodat", 2)):
        for kind in (S_IFCHR, S_IFBLK):
            builder.add(rules, refuse, name, arg(place, masked, S_IFMT, kind))
    return builder.export(rules)


class _Builder:
    """libseccomp for one architecture. Raises IsolationUnavailable where it is missing."""

    def __init__(self, arch: int) -> None:
        try:
            import pyseccomp
        except (ImportError, RuntimeError) as exc:
            raise IsolationUnavailable(
                f"libseccomp cannot be loaded: {exc}", "apt-get install libseccomp2"
            ) from exc
        self.api: Any = pyseccomp
        self._native = pyseccomp.system_arch()
        self._arch = arch or self._native
        self.numbers = {number: name for name, number in calls.NEWER.items()}
        for number in range(NUMBERS):
            try:
                name = pyseccomp.resolve_syscall(self._arch, number)
            except ValueError:
                continue
            self.numbers[number] = name.decode()

    def known(self) -> set[str]:
        return set(self.numbers.values())

    def rules(self, default: int, optimize: int = 0) -> Any:
        rules = self.api.SyscallFilter(default)
        if self._arch != self._native:
            rules.add_arch(self._arch)
            rules.remove_arch(self._native)
        # The default would end the calling thread only, and leave a program that waits for it.
        rules.set_attr(self.api.Attr.ACT_BADARCH, bpf.KILL_PROCESS)
        if optimize:
            # libseccomp before 2.5 has no tree: the same answers by way of a list.
            try:
                rules.set_attr(self.api.Attr.CTL_OPTIMIZE, optimize)
            except OSError as exc:
                if exc.errno not in (errno.EEXIST, errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        return rules

    def add(self, rules: Any, action: int, name: str, *arguments: Any) -> None:
        """A call that this architecture does not have needs no rule, nor one that is the default anyway."""
        number = self.api.resolve_syscall(self._native, name)
        if number == -1:  # __NR_SCMP_ERROR: this libseccomp has not heard of it
            if name not in calls.NEWER or self._arch != self._native:
                return
            number = calls.NEWER[name]
        try:
            rules.add_rule(action, number, *arguments)
        except OSError as exc:
            if exc.errno not in (errno.EACCES, errno.EDOM):
                # EACCES: the action is the default. EDOM: not on this architecture (seccomp_rule_add(3)).
                raise

    def export(self, rules: Any) -> bytes:
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                rules.export_bpf(file)
            os.lseek(fd, 0, os.SEEK_SET)
            return os.read(fd, 1 << 20)
        finally:
            os.close(fd)
