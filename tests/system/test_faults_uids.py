"""More functions than uids: idle environments and what stands ready give theirs up."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.confine_fixtures import uids_apart
from tests.system.conftest import OWN_UIDS, Functions, Server, Start
from tests.waiting import until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not OWN_UIDS, reason="host: needs uids for sandboxes to have"),
]
HELLO = "def handler(event, context):\n    return event\n"
WAITS = """
import os, time

def handler(event, context):
    while not os.path.exists("/var/task/go"):
        time.sleep(0.01)
    return event
"""


def serving(start: Start, count: int) -> Server:
    base = uids_apart(count)
    return start(LAMBOX_UID_BASE=str(base), LAMBOX_UID_COUNT=str(count))


@pytest.mark.parametrize("count", [1, 3])
def test_idle_environments_give_up_their_uids(
    start: Start, functions: Functions, count: int
) -> None:
    names = [f"f{number}" for number in range(2 * count + 1)]
    for name in names:
        functions.add(name, HELLO)
    server = serving(start, count)
    for turn in range(2):
        for name in names:
            answer = server.invoke(name, turn)
            assert (answer["StatusCode"], answer["Payload"]) == (200, turn)
            assert len([row for row in server.environments() if row["state"] != "dead"]) <= count
    assert server.stop() == 0


def test_with_every_uid_at_work_callers_are_throttled_and_events_wait(
    start: Start, functions: Functions
) -> None:
    folders: list[Path] = [functions.add(name, WAITS, "timeout = 60").parent for name in ("a", "b")]
    functions.add("c", HELLO)
    server = serving(start, 2)
    throttled = server.client().exceptions.TooManyRequestsException
    with ThreadPoolExecutor() as threads:
        running = [threads.submit(server.invoke, name, name) for name in ("a", "b")]
        try:
            until(lambda: [row["state"] for row in server.environments()].count("busy") == 2)
            with pytest.raises(throttled) as caught:
                server.invoke("c")
            assert caught.value.response["Reason"] == "ConcurrentInvocationLimitExceeded"
            assert server.invoke("c", InvocationType="Event")["StatusCode"] == 202
        finally:
            for folder in folders:
                (folder / "go").touch()
        assert [one.result()["Payload"] for one in running] == ["a", "b"]
    until(lambda: [row["invocations"] for row in server.environments("c")] == [1], 30)
    assert "Traceback" not in server.log.read_text()
