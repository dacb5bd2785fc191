"""boto3 as it is against the face towards callers: what users' own code will do."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import boto3
import pytest
import trio
from botocore.config import Config
from botocore.exceptions import ClientError

from sandbox.errors import TooManyRequests
from sandbox.invocation import MAX_PAYLOAD, Invocation, Outcome
from tests.contract.fakes import LANES, REGION, Callers


@pytest.fixture(params=sorted(LANES))
async def callers(request: pytest.FixtureRequest) -> AsyncIterator[Callers]:
    with trio.fail_after(30):
        async with LANES[request.param][0]() as served:
            yield served


@pytest.fixture
async def client(callers: Callers) -> AsyncIterator[Any]:
    client = boto3.client(
        "lambda",
        endpoint_url=callers.url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"max_attempts": 0}, read_timeout=20),
    )
    yield client
    client.close()


async def call(operation: Callable[..., Any], **arguments: Any) -> Any:
    """In a thread: boto3 blocks, and the server runs in this one."""
    return await trio.to_thread.run_sync(partial(operation, **arguments), abandon_on_cancel=True)


async def refusal(operation: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    with pytest.raises(ClientError) as caught:
        await call(operation, **arguments)
    return dict(caught.value.response)


@pytest.mark.trio
async def test_invoke(callers: Callers, client: Any) -> None:
    answer = await call(client.invoke, FunctionName="hello", Payload=b'{"a":1}', LogType="Tail")
    assert answer["StatusCode"] == 200
    assert answer["ExecutedVersion"] == "$LATEST"
    assert base64.b64decode(answer["LogResult"]) == b"START\nEND\n"
    assert "FunctionError" not in answer
    assert await call(answer["Payload"].read) == b'{"a":1}'
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert request_id == callers.invoker.invoked[0].request_id


@pytest.mark.trio
async def test_invoke_by_arn_with_client_context(callers: Callers, client: Any) -> None:
    arn = "arn:aws:lambda:us-east-1:000000000000:function:hello:$LATEST"
    context = base64.b64encode(b'{"custom":{"k":"v"}}').decode()
    answer = await call(client.invoke, FunctionName=arn, Qualifier="$LATEST", ClientContext=context)
    assert await call(answer["Payload"].read) == b"{}"
    (invocation,) = callers.invoker.invoked
    assert invocation.invoked_arn == arn
    assert json.loads(invocation.client_context or "") == {"custom": {"k": "v"}}


@pytest.mark.trio
async def test_event_and_dry_run(callers: Callers, client: Any) -> None:
    event = await call(client.invoke, FunctionName="hello", InvocationType="Event", Payload=b"1")
    dry = await call(client.invoke, FunctionName="hello", InvocationType="DryRun")
    assert (event["StatusCode"], dry["StatusCode"]) == (202, 204)
    assert [one.payload for one in callers.invoker.accepted] == [b"1"]


@pytest.mark.trio
async def test_invoke_async(callers: Callers, client: Any) -> None:
    answer = await call(client.invoke_async, FunctionName="hello", InvokeArgs=b"{}")
    assert answer["Status"] == 202


@pytest.mark.trio
async def test_function_error(callers: Callers, client: Any) -> None:
    async def fail(invocation: Invocation) -> Outcome:
        return Outcome("error", b'{"errorMessage":"m"}', error_type="E")

    callers.invoker.behaviour = fail
    answer = await call(client.invoke, FunctionName="hello")
    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")


@pytest.mark.trio
async def test_unknown_function(client: Any) -> None:
    response = await refusal(client.invoke, FunctionName="nope")
    assert response["Error"]["Code"] == "ResourceNotFoundException"
    assert response["Error"]["Message"] == (
        "Function not found: arn:aws:lambda:us-east-1:000000000000:function:nope:$LATEST"
    )
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 404


@pytest.mark.trio
async def test_too_large(client: Any) -> None:
    payload = b'"' + b"x" * MAX_PAYLOAD + b'"'
    response = await refusal(client.invoke, FunctionName="hello", Payload=payload)
    assert response["Error"]["Code"] == "RequestTooLargeException"
    assert "6291556" in response["Error"]["Message"]


@pytest.mark.trio
async def test_throttled(callers: Callers, client: Any) -> None:
    async def throttle(invocation: Invocation) -> Outcome:
        raise TooManyRequests("ConcurrentInvocationLimitExceeded")

    callers.invoker.behaviour = throttle
    for operation in (client.invoke, client.invoke_with_response_stream):
        response = await refusal(operation, FunctionName="hello")
        assert response["Error"]["Code"] == "TooManyRequestsException"
        assert response["Reason"] == "ConcurrentInvocationLimitExceeded"


@pytest.mark.trio
async def test_what_lambox_has_not_got(client: Any) -> None:
    response = await refusal(client.list_functions)
    assert response["Error"]["Code"] == "NotImplementedException"
    assert "not supported by lambox" in response["Error"]["Message"]


# -- InvokeWithResponseStream


@pytest.mark.trio
async def test_chunks_arrive_while_the_function_still_runs(callers: Callers, client: Any) -> None:
    go_on = trio.Event()

    async def produce(invocation: Invocation) -> Outcome:
        assert invocation.sink is not None
        await invocation.sink.send(b"first")
        await go_on.wait()  # set only once the caller has the first chunk
        await invocation.sink.send(b"second")
        return Outcome("success", b"", streamed=True, log_tail=b"tail")

    callers.invoker.behaviour = produce
    answer = await call(client.invoke_with_response_stream, FunctionName="hello", LogType="Tail")
    assert answer["StatusCode"] == 200
    assert answer["ExecutedVersion"] == "$LATEST"
    assert answer["ResponseStreamContentType"] == "application/vnd.amazon.eventstream"
    events = iter(answer["EventStream"])
    assert await call(lambda: next(events)) == {"PayloadChunk": {"Payload": b"first"}}
    go_on.set()
    assert await call(lambda: next(events)) == {"PayloadChunk": {"Payload": b"second"}}
    end = await call(lambda: next(events))
    assert end == {"InvokeComplete": {"LogResult": base64.b64encode(b"tail").decode()}}
    assert await call(lambda: list(events)) == []


@pytest.mark.trio
async def test_buffered_response_is_sent_as_chunks(callers: Callers, client: Any) -> None:
    payload = b'"' + b"x" * (3 * 1024 * 1024) + b'"'
    answer = await call(client.invoke_with_response_stream, FunctionName="hello", Payload=payload)
    events = await call(lambda: list(answer["EventStream"]))
    assert b"".join(one["PayloadChunk"]["Payload"] for one in events[:-1]) == payload
    assert events[-1] == {"InvokeComplete": {}}


@pytest.mark.trio
@pytest.mark.parametrize(
    ("outcome", "chunks", "complete"),
    [
        (
            Outcome("error", b'{"errorType":"E"}', error_type="E"),
            [],
            {"ErrorCode": "Unhandled", "ErrorDetails": '{"errorType":"E"}'},
        ),
        (
            Outcome(
                "error",
                b"",
                streamed=True,
                stream_error=("Runtime.TruncatedResponse", "Response truncated"),
            ),
            [b"part"],
            {"ErrorCode": "Runtime.TruncatedResponse", "ErrorDetails": "Response truncated"},
        ),
        (Outcome("success", b"", streamed=True), [], {}),
    ],
)
async def test_ends_of_a_stream(
    callers: Callers, client: Any, outcome: Outcome, chunks: list[bytes], complete: dict[str, str]
) -> None:
    async def produce(invocation: Invocation) -> Outcome:
        assert invocation.sink is not None
        for chunk in chunks:
            await invocation.sink.send(chunk)
        return outcome

    callers.invoker.behaviour = produce
    answer = await call(client.invoke_with_response_stream, FunctionName="hello")
    events = await call(lambda: list(answer["EventStream"]))
    assert [one["PayloadChunk"]["Payload"] for one in events[:-1]] == chunks
    assert events[-1] == {"InvokeComplete": complete}


@pytest.mark.trio
async def test_fault_after_the_first_chunk(
    callers: Callers, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def produce(invocation: Invocation) -> Outcome:
        assert invocation.sink is not None
        await invocation.sink.send(b"part")
        raise RuntimeError("broken")

    callers.invoker.behaviour = produce
    answer = await call(client.invoke_with_response_stream, FunctionName="hello")
    events = await call(lambda: list(answer["EventStream"]))
    assert events[-1]["InvokeComplete"]["ErrorCode"] == "ServiceException"
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.trio
async def test_dry_run_of_a_stream(callers: Callers, client: Any) -> None:
    answer = await call(
        client.invoke_with_response_stream, FunctionName="hello", InvocationType="DryRun"
    )
    answer["EventStream"].close()
    assert answer["StatusCode"] == 204
    assert callers.invoker.invoked == []
