"""Processes beside the program of a sandbox: what holds the one holds the others, and one kill ends all."""

from __future__ import annotations

import errno
import json
import os
import signal
import textwrap

import pytest
import trio
import trio.testing

from sandbox.confine.control import MOST_COMPANIONS
from sandbox.confine.spec import Companion, ConfineError, Program, ProgramNotStarted
from tests.system.confine_fixtures import ENV, PRELUDE, PYTHON, Box, confined

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("making")]
FOREVER = ("/bin/sleep", "1000")


async def companion(box: Box, *argv: str) -> Companion:
    return await box.sandbox.start_companion(Program(argv, ENV, "/"))


def code(text: str) -> tuple[str, ...]:
    return PYTHON, "-I", "-S", "-c", PRELUDE + textwrap.dedent(text)


async def output(one: Companion) -> str:
    """All of it: until nobody can write to it any more."""
    text = b""
    while True:
        await trio.lowlevel.wait_readable(one.output)
        data = os.read(one.output, 65536)
        if not data:
            return text.decode()
        text += data


def groups(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup") as file:
        return file.read()


async def test_it_is_held_by_what_holds_the_program() -> None:
    about = """
    kept = ("Uid", "Gid", "Groups", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "NSpid")
    found = {key: value for key, value in status().items() if key in kept}
    spaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "net", "pid", "user", "ipc")}
    say([found | {"NSpid": len(found["NSpid"].split())}, spaces, sorted(os.listdir("/proc/self/fd"))[:3]])
    """
    async with confined() as box:
        one = await companion(box, *code(about))
        await box.python(textwrap.dedent(about) + "\nsignal.pause()")
        assert json.loads(await output(one)) == await box.heard()
        assert (await one.wait()).code == 0
        await companion(box, *FOREVER)
        # The same groups: its memory and processor time are the sandbox's.
        inside = box.inside()
        assert len(inside) >= 3
        assert len({groups(pid) for pid in inside}) == 1


async def test_the_end_of_the_program_is_not_the_sandboxs_and_a_kill_is_everybodys() -> None:
    async with confined() as box:
        one = await companion(box, *FOREVER)
        await box.run("/bin/sh", "-c", "exit 5")
        assert (await box.sandbox.wait()).code == 5
        # Its parent, which reports, lives on.
        await one.signal(signal.SIGTERM)
        assert (await one.wait()).signal == signal.SIGTERM
        last = await companion(box, *FOREVER)
        assert box.inside()
        await box.sandbox.kill()
        assert (await last.wait()).describe() == "signal: killed"
        with pytest.raises(ConfineError):
            await last.signal(signal.SIGTERM)


async def test_signals_reach_the_program() -> None:
    async with confined() as box:
        await companion(box, *FOREVER)
        await box.python(
            """
            signal.signal(signal.SIGTERM, lambda *_: (say("asked"), os._exit(3)))
            say("up")
            while True: signal.pause()
            """
        )
        assert await box.heard() == "up"
        await box.sandbox.signal(signal.SIGTERM)
        assert await box.heard() == "asked"
        assert (await box.sandbox.wait()).code == 3
        await box.sandbox.signal(signal.SIGTERM)  # it is no more: nothing happens


async def test_so_many_and_no_more() -> None:
    async with confined() as box:
        for number in range(MOST_COMPANIONS):
            one = await companion(box, "/bin/echo", str(number))
            assert await output(one) == f"{number}\n"
        with pytest.raises(ConfineError):
            await companion(box, "/bin/true")
        # That is no harm to the program.
        assert await box.ask("1 + 1") == 2


async def test_one_that_cannot_be_executed_says_why() -> None:
    async with confined() as box:
        with pytest.raises(ProgramNotStarted) as caught:
            await companion(box, "/nowhere")
        assert caught.value.errno == errno.ENOENT
        assert await box.ask("1 + 1") == 2


async def test_all_of_them_wait_at_the_same_time() -> None:
    """Who is cancelled while he reads for all leaves the others nothing to miss."""
    async with confined() as box:
        some = [await companion(box, *FOREVER) for _ in range(3)]
        await box.run(*FOREVER)
        ended: list[int | None] = []

        async def wait(one: Companion) -> None:
            ended.append((await one.wait()).signal)

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.05):
                await some[0].wait()
            for one in some:
                nursery.start_soon(wait, one)
            await trio.testing.wait_all_tasks_blocked()
            for number, one in enumerate(some):
                await one.signal((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[number])
        assert sorted(number or 0 for number in ended) == [2, 9, 15]
