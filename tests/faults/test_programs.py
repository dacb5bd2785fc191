"""Faults of programs: bubblewrap gone, failing or hanging, and the server itself killed in the middle of work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.parts import ECHO, SLOW, Call, busy, refused
from tests.leftovers import traces
from tests.system.conftest import LAMBOX, Start
from tests.waiting import until

pytestmark = pytest.mark.system
ONLY_SCRATCH = {"LAMBOX_ZYGOTE": "false"}
MADE_AHEAD = {"LAMBOX_POOL_MIN": "1", "LAMBOX_POOL_MAX": "1"}


class Bwrap:
    """A bwrap first in PATH that a test can take away or spoil."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bwrap"
        self.env = {"PATH": f"{folder}:{os.environ['PATH']}"}
        real = shutil.which("bwrap")
        assert real is not None
        self._real = real
        self.mend()

    def mend(self) -> None:
        self._put(f'exec {self._real} "$@"')

    def spoil(self, how: str) -> None:
        if how == "missing":
            self.path.unlink()
        elif how == "failing":
            self._put("echo 'bwrap: out of luck' >&2; exit 1")
        elif how == "hanging":
            self._put("exec sleep 1000")
        else:
            self._put("kill -SEGV $$")

    def _put(self, body: str) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"#!/bin/sh\n{body}\n")
        fresh.chmod(0o755)
        fresh.rename(self.path)


@pytest.fixture
def bwrap() -> Iterator[Bwrap]:
    # Not in tmp_path: it is executed by the sandbox's own uid, which may not walk there.
    with tempfile.TemporaryDirectory(prefix="fake-bwrap-") as folder:
        os.chmod(folder, 0o755)
        yield Bwrap(Path(folder))


