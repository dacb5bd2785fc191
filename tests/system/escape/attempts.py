"""Owns the list: by boundary, (what is tried, the code that tries it, what may come of it).

The code runs inside (`inside.py`), may use what is defined there, and returns a word; `prey` is what the host
holds out to it. Several words separated by " | ": kernels and kinds of hosts differ in which layer says no.
"""

from __future__ import annotations

from tests.system.escape.attempts_kernel import KERNEL

Attempts = dict[str, tuple[tuple[str, str, str], ...]]

NO_PATH = "ENOENT | EACCES | ENOTDIR"
REFUSED = "EPERM | ENOSYS"

USERLAND: Attempts = {
    "identity": (
        ("be anybody but 993:990",
            "return [*os.getresuid(), *os.getresgid()] == [993] * 3 + [990] * 3",
            "True"),
        ("have a capability", """
            sets = re.findall(r"Cap\\w+:\\t(\\w+)", open("/proc/self/status").read())
            return len(sets) == 5 and not any(int(one, 16) for one in sets)""", "True"),
        ("setuid(0)", "return attempt(os.setuid, 0)", "EINVAL | EPERM"),
        ("setgid(0)", "return attempt(os.setgid, 0)", "EINVAL | EPERM"),
        ("setgroups", "return attempt(os.setgroups, [0])", "EPERM"),
        ("give itself capabilities", """
            head, all_ = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0xFFFFFFFF] * 6)
            return syscall("capset", head, all_)""", "EPERM"),
        ("switch no_new_privs off", "return syscall('prctl', 38, 0, 0, 0, 0)", "EINVAL"),
        ("run a set-user-id program of its code", """
            done = subprocess.run([f"{TASK}/set-user-id", "-p", "-c", "echo $EUID"], capture_output=True)
            return done.stdout.decode().strip()""", "993"),
        ("run a program with file capabilities", """
            show = 'while read -r line; do [[ $line = CapEff* ]] && echo ${line##*0}. ; done </proc/self/status'
            try:
                done = subprocess.run([f"{TASK}/capable", "-c", show], capture_output=True)
            except PermissionError:
                return "EPERM"
            return done.stdout.decode().strip()""", ". | EPERM"),
        ("make a set-user-id program in /tmp", """
            path = "/tmp/" + str(os.getpid())
            open(path, "wb").write(open("/bin/bash", "rb").read())
            os.chmod(path, 0o6755)
            done = subprocess.run([path, "-p", "-c", "echo $EUID"], capture_output=True)
            os.unlink(path)
            return done.stdout.decode().strip()""", "993"),
        ("give a file to root",
            "open('/tmp/own', 'w'); return attempt(os.chown, '/tmp/own', 0, 0)",
            "EINVAL | EPERM"),
    ),
    "files of the host": (
        ("read a file by its path", "return read(prey['secret'], prey)", NO_PATH),
        ("read it from where pid 1 is", "return read('/proc/1/root' + prey['secret'], prey)", NO_PATH),
        ("read it from pid 1's folder", "return read('/proc/1/cwd' + prey['secret'], prey)", NO_PATH),
        ("read it from the supervisor's root",
            "return read(f\"/proc/{prey['process']}/root{prey['secret']}\", prey)",
            NO_PATH),
        ("walk up from the root", "return read('/' + '../' * 40 + prey['secret'], prey)", NO_PATH),
        ("walk up from /tmp",
            "os.chdir('/tmp'); return read('../' * 40 + prey['secret'].lstrip('/'), prey)",
            NO_PATH),
        ("walk up from the code",
            "os.chdir(TASK); return read('../' * 40 + prey['secret'].lstrip('/'), prey)",
            NO_PATH),
        ("walk up from the thread's root",
            "return read('/proc/thread-self/root/..' + prey['secret'], prey)",
            NO_PATH),
        ("through an open descriptor", """
            found = [read(f"/proc/self/fd/{fd}/..{prey['secret']}", prey) for fd in os.listdir("/proc/self/fd")]
            return "read" if {"read", "opened"} & set(found) else "nothing" """, "nothing"),
        ("a folder among its descriptors", """
            open_ = [f"/proc/self/fd/{fd}" for fd in range(3, 4096) if attempt(os.fstat, fd) == "done"]
            return [path for path in open_ if os.path.isdir(path)]""", "[]"),
        ("through a file handle", """
            handle = ctypes.create_string_buffer(struct.pack("=Ii", 8, 1) + struct.pack("=II", 2, 0))
            return syscall("open_by_handle_at", os.open(TASK, os.O_RDONLY), ctypes.addressof(handle), 0)""", REFUSED),
        ("/etc/shadow", "return read('/etc/shadow', prey)", NO_PATH),
        ("/root, /home, /var/lib, /run of the host", """
            places = ("/root", "/home", "/var/lib", "/var/log", "/run/systemd", "/srv", "/mnt", "/work", "/boot")
            return [place for place in places if os.path.isdir(place) and os.listdir(place)]""", "[]"),
        ("find the mark anywhere", """
            for path, folders, names in os.walk("/"):
                if path in ("/proc", "/usr", "/var/lang", "/var/runtime"):
                    folders.clear()
                for name in names:
                    if os.path.isfile(f"{path}/{name}") and read(f"{path}/{name}", prey) == "read":
                        return f"{path}/{name}"
            return "nothing" """, "nothing"),
        ("write anywhere but /tmp",
            "return [place for place in places() if attempt(os.mkdir, place + '/x') == 'done']",
            "[]"),
        ("write its code", "return attempt(open, TASK + '/handler.py', 'r+')", "EROFS | EACCES"),
        ("write pid 1's program", "return attempt(open, '/run/lambox/init', 'r+')", "EROFS | EACCES"),
        ("write its interpreter",
            "return attempt(os.open, '/proc/self/exe', os.O_RDWR)",
            "EROFS | EACCES | ETXTBSY"),
        ("write it later, through /proc (CVE-2019-5736)", """
            fd = os.open("/proc/self/exe", os.O_PATH)
            return attempt(os.open, f"/proc/self/fd/{fd}", os.O_WRONLY)""", "EROFS | EACCES | ETXTBSY"),
        ("link a shared file into /tmp",
            "return attempt(os.link, '/usr/bin/env', '/tmp/env')",
            "EXDEV | EPERM"),
        ("change modes and times of shared files", """
            return sorted({attempt(os.chmod, "/usr/bin/env", 0o777), attempt(os.utime, "/usr/bin/env"),
                           attempt(os.setxattr, "/usr/bin/env", "user.x", b"1")})""",
            "['EPERM', 'EROFS'] | ['EROFS'] | ['EACCES', 'EPERM', 'EROFS'] | ['EACCES', 'EROFS']"),
        ("lease a shared file (its opener would wait)", """
            return attempt(fcntl.fcntl, os.open("/usr/bin/env", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)""",
            "EACCES | EPERM"),
        ("write into /dev/shm", "return attempt(open, '/dev/shm/x', 'w')", "EROFS | ENOENT | EACCES"),
    ),
    "hostile files in the code": (
        ("an absolute link", "return read(TASK + '/link absolute', prey)", NO_PATH),
        ("a link of thirty ..", "return read(TASK + '/link dotted', prey)", NO_PATH),
        ("a link to /etc/shadow", "return read(TASK + '/link shadow', prey)", NO_PATH),
        ("a link to /", "return os.path.samefile(TASK + '/link root', '/')", "True"),
        ("a chain of links", "return read(TASK + '/link chain-1', prey)", NO_PATH),
        ("a link through the supervisor's /proc", "return read(TASK + '/link supervisor', prey)", NO_PATH),
        ("a link through pid 1's /proc", "return read(TASK + '/link pid 1', prey)", NO_PATH),
        ("a link to itself", "return read(TASK + '/link loop', prey)", "ELOOP"),
        ("a hard link to a file of root's", "return read(TASK + '/hard link', prey)", "EACCES | ENOENT"),
        ("a device node", "return attempt(open, TASK + '/device', 'rb')", "EACCES | EPERM | ENOENT"),
        ("a pipe, to be blocked by",
            "return attempt(os.open, TASK + '/fifo', os.O_WRONLY | os.O_NONBLOCK)",
            "ENXIO | EACCES"),
        ("a socket that somebody left there (not defended)",
            "return unix(TASK + '/socket')",
            "ECONNREFUSED | ENOENT | EACCES | done"),
    ),
    "devices": (
        ("any that is not harmless", """
            harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "core",
                        "fd", "stdin", "stdout", "stderr"}
            return sorted(set(os.listdir("/dev")) - harmless)""", "[]"),
        ("make one", """
            import stat
            kinds = ((stat.S_IFCHR, 1, 1), (stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0), (stat.S_IFCHR, 10, 229))
            return sorted({
                attempt(os.mknod, "/tmp/d", kind | 0o666, os.makedev(*number)) for kind, *number in kinds
            })""",
            "['EPERM']"),
        ("a terminal of the host", "return [n for n in os.listdir('/dev/pts') if n != 'ptmx']", "[]"),
        ("the controlling terminal", "return attempt(open, '/dev/tty')", "ENXIO"),
        ("put input into a terminal (TIOCSTI)", """
            _, end = os.openpty()
            return syscall("ioctl", end, 0x5412, b"x")""", "EPERM | EIO"),
        ("the same with high bits set (CVE-2019-10063)", """
            _, end = os.openpty()
            return syscall("ioctl", end, 0x100005412, b"x")""", "EPERM | EIO"),
        ("add to the host's randomness",
            "return syscall('ioctl', os.open('/dev/urandom', os.O_RDONLY), 0x40085203, b'x' * 16)",
            "EPERM"),
    ),
    "/proc and /sys": (
        ("what is root's or tells about neighbours", """
            names = ("kcore", "keys", "key-users", "kallsyms", "kmsg", "timer_list", "sched_debug", "interrupts",
                     "iomem", "ioports", "modules", "locks", "partitions", "cmdline", "config.gz", "sysrq-trigger",
                     "slabinfo", "vmallocinfo", "kpageflags", "kpagecount", "latency_stats", "timer_stats",
                     "diskstats", "cgroups", "softirqs", "schedstat", "zoneinfo", "buddyinfo", "pagetypeinfo",
                     "swaps", "mdstat", "sys/fs/file-nr", "sys/kernel/random/boot_id")
            said = {name: attempt(open, f"/proc/{name}", "rb") for name in names}
            return [name for name in said if said[name] not in ("EACCES", "ENOENT", "EPERM")]""",
            "[]"),
        ("folders of drivers and file systems", """
            names = ("acpi", "asound", "bus", "driver", "dynamic_debug", "fs", "irq", "pressure", "scsi")
            return [name for name in names if os.path.isdir(f"/proc/{name}") and os.listdir(f"/proc/{name}")]""", "[]"),
        ("uncover what is hidden", "return syscall('umount2', b'/proc/keys', 2)", REFUSED),
        ("press sysrq", "return attempt(open, '/proc/sysrq-trigger', 'w')", "EACCES | ENOENT | EROFS"),
        ("sysctls that are the host's", """
            # Its namespaces' own (IPC, pid) may be open to it; they end with it.
            own = re.compile(r"/proc/sys/(fs/mqueue/|kernel/(auto_msgmni|msgm|ns_last_pid|pid_max|sem$|"
                             r"sem_next_id|shm|msg_next_id))")
            paths = [os.path.join(path, name) for path, _, names in os.walk("/proc/sys") for name in names]
            paths = [path for path in paths if os.access(path, os.W_OK) and not own.match(path)]
            return [path for path in paths if attempt(os.open, path, os.O_WRONLY) == "done"]""", "[]"),
        ("core_pattern (runs a program as root)",
            "return attempt(open, '/proc/sys/kernel/core_pattern', 'w')",
            "EACCES | EROFS"),
        ("modprobe's path",
            "return attempt(open, '/proc/sys/kernel/modprobe', 'w')",
            "EACCES | EROFS | ENOENT"),
        ("binfmt_misc",
            "return attempt(open, '/proc/sys/fs/binfmt_misc/register', 'w')",
            "EACCES | EROFS | ENOENT | EPERM"),
        ("/sys", "return os.path.exists('/sys') and os.listdir('/sys')", "False | []"),
        ("the supervisor's folder, by its pid",
            "return read(f\"/proc/{prey['process']}/environ\", prey)",
            "ENOENT | EACCES | opened"),
        ("other mounts than its own", """
            tops = {line.split()[4].split("/")[1] for line in open("/proc/self/mountinfo")}
            known = "usr bin lib lib32 lib64 libx32 sbin etc opt var tmp proc dev run"
            return sorted(tops - {"", *known.split()})""",
            "[]"),
        ("be dumped by the host's crash handler", """
            # 1 where a program is told of crashes, which ignores 0 (core(5)).
            piped = open("/proc/sys/kernel/core_pattern").read().startswith("|")
            return resource.getrlimit(resource.RLIMIT_CORE) == (piped, piped)""", "True"),
        ("raise its limits", """
            raised = []
            for what in range(16):
                soft, hard = resource.getrlimit(what)
                if hard != resource.RLIM_INFINITY:
                    try:
                        resource.setrlimit(what, (soft, hard + 1))
                        raised.append(what)
                    except (ValueError, OSError):
                        pass
            return raised""", "[]"),
    ),
    "processes": (
        ("see any but its own", """
            mine = {os.getpid(), os.getppid(), 1}
            pids = {int(name) for name in os.listdir("/proc") if name.isdigit()} - mine
            kin = {pid for pid in pids if b"PPid:\\t0" not in open(f"/proc/{pid}/status", "rb").read()}
            return len(pids - kin)""", "0 | 1"),
        ("signal one of the host's", "return attempt(os.kill, host_pid('process', prey), 0)", "ESRCH"),
        ("signal the supervisor",
            "return attempt(os.kill, host_pid('supervisor', prey), signal.SIGKILL)",
            "ESRCH"),
        ("a descriptor of it",
            "return attempt(os.pidfd_open, host_pid('supervisor', prey))",
            "ESRCH | EINVAL"),
        ("signal its parent outside (pid 0 is its own group)",
            "return os.getppid() in (0, 1) or os.path.exists(f'/proc/{os.getppid()}')",
            "True"),
        ("kill pid 1", "os.kill(1, signal.SIGKILL); return attempt(os.kill, 1, 0)", "done"),
        ("stop pid 1", """
            os.kill(1, signal.SIGSTOP)
            return open("/proc/1/status").read().split("State:\\t")[1][0] in "SR" """, "True"),
        ("trace pid 1", "return syscall('ptrace', 16, 1, 0, 0)", REFUSED),
        ("have the zygote trace it (PTRACE_TRACEME)", "return syscall('ptrace', 0, 0, 0, 0)", REFUSED),
        ("read pid 1's memory", "return attempt(open, '/proc/1/mem', 'rb')", "EACCES | EPERM"),
        ("the same by process_vm_readv", """
            room = ctypes.create_string_buffer(8)
            vector = struct.pack("=QQ", ctypes.addressof(room), 8)
            return syscall("process_vm_readv", 1, vector, 1, vector, 1, 0)""", REFUSED),
        ("write into it", "return attempt(open, '/proc/1/mem', 'r+b')", "EACCES | EPERM"),
        ("pid 1's environment", "return attempt(open, '/proc/1/environ')", "EACCES | EPERM"),
        ("pid 1's descriptors (the control socket)",
            "return attempt(os.listdir, '/proc/1/fd')",
            "EACCES | EPERM"),
        ("take one of them (pidfd_getfd)", "return syscall('pidfd_getfd', os.pidfd_open(1), 3, 0)", REFUSED),
        ("pid 1's namespaces", "return attempt(os.open, '/proc/1/ns/user', os.O_RDONLY)", "EACCES | EPERM"),
        ("pid 1's program, to write it",
            "return attempt(os.open, '/proc/1/exe', os.O_RDONLY)",
            "EACCES | EPERM"),
        ("a child of its parent (CLONE_PARENT)", """
            got = syscall("clone", 0x8000 | signal.SIGCHLD, 0, 0, 0, 0)
            return got""", "EPERM"),
        ("have a descriptor's signals sent to the supervisor", """
            ours, _ = socket.socketpair()
            return attempt(fcntl.fcntl, ours, fcntl.F_SETOWN, host_pid("supervisor", prey))""", "ESRCH"),
        ("slow all of its uid down", "return attempt(os.setpriority, os.PRIO_USER, 0, 19)", "done"),
        ("real-time scheduling",
            "return attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))",
            "EPERM"),
        ("be nicer to itself than others",
            "return attempt(os.setpriority, os.PRIO_PROCESS, 0, -5)",
            "EACCES | EPERM"),
        ("live when the out-of-memory killer comes",
            "return attempt(os.write, os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000')",
            "EACCES | EPERM"),
    ),
    "IPC, sockets, keys": (
        ("System V memory by key", "return syscall('shmget', prey['ipc key'], 4096, 0)", "ENOENT | EPERM"),
        ("System V memory by number",
            "return syscall('shmat', prey['shared memory'], 0, 0o10000)",
            "EINVAL | EPERM | EIDRM"),
        ("a System V queue", "return syscall('msgget', prey['ipc key'], 0)", "ENOENT | EPERM"),
        ("System V semaphores", "return syscall('semget', prey['ipc key'], 1, 0)", "ENOENT | EPERM"),
        ("a POSIX queue",
            "return syscall('mq_open', prey['mq'][1:].encode(), 0, 0, 0)",
            "ENOENT | EPERM | ENOSYS"),
        ("/dev/shm of the host", "return read(prey['dev shm'], prey)", NO_PATH),
        ("what System V has of others", """
            tables = [open(f"/proc/sysvipc/{name}").read().count("\\n") for name in ("shm", "msg", "sem")]
            return tables""", "[1, 1, 1]"),
        ("an abstract socket of the host", "return unix('\\0' + prey['abstract'])", "ECONNREFUSED | EPERM"),
        ("a socket of the host by its path", "return unix(prey['socket'])", NO_PATH),
        ("what sockets there are",
            "return [line for line in open('/proc/net/unix') if prey['abstract'] in line]",
            "[]"),
        ("a server on the host's 127.0.0.1", "return tcp('127.0.0.1', prey['tcp'])", "ECONNREFUSED"),
        ("a server on the host's ::1",
            "return tcp('::1', prey['tcp6'])",
            "ECONNREFUSED | EADDRNOTAVAIL | ENETUNREACH"),
        ("the same by bash", """
            script = f"exec 3<>/dev/tcp/127.0.0.1/{prey['tcp']} && echo open || echo closed"
            return subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip()""",
            "closed | "),
        ("the cloud's metadata service",
            "return tcp('169.254.169.254', 80)",
            "ENETUNREACH | ECONNREFUSED | EACCES | EPERM | EHOSTUNREACH"),
        ("a port below 1024", """
            with socket.socket() as sock:
                return attempt(sock.bind, ("127.0.0.1", 80))""", "EACCES"),
        ("set an address on an interface", """
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
                message = struct.pack("=IHHII", 24, 20, 5, 1, 0) + struct.pack("=BBBBI", 2, 8, 0, 0, 1)
                sock.send(message)
                answer = sock.recv(4096)
                return errno.errorcode.get(-struct.unpack_from("=i", answer, 16)[0], "done")""", "EPERM"),
        ("switch an interface off", """
            name = socket.if_nameindex()[0][1].encode()
            with socket.socket() as sock:
                return attempt(fcntl.ioctl, sock, 0x8914, struct.pack("16sH14x", name, 0))""", "EPERM"),
        ("read the session keyring it was started in",
            "return syscall('keyctl', 11, prey['key'], 0, 0, 0)",
            "EPERM | ENOSYS | EACCES"),
        ("search it", "return syscall('keyctl', 10, -3, b'user', b'escape', 0)", "EPERM | ENOSYS | ENOKEY"),
        ("add a key", "return syscall('add_key', b'user', b'x', b'x', 1, -4)", "EPERM | ENOSYS"),
        ("request one",
            "return syscall('request_key', b'user', b'escape', 0, -3)",
            "EPERM | ENOSYS | ENOKEY"),
    ),
    "cgroups": (
        ("see where it is",
            "return {line.split(':', 2)[2].strip() for line in open('/proc/self/cgroup')} <= {'/'}",
            "True"),
        ("the hierarchy", "return os.path.exists('/sys/fs/cgroup')", "False"),
        ("mount one (v1)",
            "os.mkdir('/tmp/cg1'); return syscall('mount', b'x', b'/tmp/cg1', b'cgroup', 0, b'memory')",
            REFUSED),
        ("mount one (v2), for its release_agent's kin",
            "os.mkdir('/tmp/cg2'); return syscall('mount', b'x', b'/tmp/cg2', b'cgroup2', 0, 0)",
            REFUSED),
    ),
    "secrets": (
        ("in its environment",
            "return marked('\\n'.join(f'{k}={v}' for k, v in os.environ.items()).encode(), prey)",
            "False"),
        ("in what it was started with", """
            told = b"".join(open(f"/proc/self/{name}", "rb").read() for name in ("environ", "cmdline", "auxv"))
            return marked(told, prey)""", "False"),
        ("in its memory, left by whoever it was forked from", """
            found = False
            with open("/proc/self/mem", "rb", 0) as memory:
                for line in open("/proc/self/maps"):
                    first, last = (int(part, 16) for part in line.split()[0].split("-"))
                    if " r" in line[:40] and last - first < 1 << 28 and "[v" not in line:
                        try:
                            memory.seek(first)
                            found = found or marked(memory.read(last - first), prey)
                        except (OSError, OverflowError):
                            pass
            return found""", "False"),
        ("in its neighbours' processes", """
            found = [read(f"/proc/{pid}/environ", prey) for pid in os.listdir("/proc") if pid.isdigit()]
            return "read" in found""", "False"),
        ("in memory that the kernel gives it", """
            return marked(b"".join(mmap.mmap(-1, 1 << 20).read() for _ in range(8)), prey)""", "False"),
        ("whose descriptors it has", """
            odd = []
            for fd in range(4096):
                try:
                    to = os.readlink(f"/proc/self/fd/{fd}")
                except OSError:
                    continue
                if not re.match(r"pipe:|socket:|anon_inode:\\[event|/dev/(null|urandom)$|/proc/\\d+/fd$", to):
                    odd.append(f"{fd} {to}")
            return odd""", "[]"),
        ("sockets it has not made (the control socket)", """
            unixes = []
            for fd in range(4096):
                try:
                    with socket.socket(fileno=os.dup(fd)) as sock:
                        # Who made a pair: 0 is nobody in here (unix(7)).
                        if sock.family == socket.AF_UNIX and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED):
                            unixes.append(fd)
                except OSError:
                    pass
            return unixes""", "[]"),
    ),
    "neighbours": (
        ("its /tmp", "return [name for name in os.listdir('/tmp') if name.startswith('neighbour')]", "[]"),
        ("its abstract socket", "return unix('\\0escape-neighbour')", "ECONNREFUSED | EPERM"),
        ("its server", "return tcp('127.0.0.1', 5555)", "ECONNREFUSED"),
        ("its System V memory", "return syscall('shmget', 5555, 4096, 0)", "ENOENT | EPERM"),
        ("its processes", """
            others = {int(pid) for pid in os.listdir("/proc") if pid.isdigit()} - {1, os.getpid(), os.getppid()}
            return any("NEIGHBOUR" in open(f"/proc/{pid}/cmdline").read() for pid in others)""", "False"),
        ("another Runtime API than its own", """
            lines = open("/proc/net/tcp").read().splitlines()[1:]
            listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
            return [one for one in listening if not one.startswith("0100007F:")], len(listening)""", "([], 1)"),
    ),
}  # fmt: skip

ATTEMPTS: Attempts = {**USERLAND, **KERNEL}


def plain(code: str) -> str:
    """Without the indentation it has in this file."""
    lines = code.strip("\n").split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)


def numbered() -> list[tuple[str, str]]:
    """(boundary: name, code), as `inside.py` takes them."""
    return [
        (f"{boundary}: {name}", plain(code))
        for boundary, attempts in ATTEMPTS.items()
        for name, code, _ in attempts
    ]


def expected() -> dict[str, tuple[str, ...]]:
    """What may come of each."""
    return {
        f"{boundary}: {name}": tuple(words.split(" | "))
        for boundary, attempts in ATTEMPTS.items()
        for name, _, words in attempts
    }
