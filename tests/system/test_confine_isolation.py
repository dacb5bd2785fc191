"""What a program in a sandbox is, sees and may not do."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

import pytest

from rootfs.layout import Bind, Directory, Symlink, Text, Tmpfs
from sandbox.confine import privilege
from sandbox.confine.launcher import open_launcher
from tests.system.confine_fixtures import ROOT, TMP_BYTES, confined, proc, proc_status

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("making")]
UML = "User Mode Linux" in Path("/proc/cpuinfo").read_text()
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="host: x86-64 call numbers")
own_uids = pytest.mark.skipif(
    not privilege.may_change_uid(), reason="host: needs uids for sandboxes to have"
)


async def test_it_is_nobody() -> None:
    async with confined() as box:
        status, groups = await box.ask("[status(), os.getgroups()]")
    assert status["Uid"].split() == ["993"] * 4
    assert status["Gid"].split() == ["990"] * 4
    # A group that is not mapped shows as the overflow group; root's sandboxes have none at all.
    assert set(groups) <= {990, 65534}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@own_uids
async def test_every_sandbox_has_a_host_uid_of_its_own() -> None:
    async with (
        open_launcher() as launcher,
        confined(launcher, name="a") as a,
        confined(launcher, name="b") as b,
    ):
        await a.ask("1")
        await b.ask("1")
        owners = [
            {uid for pid in box.inside() for uid in proc_status(pid, "Uid")} for box in (a, b)
        ]
    assert all(len(owner) == 1 for owner in owners)
    assert owners[0] != owners[1]
    assert "0" not in owners[0] | owners[1]


@own_uids
async def test_bwrap_itself_is_unprivileged_and_held() -> None:
    async with confined() as box:
        bwrap = min(box.inside())
        assert proc(bwrap, "comm") == b"bwrap\n"
        assert "0" not in proc_status(bwrap, "Uid")
        assert proc_status(bwrap, "Groups") == []


async def test_pid_1_is_out_of_reach() -> None:
    async with confined() as box:
        assert await box.ask("""[
            attempt(os.listdir, "/proc/1/fd"),
            attempt(open, "/proc/1/environ"),
            attempt(os.readlink, "/proc/1/exe"),
            attempt(open, "/proc/1/mem", "rb"),
            *(attempt(os.kill, 1, n) for n in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCHLD)),
            os.kill(1, 0),
        ]""") == ["EACCES"] * 4 + ["done"] * 4 + [None]
        # All of those signals were dropped: the program can still end and be reported.
        assert (await box.sandbox.kill()).killed


async def test_signals_to_pid_1_do_not_stop_the_report() -> None:
    async with confined() as box:
        await box.python("""
            for n in range(1, 65):
                if n not in (32, 33):
                    os.kill(1, n)
            os._exit(5)
        """)
        assert (await box.sandbox.wait()).code == 5


async def test_only_tmp_can_be_written() -> None:
    """Tried on every mount, and on what stands between them."""
    async with confined() as box:
        tried, writable = await box.ask("""(lambda places: [places, [
            place for place in places if attempt(os.mkdir, place + "/x") == "done"
        ]])(sorted({
            place
            for line in open("/proc/self/mountinfo")
            for mount in [line.split()[4]]
            for place in [mount, os.path.dirname(mount), "/var/task", "/run/lambox"]
            if os.path.isdir(place) and not place.startswith("/proc/")
        }))""")
    assert {"/", "/dev", "/proc", "/tmp", "/usr", "/var", "/var/task"} <= set(tried)
    assert writable == ["/tmp"]


async def test_proc_cannot_be_written() -> None:
    async with confined() as box:
        found = await box.ask("""[
            attempt(open, path, "w") for path in (
                "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger",
                "/proc/sys/kernel/core_pattern",
            )
        ]""")
    # Not every kernel has a sysrq-trigger.
    assert set(found) <= {"EACCES", "EPERM", "EROFS", "ENOENT"}


async def test_tmp_is_sized() -> None:
    async with confined() as box:
        assert await box.ask(f"""[
            os.statvfs("/tmp").f_bavail * os.statvfs("/tmp").f_frsize,
            oct(os.stat("/tmp").st_mode),
            attempt(os.posix_fallocate, os.open("/tmp/big", os.O_RDWR | os.O_CREAT), 0, {TMP_BYTES + 4096}),
        ]""") == [TMP_BYTES, "0o41777", "ENOSPC"]


async def test_the_root_holds_what_was_listed_and_no_more() -> None:
    async with confined() as box:
        top, run, procs = await box.ask("""[
            sorted(os.listdir("/")), os.listdir("/run/lambox"),
            [int(p) for p in os.listdir("/proc") if p.isdigit()],
        ]""")
    listed = {"bin", "dev", "lib", "lib64", "proc", "run", "sbin", "tmp", "usr", "var"}
    assert set(top) == listed
    assert run == ["init"]
    assert len(procs) == 2


@pytest.fixture
def secluded(tmp_path: Path) -> str:
    """A file that anybody may read, in a folder that only we may walk into."""
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("from the host")
    (tmp_path / "file").chmod(0o644)
    return str(tmp_path / "file")


async def test_every_kind_of_entry(secluded: str) -> None:
    entries = (
        *ROOT,
        Bind(secluded, "/var/deep/down/file"),
        Text("a text\n", "/etc/motd"),
        Directory("/opt"),
        Symlink("/etc/motd", "/etc/link"),
        Tmpfs("/scratch", 65536, 0o755),
    )
    async with confined(root=entries) as box:
        assert await box.ask("""[
            open("/var/deep/down/file").read(), open("/etc/link").read(), oct(os.stat("/etc/motd").st_mode),
            os.listdir("/opt"), attempt(open, "/etc/motd", "w"), attempt(open, "/var/deep/down/file", "w"),
            attempt(os.mkdir, "/opt/x"), oct(os.stat("/scratch").st_mode),
        ]""") == [
            "from the host",
            "a text\n",
            "0o100444",
            [],
            "EROFS",
            "EROFS",
            "EROFS",
            "0o40755",
        ]


async def test_devices_cannot_be_reached_through_binds() -> None:
    async with confined(root=(*ROOT, Bind("/dev", "/hostdev"))) as box:
        assert await box.ask("attempt(open, '/hostdev/null')") == "EACCES"


async def test_dev_is_minimal() -> None:
    async with confined() as box:
        names, null = await box.ask("[os.listdir('/dev'), attempt(open, '/dev/null', 'w')]")
    assert null == "done"
    assert {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout"} <= set(names)
    assert not {"mem", "kmem", "kmsg", "vda", "sda", "loop0", "fuse", "net", "kvm"} & set(names)


async def test_the_network_is_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        async with confined() as box:
            names, tcp, outside = await box.ask(f"""[
                [name for _, name in socket.if_nameindex()],
                attempt(socket.create_connection, ("127.0.0.1", {port}), 1),
                attempt(socket.create_connection, ("192.0.2.1", 80), 1),
            ]""")
    assert (names, tcp, outside) == (["lo"], "ECONNREFUSED", "ENETUNREACH")


async def test_host_name_and_ipc_are_its_own() -> None:
    async with confined(hostname="some-name") as box:
        kinds = ("ipc", "mnt", "net", "pid", "user", "uts", "cgroup")
        name, inside = await box.ask(
            f"[socket.gethostname(), {{k: os.readlink('/proc/self/ns/' + k) for k in {kinds}}}]"
        )
    assert name == "some-name"
    for kind, value in inside.items():
        assert value != os.readlink(f"/proc/self/ns/{kind}"), kind


async def test_its_own_cgroup_is_the_top() -> None:
    """Of every hierarchy in which it has one: nothing tells where on the host it is."""
    async with confined() as box:
        sys_, lines = await box.ask("[os.path.exists('/sys'), open('/proc/self/cgroup').read()]")
    assert not sys_
    assert {line.split(":", 2)[2] for line in lines.splitlines()} == {"/"}


@x86_64
@pytest.mark.parametrize(
    ("name", "number", "arguments", "answer"),
    [
        ("mount", 165, "0, 0, 0, 0, 0", "EPERM"),
        ("umount2", 166, "0, 0", "EPERM"),
        ("pivot_root", 155, "0, 0", "EPERM"),
        ("open_tree", 428, "-100, 0, 1", "EPERM"),
        ("unshare user", 272, "0x10000000", "EPERM"),
        ("setns", 308, "0, 0", "EPERM"),
        ("clone new user", 56, "0x10000000 | 17, 0, 0, 0, 0", "EPERM"),
        ("clone new net", 56, "0x40000000 | 17, 0, 0, 0, 0", "EPERM"),
        ("clone3", 435, "0, 0", "ENOSYS"),
        ("io_uring_setup", 425, "1, 0", "ENOSYS"),
        ("ptrace", 101, "0, 0, 0, 0", "EPERM"),
        ("process_vm_readv", 310, "1, 0, 0, 0, 0, 0", "EPERM"),
        ("bpf", 321, "0, 0, 0", "EPERM"),
        ("perf_event_open", 298, "0, 0, 0, 0, 0", "EPERM"),
        ("keyctl", 250, "0, 0, 0, 0, 0", "EPERM"),
        ("userfaultfd", 323, "0", "EPERM"),
        ("kexec_load", 246, "0, 0, 0, 0", "EPERM"),
        ("init_module", 175, "0, 0, 0", "EPERM"),
        ("reboot", 169, "0, 0, 0, 0", "EPERM"),
        ("swapon", 167, "0, 0", "EPERM"),
        ("settimeofday", 164, "0, 0", "EPERM"),
        ("open_by_handle_at", 304, "0, 0, 0", "EPERM"),
        ("TIOCSTI", 16, "0, 0x5412, 0", "EPERM"),
        ("TIOCSTI, high bits set", 16, "0, 0x100005412, 0", "EPERM"),
        ("AF_PACKET", 41, "17, 3, 0", "EAFNOSUPPORT"),
        ("AF_VSOCK", 41, "40, 1, 0", "EAFNOSUPPORT"),
        ("AF_ALG", 41, "38, 5, 0", "EAFNOSUPPORT"),
        ("raw IP", 41, "2, 3, 1", "EPERM"),
        ("raw IPv6, cloexec", 41, "10, 0x80003, 58", "EPERM"),
        ("netlink netfilter", 41, "16, 3, 12", "EAFNOSUPPORT"),
        ("personality: no address randomisation", 135, "0x0040000", "EPERM"),
        ("personality: query", 135, "0xffffffff", "done"),
        ("getppid, to see that it works", 39, "", "done"),
    ],
)
async def test_system_calls(name: str, number: int, arguments: str, answer: str) -> None:
    async with confined() as box:
        assert await box.ask(f"attempt(syscall, {number}, {arguments})") == answer, name


@x86_64
@pytest.mark.parametrize(
    ("how", "code"),
    [
        pytest.param(
            "int 0x80",
            "b8 14 00 00 00 cd 80 c3",
            marks=[
                pytest.mark.optional,
                pytest.mark.skipif(UML, reason="host: user-mode Linux has no i386 calls"),
            ],
        ),
        ("x32", "b8 27 00 00 40 0f 05 c3"),
    ],
)
async def test_calls_of_foreign_architectures_end_the_program(how: str, code: str) -> None:
    """getpid the i386 and the x32 way: round the filter, if they worked."""
    async with confined() as box:
        await box.python(f"""
            import mmap
            room = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            room.write(bytes.fromhex("{code}"))
            at = ctypes.addressof(ctypes.c_char.from_buffer(room))
            # In a thread: all of the program must end, not this one thread of it.
            import threading
            thread = threading.Thread(target=ctypes.CFUNCTYPE(ctypes.c_int)(at))
            thread.start()
            thread.join()
        """)
        assert (await box.sandbox.wait()).signal == 31, how


async def test_ordinary_programs_do_not_notice_the_filter() -> None:
    async with confined() as box:
        assert await box.ask("""[
            subprocess.run(["bash", "-c", "echo $(printf a | tr a b)"], capture_output=True, text=True).stdout,
            len(socket.getaddrinfo("127.0.0.1", 80)) > 0,
            [t.start() or t.join() for t in [__import__("threading").Thread(target=print)]],
            list(__import__("concurrent.futures").futures.ThreadPoolExecutor(4).map(abs, [-1, 2])),
        ]""") == ["b\n", True, [None], [1, 2]]


@pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="host: no node")
async def test_node_runs() -> None:
    async with confined(memory_bytes=512 << 20) as box:
        await box.run("/usr/bin/node", "-e", "setTimeout(() => console.log('[1]'), 5)")
        assert await box.heard() == [1]
