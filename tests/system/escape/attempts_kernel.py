"""Owns the attempts at the kernel itself: namespaces, mounts, and interfaces that no function needs."""

from __future__ import annotations

REFUSED = "EPERM | ENOSYS"
NO_FAMILY = "EAFNOSUPPORT | EPERM | EACCES | EPROTONOSUPPORT | ESOCKTNOSUPPORT"


def _flags(call: str, **flags: int) -> tuple[tuple[str, str, str], ...]:
    return tuple(
        (
            f"{call}: a new {name} namespace",
            f"return syscall('{call}', {flag | (17 if call == 'clone' else 0)}, 0, 0, 0, 0)",
            REFUSED,
        )
        for name, flag in flags.items()
    )


NEW = {
    "user": 0x10000000,
    "mount": 0x20000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "ipc": 0x8000000,
    "uts": 0x4000000,
    "cgroup": 0x2000000,
}

KERNEL: dict[str, tuple[tuple[str, str, str], ...]] = {
    "namespaces": (
        *_flags("unshare", **NEW, time=0x80),
        *_flags("clone", **NEW),
        ("clone3 (flags no filter can read)",
            "return syscall('clone3', struct.pack('=11Q', 0x10000000, *[0] * 10), 88)",
            "ENOSYS"),
        ("unshare(1) by a program", """
            if not os.path.exists("/usr/bin/unshare"):
                return "no unshare"
            return subprocess.run(["unshare", "-U", "true"], capture_output=True).returncode != 0""",
            "True | no unshare"),
        ("bubblewrap inside", """
            if not os.path.exists("/usr/bin/bwrap"):
                return "no bwrap"
            return subprocess.run(["bwrap", "--bind", "/", "/", "true"], capture_output=True).returncode != 0""",
            "True | no bwrap"),
        ("setns into its own, for capabilities",
            "return syscall('setns', os.open('/proc/self/ns/user', os.O_RDONLY), 0)",
            REFUSED),
        ("setns by pidfd", "return syscall('setns', os.pidfd_open(os.getpid()), 0x10000000)", REFUSED),
        ("who owns its namespaces (NS_GET_USERNS)", """
            fd = os.open("/proc/self/ns/net", os.O_RDONLY)
            owner = raw("ioctl", fd, 0xB701, 0)
            return syscall("setns", owner, 0)""", REFUSED + " | PermissionError: [Errno 1] ioctl"),
    ),
    "mounts": (
        ("a tmpfs", "os.mkdir('/tmp/m'); return syscall('mount', b'x', b'/tmp/m', b'tmpfs', 0, 0)", REFUSED),
        ("a fresh /proc",
            "os.mkdir('/tmp/p'); return syscall('mount', b'x', b'/tmp/p', b'proc', 0, 0)",
            REFUSED),
        ("a bind", "os.mkdir('/tmp/b'); return syscall('mount', b'/', b'/tmp/b', 0, 4096, 0)", REFUSED),
        ("the root, writable", "return syscall('mount', b'x', b'/', 0, 32 | 4096, 0)", REFUSED),
        ("propagation", "return syscall('mount', b'x', b'/', 0, 1 << 20, 0)", REFUSED),
        ("take /tmp away", "return syscall('umount2', b'/tmp', 2)", REFUSED),
        ("pivot_root", "os.chdir('/tmp'); return syscall('pivot_root', b'.', b'.')", REFUSED),
        ("chroot", "return syscall('chroot', b'/tmp')", REFUSED),
        ("open_tree", "return syscall('open_tree', -100, b'/', 1)", REFUSED),
        ("fsopen", "return syscall('fsopen', b'ext4', 0)", REFUSED),
        ("move_mount", "return syscall('move_mount', -100, b'/usr', -100, b'/tmp', 0)", REFUSED),
        ("mount_setattr: writable",
            "return syscall('mount_setattr', -100, b'/', 0, struct.pack('=4Q', 0, 1, 0, 0), 32)",
            REFUSED),
        ("a disk", "return syscall('mount', b'/dev/vda', b'/tmp', b'ext4', 0, 0)", REFUSED),
    ),
    "kernel interfaces": (
        ("bpf", "return syscall('bpf', 0, b'x' * 64, 64)", REFUSED),
        ("perf_event_open", "return syscall('perf_event_open', b'x' * 128, 0, -1, -1, 0)", REFUSED),
        ("userfaultfd", "return syscall('userfaultfd', 1)", REFUSED),
        ("io_uring (goes round the filter)", "return syscall('io_uring_setup', 1, b'\\0' * 120)", REFUSED),
        ("io_setup (a limit of the whole machine)", "return syscall('io_setup', 1, b'\\0' * 8)", REFUSED),
        ("load a module", "return syscall('init_module', b'x', 1, b'')", REFUSED),
        ("load one by descriptor", "return syscall('finit_module', 0, b'', 0)", REFUSED),
        ("unload one", "return syscall('delete_module', b'ext4', 0)", REFUSED),
        ("kexec", "return syscall('kexec_load', 0, 0, 0, 0)", REFUSED),
        ("reboot", "return syscall('reboot', 0xfee1dead, 672274793, 0x1234567, 0)", REFUSED),
        ("read the kernel's log", "return syscall('syslog', 3, b' ' * 100, 100)", REFUSED),
        ("clear it", "return syscall('syslog', 5, 0, 0)", REFUSED),
        ("swap", "return syscall('swapon', b'/tmp/x', 0)", REFUSED),
        ("quotas", "return syscall('quotactl', 0x800001 << 8, 0, 0, 0)", REFUSED),
        ("accounting", "return syscall('acct', b'/tmp/x')", REFUSED),
        ("set the clock", "return syscall('settimeofday', b'\\0' * 16, 0)", REFUSED),
        ("set it another way", "return syscall('clock_settime', 0, b'\\0' * 16)", REFUSED),
        ("adjust it", "return syscall('adjtimex', struct.pack('=I', 1) + bytes(204))", REFUSED),
        ("a hostname", "return syscall('sethostname', b'x', 1)", REFUSED),
        ("I/O ports", "return syscall('iopl', 3)", REFUSED),
        ("segments (modify_ldt)", "return syscall('modify_ldt', 1, b'\\0' * 16, 16)", REFUSED),
        ("memory out of everybody's reach", "return syscall('memfd_secret', 0)", "ENOSYS"),
        ("the host's huge pages (no cgroup counts them)", """
            kinds = [attempt(mmap.mmap, -1, 1 << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)]
            kinds.append(attempt(os.memfd_create, "x", 4))
            return kinds + [syscall("shmget", 0, 1 << 21, 0o4600)]""",
            "['ENOMEM', 'ENOMEM', 'ENOMEM'] | ['ENOMEM', 'ENOMEM', 'EPERM']"),
        ("fanotify", "return syscall('fanotify_init', 0, 0)", REFUSED),
        ("compare with pid 1", "return syscall('kcmp', os.getpid(), 1, 1, 0, 0)", REFUSED),
        ("others' pages", "return syscall('move_pages', 1, 0, 0, 0, 0, 0)", REFUSED),
        ("no address randomisation", "return syscall('personality', 0x40000)", REFUSED),
        ("packet sockets", "return attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)", NO_FAMILY),
        ("raw sockets", "return attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)", NO_FAMILY),
        *((f"{name} over {family} (its module would be loaded)",
            f"return attempt(socket.socket, socket.AF_{family}, {kind}, {protocol})",
            "EPROTONOSUPPORT")
            for family in ("INET", "INET6")
            for name, kind, protocol in (("sctp", 1, 132), ("dccp", 2, 33), ("l2tp", 2, 115), ("mptcp", 1, 262))),
        *((f"{name} over {family}, by its type alone",
            f"return attempt(socket.socket, socket.AF_{family}, {kind}, 0)",
            "ESOCKTNOSUPPORT")
            for family in ("INET", "INET6")
            for name, kind in (("sctp", 5), ("dccp", 6))),
        ("pairs of families that are refused alone", """
            return sorted({attempt(socket.socketpair, family, 1) for family in (30, 38, 40, 44, 16, 2)})""",
            "['EAFNOSUPPORT']"),
        ("the hypervisor's sockets",
            "return attempt(socket.socket, socket.AF_VSOCK, socket.SOCK_STREAM)",
            NO_FAMILY),
        ("the kernel's cryptography",
            "return attempt(socket.socket, socket.AF_ALG, socket.SOCK_SEQPACKET)",
            NO_FAMILY),
        ("bluetooth", "return attempt(socket.socket, 31, socket.SOCK_RAW, 1)", NO_FAMILY),
        ("tipc", "return attempt(socket.socket, 30, socket.SOCK_RAW)", NO_FAMILY),
        ("rds", "return attempt(socket.socket, 21, socket.SOCK_SEQPACKET)", NO_FAMILY),
        ("xdp", "return attempt(socket.socket, 44, socket.SOCK_RAW)", NO_FAMILY),
        ("netfilter, audit, uevents over netlink", """
            return sorted({
                attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, kind) for kind in (6, 9, 12, 15)
            })""",
            "['EAFNOSUPPORT'] | ['EPERM'] | ['EPROTONOSUPPORT']"),
        ("line disciplines (modules loaded on demand)", """
            _, end = os.openpty()
            return sorted({attempt(fcntl.ioctl, end, 0x5423, struct.pack("=i", kind)) for kind in (21, 3, 13, 15)})""",
            "['EPERM']"),
        ("calls as a 32-bit program makes them", """
            if not X86 or "User Mode Linux" in open("/proc/cpuinfo").read():  # there are none
                return "SIGSYS"
            room = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            room.write(bytes.fromhex("b814000000cd80c3"))
            ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(room)))()
            return "done" """, "SIGSYS | SIGSEGV"),
        ("calls of x32", """
            if not X86:
                return "SIGSYS"
            room = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            room.write(bytes.fromhex("b8270000400f05c3"))
            ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(room)))()
            return "done" """, "SIGSYS"),
    ),
}  # fmt: skip
