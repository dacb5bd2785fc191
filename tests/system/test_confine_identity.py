"""A uid is handed out only when nothing that had it lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import trio

from rootfs.layout import Bind
from sandbox.confine import cgroup, identity, privilege, process
from sandbox.confine.identity import Identities
from sandbox.confine.launcher import open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.spec import ConfineError, IsolationUnavailable, SandboxSpec
from tests.system.confine_fixtures import (
    CLIENT,
    PYTHON_FORKS,
    ROOT,
    confined,
    made_ahead,
    uids_apart,
)

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
        assert launcher._identities.free == launcher._identities.count


async def test_what_cannot_be_ended_keeps_it(
    given_back: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_launcher() as launcher:
        places = launcher.places()
        with monkeypatch.context() as patch:
            patch.setattr(process, "REMOVE_TRIES", 1)
            async with confined(launcher, name="sticky") as box:
                patch.setattr(type(box.sandbox._cgroup), "remove", lambda self: False)
                with pytest.raises(ConfineError, match="sticky"):
                    await box.sandbox.kill()
                assert given_back == []
                # Nobody is promised what may never come back.
                assert launcher.places() == places - 1
                patch.undo()
                await box.sandbox.kill()
        assert len(given_back) == 1
        assert launcher.places() == places


SUPERVISOR = """
import sys, trio
from sandbox.confine.launcher import open_launcher
from tests.system.confine_fixtures import confined

async def main():
    base, count = map(int, sys.argv[1:])
    async with open_launcher(uid_base=base, uid_count=count) as launcher:
        async with confined(launcher, name="first") as box:
            await box.ask("1")
            print(box.sandbox._uid, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


@contextmanager
def supervisor(base: int, count: int, *prefix: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """One with a sandbox, and the sandbox's uid. Killed at the end, and what it leaves is swept."""
    words = [*prefix, sys.executable, "-c", SUPERVISOR, str(base), str(count)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=TOP) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()
            process.wait()
            tree = cgroup.detect()
            tree.sweep()
            tree.close()


def test_a_killed_supervisors_uids_are_passed_over_while_something_has_them() -> None:
    base = uids_apart(2)
    with supervisor(base, 2) as (process, its):
        with pytest.raises(IsolationUnavailable, match="have all uids"):
            identity.claim(range(base, base + 2))
        # As one that is slow to die.
        with subprocess.Popen(["sleep", "60"], user=its) as dying:
            process.kill()
            process.wait()
            again = identity.claim(range(base, base + 2))
            assert again.free == 1
            assert trio.run(again.take) != its
            again.close()
            dying.kill()


@pytest.mark.skipif(not privilege.may_mount(), reason="host: needs namespaces of our own")
def test_supervisors_in_different_network_namespaces_do_not_share_uids() -> None:
    base = uids_apart(512)
    uids = range(base, base + 512)
    with supervisor(base, 512, "unshare", "-n") as (_, first):
        with supervisor(base, 512, "unshare", "-n") as (_, second):
            assert (first - base) // 256 != (second - base) // 256
            with pytest.raises(IsolationUnavailable, match="have all uids"):
                identity.claim(uids)
        identity.claim(uids).close()


def test_the_claims_file_goes_with_the_last_who_claims(tmp_path: Path) -> None:
    base = uids_apart(512)
    first, second = (identity.claim(range(base, base + 512), tmp_path) for _ in range(2))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == 0
    first.close()
    assert file.exists()
    second.close()
    assert not file.exists()
