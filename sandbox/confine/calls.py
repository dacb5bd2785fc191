"""Owns the tables of system calls: what a sandbox's programs may use, what they never may, and why.

ALLOWED is for every family of runtimes, EXTRA for one; what stands in neither is refused. A runtime starts
other programs (layers and zips hold any binary), so ALLOWED is what C libraries and ordinary programs use,
not what one interpreter does. Where a group says "measured", tests/unit/data/syscalls.json has by whom
(`python -m bench.syscalls` makes it); the other names in such a group are the same thing for other
arguments, on aarch64 (which has no open, stat, fork, ... but openat, newfstatat, clone) or in newer C libraries.

Names are the kernel's. A name that an architecture or this libseccomp does not know needs no rule there.
"""

from __future__ import annotations

from typing import Literal

Family = Literal["python", "nodejs", "provided"]
FAMILIES: tuple[Family, ...] = ("python", "nodejs", "provided")

ALLOWED: dict[str, str] = {
    # Every allocator and loader; mlock is held by RLIMIT_MEMLOCK, mseal only takes away. Measured.
    "memory of its own": """
        brk mmap mprotect munmap mremap madvise msync mincore mlock mlock2 mlockall munlock munlockall
        memfd_create mseal map_shadow_stack arch_prctl""",
    # glibc, musl, Go; arguments of clone are looked at below. Measured.
    "threads": """
        clone set_tid_address set_robust_list get_robust_list rseq gettid exit futex futex_wait futex_wake
        futex_requeue futex_waitv membarrier getcpu sched_yield""",
    # Its own children: the pid namespace holds no others. pidfd_getfd is not among them. Measured.
    "processes": """
        fork vfork execve execveat exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
        getpid getppid getpgid setpgid getpgrp getsid setsid getrusage times prctl restart_syscall""",
    # Without capabilities and with no_new_privs they can only be set to what they are. Measured.
    "who it is": """
        getuid geteuid getresuid setuid setreuid setresuid setfsuid getgid getegid getresgid setgid setregid
        setresgid setfsgid getgroups setgroups capget capset umask""",
    "signals (measured)": """
        rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait sigaltstack signalfd signalfd4 pause""",
    # Reading clocks, waiting by them; setting them is refused. Measured.
    "time": """
        time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
        timerfd_gettime timerfd_settime""",
    "waiting for descriptors (measured)": """
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
        epoll_pwait2 eventfd eventfd2""",
    # Development servers and `tail -f`; held by fs.inotify.max_user_instances, per uid. Measured.
    "being told of changed files": "inotify_init inotify_init1 inotify_add_watch inotify_rm_watch",
    # ioctl: requests that write into a terminal are refused below. Measured.
    "descriptors": """
        read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek close close_range dup
        dup2 dup3 fcntl flock ioctl pipe pipe2 sendfile splice tee copy_file_range""",
    # What is written costs the sandbox's own /tmp. Measured.
    "contents of files": """
        open openat openat2 creat truncate ftruncate fallocate fadvise64 readahead sync syncfs fsync fdatasync
        sync_file_range cachestat""",
    # mknod: pipes and sockets; devices are refused below. Measured.
    "names of files": """
        access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir getdents getdents64 mkdir mkdirat
        mknod mknodat rmdir link linkat symlink symlinkat unlink unlinkat rename renameat renameat2""",
    # cp, tar, rsync; owners can only be itself. Measured.
    "attributes of files": """
        stat lstat fstat newfstatat statx statfs fstatfs chmod fchmod fchmodat fchmodat2 chown fchown lchown
        fchownat utime utimes utimensat futimesat getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr
        fsetxattr setxattrat listxattr llistxattr flistxattr listxattrat removexattr lremovexattr
        fremovexattr removexattrat""",
    # Families and types are looked at below; a network namespace, or the host's, is what they reach. Measured.
    "sockets": """
        socket socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt
        sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg shutdown""",
    # How many processors there are, where a thread is to run, being nicer than the rest. Measured.
    "scheduling": """
        sched_getaffinity sched_setaffinity sched_getattr sched_getparam sched_getscheduler
        sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority setpriority
        ioprio_get""",
    # Hard limits can only be lowered; the cgroup's are not reached by them. Measured.
    "limits": "getrlimit setrlimit prlimit64",
    # personality: only what it is now, and asking (below). Measured.
    "what machine this is": "uname sysinfo personality",
    "chance (measured)": "getrandom",
    # Both only take away: browsers, xz, tar of newer distributions confine themselves.
    "confining itself further": """
        seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self""",
}

EXTRA: dict[Family, dict[str, str]] = {
    "python": {
        # os.sched_setscheduler and os.sched_setparam; real-time classes need RLIMIT_RTPRIO, which is 0.
        "the os module": "sched_setscheduler sched_setparam",
    },
    "nodejs": {
        # V8 puts its compiler's pages under a protection key where the processor has them.
        "memory protection keys": "pkey_alloc pkey_free pkey_mprotect",
    },
    "provided": {
        # Any language's runtime may be this one: JVMs, PHP, R, Erlang, databases started in tests.
        "memory protection keys": "pkey_alloc pkey_free pkey_mprotect",
        "scheduling, real-time classes are out of reach": """
            sched_setscheduler sched_setparam sched_setattr ioprio_set""",
        # The namespace is its own, and what is in it is charged to its cgroup and goes with it.
        "System V and POSIX IPC": """
            shmget shmat shmctl shmdt semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
            mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
        # JVMs and OpenMP ask where their memory is; placing it is refused.
        "NUMA, asking": "get_mempolicy",
    },
}

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
        "process_mrelease",
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
    "NUMA placement of others' memory": (
        "move_pages",
        "migrate_pages",
        "mbind",
        "set_mempolicy",
        "set_mempolicy_home_node",
    ),
}
"""Refused with EPERM by every filter, in log mode too: the rest of the isolation rests on it."""

NOT_THERE = (
    # Its flags are behind a pointer, which no filter can read; C libraries fall back to clone.
    "clone3",
    # Runs calls past this filter; event loops fall back to epoll.
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    # Takes from fs.aio-max-nr, which the whole machine shares; databases fall back to threads.
    "io_setup",
    # Mounts and namespaces by number, not by what can be walked to; util-linux falls back to /proc.
    "listmount",
    "statmount",
    "listns",
    # Security modules' state; their libraries fall back to /proc/self/attr, which is read-only for it.
    "lsm_get_self_attr",
    "lsm_set_self_attr",
    "lsm_list_modules",
    # Linux 6.17's for what ioctl does; tools fall back to that.
    "file_getattr",
    "file_setattr",
    # Memory that cannot be reclaimed or dumped; where it is switched off the kernel says the same.
    "memfd_secret",
)
"""Refused with ENOSYS, in log mode too: to C libraries and runtimes the kernel is one without them."""

UNREMARKABLE = frozenset({"clone3"})
"""Of NOT_THERE what log mode does not mention: glibc tries it for every thread, and is served by clone."""

NEWER = {
    "futex_waitv": 449,
    "set_mempolicy_home_node": 450,
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
    "listns": 470,
}
"""Numbers of calls that a distribution's libseccomp may not know yet: since 424 (Linux 5.1) a call has the same
number on every architecture (the kernel's scripts/syscall.tbl)."""


def allowed(family: Family) -> frozenset[str]:
    """Every call that programs of this family may use, some of them for some arguments only."""
    groups = (*ALLOWED.values(), *EXTRA[family].values())
    return frozenset(name for names in groups for name in names.split())
