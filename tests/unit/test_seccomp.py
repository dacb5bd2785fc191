"""The system call filter, run through an interpreter of classic BPF: no kernel is asked."""

from __future__ import annotations

import errno
import platform
import struct

import pytest

from sandbox.confine import seccomp

pytest.importorskip("pyseccomp", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="host: call numbers of x86-64"
)

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
"""AUDIT_ARCH_* of linux/audit.h."""
X32 = 0x40000000
"""__X32_SYSCALL_BIT of asm/unistd.h."""
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
"""SECCOMP_RET_* of linux/seccomp.h."""
LARGEST = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""


@pytest.fixture(scope="module")
def program() -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", seccomp.export()))


def run(
    program: list[tuple[int, int, int, int]], number: int, *args: int, arch: int = X86_64
) -> int:
    """What the kernel would do with a call: linux/filter.h's instructions, as libseccomp uses them."""
    words = (*args, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=iIQ6Q", number, arch, 0, *(word & (1 << 64) - 1 for word in words))
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == 0x20:  # LD W ABS
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:  # ALU AND K
            accumulator &= k
        elif code == 0x05:  # JA
            at += k
        elif code == 0x06:  # RET K
            return k
        else:
            tests = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }
            at += if_true if tests[code] else if_false


def refused(program: list[tuple[int, int, int, int]], number: int, *args: int) -> str | None:
    """The name of the errno, or None when the call is allowed."""
    action = run(program, number, *args)
    if action == ALLOW:
        return None
    assert action & 0xFFFF0000 == ERRNO, hex(action)
    return errno.errorcode[action & 0xFFFF]


Program = list[tuple[int, int, int, int]]


def test_it_fits_into_the_kernel(program: Program) -> None:
    assert 10 < len(program) < LARGEST


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("read", 0), ("write", 1), ("mmap", 9), ("mprotect", 10), ("ioctl TCGETS", 16), ("fork", 57),
        ("vfork", 58), ("execve", 59), ("exit", 60), ("wait4", 61), ("kill", 62), ("getpid", 39),
        ("socketpair", 53), ("setuid", 105), ("setgroups", 116), ("prctl", 157), ("setrlimit", 160),
        ("futex", 202), ("epoll_wait", 232), ("openat", 257), ("pipe2", 293), ("prlimit64", 302),
        ("getrandom", 318), ("memfd_create", 319), ("execveat", 322), ("rseq", 334),
        ("pidfd_open", 434), ("close_range", 436), ("statx", 332), ("seccomp", 317),
    ],
)  # fmt: skip
def test_what_runtimes_need_is_allowed(program: Program, name: str, number: int) -> None:
    assert refused(program, number) is None, name


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mount", 165), ("umount2", 166), ("pivot_root", 155), ("chroot", 161), ("open_tree", 428),
        ("move_mount", 429), ("fsopen", 430), ("fsmount", 432), ("mount_setattr", 442),
        ("unshare", 272), ("setns", 308), ("ptrace", 101), ("process_vm_readv", 310),
        ("process_vm_writev", 311), ("pidfd_getfd", 438), ("kcmp", 312), ("bpf", 321),
        ("perf_event_open", 298), ("userfaultfd", 323), ("fanotify_init", 300), ("keyctl", 250),
        ("add_key", 248), ("request_key", 249), ("init_module", 175), ("finit_module", 313),
        ("delete_module", 176), ("kexec_load", 246), ("kexec_file_load", 320), ("reboot", 169),
        ("swapon", 167), ("swapoff", 168), ("settimeofday", 164), ("clock_settime", 227),
        ("acct", 163), ("quotactl", 179), ("syslog", 103), ("iopl", 172), ("ioperm", 173),
        ("open_by_handle_at", 304), ("sethostname", 170),
    ],
)  # fmt: skip
def test_what_nobody_needs_is_refused(program: Program, name: str, number: int) -> None:
    assert refused(program, number) == "EPERM", name


def test_every_refused_name_is_known_somewhere() -> None:
    """A misspelt name would silently refuse nothing."""
    import pyseccomp

    names = {name for group in seccomp.REFUSED.values() for name in group}
    names |= set(seccomp.NOT_THERE)
    # Of newer kernels than this libseccomp may be.
    newer = {"open_tree_attr", "listmount", "statmount", "lookup_dcookie"}
    for name in sorted(names - newer):
        pyseccomp.SyscallFilter(pyseccomp.ALLOW).add_rule(pyseccomp.ERRNO(1), name)


