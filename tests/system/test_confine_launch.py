"""Launches that fail or are given up: a clear error, and nothing left of them."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from rootfs.layout import Bind, Directory
from sandbox.confine import bwrap, identity
from sandbox.confine.launcher import BwrapLauncher, open_launcher
from sandbox.confine.spec import ConfineError, IsolationUnavailable, Limits, SandboxSpec
from tests.system.confine_fixtures import ROOT, confined, holdings, nothing_left, uids_apart

pytestmark = pytest.mark.system


async def refused(launcher: BwrapLauncher, spec: SandboxSpec) -> str:
    with trio.fail_after(20), pytest.raises(ConfineError) as caught:
        await launcher.launch(spec)
    return str(caught.value)


async def test_a_bwrap_that_is_not_there() -> None:
    with nothing_left(), pytest.raises(IsolationUnavailable, match="apt-get install bubblewrap"):
        async with open_launcher(bwrap_path="/nowhere/bwrap"):
            raise AssertionError("it opened")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (Bind("/nowhere/at-all", "/opt"), "/nowhere"),
        (Bind("/etc/hostname", "/usr/new/file"), "/usr/new"),  # a place that is read-only
        (Directory("/proc/new"), "/proc/new"),
    ],
)
async def test_a_root_that_cannot_be_made(extra: Bind | Directory, says: str) -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            assert says in await refused(launcher, SandboxSpec("broken", (*ROOT, extra)))
        async with confined(launcher, name="broken") as box:  # the name is free again
            assert await box.ask("1") == 1


@pytest.fixture
def fake_bwrap() -> Iterator[Callable[[str], str]]:
    """fake_bwrap(shell commands) -> path of a "bwrap" that does this instead."""
    # Not in tmp_path: bwrap is executed by the sandbox's own uid, which may not walk there.
    with tempfile.TemporaryDirectory(prefix="fake-bwrap-") as folder:
        os.chmod(folder, 0o755)

        def make(body: str) -> str:
            path = Path(folder, "bwrap")
            version = '[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit'
            path.write_text(f"#!/bin/sh\n{version}\n{body}\n")
            path.chmod(0o755)
            return str(path)

        bwrap.find.cache_clear()
        yield make
        bwrap.find.cache_clear()


async def test_a_bwrap_that_fails_says_why(fake_bwrap: Callable[[str], str]) -> None:
    path = fake_bwrap("echo 'out of luck' >&2; exit 3")
    async with open_launcher(bwrap_path=path) as launcher:
        with nothing_left():
            assert "out of luck" in await refused(launcher, SandboxSpec("luckless", ROOT))


async def test_a_bwrap_that_hangs_is_given_up(
    fake_bwrap: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.confine.launcher.LAUNCH_LIMIT_S", 0.3)
    path = fake_bwrap("exec sleep 1000")
    async with open_launcher(bwrap_path=path) as launcher:
        with nothing_left():
            assert "within" in await refused(launcher, SandboxSpec("hanging", ROOT))


async def test_limits_no_program_fits_into() -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            await refused(launcher, SandboxSpec("tiny", ROOT, Limits(pids=1)))
            small = SandboxSpec("small", ROOT, Limits(memory_bytes=256 << 10))
            assert "more than its 262144 bytes of memory" in await refused(launcher, small)
            await refused(launcher, SandboxSpec("small", ROOT, Limits(memory_bytes=65536)))


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Upper", "x" * 65, "nul\0"])
async def test_names_that_are_no_names(name: str) -> None:
    async with open_launcher() as launcher:
        with nothing_left():
            await refused(launcher, SandboxSpec(name, ROOT))


async def test_a_name_is_used_once_at_a_time() -> None:
    async with open_launcher() as launcher, confined(launcher, name="same") as first:
        before = holdings()
        await refused(launcher, SandboxSpec("same", ROOT))
        assert holdings() == before
        assert await first.ask("1") == 1


async def test_a_launch_given_up_at_any_moment_leaves_nothing() -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with nothing_left():
            for tenths in range(0, 200, 5):
                with trio.move_on_after(tenths / 10_000):
                    sandbox = await launcher.launch(SandboxSpec(f"given-up-{tenths}", ROOT))
                    await sandbox.kill()
        assert launcher._live == set()


@contextmanager
def no_gaps() -> Iterator[int]:
    """Every descriptor number up to the highest in use (yielded) is taken, and 100 at least."""
    ballast = [os.open("/dev/null", os.O_RDONLY)]
    try:
        while ballast[-1] < max(100, *map(int, os.listdir("/proc/self/fd"))) - 1:
            ballast.append(os.open("/dev/null", os.O_RDONLY))
        yield ballast[-1]
    finally:
        for fd in ballast:
            os.close(fd)


@contextmanager
def at_most(descriptors: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_descriptor_left_at_any_moment() -> None:
    """Whichever of its descriptors is the one too many: ConfineError, and none lost."""
    made, said = 0, set()
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        with no_gaps() as highest, nothing_left():
            for room in range(1, 40):
                try:
                    with at_most(highest + room):
                        sandbox = await launcher.launch(SandboxSpec(f"room-{room}", ROOT))
                except ConfineError as exc:
                    said.add(str(exc))
                else:
                    made += 1
                    await sandbox.kill()
    assert made > 0
    assert said
    assert [text for text in said if "Too many open files" not in text] == []


@pytest.mark.skipif(identity.choose() is None, reason="host: needs uids for sandboxes to have")
async def test_no_uid_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        open_launcher(uid_base=uids_apart(1), uid_count=1) as launcher,
        confined(launcher, name="a") as first,
    ):
        before = holdings()
        with monkeypatch.context() as patch:
            patch.setattr(identity, "WAIT_LIMIT_S", 0.1)
            await refused(launcher, SandboxSpec("b", ROOT))
        assert holdings() == before
        async with trio.open_nursery() as nursery:

            async def launch() -> None:
                async with confined(launcher, name="c") as third:
                    assert await third.ask("1") == 1

            nursery.start_soon(launch)
            while launcher._identities.free == 0:  # noqa: ASYNC110
                await trio.sleep(0.001)
            await first.sandbox.kill()


async def test_many_at_once() -> None:
    async with open_launcher() as launcher:
        async with confined(launcher, name="warm-up"):
            pass
        said: list[int] = []

        async def one(number: int) -> None:
            async with confined(launcher, name=f"many-{number}") as box:
                said.append(await box.ask(str(number)))

        with nothing_left():
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(one, number)
        assert sorted(said) == list(range(20))
