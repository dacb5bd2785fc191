"""Versions with real environments: each its own, one reservation, what goes while it runs or waits."""

from __future__ import annotations

import io
import urllib.request
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.system.conftest import Server
from tests.waiting import until

pytestmark = pytest.mark.system

ROLE = "arn:aws:iam::123456789012:role/lambda"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:"
CODE = """
import json, os, time
WORD, CALLS = {word!r}, []
if WORD == "broken":
    raise RuntimeError("no good")
def handler(event, context):
    CALLS.append(1)
    time.sleep((event or {{}}).get("sleep", 0))
    print("ran", WORD, json.dumps(event))
    names = "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_LOG_STREAM_NAME"
    return {{"word": WORD, "calls": len(CALLS), "arn": context.invoked_function_arn,
            "env": [os.environ[name] for name in names],
            "init": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]}}
"""


def package(word: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("index.py", CODE.format(word=word))
    return written.getvalue()


class Function:
    """One function of a server, made through the Lambda API."""

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self.client = server.client()
        self.client.create_function(
            FunctionName=name,
            Runtime="python3.11",
            Handler="index.handler",
            Role=ROLE,
            Code={"ZipFile": package("first")},
            Timeout=20,
        )
        self._wait()

    def _wait(self) -> None:
        for waiter in ("function_active_v2", "function_updated_v2"):
            self.client.get_waiter(waiter).wait(
                FunctionName=self.name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
            )

    def publish(self, word: str) -> str:
        self.client.update_function_code(FunctionName=self.name, ZipFile=package(word))
        self._wait()
        version: str = self.client.publish_version(FunctionName=self.name)["Version"]
        return version

    def invoke(self, qualifier: str = "$LATEST", **event: Any) -> dict[str, Any]:
        answer = self.server.invoke(self.name, event, Qualifier=qualifier)
        assert "FunctionError" not in answer, answer
        return {**answer["Payload"], "version": answer["ExecutedVersion"]}

    def rows(self, state: str | None = None) -> list[tuple[str, str]]:
        rows = self.server.environments(self.name)
        return sorted((row["version"], row["id"]) for row in rows if state in (None, row["state"]))


def test_versions_live_side_by_side_and_are_told_apart_everywhere(shared: Server) -> None:
    function = Function(shared, "side")
    one, two = function.publish("one"), function.publish("two")
    function.client.create_alias(FunctionName="side", Name="live", FunctionVersion=one)
    asked = ["$LATEST", one, two, "live"]
    first = {qualifier: function.invoke(qualifier) for qualifier in asked}
    again = {qualifier: function.invoke(qualifier) for qualifier in asked}
    assert [first[q]["word"] for q in asked] == ["two", "one", "two", "one"]
    assert [first[q]["version"] for q in asked] == ["$LATEST", "1", "2", "1"]
    # The alias is the version's environment, not one of its own.
    assert [again[q]["calls"] for q in asked] == [2, 3, 2, 4]
    assert [first[q]["arn"] for q in asked] == [f"{ARN}side:{q}" for q in asked]
    for qualifier in asked:
        version, stream = first[qualifier]["env"]
        assert version == first[qualifier]["version"]
        assert f"/[{version}]" in stream
    ids = dict(function.rows())
    assert set(ids) == {"$LATEST", "1", "2"}
    assert ids["1"].startswith("side-v1-")
    lines = [line for line in _log(shared, "side") if line.startswith("START")]
    assert sorted(line.rpartition("Version: ")[2] for line in lines) == (
        ["$LATEST", "$LATEST", "1", "1", "1", "1", "2", "2"]
    )


def _log(server: Server, name: str) -> list[str]:
    with urllib.request.urlopen(f"{server.url}/_lambox/logs/{name}") as reply:
        text: str = reply.read().decode()
    return text.splitlines()


def test_concurrency_changes_keep_environments_and_hold_for_all_versions(shared: Server) -> None:
    function = Function(shared, "bound")
    one = function.publish("one")
    for qualifier in (one, "$LATEST"):
        function.invoke(qualifier)
    before = function.rows()
    function.client.put_function_concurrency(FunctionName="bound", ReservedConcurrentExecutions=1)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(function.invoke, one, sleep=0.5)
        until(lambda: function.rows("busy"))
        with pytest.raises(function.client.exceptions.TooManyRequestsException) as refused:
            function.client.invoke(FunctionName="bound")
        assert refused.value.response["Reason"] == (
            "ReservedFunctionConcurrentInvocationLimitExceeded"
        )
        assert slow.result()["calls"] == 2
    function.client.delete_function_concurrency(FunctionName="bound")
    assert function.invoke()["calls"] == 2
    assert function.rows() == before


def test_what_is_deleted_ends_what_it_runs_and_comes_back_as_another(shared: Server) -> None:
    function = Function(shared, "brief")
    one, two = function.publish("one"), function.publish("two")
    function.invoke(two)
    with ThreadPoolExecutor(1) as pool:
        slow: Future[dict[str, Any]] = pool.submit(function.invoke, one, sleep=0.5)
        until(lambda: function.rows("busy"))
        function.client.delete_function(FunctionName="brief", Qualifier=one)
        with pytest.raises(function.client.exceptions.ResourceNotFoundException) as refused:
            function.client.invoke(FunctionName="brief", Qualifier=one)
        assert refused.value.response["Error"]["Message"] == f"Function not found: {ARN}brief:{one}"
        assert slow.result()["word"] == "one"
    until(lambda: [version for version, _ in function.rows()] == [two])
    assert function.invoke(two)["calls"] == 2
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(function.invoke, two, sleep=0.5)
        until(lambda: function.rows("busy"))
        function.client.delete_function(FunctionName="brief")
        fresh = Function(shared, "brief")
        assert (fresh.invoke()["calls"], fresh.invoke()["calls"]) == (1, 2)
        assert fresh.publish("other") == "3"  # as on AWS, where no number is given twice
        assert slow.result()["word"] == "two"
    until(lambda: fresh.rows() == [])  # $LATEST's code has changed since


def test_provisioned_concurrency_of_versions(shared: Server) -> None:
    function = Function(shared, "ready")
    good, broken = function.publish("one"), function.publish("broken")
    client = function.client

    def state(qualifier: str) -> Callable[[], tuple[str, int, str | None]]:
        def ask() -> tuple[str, int, str | None]:
            found = client.get_provisioned_concurrency_config(
                FunctionName="ready", Qualifier=qualifier
            )
            available = found["AvailableProvisionedConcurrentExecutions"]
            return found["Status"], available, found.get("StatusReason")

        return ask

    client.create_alias(FunctionName="ready", Name="live", FunctionVersion=good)
    for qualifier in ("live", broken):
        put = client.put_provisioned_concurrency_config(
            FunctionName="ready", Qualifier=qualifier, ProvisionedConcurrentExecutions=2
        )
        assert put["Status"] == "IN_PROGRESS"
    until(lambda: state("live")() == ("READY", 2, None))
    until(lambda: state(broken)() == ("FAILED", 0, "FUNCTION_ERROR_INIT_FAILURE"))
    client.delete_provisioned_concurrency_config(FunctionName="ready", Qualifier=broken)
    called = function.invoke("live")
    assert (called["init"], called["calls"]) == ("provisioned-concurrency", 1)
    rows = [row for row in shared.environments("ready") if row["version"] == good]
    assert [row["type"] for row in rows] == ["provisioned"] * 2
    client.delete_provisioned_concurrency_config(FunctionName="ready", Qualifier="live")
    until(lambda: function.rows() == [])


def test_an_alias_that_moves_takes_waiting_events_along(shared: Server) -> None:
    """An event keeps the alias, not the version. (Over a restart: `unit/test_asyncqueue.py`.)"""
    function = Function(shared, "queued")
    old, new = function.publish("old"), function.publish("new")
    client = function.client
    client.create_alias(FunctionName="queued", Name="live", FunctionVersion=old)
    client.put_function_concurrency(FunctionName="queued", ReservedConcurrentExecutions=1)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(function.invoke, old, sleep=0.5)
        until(lambda: function.rows("busy"))
        client.invoke(
            FunctionName="queued", Qualifier="live", InvocationType="Event", Payload=b'{"n": 1}'
        )
        client.update_alias(FunctionName="queued", Name="live", FunctionVersion=new)
        assert busy.result()["word"] == "old"
    until(lambda: any('{"n": 1}' in line for line in _log(shared, "queued")))
    (line,) = [line for line in _log(shared, "queued") if '{"n": 1}' in line]
    assert line.endswith('ran new {"n": 1}')
