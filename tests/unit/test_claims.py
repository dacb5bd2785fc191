"""Which supervisor has which uids: seen by a file, by a socket, or by neither."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from sandbox.confine import claims, privilege
from sandbox.confine.claims import Claim, claim

FAR = 4_100_000_000 + os.getpid() % 100_000 * 1024


def claimed(first: int, count: int, folder: Path | None) -> Claim:
    found = claim(range(FAR + first, FAR + first + count), folder)
    assert found is not None
    return found


def test_ranges_that_overlap_in_part_are_told_apart(tmp_path: Path) -> None:
    one = claimed(100, 100, tmp_path)
    for first, count in ((100, 100), (0, 101), (199, 1), (150, 10), (0, 1000)):
        assert claim(range(FAR + first, FAR + first + count), tmp_path) is None
    for beside in (claimed(0, 100, tmp_path), claimed(200, 1, tmp_path)):
        beside.close()
    one.close()
    assert os.listdir(tmp_path) == []


def test_without_a_common_file_system_the_socket_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    one = claimed(0, 10, tmp_path)
    for folder in (tmp_path / "other", tmp_path / "missing", None):
        assert claim(range(FAR, FAR + 10), folder) is None
    assert "other network namespaces may take the same uids: " in caplog.text
    assert os.listdir(tmp_path / "other") == []
    one.close()
    claimed(0, 10, None).close()


def test_a_file_that_is_removed_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a server that ends between our look at the file and our lock."""
    flock, removed = fcntl.flock, []

    def removing(fd: int, how: int) -> None:
        if not removed:
            removed.append(fd)
            (tmp_path / claims.NAME).unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", removing)
    one = claimed(0, 10, tmp_path)
    assert removed
    (tmp_path / claims.NAME).stat()
    one.close()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / claims.NAME).symlink_to(target)
    claimed(0, 10, tmp_path).close()
    assert not target.exists()


def test_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, state = tmp_path / "runtime", tmp_path / "state"
    runtime.mkdir()
    monkeypatch.setattr(privilege, "owns_files", lambda: True)
    assert claims.folder({"XDG_RUNTIME_DIR": str(runtime)}) == Path("/run")
    monkeypatch.setattr(privilege, "owns_files", lambda: False)
    monkeypatch.setattr(privilege, "host_uid", lambda: 4_000_000_000)
    assert claims.folder({"XDG_RUNTIME_DIR": str(runtime)}) == runtime
    home = {"XDG_RUNTIME_DIR": "relative", "HOME": str(tmp_path)}
    assert claims.folder(home) == tmp_path / ".local/state/lambox"
    assert claims.folder({**home, "XDG_STATE_HOME": str(state)}) == state / "lambox"
    assert (state / "lambox").is_dir()
    (tmp_path / "file").touch()
    assert claims.folder({"XDG_STATE_HOME": str(tmp_path / "file")}) is None
