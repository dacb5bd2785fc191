"""What a hostile handler can see and do."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.system.conftest import OWN_UIDS, Server
from tests.waiting import until

pytestmark = pytest.mark.system

PROBE = """
    import ctypes, errno, json, os, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)

    def attempt(call, *args):
        try:
            return call(*args) or "done"
        except OSError as exc:
            return errno.errorcode.get(exc.errno, str(exc))

    def syscall(number, *args):
        if libc.syscall(number, *args) == -1:
            raise OSError(ctypes.get_errno(), "")

    def status():
        return dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)

    def handler(event, context):
        return eval(event["expression"])
"""


@pytest.fixture(scope="module")
def probe(shared: Server) -> Any:
    # A whole core: some questions walk the whole file system.
    shared.functions.add("probe", PROBE, "memory_size = 1769\ntimeout = 60")

    def ask(expression: str) -> Any:
        answer = shared.invoke("probe", {"expression": expression})
        assert "FunctionError" not in answer, answer["Payload"]
        return answer["Payload"]

    return ask


def test_identity(probe: Any) -> None:
    assert probe("[os.getuid(), os.getgid(), os.geteuid(), os.getgroups()]")[:3] == [993, 990, 993]
    status = probe("status()")
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


@pytest.mark.skipif(not OWN_UIDS, reason="host: needs uids for environments to have")
def test_every_environment_has_a_host_uid_of_its_own(shared: Server) -> None:
    shared.functions.add("naps", "import time\ndef handler(event, context):\n    time.sleep(2)\n")
    threads = [threading.Thread(target=lambda: shared.invoke("naps")) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: sum(row["state"] == "busy" for row in shared.environments("naps")) == 3)

    def uids() -> set[int]:
        found = set()
        for child in psutil.Process(shared.process.pid).children(recursive=True):
            # The zygote is in no sandbox's group, and stays root: no user code ever runs in it.
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                inside = "/lambox-" in Path(f"/proc/{child.pid}/cgroup").read_text()
                if child.name().startswith("python") and inside:
                    found.add(child.uids().real)
        return found

    # A fork on its way into a sandbox that is made ahead is root's for a moment.
    until(lambda: 0 not in uids())
    assert len(uids()) >= 3
    for thread in threads:
        thread.join()


def test_the_root_is_read_only_but_for_tmp(probe: Any) -> None:
    for folder in (
        "/",
        "/var/task",
        "/opt",
        "/var/runtime",
        "/usr/bin",
        "/etc",
        "/dev",
        "/proc",
        "/var",
        "/run",
    ):
        assert probe(f"attempt(open, '{folder}/x', 'w')") in (
            "EROFS",
            "EACCES",
            "ENOENT",
            "EPERM",
        ), folder
    assert probe("attempt(os.mkdir, '/tmp/x')") == "done"
    writable = probe(
        "[p for p, _, _ in os.walk('/') if os.access(p, os.W_OK) and not p.startswith('/proc')]"
    )
    # devpts says it is writable, but only opening /dev/ptmx makes something in it.
    assert probe("attempt(open, '/dev/pts/x', 'w')") in ("EACCES", "EPERM", "EROFS")
    others = [path for path in writable if path != "/tmp" and not path.startswith("/tmp/")]
    assert others in ([], ["/dev/pts"])


def test_tmp_is_private_and_sized(shared: Server, probe: Any) -> None:
    space = probe("os.statvfs('/tmp').f_bavail * os.statvfs('/tmp').f_frsize")
    assert space - 512 * 1024 * 1024 in (
        0,
        4096,
    )  # on disk: a block for the extents of a large file
    assert probe("os.listdir('/tmp')") in ([], ["x"])


def test_nothing_of_the_hosts_files(probe: Any) -> None:
    for path in (
        "/home",
        "/root",
        "/work",
        "/var/lib",
        "/var/log",
        "/sys",
        "/usr/local",
        "/srv",
        "/mnt",
        "/run/lambox/init.sock",
    ):
        assert probe(f"os.path.isdir('{path}') and os.listdir('{path}')") in (False, []), path
    assert probe("sorted(os.listdir('/var'))") == ["runtime", "task"] or "lang" in probe(
        "os.listdir('/var')"
    )


def test_no_process_but_its_own(probe: Any) -> None:
    pids = probe("sorted(int(p) for p in os.listdir('/proc') if p.isdigit())")
    assert len(pids) <= 3
    assert probe("attempt(os.readlink, '/proc/1/exe')") == "EACCES"
    assert probe("attempt(os.listdir, '/proc/1/fd')") == "EACCES"
    assert probe("attempt(open, '/proc/1/environ')") == "EACCES"


@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("mount", 165, "0, 0, 0, 0, 0"),
        ("umount2", 166, "0, 0"),
        ("pivot_root", 155, "0, 0"),
        ("unshare", 272, "0x10000000"),
        ("setns", 308, "0, 0"),
        ("ptrace", 101, "0, 0, 0, 0"),
        ("bpf", 321, "0, 0, 0"),
        ("perf_event_open", 298, "0, 0, 0, 0, 0"),
        ("keyctl", 250, "0, 0, 0, 0, 0"),
        ("userfaultfd", 323, "0"),
        ("kexec_load", 246, "0, 0, 0, 0"),
        ("init_module", 175, "0, 0, 0"),
        ("reboot", 169, "0, 0, 0, 0"),
        ("swapon", 167, "0, 0"),
        ("settimeofday", 164, "0, 0"),
        ("open_by_handle_at", 304, "0, 0, 0"),
        ("process_vm_readv", 310, "1, 0, 0, 0, 0, 0"),
        ("fsopen", 430, "0, 0"),
        ("move_mount", 429, "0, 0, 0, 0, 0"),
    ],
)
def test_refused_system_calls(probe: Any, name: str, number: int, arguments: str) -> None:
    assert probe(f"attempt(syscall, {number}, {arguments})") in ("EPERM", "ENOSYS"), name


def test_clone3_and_io_uring_do_not_exist(probe: Any) -> None:
    assert probe("attempt(syscall, 435, 0, 0)") == "ENOSYS"
    assert probe("attempt(syscall, 425, 1, 0)") == "ENOSYS"


def test_no_namespaces_by_clone(probe: Any) -> None:
    assert probe("attempt(syscall, 56, 0x10000000 | 17, 0, 0, 0, 0)") == "EPERM"


def test_the_network_is_its_own(probe: Any) -> None:
    assert probe("[name for _, name in socket.if_nameindex()]") == ["lo"]
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        assert (
            probe(f"attempt(socket.create_connection, ('127.0.0.1', {port}), 1)") == "ECONNREFUSED"
        )
    assert probe("attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)") in (
        "EPERM",
        "EACCES",
        "EAFNOSUPPORT",
    )
    assert probe("attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW)") in ("EPERM", "EACCES")


def test_abstract_unix_sockets_of_the_host_are_out_of_reach(probe: Any) -> None:
    with socket.socket(socket.AF_UNIX) as host:
        host.bind("\0lambox-test-abstract")
        host.listen()
        assert (
            probe("attempt(socket.socket(socket.AF_UNIX).connect, '\\0lambox-test-abstract')")
            == "ECONNREFUSED"
        )


def test_limits(probe: Any) -> None:
    assert probe(
        "list(__import__('resource').getrlimit(__import__('resource').RLIMIT_NOFILE))"
    ) == [1024, 1024]
    # 1 where the host pipes core dumps into a program, which ignores 0 (core(5)).
    core = probe("list(__import__('resource').getrlimit(__import__('resource').RLIMIT_CORE))")
    assert core in ([0, 0], [1, 1])


def test_a_fork_bomb_stays_inside(shared: Server) -> None:
    shared.functions.add(
        "bomb",
        """
        import os, time
        def handler(event, context):
            made = 0
            try:
                while True:
                    if os.fork() == 0:
                        time.sleep(1000)
                    made += 1
            except OSError as exc:
                return [made, exc.errno]
        """,
        "memory_size = 3538\ntimeout = 60",
    )
    made, number = shared.invoke("bomb")["Payload"]
    assert made <= 1024
    assert number == 11
    assert shared.get("/healthz")["status"] == "ok"


def test_environments_do_not_see_each_other(shared: Server) -> None:
    shared.functions.add(
        "writer",
        "import time\ndef handler(event, context):\n    open('/tmp/mine', 'x').write('secret')\n    time.sleep(1)\n",
    )
    threads = [threading.Thread(target=lambda: shared.invoke("writer")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shared.environments("writer")) == 2


def test_host_network_is_an_explicit_choice(shared: Server) -> None:
    shared.functions.add(
        "online",
        "import socket\ndef handler(event, context):\n    return [name for _, name in socket.if_nameindex()]\n",
        'network = "host"',
    )
    assert shared.invoke("online")["Payload"] == [name for _, name in socket.if_nameindex()]


def test_on_the_hosts_network_the_runtime_api_answers_its_environment_alone(
    shared: Server,
) -> None:
    shared.functions.add(
        "online-api",
        "import os\ndef handler(event, context):\n    return os.environ['AWS_LAMBDA_RUNTIME_API']\n",
        'network = "host"\nfreeze = false\n',
    )
    host, port = shared.invoke("online-api")["Payload"].split(":")
    with socket.create_connection((host, int(port))) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\n\r\n")
        stranger.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    assert shared.invoke("online-api")["Payload"] == f"{host}:{port}"


def test_environment_variables(probe: Any) -> None:
    env = probe("dict(os.environ)")
    assert env["AWS_LAMBDA_RUNTIME_API"] == "127.0.0.1:9001"
    assert env["AWS_LAMBDA_FUNCTION_NAME"] == "probe"
    assert env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "1769"
    assert env["_HANDLER"] == "handler.handler"
    assert env["LAMBDA_TASK_ROOT"] == "/var/task"
    assert env["TZ"] == ":UTC"
    assert not {key for key in env if key.startswith("LAMBOX")}
    assert "HOME" not in env
