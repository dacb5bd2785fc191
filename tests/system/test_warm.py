"""Provisioned concurrency and keep-warm pings on a real server."""

from __future__ import annotations

import base64
import json
import urllib.request
from threading import Barrier, Thread
from typing import Any

import pytest

from tests.leftovers import traces
from tests.system.conftest import Functions, Server, Start
from tests.waiting import until

pytestmark = pytest.mark.system

HOW = """
    import os, threading
    HOW = os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]
    def handler(event, context):
        if event == "crash":
            os._exit(3)
        if event == "die idle":
            threading.Timer(0.2, lambda: os._exit(3)).start()
        return HOW
"""
LAST = """
    last = None
    def handler(event, context):
        global last
        if event and event.get("source") == "aws.events":
            last = {"event": event, "arn": context.invoked_function_arn}
            print("pinged", flush=True)
        return last
"""


def provisioned(server: Server, name: str = "p") -> list[dict[str, Any]]:
    rows = server.environments(name)
    return [row for row in rows if row["type"] == "provisioned" and row["state"] != "starting"]


def ids(server: Server) -> set[str]:
    return {row["id"] for row in provisioned(server)}


def until_replaced(server: Server, old: set[str]) -> set[str]:
    """The ids of those that stand when none of `old` does."""
    seen: list[set[str]] = []

    def replaced() -> bool:
        seen.append(ids(server))
        return bool(seen[-1]) and not seen[-1] & old

    until(replaced)
    return seen[-1]


def call(server: Server, name: str, event: Any = None) -> tuple[Any, str]:
    """(payload, X-Lambox-Cold) from the friendly face."""
    request = urllib.request.Request(f"{server.url}/invoke/{name}", json.dumps(event).encode())
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply), reply.headers["X-Lambox-Cold"]


def report(server: Server, name: str) -> str:
    """The REPORT line of one more invocation."""
    tail = base64.b64decode(server.invoke(name, LogType="Tail")["LogResult"]).decode()
    return next(line for line in tail.splitlines() if line.startswith("REPORT"))