@pytest.mark.parametrize("number", [435, 425, 426, 427])
def test_clone3_and_io_uring_are_as_on_an_old_kernel(program: Program, number: int) -> None:
    assert refused(program, number) == "ENOSYS"


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (17, None),  # fork
        (0x01200011, None),  # glibc's fork: CHILD_CLEARTID | CHILD_SETTID | SIGCHLD
        (0x003D0F00, None),  # a thread
        (0x00004111, None),  # vfork
        *((bit | 17, "EPERM") for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000)),
        *((bit | 17, "EPERM") for bit in (0x10000000, 0x20000000, 0x40000000)),
        (0x7E020011, "EPERM"),
        (0x10000011 | 1 << 40, "EPERM"),  # the kernel looks at the low half
    ],
)
def test_clone(program: Program, flags: int, answer: str | None) -> None:
    assert refused(program, 56, flags) == answer


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "answer"),
    [
        (1, 1, 0, None),  # unix
        (2, 1, 0, None),
        (2, 1 | 0x80000 | 0x800, 6, None),  # cloexec, nonblock
        (10, 2, 17, None),
        (16, 3, 0, None),  # route netlink: getifaddrs
        (16, 2 | 0x80000, 0, None),
        (16, 3, 12, "EAFNOSUPPORT"),  # netfilter
        (16, 3, 16, "EAFNOSUPPORT"),  # generic
        (16, 3, 1 << 32, "EAFNOSUPPORT"),
        (2, 3, 1, "EPERM"),  # raw
        (10, 3 | 0x80000, 58, "EPERM"),
        (2, 3 | 1 << 32, 1, "EPERM"),
        (3, 2, 0, "EAFNOSUPPORT"),
        (17, 3, 768, "EAFNOSUPPORT"),  # packet
        (17 | 1 << 32, 3, 768, "EAFNOSUPPORT"),
        (29, 3, 1, "EAFNOSUPPORT"),  # can
        (30, 1, 0, "EAFNOSUPPORT"),  # tipc
        (31, 3, 1, "EAFNOSUPPORT"),  # bluetooth
        (38, 5, 0, "EAFNOSUPPORT"),  # alg
        (40, 1, 0, "EAFNOSUPPORT"),  # vsock
        (44, 3, 0, "EAFNOSUPPORT"),  # xdp
        (0xFFFFFFFF, 1, 0, "EAFNOSUPPORT"),
    ],
)
def test_sockets(
    program: Program, family: int, kind: int, protocol: int, answer: str | None
) -> None:
    assert refused(program, 41, family, kind, protocol) == answer


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (0x5401, None),  # TCGETS
        (0x5421, None),  # FIONBIO
        (0x5412, "EPERM"),  # TIOCSTI
        (0x1_0000_5412, "EPERM"),
        (0x541C, "EPERM"),  # TIOCLINUX
    ],
)
def test_ioctls(program: Program, request_: int, answer: str | None) -> None:
    assert refused(program, 16, 0, request_) == answer


@pytest.mark.parametrize(
    ("persona", "answer"),
    [
        (0, None),
        (0xFFFFFFFF, None),  # the query
        (0x0040000, "EPERM"),  # ADDR_NO_RANDOMIZE
        (0x0400000, "EPERM"),  # READ_IMPLIES_EXEC
        (0x0000008, "EPERM"),  # PER_LINUX32
        (0x80000000, "EPERM"),
        (0x80040000, "EPERM"),
        (0xFFFFFFFE, "EPERM"),
        (0x1_0040_0000, "EPERM"),  # the kernel looks at the low half
    ],
)
def test_personality(program: Program, persona: int, answer: str | None) -> None:
    assert refused(program, 135, persona) == answer


@pytest.mark.parametrize("arch", [I386, AARCH64])
def test_foreign_architectures_are_ended(program: Program, arch: int) -> None:
    assert run(program, 20, arch=arch) == KILL_PROCESS


@pytest.mark.parametrize("number", [39, 165, 272])
def test_x32_is_ended(program: Program, number: int) -> None:
    assert run(program, X32 | number) == KILL_PROCESS


def test_a_call_that_is_not_invented_yet_is_not_a_crash(program: Program) -> None:
    assert run(program, 9999) in (ALLOW, ERRNO | errno.ENOSYS)
