"""rootfs/inside/init.c as an ordinary process: the messages over its control socket, without bubblewrap."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from rootfs import layout
from sandbox.confine import privilege

SOURCE = layout.INSIDE / "init.c"
LIMIT_S = 10


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled from what stands in the tree now; warnings are errors."""
    if shutil.which("cc") is None:
        pytest.skip("host: no C compiler")
    path = tmp_path_factory.mktemp("init") / "init"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run(["cc", *flags, "-o", path, SOURCE], check=True)
    return str(path)


class Pid1:
    """The supervisor's side of `init run`."""

    def __init__(self, init: str, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.control, theirs = socket.socketpair()
        self.control.settimeout(LIMIT_S)
        self.companions = 0
        self.outputs: list[BinaryIO] = []
        with theirs:
            argv = [init, "run", str(theirs.fileno()), address, str(port)]
            self.process = subprocess.Popen(
                argv, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )

    def listener(self) -> socket.socket:
        data, fds, _, _ = socket.recv_fds(self.control, 3, 1)
        assert data[:1] == b"L"
        listener = socket.socket(fileno=fds[0])
        listener.settimeout(LIMIT_S)
        assert struct.unpack("=H", data[1:])[0] == listener.getsockname()[1]
        return listener

    def start(self, *argv: str, cwd: str = "/", nofile: int = 256, **env: str) -> int:
        """What pid 1 says of it: 0, or the errno."""
        body = self._body(argv, cwd, nofile, env)
        self.control.sendall(struct.pack("=I", len(body)) + body)
        return self.frame("S")

    def start_companion(self, *argv: str, cwd: str = "/") -> tuple[int, BinaryIO]:
        """The next one: what pid 1 says of it, and what it prints."""
        self.companions += 1
        read, write = os.pipe()
        body = self._body(argv, cwd, 256, {})
        head = struct.pack("=I", len(body) | self.companions << 24)
        socket.send_fds(self.control, [head], [write])
        os.close(write)
        self.control.sendall(body)
        self.outputs.append(os.fdopen(read, "rb"))
        return self.frame("S"), self.outputs[-1]

    def _body(self, argv: Sequence[str], cwd: str, nofile: int, env: Mapping[str, str]) -> bytes:
        strings = [cwd, *argv, *(f"{key}={value}" for key, value in env.items())]
        body = struct.pack("=III", nofile, len(argv), len(env))
        return body + b"".join(text.encode() + b"\0" for text in strings)

    def signal(self, number: int, sig: int) -> None:
        self.control.sendall(struct.pack("=III", 8 | 0x53 << 24, number, sig))

    def frame(self, kind: str) -> int:
        data = self.control.recv(5, socket.MSG_WAITALL)
        assert data[:1] == kind.encode(), data
        return int(struct.unpack("=I", data[1:])[0])

    def output(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def ended(self) -> int:
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdout, self.process.stderr, *self.outputs):
                assert pipe is not None
                pipe.close()


@contextmanager
def running(init: str) -> Iterator[Pid1]:
    """Pid 1, its listener taken and closed."""
    pid1 = Pid1(init)
    try:
        pid1.listener().close()
        yield pid1
    finally:
        pid1.close()


def test_the_listener_is_the_address_that_the_program_is_told(init: str) -> None:
    pid1 = Pid1(init)
    try:
        with pid1.listener() as listener:
            host, port = listener.getsockname()
            assert host == "127.0.0.1"
            assert pid1.start("/usr/bin/printenv", "AWS_LAMBDA_RUNTIME_API") == 0
            assert pid1.output().decode() == f"{host}:{port}\n"
            with socket.create_connection((host, port)):
                listener.accept()[0].close()
            assert os.waitstatus_to_exitcode(pid1.frame("X")) == 0
    finally:
        pid1.close()


def test_the_environment_is_the_messages_and_no_more(init: str) -> None:
    with running(init) as pid1:
        assert pid1.start("/usr/bin/env", A="1", EMPTY="", LINES="a\nb") == 0
        lines = pid1.output().decode().splitlines()
    assert [line for line in lines if not line.startswith("AWS_LAMBDA_RUNTIME_API=")] == [
        "A=1",
        "EMPTY=",
        "LINES=a",
        "b",
    ]


@pytest.mark.parametrize("code", [0, 1, 126, 139, 255])
def test_exit_codes_come_as_raw_wait_status(init: str, code: int) -> None:
    with running(init) as pid1:
        assert pid1.start("/bin/sh", "-c", f"exit {code}") == 0
        status = pid1.frame("X")
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == code
        assert pid1.ended() == 0


@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_signals_come_as_raw_wait_status_without_a_core(init: str, sig: signal.Signals) -> None:
    with running(init) as pid1:
        assert pid1.start("/bin/sh", "-c", f"kill -{int(sig)} $$") == 0
        status = pid1.frame("X")
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == sig
        assert not os.WCOREDUMP(status)


@pytest.mark.parametrize(
    ("argv", "cwd", "number"),
    [
        (["/nowhere"], "/", errno.ENOENT),
        (["nowhere"], "/", errno.ENOENT),
        (["/etc"], "/", errno.EACCES),
        (["/etc/passwd/x"], "/", errno.ENOTDIR),
        (["/bin/true"], "/nowhere", errno.ENOENT),
    ],
)
def test_a_failed_exec_is_an_errno_and_then_an_end(
    init: str, argv: list[str], cwd: str, number: int
) -> None:
    with running(init) as pid1:
        assert pid1.start(*argv, cwd=cwd, PATH="/usr/bin:/bin") == number
        assert os.WIFEXITED(pid1.frame("X"))


def test_a_file_without_an_interpreter_is_a_format_error(init: str, tmp_path: Path) -> None:
    (tmp_path / "bootstrap").write_text("echo no interpreter named\n")
    (tmp_path / "bootstrap").chmod(0o755)
    with running(init) as pid1:
        assert pid1.start(str(tmp_path / "bootstrap")) == errno.ENOEXEC


def test_programs_are_searched_on_the_new_path(init: str, tmp_path: Path) -> None:
    (tmp_path / "found").write_text("#!/bin/sh\necho $0\n")
    (tmp_path / "found").chmod(0o755)
    with running(init) as pid1:
        assert pid1.start("found", PATH=f"/nowhere:{tmp_path}") == 0
        assert pid1.output().decode().strip() == f"{tmp_path}/found"


def test_what_a_program_starts_with(init: str, tmp_path: Path) -> None:
    script = """
import os, resource, signal, sys
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1])
print(os.getsid(0) == os.getpid(), os.getcwd(), os.readlink("/proc/self/fd/0"))
print(resource.getrlimit(resource.RLIMIT_NOFILE), signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with running(init) as pid1:
            python = os.path.realpath(sys.executable)
            assert pid1.start(python, "-I", "-S", "-c", script, cwd=str(tmp_path), nofile=99) == 0
            fds, session, limits = pid1.output().decode().splitlines()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert fds == "[0, 1, 2]"  # and 62, where init launch made one
    assert session.startswith(f"True {tmp_path} ")
    assert limits == "(99, 99) set()"


@pytest.mark.parametrize("when", ["before the program", "while it runs"])
def test_the_end_of_the_supervisor_is_the_end(init: str, when: str) -> None:
    with running(init) as pid1:
        if when == "while it runs":
            assert pid1.start("/bin/sh", "-c", "echo $$; exec sleep 1000") == 0
            assert pid1.process.stdout is not None
            orphan = int(pid1.process.stdout.readline())
        pid1.control.shutdown(socket.SHUT_RDWR)
        assert pid1.ended() == 0
        if when == "while it runs":
            # As pid 1 of a namespace it would have taken the program along.
            os.kill(orphan, signal.SIGKILL)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("=I", 0),
        struct.pack("=I", 1 << 31),
        struct.pack("=IIII", 12, 64, 0, 0),
        struct.pack("=IIII", 12, 64, 1 << 30, 0),
        struct.pack("=IIII", 14, 64, 3, 3) + b"/\0",
        struct.pack("=IIII", 14, 64, 1, 1 << 31) + b"/\0",
    ],
)
def test_nonsense_ends_it_with_a_word(init: str, message: bytes) -> None:
    with running(init) as pid1:
        pid1.control.sendall(message)
        assert pid1.ended() == 125
        assert pid1.process.stderr is not None
        assert b"start message" in pid1.process.stderr.read()


def test_an_address_that_is_taken(init: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        pid1 = Pid1(init, port=other.getsockname()[1])
        try:
            assert pid1.ended() == 125
        finally:
            pid1.close()


@pytest.mark.optional
def test_pid_1_is_nobodys_to_look_into(init: str) -> None:
    if privilege.may_mount():
        pytest.skip("host: root may look into everything; the sandbox's tests look from inside")
    with running(init) as pid1, pytest.raises(PermissionError):
        os.listdir(f"/proc/{pid1.process.pid}/fd")


def launch(init: str, *words: str, fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [init, "launch", *words],
        pass_fds=fds,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_launch_joins_every_group_and_puts_telemetry_at_62(init: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("memory", "pids")]
    for file in files:
        file.touch()
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        words = ("-1", "-1", str(write), *map(str, files), "--")
        done = launch(init, *words, "/bin/bash", "-c", "echo log >&62", fds=(write,))
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")
        assert pipe.read() == b"log\n"
    assert [file.read_text() for file in files] == ["0", "0"]


@pytest.mark.skipif(not privilege.may_change_uid(), reason="host: needs uids to become")
def test_launch_becomes_the_user_and_dies_with_its_parent(init: str) -> None:
    uid = max(privilege.mapped(), key=len)[-100]
    script = "grep -E '^(Uid|Gid|Groups|Cap...):' /proc/self/status"
    null = os.open("/dev/null", os.O_WRONLY)
    try:
        done = launch(
            init, str(uid), str(uid + 1), str(null), "--", "/bin/sh", "-c", script, fds=(null,)
        )
    finally:
        os.close(null)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert lines["Uid"].split() == [str(uid)] * 4
    assert lines["Gid"].split() == [str(uid + 1)] * 4
    assert lines["Groups"].split() == []
    assert int(lines["CapPrm"], 16) == int(lines["CapEff"], 16) == 0


@pytest.mark.parametrize(
    ("procs", "program", "says"),
    [
        (["/nowhere/cgroup.procs"], "/bin/true", "/nowhere/cgroup.procs"),
        ([], "/nowhere/bwrap", "/nowhere/bwrap"),
    ],
)
def test_launch_that_fails_names_what(init: str, procs: list[str], program: str, says: str) -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    try:
        done = launch(init, "-1", "-1", str(null), *procs, "--", program, fds=(null,))
    finally:
        os.close(null)
    assert done.returncode == 125
    assert says in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["walk"], ["run"], ["run", "3"], ["launch"], ["launch", "1"]]
)
def test_wrong_usage(init: str, words: list[str]) -> None:
    done = subprocess.run([init, *words], capture_output=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 125
    assert done.stderr


def test_log_modes_filter_has_its_listener_sent_and_kept_by_nobody_else(init: str) -> None:
    """Its program is allowed everything: SECCOMP_RET_ALLOW alone."""
    control, theirs = socket.socketpair()
    control.settimeout(LIMIT_S)
    filter_ = os.memfd_create("filter", 0)
    os.write(filter_, struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
    argv = [init, "run", str(theirs.fileno()), "127.0.0.1", "0", "-1", str(filter_)]
    fds = [theirs.fileno(), filter_]
    loaded = ["setpriv", "--no-new-privs", *argv]
    with subprocess.Popen(loaded, pass_fds=fds, stderr=subprocess.PIPE) as process:
        theirs.close()
        os.close(filter_)
        data, received, _, _ = socket.recv_fds(control, 3, 4)
        assert data[:1] == b"L", process.stderr and process.stderr.read()
        assert len(received) == 2
        watch = os.readlink(f"/proc/self/fd/{received[1]}")
        for fd in received:
            os.close(fd)
        assert watch == "anon_inode:seccomp notify"
        # Waiting for the message by now, or about to: it has closed what it sent. Root alone may look.
        if os.geteuid() == 0:
            held = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in _settled(process.pid)}
            assert watch not in held
        control.close()
        assert process.wait(LIMIT_S) == 0


def _settled(pid: int) -> list[str]:
    """Its descriptors once it sleeps: in the read of the start message."""
    end = time.monotonic() + LIMIT_S
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < end
    return os.listdir(f"/proc/{pid}/fd")


# --- companions


def test_a_companion_has_its_own_output_and_session_and_what_is_the_programs_it_has_not(
    init: str, tmp_path: Path
) -> None:
    script = """
import os
print(sorted(map(int, os.listdir("/proc/self/fd")))[:-1], os.getsid(0) == os.getpid(), os.getcwd())
print(os.environ["AWS_LAMBDA_RUNTIME_API"].rpartition(":")[0], flush=True)
os.write(2, b"both\\n")
"""
    python = os.path.realpath(sys.executable)
    with running(init) as pid1:
        number, output = pid1.start_companion(python, "-I", "-S", "-c", script, cwd=str(tmp_path))
        assert number == 0
        assert output.read().decode().splitlines() == [
            f"[0, 1, 2] True {tmp_path}",
            "127.0.0.1",
            "both",
        ]
        assert pid1.frame("Y") == 1 << 16
        assert pid1.start("/bin/echo", "the program's") == 0
        assert pid1.frame("X") == 0
        assert pid1.output() == b"the program's\n"


def test_where_there_were_companions_pid_1_outlives_the_program(init: str) -> None:
    with running(init) as pid1:
        _, output = pid1.start_companion("/bin/sh", "-c", "echo up; exec sleep 1000")
        assert output.readline() == b"up\n"
        assert pid1.start("/bin/sh", "-c", "exit 3") == 0
        assert os.WEXITSTATUS(pid1.frame("X")) == 3
        # It still does what it is told to.
        pid1.signal(1, signal.SIGTERM)
        status = pid1.frame("Y")
        assert (status >> 16, os.WTERMSIG(status & 0xFFFF)) == (1, signal.SIGTERM)
        assert pid1.process.poll() is None
        pid1.signal(1, signal.SIGTERM)  # it is no more
        pid1.signal(7, signal.SIGTERM)  # nor was it ever
        pid1.control.shutdown(socket.SHUT_RDWR)
        assert pid1.ended() == 0


def test_a_signal_is_for_the_whole_process_group(init: str) -> None:
    script = "trap 'echo child; exit' TERM; echo up; while :; do sleep 0.01; done"
    with running(init) as pid1:
        pid1.start_companion("/bin/true")
        assert pid1.frame("Y") == 1 << 16
        assert pid1.start("/bin/sh", "-c", f"({script}) & trap 'wait; exit 5' TERM; wait") == 0
        assert pid1.process.stdout is not None
        assert pid1.process.stdout.readline() == b"up\n"
        pid1.signal(0, signal.SIGTERM)
        assert os.WEXITSTATUS(pid1.frame("X")) == 5
        assert pid1.process.stdout.read() == b"child\n"


def test_a_companion_that_cannot_be_executed(init: str) -> None:
    with running(init) as pid1:
        number, output = pid1.start_companion("/etc/passwd")
        assert number == errno.EACCES
        assert output.read() == b""
        assert pid1.frame("Y") >> 16 == 1
        assert pid1.start("/bin/true") == 0


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        (struct.pack("=I", 14 | 1 << 24) + struct.pack("=III", 64, 1, 0) + b"/\0", False),
        (struct.pack("=I", 14 | 11 << 24) + struct.pack("=III", 64, 1, 0) + b"/\0", True),
        (struct.pack("=I", 14) + struct.pack("=III", 64, 1, 0) + b"/\0", True),
        (struct.pack("=III", 4 | 0x53 << 24, 1, 1), False),
    ],
)
def test_nonsense_about_companions_ends_it_with_a_word(
    init: str, message: bytes, passes: bool
) -> None:
    with running(init) as pid1:
        if passes:
            socket.send_fds(pid1.control, [message], [0])
        else:
            pid1.control.sendall(message)
        assert pid1.ended() == 125
        assert pid1.process.stderr is not None
        assert b"message" in pid1.process.stderr.read()


def ask_for_socket(pid1: Pid1) -> tuple[int, list[int]]:
    """What pid 1 says, and the descriptors it sent."""
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT_S)
    with ours, theirs:
        socket.send_fds(pid1.control, [struct.pack("=I", 0x4E << 24)], [theirs.fileno()])
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 4, 4)
    return struct.unpack("=I", data)[0], fds


def test_a_socket_is_had_at_any_time_and_is_not_connected(init: str) -> None:
    with running(init) as pid1:
        assert pid1.start_companion("/bin/sleep", "60")[0] == 0
        open_before = os.listdir(f"/proc/{pid1.process.pid}/fd")
        for _ in range(3):
            number, fds = ask_for_socket(pid1)
            assert (number, len(fds)) == (0, 1)
            with socket.socket(fileno=fds[0]) as given:
                assert (given.family, given.type) == (socket.AF_INET, socket.SOCK_STREAM)
                assert not os.get_blocking(given.fileno())
                assert given.getsockname() == ("0.0.0.0", 0)
        # Its answer to the next message comes when it is done with those: nothing of them stays with it.
        assert pid1.start_companion("/bin/sleep", "60")[0] == 0
        assert os.listdir(f"/proc/{pid1.process.pid}/fd") == open_before


def test_who_asked_for_a_socket_may_have_gone(init: str) -> None:
    with running(init) as pid1:
        ours, theirs = socket.socketpair()
        ours.close()
        socket.send_fds(pid1.control, [struct.pack("=I", 0x4E << 24)], [theirs.fileno()])
        theirs.close()
        assert ask_for_socket(pid1)[0] == 0


def test_a_request_for_a_socket_without_one_to_answer_on_is_the_end(init: str) -> None:
    with running(init) as pid1:
        pid1.control.sendall(struct.pack("=I", 0x4E << 24))
        assert pid1.ended() != 0
