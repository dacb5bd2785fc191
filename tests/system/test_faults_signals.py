"""Faults of the server's own life: storms of signals, a terminal that goes, SIGKILL in the middle of work."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from tests.leftovers import traces
from tests.system.conftest import Server, Start
from tests.waiting import until

pytestmark = pytest.mark.system
SLOW = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'done'\n"


def busy(server: Server, name: str = "slow") -> None:
    until(lambda: any(row["state"] == "busy" for row in server.environments(name)))


def in_the_background(server: Server, name: str, event: Any) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(server.invoke(name, event)["Payload"])
        except Exception as exc:
            answers.append(exc)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, answers


def test_a_storm_of_stops_is_one_clean_stop(start: Start) -> None:
    """The invocation that runs ends well, the exit code is 0, nothing remains."""
    server = start()
    server.functions.add("slow", SLOW)
    server.invoke("slow", 0)
    thread, answers = in_the_background(server, "slow", 1)
    busy(server)
    while thread.is_alive() and server.process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            server.process.send_signal(number)
        time.sleep(0.01)
    thread.join(10)
    assert answers == ["done"]
    assert server.process.wait(10) == 0
    assert traces(server.process.pid) == set()


def test_hangups_and_stray_signals_disturb_nobody(start: Start) -> None:
    """SIGHUP reads all functions anew, SIGPIPE and SIGCHLD do nothing, all while invocations run."""
    server = start()
    server.functions.add("slow", SLOW)
    server.invoke("slow", 0)
    (before,) = server.environments("slow")
    thread, answers = in_the_background(server, "slow", 1)
    while thread.is_alive():
        for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            server.process.send_signal(number)
        time.sleep(0.01)
    thread.join(10)
    assert answers == ["done"]
    server.wait_log("functions have been read anew")
    assert server.invoke("slow", 0)["Payload"] == "done"
    assert [row["id"] for row in server.environments("slow")] == [before["id"]]
    assert server.stop() == 0
