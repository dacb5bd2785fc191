"""The escape suite (tests/system/escape): every attempt, in every kind of sandbox, comes to what the list says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.confine_fixtures import MAKINGS
from tests.system.escape import __main__ as table
from tests.system.escape.attempts import expected
from tests.system.escape.prey import prey
from tests.system.escape.variants import VARIANTS

pytestmark = pytest.mark.system
OF_ROOT = ("made ahead", "forked, executes", "handler, forked")
NAMES = [name for name in VARIANTS if len(MAKINGS) > 1 or name not in OF_ROOT]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("escape")
    with prey(folder) as facts:
        yield folder, facts


@pytest.mark.parametrize("name", NAMES)
async def test_nothing_gets_out(
    name: str, held_out: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, facts = held_out
    secret = (folder / "host/secret").read_text()
    monkeypatch.setenv("ESCAPE_SECRET", secret)  # the supervisor's environment has the mark too
    results = await VARIANTS[name](folder, facts)
    wanted = expected()
    got_out = {
        attempt: said for attempt, said in results.items() if said not in wanted.get(attempt, ())
    }
    assert got_out == {}
    assert results.keys() == wanted.keys()
    # Nothing of what was held out has been touched.
    assert (folder / "host/secret").read_text() == secret
    os.kill(facts["process"], 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="host: not root, who alone is both")
def test_every_kind_is_a_column_of_the_table_as_root_and_as_a_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def tried(*_: object) -> dict[str, str]:
        return {}

    columns: list[str] = []
    monkeypatch.setattr(sys, "argv", ["escape"])
    monkeypatch.setitem(os.environ, "ESCAPE_SECRET", "")  # what it sets is taken away
    for name in VARIANTS:
        monkeypatch.setitem(VARIANTS, name, tried)
    monkeypatch.setattr(table, "as_user", lambda *_: {})
    monkeypatch.setattr(table, "show", lambda found: columns.extend(found) or 0)
    assert table.main() == 0
    assert columns == [f"{who}: {name}" for who in ("root", "user") for name in VARIANTS]


def test_the_attempts_can_succeed(held_out: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """On the host itself most of them do: a list that refuses everything would prove nothing."""
    folder, facts = held_out
    told = [
        ("files", "return read(prey['secret'], prey)"),
        ("link", "return read(TASK + '/link absolute', prey)"),
        ("abstract", "return unix('\\0' + prey['abstract'])"),
        ("socket", "return unix(prey['socket'])"),
        ("tcp", "return tcp('127.0.0.1', prey['tcp'])"),
        ("memory", "return syscall('shmget', prey['ipc key'], 4096, 0)"),
        ("signal", "return attempt(os.kill, prey['process'], 0)"),
        ("process", "return read(f\"/proc/{prey['process']}/environ\", prey)"),
        ("hangs", "time.sleep(60)"),
    ]
    (tmp_path / "attempts.json").write_text(json.dumps({"prey": facts, "attempts": told}))
    inside = tmp_path / "inside.py"
    inside.write_text(
        Path(__file__).with_name("escape").joinpath("inside.py").read_text()
        .replace("LIMIT_S = 10", "LIMIT_S = 0.5")
    )  # fmt: skip
    for name in os.listdir(folder / "functions/attack"):
        if name.startswith("link "):
            (tmp_path / name).symlink_to(os.readlink(folder / "functions/attack" / name))
    done = subprocess.run(
        [sys.executable, "-c", "import inside, json; print(json.dumps(inside.run()))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results = json.loads(done.stdout)
    assert results.pop("hangs") == "it hung"
    assert results == {
        "files": "read", "link": "read", "process": "read",
        "abstract": "done", "socket": "done", "tcp": "done", "memory": "done", "signal": "done",
    }  # fmt: skip
