"""A host on which others interfere: processes killed and groups removed under us, trees that will not go."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import trio

from sandbox.confine import cgroup, process
from sandbox.confine.launcher import open_launcher
from sandbox.confine.spec import ConfineError, SandboxSpec
from tests.system.confine_fixtures import ROOT, confined, nothing_left

pytestmark = pytest.mark.system


@pytest.mark.parametrize("who", ["bwrap", "pid 1", "both"])
async def test_a_sandbox_ended_from_outside_is_noticed_and_cleaned_up(who: str) -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher) as box:
                await box.ask("[os.fork(), os.fork()] and 1")
                bwrap, pid1 = sorted(box.inside())[:2]
                for pid in {"bwrap": [bwrap], "pid 1": [pid1], "both": [bwrap, pid1]}[who]:
                    os.kill(pid, signal.SIGKILL)
                end = await box.sandbox.wait()
                assert (end.code, end.signal, end.killed) == (None, None, False)
                assert end.describe() == "signal: killed"
                with pytest.raises(ConfineError):
                    await box.run("/bin/true")
                assert await box.sandbox.kill() == end
                assert not psutil.pid_exists(bwrap)
                assert not psutil.pid_exists(pid1)


async def test_a_stopped_bwrap_is_given_a_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KILL_LIMIT_S", 1.0)
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher) as box:
                await box.ask("1")
                os.kill(min(box.inside()), signal.SIGSTOP)
                await box.sandbox.kill()


async def test_what_will_not_go_is_named_and_can_be_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher, name="sticky") as box:
                await box.ask("1")
                with monkeypatch.context() as patch:
                    patch.setattr(process, "REMOVE_TRIES", 3)
                    patch.setattr(type(box.sandbox._cgroup), "remove", lambda self: False)
                    with pytest.raises(ConfineError, match="sticky"):
                        await box.sandbox.kill()
                    assert launcher._live
                await box.sandbox.kill()
            assert not launcher._live


async def test_a_living_launchers_groups_are_neither_swept_nor_closed_by_another() -> None:
    async with open_launcher() as launcher, confined(launcher) as box:
        await box.ask("1")
        async with open_launcher() as other, confined(other) as second:
            await second.ask("1")
            assert set(box.inside()).isdisjoint(second.inside())
        tree = cgroup.detect()
        tree.sweep()
        tree.close()
        assert len(box.inside()) == 3
        assert (await box.sandbox.kill()).killed


async def test_a_supervisors_folder_removed_from_outside() -> None:
    """It is made again by the next launch, and says so."""
    async with open_launcher() as launcher:
        async with confined(launcher, name="first") as box:
            folders = [Path(procs).parents[1] for procs in box.sandbox._cgroup.procs]
        for folder in folders:
            folder.rmdir()
        with nothing_left():
            async with confined(launcher, name="second") as box:
                assert await box.ask("1") == 1
                assert box.inside()


async def test_groups_removed_while_a_sandbox_is_made_cost_that_one_alone() -> None:
    """Somebody kills what is in our groups and removes them, again and again: a launch fails or works, no more."""
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up") as box:
            folders = [Path(procs).parents[1] for procs in box.sandbox._cgroup.procs]
        ended = trio.Event()

        def vandalise() -> None:
            for folder in folders:
                for procs in folder.glob("*/cgroup.procs"):
                    for pid in cgroup.read_pids(str(procs)):
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                    with suppress(OSError):
                        procs.parent.rmdir()
                with suppress(OSError):
                    folder.rmdir()

        async def vandal() -> None:
            while not ended.is_set():
                await trio.to_thread.run_sync(vandalise)

        with nothing_left(), trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vandal)
                for number in range(10):
                    with suppress(ConfineError):
                        await (await launcher.launch(SandboxSpec(f"doomed-{number}", ROOT))).kill()
                ended.set()
            async with confined(launcher, name="after") as box:
                assert await box.ask("1") == 1
