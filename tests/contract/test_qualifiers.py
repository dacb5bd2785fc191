"""Qualifiers: on both lanes before a fake catalog, then the Lambda API's own versions and aliases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import trio

from sandbox.errors import CallerError, FunctionFailed, InvalidRuntime
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome
from sandbox.registry.records import FunctionRecord
from tests.contract.fakes import LANES, Callers
from tests.contract.lambda_api import Api, serving, zipped
from tests.contract.test_invoke_api import ARN
from tests.contract.versioned import add_alias, add_version, change
from tests.contract.wire import Answer, ask, connect, head

FUNCTIONS = "/2015-03-31/functions/"
PENDING = (
    "The operation cannot be performed at this time. "
    "The function is currently in the following state: Pending"
)


async def run(invocation: Invocation) -> Outcome:
    return Outcome("success", b"{}", executed_version=invocation.function.version)


@pytest.fixture(params=sorted(LANES))
async def callers(request: pytest.FixtureRequest) -> AsyncIterator[Callers]:
    with trio.fail_after(20):
        async with LANES[request.param][0]() as served:
            served.invoker.behaviour = run
            yield served


@pytest.mark.trio
@pytest.mark.parametrize(
    ("path", "invoked", "version"),
    [
        (f"{FUNCTIONS}hello/invocations?Qualifier=1", ":1", "1"),
        (f"{FUNCTIONS}hello/invocations?Qualifier=blue", ":blue", "2"),
        (f"{FUNCTIONS}hello%3Ablue/invocations", ":blue", "2"),
        (f"{FUNCTIONS}hello:2/invocations?Qualifier=2", ":2", "2"),
        (f"{FUNCTIONS}hello/invocations?Qualifier=%24LATEST", ":$LATEST", "$LATEST"),
        (f"{FUNCTIONS}hello%3A%24LATEST/invocations", ":$LATEST", "$LATEST"),
        ("/invoke/hello:1", ":1", "1"),
        ("/invoke/hello?Qualifier=blue", ":blue", "2"),
        ("/invoke/hello", "", "$LATEST"),
    ],
)
async def test_a_qualifier_says_which_version_runs(
    callers: Callers, path: str, invoked: str, version: str
) -> None:
    answer = await ask(callers.address, "POST", path, b"{}")
    assert answer.status == 200, answer.body
    (invocation,) = callers.invoker.invoked
    assert (invocation.function.version, invocation.invoked_arn) == (version, ARN + invoked)
    if path.startswith(FUNCTIONS):
        assert answer.headers["x-amz-executed-version"] == version


@pytest.mark.trio
async def test_a_stream_says_which_version_runs(callers: Callers) -> None:
    path = "/2021-11-15/functions/hello/response-streaming-invocations?Qualifier=blue"
    answer = await ask(callers.address, "POST", path, b"{}")
    assert (answer.status, answer.headers["x-amz-executed-version"]) == (200, "2")


WAYS = {
    "buffered": (f"{FUNCTIONS}hello/invocations", {}),
    "qualified": (f"{FUNCTIONS}hello/invocations?Qualifier=1", {}),
    "event": (f"{FUNCTIONS}hello/invocations", {"X-Amz-Invocation-Type": "Event"}),
    "dry": (f"{FUNCTIONS}hello/invocations", {"X-Amz-Invocation-Type": "DryRun"}),
    "async": ("/2014-11-13/functions/hello/invoke-async/", {}),
    "stream": ("/2021-11-15/functions/hello/response-streaming-invocations", {}),
    "friendly": ("/invoke/hello", {}),
}


@pytest.mark.trio
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refusal", [FunctionFailed(PENDING), InvalidRuntime("no such runtime")])
async def test_why_not_now_is_told_by_every_face(
    callers: Callers, way: str, refusal: CallerError
) -> None:
    """SPEC 3.8: a Pending function is 409."""
    callers.functions.refusal = refusal
    path, headers = WAYS[way]
    answer = await ask(callers.address, "POST", path, b"{}", headers)
    assert answer.status == refusal.status
    assert refusal.message in answer.body.decode()
    if way != "friendly":
        assert answer.headers["x-amzn-errortype"] == refusal.code
    assert callers.invoker.invoked == callers.invoker.accepted == []


async def slowly(callers: Callers, path: str, **headers: str) -> Any:
    """A request whose body is kept back; returns how to send it and read the answer."""
    wire = await connect(callers.address)
    given = {"Content-Length": "2"}
    await wire.send(
        head("POST", path, given | {k.replace("_", "-"): v for k, v in headers.items()})
    )
    await callers.functions.resolved.wait()

    async def finish() -> Answer:
        async with wire:
            await wire.send(b"{}")
            return await wire.answer()

    return finish


@pytest.mark.trio
async def test_an_alias_that_moves_while_a_body_comes_has_moved(callers: Callers) -> None:
    finish = await slowly(callers, f"{FUNCTIONS}hello/invocations?Qualifier=blue")
    callers.functions.qualifiers["blue"] = "1"
    answer = await finish()
    assert (answer.status, answer.headers["x-amz-executed-version"]) == (200, "1")


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["RequestResponse", "Event"])
async def test_a_function_that_goes_while_a_body_comes_is_gone(callers: Callers, kind: str) -> None:
    path = f"{FUNCTIONS}hello/invocations"
    finish = await slowly(callers, path, X_Amz_Invocation_Type=kind)
    del callers.functions.found["hello"]
    answer = await finish()
    assert (answer.status, answer.json["Message"]) == (404, f"Function not found: {ARN}:$LATEST")
    assert callers.invoker.invoked == callers.invoker.accepted == []


# --- the Lambda API's own


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        api.invoker.behaviour = run
        api.create("hello")
        add_version(api, "hello", "1")
        add_version(api, "hello", "2")
        yield api


def test_versions_and_aliases_of_the_registry(api: Api) -> None:
    add_alias(api, "hello", "blue", "1")

    def ran(**how: str) -> str:
        answer = api.client.invoke(**{"FunctionName": "hello", **how})
        assert answer["StatusCode"] == 200
        version: str = answer["ExecutedVersion"]
        assert version == api.invoker.invoked[-1].function.version
        return version

    assert ran() == ran(Qualifier="$LATEST") == ran(FunctionName="hello:$LATEST") == "$LATEST"
    assert ran(Qualifier="1") == ran(FunctionName="hello:1") == ran(Qualifier="blue") == "1"
    add_alias(api, "hello", "blue", "2")
    assert ran(Qualifier="blue") == ran(FunctionName="hello:blue", Qualifier="blue") == "2"
    arn = "arn:aws:lambda:us-east-1:123456789012:function:hello"
    assert api.invoker.invoked[-1].invoked_arn == f"{arn}:blue"
    for qualifier in ("3", "green"):
        refused = api.refusal("invoke", FunctionName="hello", Qualifier=qualifier)
        assert refused == (
            404, "ResourceNotFoundException", f"Function not found: {arn}:{qualifier}"
        )  # fmt: skip
    assert [(one.name, one.version) for one in api.behind.functions.live()] == [
        ("hello", "$LATEST"), ("hello", "1"), ("hello", "2"),
    ]  # fmt: skip


def test_the_console_knows_published_versions(api: Api) -> None:
    add_version(api, "hello", "10")
    with urlopen(f"{api.url}/_lambox/functions") as answer:
        (row,) = json.load(answer)
    assert (row["version"], row["versions"]) == ("$LATEST", ["1", "2", "10"])


def test_an_alias_with_weights_goes_to_both_of_its_versions(api: Api) -> None:
    add_alias(api, "hello", "both", "1", v2=0.5)
    ran = Counter(
        api.client.invoke(FunctionName="hello", Qualifier="both")["ExecutedVersion"]
        for _ in range(100)
    )
    assert ran.keys() == {"1", "2"}
    assert 20 < ran["1"] < 80  # six sigma


def test_concurrency_of_the_registry_is_every_versions_and_made_once(api: Api) -> None:
    functions = api.behind.functions

    def found() -> list[FunctionVersion]:
        return [functions.resolve("hello", qualifier) for qualifier in (None, "1", "2")]

    before = found()
    assert functions.reserved_total == 0
    for reserved in (3, 4):
        api.client.put_function_concurrency(
            FunctionName="hello", ReservedConcurrentExecutions=reserved
        )
        after = found()
        assert [one.reserved_concurrency for one in after] == [reserved] * 3
        assert [one.revision for one in after] == [one.revision for one in before]
        # An invocation asks for it: the same value, not one made for each.
        assert all(one is other for one, other in zip(after, found(), strict=True))
        assert functions.reserved_total == reserved
    api.client.delete_function_concurrency(FunctionName="hello")
    assert found() == before
    assert functions.reserved_total == 0


def test_what_environments_would_not_notice_keeps_them(api: Api) -> None:
    def revision_after(**change: Any) -> str:
        api.client.update_function_configuration(FunctionName="hello", **change)
        api.wait("hello")
        return api.behind.functions.get("hello").revision

    before = api.behind.functions.get("hello")
    other = "arn:aws:iam::123456789012:role/other"
    assert revision_after(Description="other", Role=other) == revision_after() == before.revision
    assert api.behind.functions.get("hello").description == "other"
    seen = {before.revision}
    for new in (
        {"Timeout": 9},
        {"MemorySize": 256},
        {"Environment": {"Variables": {"AB": "1"}}},
    ):
        seen.add(revision_after(**new))
    # The same code once more: whoever uploads it wants it to begin anew, as it does at AWS.
    api.client.update_function_code(FunctionName="hello", ZipFile=zipped())
    api.wait("hello")
    assert len(seen | {api.behind.functions.get("hello").revision}) == 5


def test_a_pending_function_is_awss_409(api: Api) -> None:
    def pending(record: FunctionRecord) -> FunctionRecord:
        assert record.latest is not None
        return replace(record, latest=replace(record.latest, state="Pending"))

    change(api, "hello", pending)
    for kind in ("RequestResponse", "Event", "DryRun"):
        refused = api.refusal("invoke", FunctionName="hello", InvocationType=kind)
        assert refused == (409, "ResourceConflictException", PENDING)
    assert api.client.invoke(FunctionName="hello", Qualifier="1")["ExecutedVersion"] == "1"
