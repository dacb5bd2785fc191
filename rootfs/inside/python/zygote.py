"""A preloaded interpreter that forks itself into prepared sandboxes. Trusted: no user code ever runs in it.

Started by the supervisor, as root, in a mount namespace of its own that has what a sandbox of this runtime
has, at the same paths (so modules loaded here and modules loaded later by a fork come from the same
places). Standard library only: this runs on the function's interpreter, whichever that is.

On CHANNEL, a unix SOCK_SEQPACKET socket, one message is one packet, host byte order:
  from the supervisor  'F' u32 ticket, u32 uid, u32 gid (as they are called inside), and by SCM_RIGHTS
                       the descriptors FDS, then those of the cgroup.procs files to be written
  to the supervisor    'R'                                   ready: everything is loaded
                       'C' u32 ticket, u32 pid               forked; the pid is of the supervisor's namespace
                       'E' u32 ticket, u32 errno             not forked
                       'X' u32 ticket, u32 wait status, u64 user us, u64 system us
End of file on CHANNEL: the supervisor is gone, and so are we. What was forked dies with its pid namespace.

A fork belongs to the sandbox, and can do no more than what bwrap started there, before it says a word: it
is in the cgroups and in every namespace, has the uid, no capability (bounding set included), no new
privileges, the filter, and no descriptor but its own. Then it waits on the socket `control` (a stream)
for its function:
  from the supervisor  u32 length, JSON {"argv", "env", "cwd", "nofile"}
  to the supervisor    'P'          parked, all of the above done; in log mode with the filter's listener
                                    (seccomp_unotify(2)), which the fork does not keep
                       'S' u32 errno  0: it becomes the runtime now; else what kept it from that
                       'G' u32 0    it executes argv now: end of file follows, or 'S' with the errno
Before 'P', 'E' u32 errno + text says what could not be dropped or joined; the fork ends itself.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # typing costs 2 ms and its memory, in every environment
if TYPE_CHECKING:
    from typing import NoReturn

NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")
PIPES = ("stdout", "stderr", "telemetry")
FDS = ("control", *PIPES, *NAMESPACES)
"""What comes with a request, in this order; cgroup.procs files open for writing follow."""
CLONE_NEW = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
"""linux/sched.h"""
NS_GET_NSTYPE = 0xB703
"""linux/nsfs.h, Linux 4.11"""
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 4, 22, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
SECCOMP_MODE_FILTER = 2
SECCOMP_SET_MODE_FILTER, NEW_LISTENER, WAIT_KILLABLE_RECV = 1, 1 << 3, 1 << 5
"""linux/prctl.h, linux/seccomp.h"""
SFD_NONBLOCK, SFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
"""sys/signalfd.h"""
RT_SIGACTION = {"x86_64": 13, "aarch64": 134}
SECCOMP = {"x86_64": 317, "aarch64": 277}
"""asm/unistd.h"""
KEYCTL = {"x86_64": 250, "aarch64": 219}
KEYCTL_JOIN_SESSION_KEYRING = 1
"""asm/unistd.h, linux/keyctl.h"""
CAPABILITY_VERSION_3 = 0x20080522
"""linux/capability.h"""

OFTEN = (
    "awslambdaric.lambda_literals",
    "dataclasses",
    "datetime",
    "decimal",
    "hashlib",
    "http.client",
    "platform",
    "random",
    "ssl",
    "typing",
    "urllib.parse",
    "uuid",
)
"""What functions import most, loaded once (20 ms of every cold start otherwise)."""
REQUEST = struct.Struct("=cIII")
CONTROL_FD, TELEMETRY_FD, USER_FD = 61, 62, 63
NUMBERS = {
    "null": 0,
    "stdout": 1,
    "stderr": 2,
    "control": CONTROL_FD,
    "telemetry": TELEMETRY_FD,
    "user": USER_FD,
}
"""What a fork keeps, under which number; the last but one is all that user code finds besides 0, 1, 2."""
MOST_FDS = 32
MOST_ID = 0xFFFFFFFF
"""(uid_t) -1, which setresuid(2) takes for "as it is"."""
MAX_MESSAGE = 4 << 20
AT_START = (
    "LD_",
    "PYTHON",
    "MALLOC_",
    "GLIBC_",
    "LC_",
    "LANG",
    "OPENSSL_",
)
"""Beginnings of variables that programs and libraries read when they start, and not again."""
CLIENT = "awslambdaric.bootstrap"
AT_IMPORT = ("AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL")
"""Variables that CLIENT reads when it is imported: it is loaded again, which takes a fiftieth of a fresh start."""

libc = ctypes.CDLL(None, use_errno=True)


class SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def setns(fd: int, name: str) -> None:
    check(libc.setns(fd, CLONE_NEW[name]), f"setns({name})")


def prctl(option: int, value: int, pointer: object = None) -> None:
    zero = ctypes.c_ulong(0)
    check(
        libc.prctl(option, ctypes.c_ulong(value), pointer or zero, zero, zero), f"prctl({option})"
    )


def child_signals() -> int:
    """A descriptor (signalfd(2)) that can be read when children have ended. Blocks SIGCHLD: a fork lets go of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    mask = struct.pack("=Q", 1 << (signal.SIGCHLD - 1)) + bytes(120)  # sigset_t of the C library
    fd: int = libc.signalfd(-1, mask, SFD_NONBLOCK | SFD_CLOEXEC)
    check(fd, "signalfd")
    return fd


