"""Which host uids sandboxes get."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from sandbox.confine import identity, privilege
from sandbox.confine.identity import PREFERRED, Identities, NoUid
from sandbox.confine.spec import IsolationUnavailable

FAR = 4_000_000_000 + os.getpid() % 100_000 * 1024
"""Uids nobody claims: these tests may run beside a server, and beside themselves."""


def choose(
    monkeypatch: pytest.MonkeyPatch, uid_map: str, capable: bool = True, base: int | None = None
) -> range | None:
    monkeypatch.setattr(privilege, "has", lambda *_: capable)
    monkeypatch.setattr(Path, "read_text", lambda self: uid_map)
    return identity.choose(base, None if base is None else 10)


def test_on_a_host_the_preferred_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, "         0          0 4294967295\n") == PREFERRED


def test_a_user_has_one_uid_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, "0 0 4294967295\n", capable=False) is None


@pytest.mark.parametrize(
    ("uid_map", "expected"),
    [
        # Docker with userns-remap: what is mapped has its end.
        ("0 100000 65536\n", range(32767, 65534)),
        # podman as a user: root is the user, the rest is from /etc/subuid.
        ("0 1000 1\n1 524288 65536\n", range(32768, 65535)),
        ("0 100000 3000\n", range(1000, 2998)),
        # unshare -Ur: nobody but ourselves.
        ("0 1000 1\n", None),
        ("0 100000 2000\n", None),
        ("", None),
    ],
)
def test_in_a_container_what_is_mapped(
    monkeypatch: pytest.MonkeyPatch, uid_map: str, expected: range | None
) -> None:
    assert choose(monkeypatch, uid_map) == expected


def test_the_configured_range_is_taken_if_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, "0 0 4294967295", base=5000) == range(5000, 5010)
    assert identity.choose(5000) == range(5000, 5000 + len(PREFERRED))
    assert choose(monkeypatch, "0 1000 1", base=5000) is None
    with pytest.raises(IsolationUnavailable, match=r"uids 70000 to 70009 .* not mapped"):
        choose(monkeypatch, "0 1000 1\n1 100000 65536", base=70000)


async def all_of(uids: Identities) -> list[int]:
    taken = [await uids.take() for _ in range(int(uids.free))]
    return [uid for uid in taken if uid is not None]


async def test_a_uid_that_a_process_has_is_passed_over_as_long_as_it_has_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: MockClock,
) -> None:
    """As when a supervisor was killed and its sandboxes are still dying."""
    caplog.set_level("INFO")
    assert os.getuid() in identity.in_use()
    living = {FAR + 1, 5}
    monkeypatch.setattr(identity, "in_use", lambda: set(living))
    uids = identity.claim(range(FAR, FAR + 4), tmp_path)
    assert "1 uids are passed over" in caplog.text
    assert sorted(await all_of(uids)) == [FAR, FAR + 2, FAR + 3]
    assert uids.count == 3
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uids.regain)
        await trio.sleep(2.5)
        assert uids.free == 0
        living.clear()
    assert uids.count == 4
    assert await uids.take() == FAR + 1
    uids.close()


async def test_the_longest_unused_uid_comes_first() -> None:
    uids = Identities(range(5, 8))
    assert uids.any
    first, second = await uids.take(), await uids.take()
    uids.give_back(first)
    assert (first, second) == (5, 6)
    assert [await uids.take(), await uids.take()] == [7, 5]


async def test_who_finds_none_free_waits_for_the_next_in_turn(autojump_clock: MockClock) -> None:
    uids = Identities([5])
    assert await uids.take() == 5
    got: list[str] = []

    async def wait(name: str) -> None:
        got.append(f"{name} {await uids.take()}")
        uids.give_back(5)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(wait, name)
            await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await uids.take()
        assert uids.free == -2
        uids.give_back(5)
    assert got == ["first 5", "second 5"]
    assert (uids.free, uids.count) == (1, 1)


async def test_none_that_comes_free_is_told_in_the_end(autojump_clock: MockClock) -> None:
    uids = Identities([5])
    await uids.take()
    uids.keep(5)
    assert uids.count == 0
    with pytest.raises(NoUid, match="all 1 host uids are in use"):
        await uids.take()
    assert trio.current_time() == identity.WAIT_LIMIT_S
    uids.give_back(5)
    assert (uids.count, await uids.take()) == (1, 5)


async def test_without_uids_everybody_is_who_we_are() -> None:
    uids = identity.claim(None)
    assert not uids.any
    assert uids.count == math.inf
    assert await uids.take() is None
    uids.give_back(None)
    uids.keep(None)
    assert await uids.take() is None
    uids.close()


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (65536, {4096}),
        # What newuidmap gives an ordinary user, as `choose` takes it.
        (32767, {2047, 2048}),
        (1000, {333, 334}),
        (511, {511}),
        (1, {1}),
    ],
)
def test_shares_are_nearly_equal_and_all_of_it(count: int, sizes: set[int]) -> None:
    found = identity.shares(range(FAR, FAR + count))
    assert {len(share) for share in found} == sizes
    assert [uid for share in found for uid in share] == list(range(FAR, FAR + count))


async def test_supervisors_take_different_shares(tmp_path: Path) -> None:
    whole = range(FAR, FAR + 1024)
    four = [identity.claim(whole, tmp_path) for _ in range(4)]
    with pytest.raises(IsolationUnavailable, match=r"have all uids .*\nHint: .*--uid-base"):
        identity.claim(whole, tmp_path)
    taken = [uid for uids in four for uid in await all_of(uids)]
    assert sorted(taken) == list(whole)
    four.pop().close()
    again = identity.claim(whole, tmp_path)
    assert set(await all_of(again)) == set(taken[-256:])
    for uids in (*four, again):
        uids.close()
    assert os.listdir(tmp_path) == []


async def test_each_begins_somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that those who can see nothing of each other rarely meet."""
    turns = iter([3, 17])
    monkeypatch.setattr(identity.secrets, "randbelow", lambda below: next(turns))
    uids = identity.claim(range(FAR, FAR + 1024), tmp_path)
    first, *others = await all_of(uids)
    assert first == FAR + 3 * 256 + 17
    assert sorted([first, *others]) == list(range(FAR + 768, FAR + 1024))
    uids.close()