@pytest.mark.parametrize(
    ("how", "says"),
    [("missing", "apt-get install bubblewrap"), ("failing", "bubblewrap cannot be run")],
)
def test_without_a_bwrap_that_works_no_server_starts(
    bwrap: Bwrap, tmp_path: Path, how: str, says: str
) -> None:
    """Refused with exit code 3 and the command that mends it."""
    bwrap.spoil(how)
    tools = bwrap.path.parent
    done = subprocess.run(
        [LAMBOX, "serve", "--functions", tmp_path, "--port", "0"],
        # Nothing else of the host's PATH: there is a real one in it.
        env={"PATH": str(tools), "LAMBOX_STATE": str(tmp_path / "state"), **_python()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 3
    assert says in done.stderr


def _python() -> dict[str, str]:
    return {key: os.environ[key] for key in ("PYTHONPATH", "HOME") if key in os.environ}


@pytest.mark.parametrize("made", [ONLY_SCRATCH, MADE_AHEAD], ids=["scratch", "ahead"])
@pytest.mark.parametrize(
    ("how", "within_s"), [("missing", 3), ("failing", 3), ("crashing", 3), ("hanging", 14)]
)
def test_a_bwrap_that_is_spoiled_while_serving(
    start: Start, bwrap: Bwrap, how: str, within_s: float, made: dict[str, str]
) -> None:
    """Warm goes on; a cold start is a ServiceException within the launch limit, and works again once bwrap does."""
    server = start(**bwrap.env, **made)
    server.functions.add("warm", ECHO)
    server.functions.add("slow", SLOW, "timeout = 30")
    assert server.invoke("warm", 1)["Payload"] == 1
    bwrap.spoil(how)
    # What was made ahead is used up first.
    calls = [Call(server, "slow", within_s - 0.5) for _ in range(4)]
    answers = [call.result(within_s + 10) for call in calls]
    failed = [str(answer) for answer in answers if isinstance(answer, Exception)]
    assert len(failed) >= (4 if made is ONLY_SCRATCH else 1)
    assert all("ServiceException" in text for text in failed)
    late = [call.took_s for call in calls if isinstance(call.answer, Exception)]
    assert max(late) < within_s
    assert server.invoke("warm", 2)["Payload"] == 2
    bwrap.mend()
    server.functions.add("slow", SLOW + "# changed\n")
    assert server.invoke("slow", 0)["Payload"] == "done"
    assert server.stop() == 0
    assert traces(server.process.pid) == set()


@pytest.mark.parametrize("zygote", ["true", "false"])
def test_a_server_killed_in_the_middle_of_much_work(start: Start, zygote: str) -> None:
    """Within five seconds nothing of it runs; the next start sweeps the rest, serves, and runs accepted events."""
    server = start(LAMBOX_ZYGOTE=zygote)
    server.functions.add("slow", SLOW, "timeout = 60")
    server.functions.add(
        "later",
        "import time\ndef handler(event, context):\n    time.sleep(5)\n    print('late', event)\n",
    )
    server.functions.add("frozen", ECHO)
    server.invoke("frozen", 1)
    until(lambda: server.environments("frozen")[0]["state"] == "frozen")
    calls = [Call(server, "slow", 50) for _ in range(6)]
    for number in range(30):
        answer = server.invoke("later", number, InvocationType="Event")
        assert answer["StatusCode"] == 202
    until(lambda: len([r for r in server.environments("slow") if r["state"] == "busy"]) == 6)
    if zygote == "true" and os.geteuid() == 0:
        server.wait_prepared()
    mine = psutil.Process(server.process.pid).children(recursive=True)
    assert len(mine) > 12
    uids = {one.uids().real for one in mine if one.uids().real >= 1_000_000}
    server.process.kill()
    killed_at = time.monotonic()
    server.process.wait()
    until(lambda: not any(_runs(one) for one in mine), 5)
    print(f"all {len(mine)} processes gone after {time.monotonic() - killed_at:.3f} s")
    for call in calls:
        assert isinstance(
            call.result(10), Exception
        )  # the connection broke: told, not left waiting
    assert not any(one.uids().real in uids for one in psutil.process_iter() if uids and _runs(one))

    server.functions.add("later", "def handler(event, context):\n    print('late', event)\n")
    began = time.monotonic()
    second = start(LAMBOX_ZYGOTE=zygote)
    assert second.invoke("frozen", 2)["Payload"] == 2
    print(f"the next server answers after {time.monotonic() - began:.3f} s")
    assert traces(server.process.pid) == set()
    second.wait_log(*(f"late {number}\n" for number in range(30)))
    assert second.stop() == 0
    assert traces(second.process.pid) == set()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_out_of_memory_kill_disturbs_none_of_ten_neighbours(start: Start) -> None:
    """The hog's invocation ends as OutOfMemory; ten that run beside it end well and in time."""
    server = start()
    for number in range(10):
        server.functions.add(f"calm{number}", SLOW, "timeout = 20")
        server.invoke(f"calm{number}", 0)
    hog = "def handler(event, context):\n    return len(bytearray(1 << 30))\n"
    server.functions.add("hog", hog, "memory_size = 128")
    calls = [Call(server, f"calm{number}", 2) for number in range(10)]
    until(lambda: all(busy(server, f"calm{number}") for number in range(10)))
    for _ in range(3):
        answer = server.invoke("hog")
        assert answer["Payload"]["errorType"] == "Runtime.ExitError"
    assert [call.result()["Payload"] for call in calls] == ["done"] * 10
    assert max(call.took_s for call in calls) < 4
    server.wait_log("Error Type: Runtime.OutOfMemory")
    rows = [row for row in server.environments() if row["function"].startswith("calm")]
    assert all(row["invocations"] == 2 for row in rows)


def test_log_lines_of_refusals_are_pasteable(start: Start, bwrap: Bwrap) -> None:
    """What bwrap said stands in the server's log, on one line."""
    server = start(**bwrap.env, **ONLY_SCRATCH)
    server.functions.add("f", ECHO)
    bwrap.spoil("failing")
    refused(server, "f")
    server.wait_log("out of luck")
    (line,) = [one for one in server.log.read_text().splitlines() if "out of luck" in one]
    assert re.search(r"cannot start f-\w+: bubblewrap could not make a sandbox", line)
