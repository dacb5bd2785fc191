"""Signals that end a server: asked twice, a terminal that goes, and one that was told to ignore that."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time

import psutil
import pytest

from tests.faults.parts import SLOW, Call, busy
from tests.leftovers import traces
from tests.system.confine_fixtures import proc_status
from tests.system.conftest import LAMBOX, Start
from tests.waiting import until

pytestmark = pytest.mark.system


def test_a_second_stop_kills_what_runs_and_cleans(start: Start) -> None:
    """The caller gets an error at once instead of waiting for the grace period; nothing remains."""
    server = start(LAMBOX_GRACE_S="60")
    server.functions.add("slow", SLOW, "timeout = 100")
    call = Call(server, "slow", 90)
    until(lambda: busy(server, "slow"))
    server.process.send_signal(signal.SIGTERM)
    server.wait_log("stopping")
    time.sleep(0.4)  # sooner, it would be the same request
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 128 + signal.SIGTERM
    answer = call.result(10)
    assert isinstance(answer, Exception) or answer["Payload"]["errorType"] == "Sandbox.Failure"
    assert traces(server.process.pid) == set()


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
