"""System calls on the real kernel: each family's list, and log mode, however a sandbox came about."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from sandbox.confine.calls import FAMILIES, Family
from sandbox.confine.launcher import open_launcher
from sandbox.confine.overseer import BURST
from sandbox.confine.pool import PoolLimits
from sandbox.confine.spec import RefusedCall, SandboxSpec
from tests.system.confine_fixtures import (
    CLIENT,
    MAKING,
    MAKINGS,
    PYTHON_FORKS,
    ROOT,
    Box,
    confined,
    made_ahead,
    nothing_left,
)
from tests.system.conftest import Start
from tests.waiting import until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="host: call numbers of x86-64"),
]
SHMGET, PTRACE, UNSHARE, VMSPLICE = 29, 101, 272, 278


@asynccontextmanager
async def observed(calls: Family = "python") -> AsyncIterator[tuple[Box, list[str]]]:
    """A sandbox in log mode, made as MAKING says, and what is told of it."""
    pool = None if MAKING.get() == "scratch" else PoolLimits(1, 1)
    async with open_launcher(pool=pool, calls="log") as launcher:
        assert ", seccomp in log mode" in launcher.describe()
        if pool is not None:
            spec = SandboxSpec("test", ROOT, calls=calls)
            if MAKING.get() == "forked":
                spec = replace(spec, root=(*ROOT, *CLIENT), preparation=PYTHON_FORKS)
            await made_ahead(launcher, spec)
        async with confined(launcher, calls=calls) as box:
            told: list[str] = []

            def tell(call: RefusedCall) -> None:
                told.append(call.line())

            box.sandbox.refused(tell)
            yield box, told


@pytest.mark.parametrize(
    ("family", "how"),
    [*((family, "scratch") for family in FAMILIES), *(("python", how) for how in MAKINGS[1:])],
)
async def test_each_family_has_its_list(family: Family, how: str) -> None:
    MAKING.set(how)  # in this test's own task and context
    async with confined(calls=family) as box:
        await box.python("""
            say([attempt(syscall, 29, 0, 4096, 0o1600), attempt(syscall, 278, -1, 0, 0, 0),
                 attempt(syscall, 101, 0, 0, 0, 0), attempt(syscall, 9999)])
        """)
        sysv = "done" if family == "provided" else "EPERM"
        assert await box.heard() == [sysv, "EPERM", "EPERM", "ENOSYS"]


@pytest.mark.usefixtures("making")
async def test_log_mode_lets_run_what_only_the_list_lacks_and_tells() -> None:
    async with observed() as (box, told):
        await box.python("""
            say([
                [attempt(syscall, 29, 0, 4096, 0o1600) for _ in range(3)],
                attempt(syscall, 101, 0, 0, 0, 0), attempt(syscall, 272, 0x10000000),
                attempt(socket.socket, 17, 3), attempt(socket.socket, 2, 3, 1), attempt(syscall, 435, 0, 0),
                attempt(syscall, 425, 1, 0), attempt(syscall, 9998), attempt(syscall, 9999),
                sorted(os.listdir("/proc/self/fd")), status()["Seccomp_filters"],
                subprocess.run(["true"]).returncode,
            ])
        """)
        assert await box.heard() == [
            ["done"] * 3, "EPERM", "EPERM", "EAFNOSUPPORT", "EPERM", "ENOSYS", "ENOSYS", "ENOSYS", "ENOSYS",
            ["0", "1", "2", "3", "62"], "1", 0,
        ]  # fmt: skip
        assert told == [
            "seccomp: shmget would be refused by the filter for python",
            "seccomp: ptrace is refused (EPERM), in log mode too",
            "seccomp: unshare is refused (EPERM), in log mode too",
            "seccomp: socket(0x11, 0x80003, 0x0) is refused (EAFNOSUPPORT), in log mode too",
            "seccomp: socket(0x2, 0x80003, 0x1) is refused (EPERM), in log mode too",
            "seccomp: io_uring_setup is refused (ENOSYS), in log mode too",
            "seccomp: system call 9998, unknown here, is refused (ENOSYS), in log mode too",
        ]
        await box.sandbox.kill()
        totals = [call.total() for call in box.sandbox.refused()]
        assert totals[0] == "seccomp: shmget would have been refused 3 times in this environment"
        assert totals[1] == "seccomp: ptrace was refused once in this environment"


async def test_nothing_is_asked_of_an_ordinary_program() -> None:
    async with observed() as (box, told):
        await box.python("""
            import asyncio, concurrent.futures, tempfile
            asyncio.run(asyncio.sleep(0.001))
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                list(pool.map(str, range(50)))
            subprocess.run(["sh", "-c", "ls / | sort"], check=True, capture_output=True)
            tempfile.NamedTemporaryFile().write(b"x")
            say(1)
        """)
        assert await box.heard() == 1
        assert told == []


async def test_when_nobody_answers_any_more_the_call_is_refused() -> None:
    async with observed() as (box, _):
        await box.python(
            """
            say(attempt(syscall, 29, 0, 4096, 0o1600))
            sys.stdin.read()
            signal.sigwait([signal.SIGUSR1])
            say(attempt(syscall, 29, 0, 4096, 0o1600))
        """.replace(
                "sys.stdin.read()",
                "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); say(2)",
            )
        )
        assert (await box.heard(), await box.heard()) == ("done", 2)
        assert box.sandbox._watch is not None
        box.sandbox._watch.close()
        for pid in box.inside()[2:]:
            os.kill(pid, 10)
        assert await box.heard() == "ENOSYS"


async def test_a_flood_of_refused_calls_holds_up_itself_alone() -> None:
    """And a sandbox that is waiting for an answer dies like any other."""
    with nothing_left():
        async with (
            observed() as (flood, told),
            confined(flood.launcher, name="calm", calls="python") as calm,
        ):
            await flood.python("""
                for _ in range(4):
                    if os.fork() == 0:
                        while True:
                            libc.shmget(0, -1, 0)
                say(1)
                while True:
                    libc.shmget(0, -1, 0)
            """)
            await flood.heard()
            asked = flood.sandbox.refused
            while not asked() or asked()[0].count <= BURST:  # type: ignore[attr-defined]  # noqa: ASYNC110
                await trio.sleep(0.001)
            began, late = trio.current_time(), 0.0
            await calm.python("say(attempt(syscall, 29, 0, 4096, 0o1600))")
            for _ in range(100):
                before = trio.current_time()
                await trio.sleep(0.001)
                late = max(late, trio.current_time() - before)
            assert await calm.heard() == "done"
            assert late < 0.25
            taken = trio.current_time() - began
            assert asked()[0].count < 3 * BURST + 5000 * taken  # type: ignore[attr-defined]
            assert len(told) == 1
            with trio.fail_after(5):
                assert (await flood.sandbox.kill()).killed


HANDLER = """
import ctypes
def handler(event, context):
    libc = ctypes.CDLL(None, use_errno=True)
    print("printed")
    return [libc.shmget(0, 4096, 0o1600) >= 0, libc.ptrace(0, 0, 0, 0), ctypes.get_errno()]
