"""A uid is handed out only when nothing that had it lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from rootfs.layout import Bind
from sandbox.confine import cgroup, identity, process
from sandbox.confine.identity import Identities
from sandbox.confine.launcher import open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.spec import ConfineError, SandboxSpec
from tests.system.confine_fixtures import CLIENT, PYTHON_FORKS, ROOT, confined, made_ahead

UIDS = identity.choose()
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(UIDS is None, reason="host: needs uids for sandboxes to have"),
]
TOP = Path(__file__).parents[2]


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The uids given back; each must have been nobody's at that moment."""
    uids: list[int] = []
    give_back = Identities.give_back

    def checked(self: Identities, uid: int | None) -> None:
        assert uid is not None
        if uid in identity.in_use():
            early.append(uid)
        uids.append(uid)
        give_back(self, uid)

    early: list[int] = []
    monkeypatch.setattr(Identities, "give_back", checked)
    yield uids
    assert early == []


@pytest.mark.usefixtures("making")
async def test_it_comes_back_when_the_last_process_is_reaped(given_back: list[int]) -> None:
    async with confined() as box:
        await box.python("""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for _ in range(8):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        say(1)
                    while True:
                        signal.pause()
            signal.pause()
        """)
        for _ in range(8):
            await box.heard()
        assert box.sandbox._uid in identity.in_use()
        assert given_back == []
        await box.sandbox.kill()
        assert box.sandbox._uid in given_back


async def test_a_fork_that_its_zygote_does_not_reap_keeps_it(given_back: list[int]) -> None:
    spec = SandboxSpec("forked", (*ROOT, *CLIENT), preparation=PYTHON_FORKS)
    with trio.fail_after(30):
        async with open_launcher(pool=PoolLimits(1, 1)) as launcher:
            await made_ahead(launcher, spec)
            sandbox = await launcher.launch(spec)
            assert sandbox._child is not None
            zygote = psutil.Process(sandbox._child.pid).ppid()
            os.kill(zygote, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sandbox.kill)
                with trio.move_on_after(0.3):
                    await trio.lowlevel.wait_readable(sandbox._child.fd)
                # Dead, but not reaped: its uid is still its own.
                assert sandbox._uid in identity.in_use()
                assert sandbox._uid not in given_back
                os.kill(zygote, signal.SIGCONT)
            assert sandbox._uid in given_back


async def test_a_launch_that_fails_or_is_cancelled_gives_it_back_last(
    given_back: list[int],
) -> None:
    async with open_launcher() as launcher:
        with pytest.raises(ConfineError):
            await launcher.launch(SandboxSpec("broken", (*ROOT, Bind("/nowhere", "/mnt"))))
        for number in range(12):
            with trio.move_on_after(number / 1000):
                sandbox = await launcher.launch(SandboxSpec(f"n-{number}", ROOT))
                with trio.CancelScope(shield=True):
                    await sandbox.kill()
        # Some were cancelled before they had one.
        assert len(given_back) > 1
        assert len(launcher._identities._free) == launcher._identities.count


async def test_what_cannot_be_ended_keeps_it(
    given_back: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_launcher() as launcher:
        with monkeypatch.context() as patch:
            patch.setattr(process, "REMOVE_TRIES", 1)
            async with confined(launcher, name="sticky") as box:
                patch.setattr(type(box.sandbox._cgroup), "remove", lambda self: False)
                with pytest.raises(ConfineError, match="sticky"):
                    await box.sandbox.kill()
                assert given_back == []
                patch.undo()
                await box.sandbox.kill()
        assert len(given_back) == 1


SUPERVISOR = """
import os, trio
from sandbox.confine.launcher import open_launcher
from tests.system.confine_fixtures import confined

async def main():
    async with open_launcher() as launcher, confined(launcher, name="first") as box:
        await box.ask("1")
        print(box.sandbox._uid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def supervisor() -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE, text=True, cwd=TOP
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_supervisors_do_not_share_uids_and_a_killed_ones_are_passed_over() -> None:
    assert UIDS is not None
    first, its = supervisor()
    second, others = supervisor()
    try:
        assert its != others
        first.kill()
        first.wait()
        # What it left may be dying still. Taking stock after the choice: nobody is born meanwhile.
        again = identity.claim(UIDS)
        try:
            living = identity.in_use()
            assert others in living
            assert living.isdisjoint(again._free)
        finally:
            again.close()
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        tree = cgroup.detect()
        tree.sweep()
        tree.close()
