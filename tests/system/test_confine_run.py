"""Programs in sandboxes: how they start, what they are given, how their end is reported."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress

import pytest
import trio

from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import ConfineError, Exit, Program, ProgramNotStarted
from tests.system.confine_fixtures import confined, nothing_left, proc

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("making")]


async def test_a_program_runs_with_exactly_what_it_was_given() -> None:
    async with confined() as box:
        await box.python("say([sys.argv, dict(os.environ), os.getcwd()])")
        _, env, cwd = await box.heard()
    assert env.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"  # CPython's own doing (PEP 538)
    assert env == {"PATH": "/usr/bin:/bin", "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001"}
    assert cwd == "/"


async def test_argv_and_environment_pass_any_byte() -> None:
    odd = "a=b\n'\"\udcff ü"
    async with confined() as box:
        env = {"PATH": "/usr/bin", "EMPTY": "", "ODD": odd}
        await box.run("printf", "%s\\n", '["first"]', env=env)
        assert await box.heard() == ["first"]
    async with confined() as box:
        await box.run("/usr/bin/printenv", "-0", "ODD", "EMPTY", env=env)
        assert (await box.sandbox.wait()).code == 0
        assert os.read(box.sandbox.stdout, 100) == os.fsencode(odd) + b"\0\0"


async def test_only_standard_and_telemetry_descriptors_are_open() -> None:
    async with confined() as box:
        # bash: dash knows no descriptor of two digits. 255 is bash's own, for its script.
        await box.run("/bin/bash", "-c", "echo log >&62; exec ls /proc/self/fd >&2")
        assert (await box.sandbox.wait()).code == 0
        assert box.errors().split() == ["0", "1", "2", "3", "62"]  # 3: what ls reads
        assert os.read(box.sandbox.telemetry, 10) == b"log\n"


async def test_signals_and_limits_are_as_at_birth() -> None:
    async with confined(nofile=777) as box:
        found = await box.ask(
            "[status()['SigBlk'], status()['SigIgn'], "
            "*(__import__('resource').getrlimit(n)[1] for n in (7, 4)), os.getsid(0) == os.getpid()]"
        )
    # CPython itself ignores SIGPIPE (13) and SIGXFSZ (25).
    assert found == ["0" * 16, f"{1 << 12 | 1 << 24:016x}", 777, 0, True]


@pytest.mark.parametrize(
    ("argv", "cwd", "number"),
    [
        (["/nowhere"], "/", errno.ENOENT),
        (["not-on-the-path"], "/", errno.ENOENT),
        (["/usr"], "/", errno.EACCES),
        (["/bin/true"], "/nowhere", errno.ENOENT),
        (["/bin/true", "nul\0"], "/", errno.EINVAL),
        (["/bin/true", "x" * (5 << 20)], "/", errno.E2BIG),
        (["/bin/true", "x" * (1 << 20)], "/", errno.E2BIG),
    ],
)
async def test_a_failed_exec_tells_its_errno(argv: list[str], cwd: str, number: int) -> None:
    async with confined() as box:
        with pytest.raises(ProgramNotStarted) as caught:
            await box.sandbox.start(Program(argv, {"PATH": "/usr/bin"}, cwd))
        assert caught.value.errno == number
        assert caught.value.program == argv[0]


@pytest.mark.parametrize("code", [0, 1, 139, 255])
async def test_exit_codes(code: int) -> None:
    async with confined() as box:
        await box.run("/bin/sh", "-c", f"exit {code}")
        ended = await box.sandbox.wait()
        assert (ended.code, ended.signal, ended.killed) == (code, None, False)
        assert await box.sandbox.kill() == ended


@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
async def test_signals_are_not_exit_codes(sig: signal.Signals) -> None:
    async with confined() as box:
        await box.run("/bin/sh", "-c", f"kill -{int(sig)} $$")
        ended = await box.sandbox.wait()
        assert (ended.code, ended.signal, ended.killed) == (None, sig, False)


async def test_an_end_nobody_waited_for_is_told_by_kill() -> None:
    async with confined() as box:
        await box.run("/bin/sh", "-c", "exit 7")
        await box.emptied()
        assert (await box.sandbox.kill()).code == 7


async def test_many_may_wait_and_kill_at_once() -> None:
    ends: list[Exit] = []
    async with confined() as box:
        await box.ask("1")

        async def wait() -> None:
            ends.append(await box.sandbox.wait())

        async def kill() -> None:
            ends.append(await box.sandbox.kill())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
                nursery.start_soon(kill)
        ends.append(await box.sandbox.wait())
        ends.append(await box.sandbox.kill())
    assert len(set(ends)) == 1
    assert ends[0].killed
    assert ends[0].describe() == "signal: killed"


async def test_background_children_die_with_the_program() -> None:
    async with confined() as box:
        await box.python("""
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    signal.pause()
            say(0)
        """)
        await box.heard()
        assert (await box.sandbox.wait()).code == 0
        await box.emptied()


async def test_orphans_are_reaped() -> None:
    async with confined(pids=50) as box:
        await box.python("""
            for _ in range(200):
                if (middle := os.fork()) == 0:
                    if os.fork() == 0:
                        os._exit(0)
                    os._exit(0)
                os.waitpid(middle, 0)
            say("fine")
        """)
        assert await box.heard() == "fine"


async def test_the_listener_is_reached_at_the_told_address() -> None:
    async with confined() as box:
        assert box.sandbox.address == "127.0.0.1:9001"
        await box.python("""
            host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
            with socket.create_connection((host, int(port))) as s:
                s.sendall(b"hello")
                s.recv(1)
        """)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(box.sandbox.listener.dup()))
        async with listener, await listener.accept() as stream:
            assert await stream.receive_some(5) == b"hello"


async def test_host_network_has_an_address_of_its_own() -> None:
    async with (
        open_launcher() as launcher,
        confined(launcher, name="a", network="host") as a,
        confined(launcher, name="b", network="host") as b,
    ):
        assert a.sandbox.address != b.sandbox.address
        assert await a.ask("os.environ['AWS_LAMBDA_RUNTIME_API']") == a.sandbox.address


async def test_the_command_line_tells_no_secret() -> None:
    async with confined() as box:
        await box.run("/bin/sleep", "1000", env={"SECRET": "xyzzy"})
        bwrap, pid1 = sorted(box.inside())[:2]
        for pid in (bwrap, pid1):
            for file in ("cmdline", "environ"):
                with suppress(PermissionError):  # pid 1 shows its environment to root alone
                    assert b"xyzzy" not in proc(pid, file)


async def test_a_program_starts_once() -> None:
    async with confined() as box:
        await box.run("/bin/true")
        await box.sandbox.wait()
        with pytest.raises(ConfineError):
            await box.run("/bin/true")


async def test_nothing_is_left_of_thirty() -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            for number in range(30):
                async with confined(launcher, name=f"n-{number}") as box:
                    await box.run("/bin/true")
        assert launcher._live == set()  # a server makes millions
