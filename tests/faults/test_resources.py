"""Faults of what the kernel gives: no descriptors, no processes, no memory, cgroups that cannot be written."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sandbox.confine.cgroup_v1 import mounted
from tests.faults.parts import ECHO, SLOW, Call, busy, refused, works
from tests.leftovers import traces
from tests.system.conftest import LAMBOX, Server, Start
from tests.waiting import until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="host: limits and cgroups of others need root"),
]


# -- descriptors


@contextlib.contextmanager
def few_descriptors(server: Server, spare: int) -> Iterator[None]:
    """The server may open `spare` more than it has."""
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def cpu_share(server: Server, seconds: float) -> float:
    process = psutil.Process(server.process.pid)
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def test_out_of_descriptors_callers_wait_and_nothing_spins(start: Start) -> None:
    """Connections beyond the limit wait in the kernel's queue, at a tenth of a core at most; then all are served."""
    server = start()
    server.functions.add("warm", ECHO)
    assert server.invoke("warm", 1)["Payload"] == 1
    time.sleep(0.5)  # what was made ahead stands
    with few_descriptors(server, 3), contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(address(server)))
        time.sleep(0.3)
        share = cpu_share(server, 1.5)
        waiting = Call(server, "warm", 2)
        time.sleep(0.2)
        assert waiting.is_alive()
        assert share < 0.3, f"{share:.0%} of a core while out of descriptors"
        stack.close()
        assert waiting.result(10)["Payload"] == 2
    assert server.invoke("warm", 3)["Payload"] == 3
    assert server.stop() == 0


def test_a_cold_start_without_descriptors_is_refused_and_warm_goes_on(start: Start) -> None:
    """A ServiceException, and the function is still known and works once there are some."""
    server = start(LAMBOX_ZYGOTE="false")
    server.functions.add("warm", ECHO)
    server.functions.add("cold", ECHO)
    client = server.client()

    def warm() -> bool:
        return bool(client.invoke(FunctionName="warm", Payload=b"1")["Payload"].read() == b"1")

    assert warm()
    assert refused(server, "nobody")[0].startswith("ResourceNotFound")
    with few_descriptors(server, 4):
        error, took_s = refused(server, "cold", 1)
        assert error.startswith("ServiceException")
        assert took_s < 3
        assert warm()
    assert server.invoke("cold", 2)["Payload"] == 2
    assert server.stop() == 0
    assert traces(server.process.pid) == set()


