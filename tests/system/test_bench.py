"""The benchmark runs, and its load generator counts what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import load, servers
from bench.load import Load
from bench.workshop import compiled

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMBOX_BENCH_CACHE", str(tmp_path_factory.mktemp("bench-cache")))
        yield


def test_one_round_of_warm_invocations(tmp_path: Path) -> None:
    out = tmp_path / "latest.json"
    words = ["-m", "bench", "--no-emulator", "--rounds", "1", "--only", "floors,warm", "--json"]
    done = subprocess.run(
        [sys.executable, *words, str(out)],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    whos = {figure["who"] for figure in result["figures"]}
    assert whos == {"host", "lambox", "trio echo", "C echo"}
    assert all(figure["errors"] == 0 for figure in result["figures"])
    assert result["absent"] == {"emulator": "--no-emulator"}
    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]


@pytest.mark.parametrize("burst", [False, True])
def test_every_answer_is_counted_and_checked(burst: bool) -> None:
    with servers.floor("C echo", [str(compiled("floors")), "serve"]) as server:
        how = {"burst": True} if burst else {"count": 1000}
        right = load.run(Load(server.port, "/", 20, **how))  # type: ignore[arg-type]
        wrong = load.run(Load(server.port, "/", 20, expected="other", **how))  # type: ignore[arg-type]
    count = 20 if burst else 1000
    assert (len(right.latencies), right.errors) == (count, 0)
    assert (len(wrong.latencies), wrong.errors) == (0, count)
    assert wrong.first_error.startswith("wrong body of 19 bytes")


def test_refused_connections_are_errors() -> None:
    answers = load.run(Load(servers.free_port(), "/", 2, count=10))
    assert (len(answers.latencies), answers.errors) == (0, 10)
