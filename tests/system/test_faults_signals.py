"""Faults of the server's own life: storms of signals, a terminal that goes, SIGKILL in the middle of work."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
import time
from typing import Any

import psutil
import pytest

from tests.leftovers import traces
from tests.system.confine_fixtures import proc_status
from tests.system.conftest import LAMBOX, Server, Start, until

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


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_a_storm_of_stops_is_one_clean_stop(start: Start, numbers: list[int]) -> None:
    """The invocation that runs ends well, the exit code is 0, nothing remains."""
    server = start()
    server.functions.add("slow", SLOW)
    server.invoke("slow", 0)
    thread, answers = in_the_background(server, "slow", 1)
    busy(server)
    while thread.is_alive() and server.process.poll() is None:
        for number in numbers:
            server.process.send_signal(number)
        time.sleep(0.01)
    thread.join(10)
    assert answers == ["done"]
    assert server.process.wait(10) == 0
    assert traces(server.process.pid) == set()


def test_a_second_stop_kills_what_runs_and_cleans(start: Start) -> None:
    """The caller gets an error at once instead of waiting for the grace period; nothing remains."""
    server = start(LAMBOX_GRACE_S="60")
    server.functions.add("slow", SLOW, "timeout = 100")
    thread, answers = in_the_background(server, "slow", 90)
    busy(server)
    server.process.send_signal(signal.SIGTERM)
    server.wait_log("stopping")
    time.sleep(0.4)  # sooner, it would be the same request
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 128 + signal.SIGTERM
    thread.join(10)
    assert len(answers) == 1
    assert answers != ["done"]
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


def test_a_terminal_that_goes_stops_the_server(start: Start) -> None:
    """SIGHUP of a terminal that has hung up is a clean stop: nothing lives on behind a closed window."""
    functions = start().functions  # for its folder
    child, terminal = pty.fork()
    if child == 0:
        command = ["lambox", "serve", "--functions", str(functions.folder), "--port", "0"]
        state = {"LAMBOX_STATE": str(functions.folder.parent / "other-state")}
        os.execve(LAMBOX, command, {**os.environ, **state})
    shown = b""
    while b"http://" not in shown:
        shown += os.read(terminal, 4096)
    process = psutil.Process(child)
    inside = process.children(recursive=True)
    os.close(terminal)
    until(lambda: process.status() == psutil.STATUS_ZOMBIE, 15)
    assert os.waitpid(child, 0)[1] == 0
    assert not any(one.is_running() for one in inside)
    assert traces(child) == set()


def test_under_nohup_hangups_stay_ignored(start: Start) -> None:
    """Whoever starts it with SIGHUP ignored means it."""
    functions = start().functions
    process = subprocess.Popen(
        ["nohup", str(LAMBOX), "serve", "--functions", str(functions.folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LAMBOX_STATE": str(functions.folder.parent / "other-state")},
    )
    try:
        assert process.stdout is not None
        assert b"http://" in process.stdout.readline()
        (ignored,) = proc_status(process.pid, "SigIgn")
        assert int(ignored, 16) >> (signal.SIGHUP - 1) & 1
    finally:
        process.terminate()
        assert process.wait(15) == 0
        assert process.stdout is not None
        process.stdout.close()
