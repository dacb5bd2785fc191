"""Code that is out to do harm, and hosts on which things lie in odd places."""

# ruff: noqa: ASYNC240  (files of /proc do not block)

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from rootfs.layout import Bind
from sandbox.confine import privilege, staging
from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import ProgramNotStarted
from tests.system.confine_fixtures import MAKING, ROOT, confined, nothing_left

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("making")]
TOP = Path(__file__).resolve().parents[2]
own_uids = pytest.mark.skipif(
    not privilege.may_change_uid(), reason="host: needs uids for sandboxes to have"
)


async def test_limits_of_pid_1_can_be_lowered_and_it_still_reports() -> None:
    """prlimit(2) asks for the same uid only. Whoever does it harms nobody but itself."""
    async with confined() as box:
        await box.python("""
            import resource
            for what in range(16):
                attempt(resource.prlimit, 1, what, (0, 0))
            attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
            attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)
            if os.fork() == 0:
                os._exit(0)
            os._exit(4)
        """)
        with trio.fail_after(10):
            end = await box.sandbox.wait()
        # RLIMIT_CPU of 0 may end pid 1 within a second: then there is no report, but an end.
        assert end.code in (4, None)


async def test_killing_everybody_it_sees_ends_itself_alone() -> None:
    async with confined() as box:
        await box.python("""
            if os.fork() == 0:
                signal.pause()
            os.kill(-1, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
        assert (await box.sandbox.wait()).signal == 9


async def test_no_other_process_of_its_uid_is_reached() -> None:
    async with confined() as box:
        assert await box.ask("""[
            attempt(lambda: os.pidfd_open(1)),
            attempt(syscall, 438, os.pidfd_open(1), 3, 0),      # pidfd_getfd
            attempt(os.listdir, "/proc/1/task/1/fd"),
            attempt(os.readlink, "/proc/1/root"),
            attempt(os.readlink, "/proc/1/cwd"),
            attempt(open, "/proc/1/maps"),
            attempt(open, "/proc/1/syscall"),
            attempt(open, "/proc/1/oom_score_adj", "w"),
        ]""") == ["done", "EPERM", *["EACCES"] * 6]


async def test_no_socket_but_its_own_is_seen() -> None:
    """The control socket has no name; what is listed is of its network namespace."""
    async with confined() as box:
        unix, tcp = await box.ask("[open('/proc/net/unix').read(), open('/proc/net/tcp').read()]")
    assert len(unix.splitlines()) == 1
    assert len(tcp.splitlines()) == 2  # the listener


@pytest.mark.optional
@pytest.mark.skipif(
    ctypes.CDLL(None).syscall(444, None, 0, 1) < 6, reason="host: Landlock before Linux 6.12"
)
async def test_on_the_hosts_network_abstract_sockets_are_still_out_of_reach() -> None:
    """A message bus, a desktop: they belong to the network namespace. Its own it can use."""
    MAKING.set("scratch")
    with (
        socket.socket(socket.AF_UNIX) as stream,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
    ):
        stream.bind(f"\0escape-{os.getpid()}")
        stream.listen()
        datagrams.bind(f"\0escape-{os.getpid()}-datagrams")
        async with confined(network="host") as box:
            assert await box.ask(f"""[
                attempt(socket.socket(socket.AF_UNIX).connect, "\\0escape-{os.getpid()}"),
                attempt(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto, b"x",
                        "\\0escape-{os.getpid()}-datagrams"),
                (lambda own: (own.bind("\\0own-{os.getpid()}"), own.listen(),
                              attempt(socket.socket(socket.AF_UNIX).connect, "\\0own-{os.getpid()}"))[2]
                 )(socket.socket(socket.AF_UNIX)),
                len(socket.if_nameindex()) == {len(socket.if_nameindex())},
            ]""") == ["EPERM", "EPERM", "done", True]


async def test_a_flood_of_connections_fills_the_queue_and_no_more() -> None:
    MAKING.set("scratch")  # else the supervisor makes the next one meanwhile, which has descriptors
    async with confined(nofile=4096) as box:
        before = len(os.listdir("/proc/self/fd"))
        made = await box.ask("""(lambda kept: (
            [attempt(lambda: (kept.append(socket.socket()), kept[-1].setblocking(False),
                              kept[-1].connect(("127.0.0.1", 9001)))) for _ in range(1000)],
            len(kept))[1])([])""")
        assert made == 1000
        assert len(os.listdir("/proc/self/fd")) == before
        assert (await box.sandbox.kill()).killed


async def test_the_telemetry_pipe_cannot_be_used_against_its_reader() -> None:
    async with confined() as box:
        await box.python("""
            import fcntl
            fcntl.fcntl(62, fcntl.F_SETFL, 0)
            attempt(fcntl.fcntl, 62, 1031, 1 << 30)             # F_SETPIPE_SZ
            fcntl.fcntl(62, fcntl.F_SETOWN, os.getpid())
            os.write(62, b"x")
            say(attempt(os.read, 62, 1))
            signal.pause()
        """)
        assert await box.heard() == "EBADF"
        assert os.read(box.sandbox.telemetry, 10) == b"x"
        with pytest.raises(BlockingIOError):
            os.read(box.sandbox.telemetry, 1)


async def test_standard_error_can_be_opened_by_name() -> None:
    """Shell scripts and web servers do; the pipe belongs to the sandbox's own uid."""
    async with confined() as box:
        await box.run("/bin/sh", "-c", "echo out > /dev/stdout && echo err > /dev/stderr")
        assert (await box.sandbox.wait()).code == 0
        assert os.read(box.sandbox.stdout, 10) == b"out\n"
        assert box.errors() == "err\n"


@pytest.mark.skipif(shutil.which("su") is None, reason="host: no su")
async def test_set_user_id_programs_have_no_power() -> None:
    async with confined() as box:
        assert await box.ask("""[
            subprocess.run(["su", "-c", "id -u"], capture_output=True, stdin=subprocess.DEVNULL).returncode != 0,
            attempt(os.setuid, 0), attempt(os.setgroups, [0]), attempt(os.chown, "/tmp", 0, 0),
        ]""") == [True, "EINVAL", "EPERM", "EINVAL"]


async def test_a_file_without_interpreter_is_not_a_shell_script(tmp_path: Path) -> None:
    """AWS: "exec format error". execvp(3) would give it to /bin/sh."""
    (tmp_path / "bootstrap").write_text("echo hello\n")
    (tmp_path / "bootstrap").chmod(0o755)
    tmp_path.chmod(0o755)
    async with confined(root=(*ROOT, Bind(str(tmp_path), "/var/task"))) as box:
        with pytest.raises(ProgramNotStarted) as caught:
            await box.run("/var/task/bootstrap")
        assert caught.value.errno == errno.ENOEXEC
    async with confined(root=(*ROOT, Bind(str(tmp_path), "/var/task"))) as box:
        with pytest.raises(ProgramNotStarted) as caught:
            await box.run("bootstrap", env={"PATH": "/usr/bin::/var/task"})
        assert caught.value.errno == errno.ENOEXEC


async def test_a_program_that_may_not_be_executed_is_looked_for_further(tmp_path: Path) -> None:
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program").write_text("#!/bin/sh\necho 5\n")
        (tmp_path / name / "program").chmod(mode)
    tmp_path.chmod(0o755)
    root = (*ROOT, Bind(str(tmp_path), "/var/task"))
    async with confined(root=root) as box:
        await box.run("program", env={"PATH": "/var/task/first:/var/task/second"})
        assert await box.heard() == 5
    async with confined(root=root) as box:
        with pytest.raises(ProgramNotStarted) as caught:
            await box.run("program", env={"PATH": "/nowhere:/var/task/first:/usr/bin"})
        assert caught.value.errno == errno.EACCES


@pytest.fixture(params=["/run", "/tmp", "/dev/shm"])
def closed(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Code in a folder that only root can walk to, in places that others cover with mounts."""
    top = Path(request.param, f"lambox-test-{os.getpid()}")
    try:
        (top / "code").mkdir(parents=True)
    except OSError as exc:
        pytest.skip(f"host: {exc}")
    (top / "code/file").write_text("found")
    top.chmod(0o700)
    yield top / "code"
    shutil.rmtree(top)


@own_uids
async def test_code_that_only_root_can_walk_to(closed: Path) -> None:
    root = (*ROOT, Bind(str(closed), "/var/task"), Bind(f"{closed}/file", "/var/one"))
    async with open_launcher() as launcher:
        async with confined(launcher, root=root) as box:
            assert await box.ask("[open(p).read() for p in ('/var/task/file', '/var/one')]") == [
                "found",
                "found",
            ]
        # The way there is taken down again, in the one thread that sees it.
        async with confined(launcher, name="later"):
            pass
        (thread,) = [
            task.id
            for task in psutil.Process().threads()
            if Path(f"/proc/self/task/{task.id}/mountinfo").read_text()
            != Path("/proc/self/mountinfo").read_text()
        ]
        mounts = Path(f"/proc/self/task/{thread}/mountinfo").read_text().splitlines()
        # But for the roots put together for all sandboxes.
        shared = f"{staging.STAGE}/lambox-root-"
        places = [line.split()[4] for line in mounts if shared not in line]
        below = [place for place in places if place.startswith(staging.STAGE)]
        assert below[-1:] == [staging.STAGE]
        # As that thread sees it.
        left = os.listdir(f"/proc/self/task/{thread}/root{staging.STAGE}")
        assert [name for name in left if not name.startswith("lambox-root-")] == []


async def test_a_launcher_leaves_no_thread_and_no_mount() -> None:
    async with open_launcher():
        pass
    # trio keeps threads for later; all other are gone.
    with nothing_left():
        before = Path("/proc/self/mountinfo").read_text()
        async with open_launcher() as launcher, confined(launcher) as box:
            await box.ask("1")
        assert not [t for t in threading.enumerate() if t.name == "lambox-spawner"]
        assert Path("/proc/self/mountinfo").read_text() == before


FEW_NAMESPACES = """
import sys, trio
from pathlib import Path
from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import ConfineError
from tests.system.confine_fixtures import confined, nothing_left

async def main():
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up") as box:
            assert await box.ask("os.getuid()") == 993
        Path("/proc/sys/user/max_net_namespaces").write_text("0")
        with nothing_left():
            try:
                async with confined(launcher):
                    raise AssertionError("it launched")
            except* ConfineError as group:
                print(*group.exceptions)
        Path("/proc/sys/user/max_net_namespaces").write_text("100")
        async with confined(launcher, name="again") as box:
            assert await box.ask("1") == 1

trio.run(main)
"""


@pytest.mark.skipif(not privilege.may_mount(), reason="host: needs a namespace of our own")
async def test_a_host_out_of_namespaces_says_so_and_recovers() -> None:
    """In a user namespace of our own, whose limits are ours; there we are a root with one uid."""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", FEW_NAMESPACES]
    with trio.fail_after(60):
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, cwd=str(TOP)
        )
    assert done.returncode == 0, done.stderr.decode()
    assert b"ENOSPC" in done.stdout
