"""Which host uids sandboxes get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.confine import identity, privilege
from sandbox.confine.identity import PREFERRED, Identities
from sandbox.confine.spec import ConfineError, IsolationUnavailable

FAR = 4_000_000_000
"""Uids nobody claims: these tests may run beside a server."""


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
        ("0 100000 65536\n", range(61438, 65534)),
        # podman as a user: root is the user, the rest is from /etc/subuid.
        ("0 1000 1\n1 524288 65536\n", range(61439, 65535)),
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


def test_a_uid_that_a_process_has_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """As when a supervisor was killed and its sandboxes are still dying."""
    caplog.set_level("INFO")
    own = os.getuid()
    assert own in identity.in_use()
    uids = identity.claim(range(own, own + 4))
    assert [uids.take() for _ in range(3)] == [own + 1, own + 2, own + 3]
    with pytest.raises(ConfineError):
        uids.take()
    assert "1 uids are passed over" in caplog.text
    uids.close()


def test_the_longest_unused_uid_comes_first() -> None:
    uids = Identities(range(5, 8))
    assert uids.any
    first, second = uids.take(), uids.take()
    uids.give_back(first)
    assert (first, second) == (5, 6)
    assert [uids.take(), uids.take()] == [7, 5]
    with pytest.raises(ConfineError, match="in use"):
        uids.take()


def test_without_uids_everybody_is_who_we_are() -> None:
    uids = identity.claim(None)
    assert not uids.any
    assert uids.take() is None
    uids.give_back(None)
    assert uids.take() is None
    uids.close()


def test_supervisors_take_different_slices() -> None:
    whole = range(FAR, FAR + 65536)
    one, two = identity.claim(whole), identity.claim(whole)
    mine = one.take()
    assert mine == FAR
    assert two.take() == FAR + 4096
    one.close()
    three = identity.claim(whole)
    assert three.take() == FAR
    two.close()
    three.close()


def test_a_slice_ends_with_the_range() -> None:
    uids = identity.claim(range(FAR, FAR + 300))
    other = identity.claim(range(FAR, FAR + 300))
    taken = [uids.take() for _ in range(256)]
    with pytest.raises(ConfineError):
        uids.take()
    assert taken[-1] == FAR + 255
    assert [other.take() for _ in range(44)][-1] == FAR + 299
    with pytest.raises(ConfineError):
        other.take()
    uids.close()
    other.close()


def test_when_no_slice_is_left_it_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    only = range(FAR, FAR + 2)
    one = identity.claim(only)
    two = identity.claim(only)
    assert "shared with another lambox" in caplog.text
    assert {two.take(), two.take()} == {FAR, FAR + 1}
    one.close()
    two.close()
