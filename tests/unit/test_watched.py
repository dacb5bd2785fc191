"""sandbox.confine.cgroup_none without sandboxes; with them: tests/system/test_confine_weaker.py."""

from __future__ import annotations

import os
import threading

import pytest
import trio

from sandbox.confine.cgroup_none import WatchedTree
from sandbox.confine.spec import Limits


@pytest.mark.trio
async def test_the_watch_goes_on_where_no_thread_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """A function may use up the host's pids where no cgroup holds them: then above all it is looked at."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    tree = WatchedTree()
    group = tree.create("one", Limits())
    group.joined(os.getpid())
    # trio keeps threads for a while: a worker it has is used before one is asked for.
    monkeypatch.setattr("trio._core._thread_cache.THREAD_CACHE._idle_workers", {})
    monkeypatch.setattr(threading.Thread, "start", refuse)
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1

    monkeypatch.setattr(type(group), "check", lambda self: check())
    with trio.move_on_after(1.1):
        await tree.watch()
    assert checks >= 3
