"""Hosts without cgroups or without libseccomp: refused, unless weaker isolation is asked for."""

from __future__ import annotations

import sys

import psutil
import pytest
import trio

from sandbox.confine import cgroup, identity
from sandbox.confine.cgroup_none import WatchedTree
from sandbox.confine.launcher import BwrapLauncher, open_launcher
from sandbox.confine.spec import MIB, ConfineError, IsolationUnavailable, SandboxSpec
from tests.system.confine_fixtures import ROOT, Box, confined, nothing_left

pytestmark = pytest.mark.system


@pytest.fixture
def no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    def detect() -> cgroup.CgroupTree:
        raise IsolationUnavailable("no cgroup can be made here", "be root")

    monkeypatch.setattr(cgroup, "detect", detect)


@pytest.fixture
def no_seccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)


async def refusal(**how: list[str]) -> str:
    with nothing_left(), pytest.raises(IsolationUnavailable) as caught:
        async with open_launcher(**how):  # type: ignore[arg-type]
            raise AssertionError("it opened")
    return str(caught.value)


@pytest.mark.usefixtures("no_cgroups")
async def test_without_cgroups_nothing_opens_unless_asked_to() -> None:
    assert "be root" in await refusal()
    assert "be root" in await refusal(weaker=["seccomp"])
    async with open_launcher(weaker=["cgroups"]) as launcher:
        assert "no cgroups: memory watched, pids and cpu not limited" in launcher.describe()


@pytest.mark.usefixtures("no_seccomp")
async def test_without_seccomp_nothing_opens_unless_asked_to() -> None:
    assert "libseccomp2" in await refusal()
    assert "libseccomp2" in await refusal(weaker=["cgroups"])
    async with open_launcher(weaker=["seccomp"]) as launcher:
        assert "no seccomp" in launcher.describe()
        async with confined(launcher) as box:
            status = await box.ask("status()")
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("0", "1")
    assert int(status["CapEff"], 16) == 0


async def test_what_is_there_is_used_although_weaker_would_do() -> None:
    async with open_launcher(weaker=["cgroups", "seccomp"]) as launcher:
        assert "no cgroups" not in launcher.describe()
        assert "no seccomp" not in launcher.describe()


async def test_where_nothing_tells_sandboxes_apart_none_has_the_hosts_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By uid alone they are told apart, and without cgroups that is all there could be."""
    monkeypatch.setattr(identity, "choose", lambda *_: None)
    async with open_launcher(tree=watched()) as launcher:
        with pytest.raises(ConfineError, match='network = "host" cannot be had') as caught:
            async with confined(launcher, network="host"):
                raise AssertionError("it was made")
    assert f"{caught.value}".endswith(launcher.unavailable["host"])
    assert "Hint: " in launcher.unavailable["host"]


def watched() -> WatchedTree:
    return WatchedTree()


async def test_a_watched_sandbox_lives_and_dies_like_any() -> None:
    async with open_launcher(tree=watched()) as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with confined(launcher) as box:
                await box.python("""
                    if os.fork() == 0:
                        os.setsid()
                        if os.fork() == 0:
                            say(1)
                        while True:
                            signal.pause()
                    signal.pause()
                """)
                await box.heard()
                assert len(box.inside()) == 5  # bwrap, pid 1, three
                used = box.sandbox.usage()
                assert used.memory_bytes is not None
                assert MIB < used.memory_bytes < 100 * MIB
                box.sandbox.settle()
                box.sandbox.freeze()
                box.sandbox.thaw()
                assert (await box.sandbox.kill()).killed
                assert box.inside() == []
            async with confined(launcher) as box:
                await box.run("/bin/sh", "-c", "exit 3")
                assert (await box.sandbox.wait()).code == 3


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("hoard = b'x' * (200 << 20)\nsignal.pause()", id="at once"),
        pytest.param(
            """
            for _ in range(4):
                if os.fork() == 0:
                    hoard = b"x" * (40 << 20)
                    signal.pause()
            signal.pause()
            """,
            id="by children",
        ),
        pytest.param(
            """
            import mmap
            room = mmap.mmap(-1, 200 << 20)
            room.write(b"x" * (200 << 20))
            signal.pause()
            """,
            id="shared",
        ),
    ],
)
async def test_a_watched_tree_above_its_memory_is_killed(code: str) -> None:
    async with open_launcher(tree=watched()) as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            async with (
                confined(launcher, name="modest", memory_bytes=64 * MIB) as modest,
                confined(launcher, memory_bytes=96 * MIB) as box,
            ):
                await modest.ask("1")
                await box.python(code)
                with trio.fail_after(5):
                    end = await box.sandbox.wait()
                assert (end.code, end.killed, end.oom_kills) == (None, False, 1)
                assert modest.sandbox.oom_kills() == 0
                assert len(modest.inside()) == 3


async def test_a_watched_launch_can_be_cancelled_at_any_moment() -> None:
    async with open_launcher(tree=watched()) as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            for number in range(40):
                with trio.move_on_after(number / 2000):
                    sandbox = await launcher.launch(SandboxSpec(f"n-{number}", ROOT))
                    with trio.CancelScope(shield=True):
                        await sandbox.kill()
            assert launcher._live == set()


async def test_a_watched_name_is_used_once_at_a_time() -> None:
    async with open_launcher(tree=watched()) as launcher, confined(launcher, name="same") as first:
        with pytest.raises(ConfineError, match="same"):
            await launcher.launch(SandboxSpec("same", ROOT))
        assert await first.ask("os.getpid()") == 2


async def test_leaving_kills_the_watched_too() -> None:
    with nothing_left():
        async with open_launcher(tree=watched()) as launcher:
            box = await _left(launcher)
            pids = box.inside()
        assert not set(pids) & set(psutil.pids())


async def _left(launcher: BwrapLauncher) -> Box:
    box = Box(launcher, await launcher.launch(SandboxSpec("left", ROOT)))
    await box.ask("1")
    return box
