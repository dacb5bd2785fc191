"""Environments over time: freezing, eviction, changed code, stopping and dying servers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.leftovers import traces
from tests.system.conftest import Functions, Server, Start
from tests.waiting import until

pytestmark = pytest.mark.system

ECHO = "def handler(event, context):\n    return event\n"
TICKER = """
    import threading, time
    ticks = 0
    def tick():
        global ticks
        while True:
            time.sleep(0.01)
            ticks += 1
    threading.Thread(target=tick, daemon=True).start()
    def handler(event, context):
        return ticks
"""


def test_idle_environments_stand_still_unless_they_decline(start: Start) -> None:
    server = start(LAMBOX_FREEZE_DELAY_MS="50")
    server.functions.add("frozen", TICKER)
    server.functions.add("awake", TICKER, "freeze = false")
    before = {name: server.invoke(name)["Payload"] for name in ("frozen", "awake")}
    until(lambda: server.environments("frozen")[0]["state"] == "frozen")
    pause = 1.5
    time.sleep(pause)
    after = {name: server.invoke(name)["Payload"] for name in ("frozen", "awake")}
    ticks = {name: after[name] - before[name] for name in before}
    assert ticks["frozen"] < 20
    assert ticks["awake"] > 60
    rows = server.environments()
    assert [row["invocations"] for row in rows] == [2, 2]


def test_idle_environments_are_reaped(start: Start) -> None:
    server = start()
    server.functions.add("short", ECHO, "idle_timeout = 0.5")
    server.functions.add("long", ECHO, "idle_timeout = 300")
    server.invoke("short")
    server.invoke("long")
    until(lambda: server.environments("short") == [])
    assert len(server.environments("long")) == 1


def test_environments_do_not_live_past_their_maximum_age(start: Start) -> None:
    server = start(LAMBOX_MAX_ENVIRONMENT_AGE_S="1")
    server.functions.add("echo", ECHO)
    server.invoke("echo")
    (old,) = server.environments()
    until(lambda: server.environments()[0]["age_s"] > 1)
    server.invoke("echo")
    until(lambda: old["id"] not in {row["id"] for row in server.environments()})


def test_changed_code_runs_at_the_next_invocation(start: Start) -> None:
    server = start()
    for number in range(5):
        server.functions.add("code", f"def handler(event, context):\n    return {number}\n")
        assert server.invoke("code")["Payload"] == number
    until(lambda: len(server.environments("code")) == 1)


def test_changed_configuration_holds_from_the_next_invocation(start: Start) -> None:
    server = start()
    code = "import os\ndef handler(event, context):\n    return os.environ.get('STAGE')\n"
    server.functions.add("configured", code)
    assert server.invoke("configured")["Payload"] is None
    for stage in ("one", "two"):
        server.functions.add("configured", code, f'[environment]\nSTAGE = "{stage}"\n')
        assert server.invoke("configured")["Payload"] == stage


def test_a_running_invocation_ends_on_its_old_code(start: Start) -> None:
    server = start()
    server.functions.add(
        "slow",
        "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'old'\n",
    )
    server.invoke("slow", 0)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(server.invoke("slow", 1.5)["Payload"]))
    thread.start()
    until(lambda: server.environments("slow")[0]["state"] == "busy")
    server.functions.add("slow", "def handler(event, context):\n    return 'new'\n")
    assert server.invoke("slow", 0)["Payload"] == "new"
    thread.join(10)
    assert answers == ["old"]


def test_functions_come_and_go_while_serving(start: Start) -> None:
    server = start()
    with pytest.raises(Exception, match="Function not found"):
        server.invoke("late")
    path = server.functions.add("late", ECHO)
    assert server.invoke("late", 1)["Payload"] == 1
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    with pytest.raises(Exception, match="Function not found"):
        server.invoke("late")


def test_a_broken_function_toml_takes_down_that_function_alone(start: Start) -> None:
    server = start()
    server.functions.add("good", ECHO)
    server.functions.add("bad", ECHO, "timeout = 1000\nmemroy_size = 128\n")
    assert server.invoke("good", 1)["Payload"] == 1
    with pytest.raises(Exception, match=r"function\.toml") as refused:
        server.invoke("bad")
    assert "timeout" in str(refused.value)
    assert "memory_size" in str(refused.value)
    server.functions.add("bad", ECHO, "timeout = 100\n")
    assert server.invoke("bad", 2)["Payload"] == 2


@pytest.mark.slow
def test_a_flood_of_logs_slows_nobody_else(start: Start) -> None:
    server = start()
    server.functions.add(
        "flood",
        "def handler(event, context):\n    while True:\n        print('y' * 1000)\n",
        "timeout = 4\nmemory_size = 1769",
    )
    server.functions.add("calm", ECHO)
    server.invoke("calm")
    flood = threading.Thread(target=lambda: server.invoke("flood"))
    flood.start()
    until(lambda: any(row["state"] == "busy" for row in server.environments("flood")))
    slowest = 0.0
    for _ in range(30):
        began = time.monotonic()
        server.invoke("calm")
        slowest = max(slowest, time.monotonic() - began)
    flood.join(20)
    assert slowest < 1.0
    assert server.process.poll() is None


def test_sigterm_lets_a_running_invocation_finish_and_leaves_nothing(start: Start) -> None:
    server = start()
    server.functions.add(
        "slow",
        "import time\ndef handler(event, context):\n    time.sleep(event)\n    return 'done'\n",
    )
    server.invoke("slow", 0)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(server.invoke("slow", 1)["Payload"]))
    thread.start()
    until(lambda: server.environments("slow")[0]["state"] == "busy")
    server.process.send_signal(signal.SIGTERM)
    until(lambda: _refuses(server))
    thread.join(10)
    assert answers == ["done"]
    assert server.process.wait(10) == 0
    assert traces(server.process.pid) == set()


def _refuses(server: Server) -> bool:
    try:
        server.get("/healthz")
    except (urllib.error.URLError, OSError):
        return True
    return False


def test_the_grace_period_ends(start: Start) -> None:
    server = start(LAMBOX_GRACE_S="0.5")
    server.functions.add("slow", "import time\ndef handler(event, context):\n    time.sleep(14)\n")
    threading.Thread(target=lambda: _swallow(server, "slow"), daemon=True).start()
    until(lambda: any(row["state"] == "busy" for row in server.environments("slow")))
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 5


def _swallow(server: Server, name: str) -> None:
    try:
        server.invoke(name)
    except Exception as exc:
        print("as expected the call broke:", exc)


def test_accepted_events_survive_a_clean_stop(start: Start, functions: Functions) -> None:
    server = start(LAMBOX_GRACE_S="0")
    functions.add(
        "later",
        "import time\ndef handler(event, context):\n    time.sleep(2)\n    print('finished', event)\n",
    )
    for number in range(20):
        server.client().invoke(
            FunctionName="later", InvocationType="Event", Payload=str(number).encode()
        )
    assert server.stop() == 0
    done = {n for n in range(20) if f"finished {n}\n" in server.log.read_text()}
    assert len(done) < 20
    functions.add("later", "def handler(event, context):\n    print('finished', event)\n")
    again = start()
    until(lambda: all(f"finished {n}\n" in again.log.read_text() for n in range(20)))


def test_sigkill_of_the_server_takes_everything_along(start: Start) -> None:
    server = start()
    server.functions.add(
        "clings",
        """
        import os, time
        def handler(event, context):
            if os.fork() == 0:
                os.setsid()
                time.sleep(1000)
            return 1
        """,
    )
    server.invoke("clings")
    mine = psutil.Process(server.process.pid).children(recursive=True)
    assert mine
    server.process.kill()
    server.process.wait()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in mine))
    # Cgroups cannot be tied to a process: the next start sweeps them.
    assert traces(server.process.pid)
    second = start()
    assert traces(server.process.pid) == set()
    second.invoke("clings")
    assert second.stop() == 0
    assert traces(second.process.pid) == set()


def test_two_servers_do_not_sweep_each_other(start: Start) -> None:
    first = start()
    first.functions.add("echo", ECHO)
    first.invoke("echo")
    second = start()
    second.invoke("echo")
    assert first.invoke("echo", 3)["Payload"] == 3
    assert first.environments()[0]["invocations"] == 2


def test_config_layers_and_one_argument_handlers(start: Start, tmp_path: Path) -> None:
    for number in (1, 2):
        package = tmp_path / f"layer{number}" / "python"
        package.mkdir(parents=True)
        (package / "both.py").write_text(f"VALUE = {number}\n")
        (package / f"only{number}.py").write_text(f"VALUE = {number}\n")
    server = start()
    server.functions.add(
        "layered",
        "import both, only1, only2, os\ndef handler(event):\n"
        "    return [both.VALUE, only1.VALUE, only2.VALUE, os.environ['GREETING'], event]\n",
        f'layers = ["{tmp_path}/layer1", "{tmp_path}/layer2"]\n[environment]\nGREETING = "hi"\n',
    )
    assert server.invoke("layered", 7)["Payload"] == [2, 1, 2, "hi", 7]


def test_every_python_found_and_the_example_functions(start: Start) -> None:
    server = start()
    from rootfs.runtimes import discover

    usable = [r for r in discover() if r.family == "python" and not r.problem]
    assert usable
    for runtime in usable:
        name = runtime.identifier.replace(".", "-")
        server.functions.add(
            name,
            "import sys\ndef handler(event, context):\n    return sys.version_info[:2]\n",
            f'runtime = "{runtime.identifier}"',
        )
        major, minor = runtime.identifier.removeprefix("python").split(".")
        assert server.invoke(name)["Payload"] == [int(major), int(minor)]


@pytest.mark.parametrize("name", ["hello", "counter", "node-hello", "bash-bootstrap", "timelapse"])
def test_example(start: Start, name: str) -> None:
    examples = Path(__file__).parents[2] / "functions"
    server = start(LAMBOX_FUNCTIONS=str(examples))
    event = examples / name / "event.json"
    payload = json.loads(event.read_text()) if event.exists() else {}
    answer = _example_server(server, examples).invoke(name, payload)
    assert "FunctionError" not in answer, answer


def _example_server(server: Server, examples: Path) -> Server:
    """The fixture's --functions flag wins over the environment: link the examples into its folder."""
    for example in examples.iterdir():
        target = server.functions.folder / example.name
        if example.is_dir() and not target.exists():
            os.symlink(example, target)
    return server