class Zygote:
    """The loop of the parent. `serve` returns only in a fork that has been told its function."""

    def __init__(self, channel: int, own_pid_namespace: int, filter_: int, observed: bool) -> None:
        """`observed`: forks load the filter with a listener, which the supervisor gets."""
        self._channel = socket.socket(fileno=channel)
        self._own = own_pid_namespace
        self._filter = b"" if filter_ < 0 else os.read(filter_, 1 << 20)
        self._observed = observed
        self._children: dict[int, int] = {}
        """pid -> ticket"""
        self._deaths = child_signals()
        self._poll = select.epoll()

    def serve(self) -> None:
        self._channel.send(b"R")
        self._poll.register(self._channel.fileno(), select.EPOLLIN)
        self._poll.register(self._deaths, select.EPOLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._deaths:
                    self._reap()
                elif self._take_request():
                    return

    def _reap(self) -> None:
        """Whatever is dead: what a fork made with CLONE_PARENT is our child too, and a sandbox cannot
        end before all in it are reaped."""
        os.read(self._deaths, 4096)
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            ticket = self._children.pop(pid, None)
            if ticket is not None:
                user, system = (int(seconds * 1e6) for seconds in (usage.ru_utime, usage.ru_stime))
                self._channel.send(struct.pack("=cIIQQ", b"X", ticket, status, user, system))

    def _take_request(self) -> bool:
        """True in a fork."""
        room = socket.CMSG_SPACE(MOST_FDS * 4)
        data, extras, flags, _ = self._channel.recvmsg(64, room, socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        fds = array.array("i")
        for level, kind, value in extras:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(value[: len(value) - len(value) % 4])
        cut = flags & socket.MSG_CTRUNC
        # Anything else is no request, and has nobody who waits for an answer.
        if len(data) == REQUEST.size and data[:1] == b"F" and (cut or len(fds) >= len(FDS)):
            _, ticket, uid, gid = REQUEST.unpack(data)
            number = errno.EMFILE if cut else wrong(list(fds), uid, gid)
            if number:
                self._failed(ticket, OSError(number, ""))
            elif self._fork(ticket, list(fds)):
                # Closed now: their finalizers would close whatever has these numbers by then.
                self._channel.close()
                self._poll.close()
                os.close(self._deaths)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                sandbox = dict(zip(FDS, fds, strict=False))
                fork = Fork(sandbox, list(fds[len(FDS) :]), uid, gid)
                fork.enter(self._filter, self._observed)
                return True
        for fd in fds:
            os.close(fd)
        return False

    def _fork(self, ticket: int, fds: list[int]) -> bool:
        """True in the fork. No exception leaves the parent's side: one request fails, not the zygote."""
        try:
            setns(fds[FDS.index("pid")], "pid")
        except OSError as exc:
            self._failed(ticket, exc)
            return False
        try:
            pid = os.fork()
        except OSError as exc:
            self._go_back()
            self._failed(ticket, exc)
            return False
        if pid == 0:
            return True
        self._go_back()
        self._children[pid] = ticket
        self._channel.send(struct.pack("=cII", b"C", ticket, pid))
        return False

    def _go_back(self) -> None:
        """Not where our pid namespace is the host's and we are root of a user namespace only.

        Nothing depends on it: where the next child goes is said before each fork (pid_namespaces(7)).
        """
        try:  # noqa: SIM105  contextlib is not loaded
            setns(self._own, "pid")
        except PermissionError:
            pass

    def _failed(self, ticket: int, exc: OSError) -> None:
        self._channel.send(struct.pack("=cII", b"E", ticket, exc.errno or 0))


def wrong(fds: list[int], uid: int, gid: int) -> int:
    """What is wrong with a request, as an errno; 0 if nothing is. Each descriptor is asked what it is."""
    if not (0 < uid < MOST_ID and 0 < gid < MOST_ID):
        return errno.EINVAL
    try:
        kinds = [stat.S_IFMT(os.fstat(fd).st_mode) for fd in fds[: len(PIPES) + 1]]
        if kinds != [stat.S_IFSOCK, *[stat.S_IFIFO] * len(PIPES)]:
            return errno.ENOTSOCK
        for name, fd in zip(NAMESPACES, fds[len(PIPES) + 1 :], strict=False):
            if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEW[name]:
                return errno.EINVAL
        for fd in fds[len(FDS) :]:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY:
                return errno.EBADF
    except OSError as exc:
        return exc.errno or errno.EINVAL
    return 0


class Fork:
    """A fork on its way into its sandbox; used in the child only."""

    def __init__(self, fds: dict[str, int], procs: list[int], uid: int, gid: int) -> None:
        self._fds = fds
        self._procs = procs
        self._uid = uid
        self._gid = gid

    def enter(self, filter_: bytes, observed: bool) -> None:
        """Returns as the sandbox's own process, told what to run."""
        control = self._fds["control"]
        try:
            self._join()
            control = self._take_descriptors()
            self._drop()
            listener = load(filter_, observed) if filter_ else -1
        except BaseException as exc:  # noqa: ASYNC103  nothing here is async, and the process ends
            number = exc.errno or 0 if isinstance(exc, OSError) else 0
            os.write(control, struct.pack("=cI", b"E", number) + str(exc).encode()[:500])
            os._exit(125)
        reseed()
        parked(control, listener)
        wait_for_function(control)

    def _join(self) -> None:
        os.setsid()
        for fd in self._procs:
            os.write(fd, b"0")
        # All but "user" while we have the capabilities of the first user namespace; "pid" is joined already.
        for name in NAMESPACES[1:-1]:
            setns(self._fds[name], name)
        os.chdir("/")
        os.umask(0o022)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # the supervisor may be protected from the out-of-memory killer

    def _take_descriptors(self) -> int:
        """0, 1, 2, 61 and 62 are what they are in a sandbox, all others are closed."""
        self._fds["null"] = os.open("/dev/null", os.O_RDWR)
        # First out of the way of the numbers they are to have.
        high = {
            name: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, USER_FD + 1)
            for name, fd in self._fds.items()
        }
        for name, number in NUMBERS.items():
            os.dup2(high[name], number, inheritable=number not in (CONTROL_FD, USER_FD))
        os.closerange(3, CONTROL_FD)
        os.closerange(USER_FD + 1, (1 << 31) - 1)
        return CONTROL_FD

    def _drop(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (no_core(), no_core()))
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        if may_drop_groups():
            os.setgroups([])
        setns(USER_FD, "user")
        os.close(USER_FD)
        os.setresgid(self._gid, self._gid, self._gid)
        os.setresuid(self._uid, self._uid, self._uid)
        # Whoever started lambox may have keys in the session keyring, which all forks inherit (keyrings(7)).
        libc.syscall(KEYCTL[os.uname().machine], KEYCTL_JOIN_SESSION_KEYRING, None)
        # The new user namespace brought a full bounding set.
        for capability in range(64):
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError as exc:
                if exc.errno != errno.EINVAL or capability == 0:
                    raise
                break  # the kernel's last one was the one before
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
        header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
        check(libc.capset(header, bytes(24)), "capset")
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        # As after an execve: the files of /proc/self are its own. (setresuid took that away.)
        prctl(PR_SET_DUMPABLE, 1)


def load(filter_: bytes, observed: bool) -> int:
    """The filter's listener; -1 where nobody is to be asked."""
    code = ctypes.cast(ctypes.c_char_p(filter_), ctypes.c_void_p)
    program = ctypes.byref(SockFprog(len(filter_) // 8, code))
    if not observed:
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)
        return -1
    listener = -1
    # Linux 5.19: a signal does not start a call anew once the supervisor has heard of it.
    for flags in (NEW_LISTENER | WAIT_KILLABLE_RECV, NEW_LISTENER):
        number = SECCOMP[os.uname().machine]
        listener = libc.syscall(number, SECCOMP_SET_MODE_FILTER, flags, program)
        if listener >= 0 or ctypes.get_errno() != errno.EINVAL:
            break
    check(listener, "the filter's listener")
    return listener


def parked(control: int, listener: int) -> None:
    if listener < 0:
        os.write(control, b"P")
        return
    channel = socket.socket(fileno=os.dup(control))
    socket.send_fds(channel, [b"P"], [listener])
    channel.close()
    os.close(listener)  # who holds it decides what is allowed


def may_drop_groups() -> bool:
    """Not where an ordinary user mapped himself alone (user_namespaces(7)): then they stay, as nobody's."""
    with open("/proc/self/setgroups", "rb") as file:
        return file.read(4) != b"deny"


def no_core() -> int:
    """A core_pattern that starts a program ignores a limit of 0; 1 it takes for "none" (core(5))."""
    with open("/proc/sys/kernel/core_pattern", "rb") as file:
        return 1 if file.read(1) == b"|" else 0


def reseed() -> None:
    """Two forks share nothing random. (uuid4, secrets and os.urandom ask the kernel each time.)"""
    modules = sys.modules
    if "random" in modules:
        modules["random"].seed()
    if "ssl" in modules:
        # OpenSSL tells a fork by its pid, and in its own namespace that may be the zygote's.
        modules["ssl"].RAND_add(os.urandom(48), 48.0)
    if "tempfile" in modules:
        vars(modules["tempfile"])["_name_sequence"] = None
    if "uuid" in modules:
        vars(modules["uuid"]).update(_node=None, _last_timestamp=None)
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "threading" in modules:
        # A fork's main thread keeps the id it had, of the host's.
        modules["threading"].main_thread()._set_native_id()


def read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        got = os.read(fd, size - len(data))
        if not got:
            os._exit(0)  # the supervisor is gone
        data += got
    return data


def wait_for_function(control: int) -> None:
    (length,) = struct.unpack("=I", read_all(control, 4))
    if length > MAX_MESSAGE:
        os._exit(125)
    told = json.loads(read_all(control, length))
    argv, env = told["argv"], told["env"]
    before = dict(os.environ)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (told["nofile"], told["nofile"]))
        os.environ.clear()
        os.environ.update(env)
        os.chdir(told["cwd"])
        if argv != ARGV or at_start(before) != at_start(env):
            execute(control, argv, env)
    except (OSError, ValueError) as exc:
        os.write(control, struct.pack("=cI", b"S", getattr(exc, "errno", None) or errno.EINVAL))
        os._exit(126)
    os.write(control, struct.pack("=cI", b"S", 0))
    os.close(control)
    if "logging" in sys.modules:
        # What a record's relativeCreated counts from; in nanoseconds since Python 3.13.
        logging = vars(sys.modules["logging"])
        whole = isinstance(logging["_startTime"], int)
        logging["_startTime"] = time.time_ns() if whole else time.time()
    if before.get("TZ") != env.get("TZ"):
        time.tzset()
    if any(before.get(name) != env.get(name) for name in AT_IMPORT):
        importlib.reload(sys.modules[CLIENT])


def execute(control: int, argv: list[str], env: dict[str, str]) -> NoReturn:
    """A command of its own, or variables that only a program that begins anew sees."""
    os.write(control, struct.pack("=cI", b"G", 0))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and an execve keeps that
    os.execvpe(argv[0], argv, env)


def at_start(env: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in env.items() if key.startswith(AT_START)}


ARGV: list[str] = []
"""The command that a fork stands for: this interpreter on bootstrap.py, without our own arguments."""


def main(arguments: list[str], argv: list[str], fresh: set[str]) -> None:
    """Load everything, then fork as told. Returns in each fork, in place of a fresh start of `argv`.

    `fresh`: the modules that such a start has loaded by then.
    """
    channel, own, filter_, observed, *preload = arguments
    for number in range(1, signal.NSIG):
        # Ignored by whoever started lambox (nohup); Python itself ignores two.
        if (
            number not in (signal.SIGPIPE, signal.SIGXFSZ)
            and signal.getsignal(number) == signal.SIG_IGN
        ):
            signal.signal(number, signal.SIG_DFL)
    for number in (32, 33):  # glibc keeps them to itself, and so does Python
        libc.syscall(RT_SIGACTION[os.uname().machine], number, bytes(32), None, 8)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ARGV[:] = argv
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # one for every child
    for name in (*OFTEN, *preload):
        try:
            __import__(name)
        except Exception as exc:
            if name in preload:
                os.write(2, f"preload: cannot import {name}: {exc!r}\n".encode())
    loaded = set(sys.modules) - fresh
    if "ssl" in sys.modules:
        # Once: setting up OpenSSL's generators takes 2 ms. Each fork adds its own seed (`reseed`).
        sys.modules["ssl"].RAND_bytes(1)
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  contextlib is not loaded
            stream.flush()  # or every fork would say again what a preloaded module has printed
        except OSError:
            pass
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    gc.collect()
    gc.freeze()
    Zygote(int(channel), int(own), int(filter_), observed == "1").serve()
    forget_shadowed(loaded)


def forget_shadowed(loaded: set[str]) -> None:
    """A function's own copy of a preloaded package comes before ours, as its folder does on sys.path."""
    tops = {name.partition(".")[0] for name in loaded}
    layers = f"/opt/python/lib/python3.{sys.version_info[1]}/site-packages"
    for folder in ("/var/task", layers, "/opt/python"):
        try:
            names = {name.partition(".")[0] for name in os.listdir(folder)}
        except OSError:
            continue
        if not names.isdisjoint(tops):
            for module in loaded:
                sys.modules.pop(module, None)
            return