"""
NODE = """
import { spawnSync } from "node:child_process";
export const handler = async () => spawnSync("perl", ["-e", "print syscall(29, 0, 4096, 0)"]).stdout.toString();
"""
BASH = """#!/bin/bash
api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
while id=$(curl -sSi "$api/next" | tr -d '\\r' | awk 'tolower($1) == "lambda-runtime-aws-request-id:" { print $2 }'); do
  curl -sS -o /dev/null -d "\\"$(perl -e 'print syscall(278, -1, 0, 0, 0), $!+0')\\"" "$api/$id/response"
done
"""


def test_a_server_in_log_mode(start: Start) -> None:
    """Python forked and Node.js parked where the host can, a bootstrap executed by pid 1."""
    server = start(LAMBOX_SECCOMP="log")
    server.functions.add("py", HANDLER)
    node = shutil.which("node") is not None
    if node:
        server.functions.add("js", NODE, "", "index.mjs")
    server.functions.add("sh", BASH, 'runtime = "provided.al2023"', "bootstrap")
    if os.geteuid() == 0:
        server.wait_prepared()
    text = server.log.read_text()
    assert "seccomp is in log mode" in text
    assert "seccomp in log mode" in text.split("isolated by")[1].splitlines()[0]
    assert server.invoke("py")["Payload"] == [True, -1, 1]
    assert server.invoke("py")["Payload"] == [True, -1, 1]
    if node:
        assert int(server.invoke("js")["Payload"]) >= 0
    assert server.invoke("sh")["Payload"] == "-19"  # EBADF: it ran
    ends = server.functions.folder / "py" / "handler.py"
    ends.write_text(HANDLER + "\n# changed\n")
    server.wait_log("shmget would have been refused 2 times in this environment")
    told = server.log.read_text().splitlines()
    for function, line in (
        ("py", "seccomp: shmget would be refused by the filter for python"),
        ("py", "seccomp: ptrace is refused (EPERM), in log mode too"),
        ("js", "seccomp: shmget would be refused by the filter for nodejs"),
        ("sh", "seccomp: vmsplice would be refused by the filter for provided"),
    ):
        if function != "js" or node:
            assert sum(f"[{function}] {line}" in one for one in told) == 1
        assert sum(f"function {function}: {line}" in one for one in told) == 1
    server.invoke("py")  # a fresh environment, an old story
    assert server.stop() == 0
    until(lambda: "ptrace was refused once in this environment" in server.log.read_text())
    assert server.log.read_text().count("shmget would be refused by the filter for python") == 2


def test_by_default_the_list_is_enforced(start: Start) -> None:
    server = start()
    server.functions.add("py", HANDLER)
    assert server.invoke("py")["Payload"] == [False, -1, 1]
    text = server.log.read_text()
    assert "log mode" not in text
    assert "seccomp" in text.split("isolated by")[1].splitlines()[0]