def test_provisioned_environments_stand_before_the_first_invocation(
    start: Start, functions: Functions
) -> None:
    functions.add("p", HOW, "provisioned_concurrency = 2\nidle_timeout = 0.3\n")
    server = start()
    until(lambda: [row["state"] for row in provisioned(server)] == ["frozen"] * 2)
    before = ids(server)
    assert "Init Duration" not in report(server, "p")
    until(lambda: [row["state"] for row in provisioned(server)] == ["frozen"] * 2)
    # The most recently used one again, so the other has not run yet.
    assert sorted(row["invocations"] for row in provisioned(server)) == [0, 1]
    both = Barrier(2)

    def one() -> None:
        both.wait(10)
        answers.append(call(server, "p"))

    answers: list[tuple[Any, str]] = []
    threads = [Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [("provisioned-concurrency", "false")] * 2
    # Well beyond idle_timeout: an on-demand environment of the same idle time has come and gone.
    functions.add("witness", HOW, "idle_timeout = 0.5\n")
    assert call(server, "witness") == ("on-demand", "true")
    until(lambda: server.environments("witness") == [])
    assert ids(server) == before
    until(lambda: server.log.read_text().count("Phase: init\tStatus: success") == 2)


def test_lost_ones_are_replaced_and_demand_spills_over(start: Start, functions: Functions) -> None:
    functions.add("p", HOW, "provisioned_concurrency = 1\nfreeze = false\n")
    server = start()
    until(lambda: provisioned(server))
    first = ids(server)
    assert server.invoke("p", "crash")["FunctionError"] == "Unhandled"
    second = until_replaced(server, first)
    assert call(server, "p", "die idle") == ("provisioned-concurrency", "false")
    until_replaced(server, second)
    assert call(server, "p") == ("provisioned-concurrency", "false")
    third = ids(server)
    functions.add("p", "import time\ndef handler(event, context):\n    time.sleep(event)\n",
                  "provisioned_concurrency = 1\n")  # fmt: skip
    until_replaced(server, third)
    thread = Thread(target=lambda: server.invoke("p", 2))
    thread.start()
    until(lambda: any(row["state"] == "busy" for row in provisioned(server)))
    assert call(server, "p", 0) == (None, "true")
    thread.join(10)


def test_changed_code_is_provisioned_without_an_invocation(
    start: Start, functions: Functions
) -> None:
    code = "def handler(event, context):\n    return {}\n"
    server = start()
    functions.add("p", code.format(1), "provisioned_concurrency = 2\n")  # comes while serving
    until(lambda: len(provisioned(server)) == 2)
    old = ids(server)
    functions.add("p", code.format(2), "provisioned_concurrency = 2\n")
    until_replaced(server, old)
    until(lambda: len(provisioned(server)) == 2)
    assert call(server, "p") == (2, "false")
    functions.add("p", code.format(2))
    until(lambda: provisioned(server) == [])


@pytest.mark.slow
def test_a_broken_init_backs_off_and_says_so(start: Start, functions: Functions) -> None:
    functions.add("p", "raise RuntimeError('not today')\n", "provisioned_concurrency = 2\n")
    server = start()
    until(lambda: "the next try is in 4 s" in server.log.read_text(), 20)
    answer = server.invoke("p")
    assert answer["FunctionError"] == "Unhandled"
    assert "not today" in answer["Payload"]["errorMessage"]
    assert server.log.read_text().count("a provisioned environment of p failed to init") <= 5
    functions.add("p", HOW, "provisioned_concurrency = 2\n")
    until(lambda: len(provisioned(server)) == 2)


@pytest.mark.slow
def test_renewed_before_their_greatest_age(start: Start, functions: Functions) -> None:
    functions.add("p", HOW, "provisioned_concurrency = 1\n")
    server = start(LAMBOX_MAX_ENVIRONMENT_AGE_S="2")
    until(lambda: provisioned(server))
    first = ids(server)
    until_replaced(server, first)
    assert call(server, "p") == ("provisioned-concurrency", "false")


def test_a_ping_arrives_and_leaves_an_environment_warm(start: Start, functions: Functions) -> None:
    functions.add("w", LAST, 'warm = "rate(5 minutes)"\n')
    server = start(LAMBOX_REGION="eu-west-1")
    until(lambda: "pinged" in server.log.read_text())
    until(lambda: any(row["state"] == "frozen" for row in server.environments("w")))
    found, cold = call(server, "w", {})
    assert cold == "false"
    event = found["event"]
    assert (event["detail-type"], event["source"]) == ("Scheduled Event", "aws.events")
    assert (event["version"], event["detail"], event["region"]) == ("0", {}, "eu-west-1")
    assert event["resources"] == ["arn:aws:events:eu-west-1:123456789012:rule/w-warm"]
    assert event["account"] == "123456789012"
    assert len(event["time"]) == len("2026-11-21T08:00:00Z")
    assert found["arn"] == "arn:aws:lambda:eu-west-1:123456789012:function:w"


def test_pings_follow_a_schedule_that_is_set_while_serving(start: Start) -> None:
    server = start()
    server.functions.add("w", LAST)
    server.invoke("w", {})
    server.functions.add("w", LAST, 'warm = ["rate(1 hour)", "cron(0 0 1 1 ? 2000)"]\n')
    until(lambda: "pinged" in server.log.read_text())
    until(lambda: "cron(0 0 1 1 ? 2000) of w never comes again" in server.log.read_text())
    (row,) = [row for row in server.get("/_lambox/functions") if row["name"] == "w"]
    assert row["warm"] == ["rate(1 hour)", "cron(0 0 1 1 ? 2000)"]


def test_mistakes_name_file_key_value_and_mend(start: Start) -> None:
    server = start()
    server.functions.add(
        "bad",
        HOW,
        "reserved_concurrency = 1\nprovisioned_concurrency = 2\nwarm = 'rate(5 minute)'\n",
    )
    with pytest.raises(Exception, match=r"function\.toml") as refused:
        server.invoke("bad")
    text = str(refused.value)
    assert "function.toml:2: provisioned_concurrency = 2: must not be more than" in text
    assert 'function.toml:3: warm = "rate(5 minute)": must be "rate(5 minutes)"' in text


def test_a_stop_takes_them_along(start: Start, functions: Functions) -> None:
    functions.add("p", HOW, 'provisioned_concurrency = 3\nwarm = "rate(5 minutes)"\n')
    server = start()
    until(lambda: len(provisioned(server)) == 3)
    assert server.stop() == 0
    assert traces(server.process.pid) == set()
    assert "ended badly" not in server.log.read_text()