@pytest.mark.skipif(shutil.which("strace") is None, reason="host: no strace")
def test_a_host_out_of_files_is_waited_for(start: Start) -> None:
    """accept(2) answering ENFILE for a while: callers wait, and are served when it is over."""
    server = start()
    server.functions.add("f", ECHO)
    assert server.invoke("f", 1)["Payload"] == 1
    tracer = subprocess.Popen(
        [
            *("strace", "-qq", "-p", str(server.process.pid), "-e", "trace=accept4"),
            *("-e", "inject=accept4:error=ENFILE:when=1..5"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: _traced(server.process.pid))
        call = Call(server, "f", 2)
        assert call.result(20)["Payload"] == 2
        assert call.took_s > 0.3  # five times the pause of a tenth of a second
    finally:
        tracer.terminate()
        assert tracer.stderr is not None
        said = tracer.stderr.read()
        tracer.wait()
        tracer.stderr.close()
    assert "ENFILE" in said
    assert server.stop() == 0


def _traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


# -- a group around the server


class Around:
    """A cgroup (v1 or v2) that the server is started in, with one limit."""

    def __init__(self, controller: str, name: str) -> None:
        found = mounted(
            Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
        )
        self.v1 = controller in found
        base = found[controller] if self.v1 else Path("/sys/fs/cgroup")
        self.folder = base / f"faults-{os.getpid()}-{name}"
        self.folder.mkdir()

    @property
    def prefix(self) -> list[str]:
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"]

    def set(self, name: str, value: object) -> None:
        (self.folder / name).write_text(str(value))

    def get(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            until(lambda: not (self.folder / "cgroup.procs").read_text(), 5)
        for pid in (self.folder / "cgroup.procs").read_text().split():  # the test has failed
            with contextlib.suppress(OSError):
                (self.folder.parent / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@contextlib.contextmanager
def around(controller: str, name: str) -> Iterator[Around]:
    group = Around(controller, name)
    try:
        yield group
    finally:
        group.close()


@pytest.mark.parametrize("zygote", ["true", "false"])
def test_out_of_processes_cold_starts_are_refused_and_warm_goes_on(
    start: Start, zygote: str
) -> None:
    """fork and clone answer EAGAIN in the server's own group: ServiceException; works again with room."""
    with around("pids", f"pids-{zygote}") as group:
        server = start(prefix=group.prefix, LAMBOX_ZYGOTE=zygote)
        server.functions.add("warm", ECHO)
        server.functions.add("cold", ECHO, "memory_size = 256")
        assert server.invoke("warm", 1)["Payload"] == 1
        time.sleep(1)  # what is made ahead stands
        group.set("pids.max", 1)
        changed = ECHO + "# changed: no environment, and what was made ahead is used up\n"
        refusals = 0
        for number in range(20):
            server.functions.add("cold", changed * (number + 1), "memory_size = 256")
            answer = Call(server, "cold", 1).result(20)
            refusals += "ServiceException" in str(answer)
            assert "ServiceException" in str(answer) or answer["Payload"] == 1
        assert refusals > 10
        assert server.invoke("warm", 2)["Payload"] == 2
        # There may be no thread to write it: then it is refused, not lost.
        event = Call(server, "warm", 3, InvocationType="Event").result()
        assert "ServiceException" in str(event) or event["StatusCode"] == 202
        group.set("pids.max", "max")
        until(lambda: works(server, "cold", 1))
        assert server.stop() == 0
        assert traces(server.process.pid) == set()


def test_functions_beyond_the_memory_around_the_server_die_and_it_does_not(start: Start) -> None:
    """Three of 512 MB in 700 MB: the kernel takes sandboxes, as they are marked for it; every call has an end."""
    with around("memory", "memory") as group:
        if not group.v1:
            pytest.skip("host: on v2 a root's sandboxes stand at the top, in nobody's group")
        group.set("memory.limit_in_bytes", 700 << 20)
        # By its own budget it would not run that many.
        server = start(prefix=group.prefix, LAMBOX_MEMORY_BUDGET_MB="8192")
        hog = "import time\ndef handler(event, context):\n    a = b'x' * (350 << 20)\n"
        for number in range(3):
            server.functions.add(
                f"hog{number}", hog + "    time.sleep(2)\n", "memory_size = 512\ntimeout = 20"
            )
        server.functions.add("calm", ECHO)
        assert server.invoke("calm", 1)["Payload"] == 1
        calls = [Call(server, f"hog{number}") for number in range(3)]
        answers = [call.result(40) for call in calls]
        died = [answer for answer in answers if "FunctionError" in answer]
        assert died
        assert all(answer["Payload"]["errorType"] == "Runtime.ExitError" for answer in died)
        assert server.process.poll() is None
        until(lambda: works(server, "calm", 2))
        assert "FunctionError" not in server.invoke("hog0")
        assert server.stop() == 0


def test_every_process_of_a_sandbox_goes_before_the_server_does(start: Start) -> None:
    """oom_score_adj: 500 in sandboxes, the server's own as it was started."""
    server = start()
    server.functions.add("slow", SLOW)
    assert server.invoke("slow", 0)["Payload"] == "done"
    call = Call(server, "slow", 1)
    until(lambda: busy(server, "slow"))
    own = _oom_score_adj(server.process.pid)
    assert own == _oom_score_adj(os.getpid())
    inside = [
        child.pid
        for child in psutil.Process(server.process.pid).children(recursive=True)
        if child.uids().real != 0 and not {"bwrap", "init"} & {child.name()}  # those have no memory
    ]
    assert inside
    assert {_oom_score_adj(pid) for pid in inside} == {500}
    call.result()


def _oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


# -- cgroups that cannot be written

READ_ONLY = """
for place in $(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/mounts); do
    mount -o remount,bind,ro "$place" || exit 9
done
exec "$@"
"""
IN_OWN_NAMESPACE = ["unshare", "--mount", "sh", "-c"]


def test_read_only_cgroups_are_refused_at_the_start(tmp_path: Path) -> None:
    """Exit code 3, what was tried, and the command that mends it."""
    done = subprocess.run(
        [
            *(*IN_OWN_NAMESPACE, READ_ONLY, "sh"),
            *(LAMBOX, "serve", "--functions", tmp_path, "--port", "0"),
        ],
        env={**os.environ, "LAMBOX_STATE": str(tmp_path / "state")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "no cgroup can be made here" in done.stderr
    assert "Hint: " in done.stderr


def remount(server: Server, how: str) -> None:
    script = READ_ONLY.replace(",ro", f",{how}").replace('exec "$@"', "")
    pid = str(server.process.pid)
    subprocess.run(["nsenter", "-m", "-t", pid, "sh", "-c", script], check=True, timeout=30)


def test_cgroups_that_become_read_only_while_serving(start: Start) -> None:
    """Warm goes on, unfrozen; a cold start is a ServiceException; all is well again once they can be written."""
    server = start(prefix=[*IN_OWN_NAMESPACE, 'exec "$@"', "sh"], LAMBOX_ZYGOTE="false")
    server.functions.add("warm", ECHO)
    server.functions.add("cold", ECHO)
    assert server.invoke("warm", 1)["Payload"] == 1
    until(lambda: server.environments("warm")[0]["state"] == "frozen")
    assert server.invoke("warm", 1)["Payload"] == 1
    remount(server, "ro")
    try:
        assert server.invoke("warm", 2)["Payload"] == 2
        error, took_s = refused(server, "cold", 1)
        assert error.startswith("ServiceException")
        assert took_s < 3
        server.wait_log("Read-only file system")
        assert server.invoke("warm", 3)["Payload"] == 3
    finally:
        remount(server, "rw")
    assert server.invoke("cold", 2)["Payload"] == 2
    assert server.stop() == 0
    assert traces(server.process.pid) == set()
