"""Event source mappings, as boto3 sees them, over real queues (moto's server). SPEC 8.4."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws import ACCOUNT, Aws, Queue
from tests.contract.lambda_api import Api, asked, serving
from tests.waiting import until

IPV = "InvalidParameterValueException"


@pytest.fixture
def api(tmp_path: Path, aws: Aws) -> Iterator[Api]:
    with serving(tmp_path, aws_endpoint=aws.url) as api:
        yield api


@pytest.fixture
def queue(aws: Aws) -> Queue:
    return aws.queue()


def settled(api: Api, name: str) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = api.client.get_event_source_mapping(UUID=name)
        if found["State"] in ("Enabled", "Disabled"):
            return found
        time.sleep(0.02)
    raise AssertionError(f"still {found['State']}")


def gone(api: Api, name: str) -> None:
    def left() -> list[str]:
        mappings = api.client.list_event_source_mappings()["EventSourceMappings"]
        return [one["UUID"] for one in mappings]

    until(lambda: name not in left(), 20)


def test_a_mappings_life(api: Api, queue: Queue) -> None:
    api.create("worker")
    made = api.client.create_event_source_mapping(FunctionName="worker", EventSourceArn=queue.arn)
    name = made["UUID"]
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 202
    shown = {key: made[key] for key in made if key not in ("ResponseMetadata", "LastModified")}
    arn = f"arn:aws:lambda:us-east-1:{ACCOUNT}"
    assert shown == {
        "BatchSize": 10,
        "EventSourceArn": queue.arn,
        "EventSourceMappingArn": f"{arn}:event-source-mapping:{name}",
        "FunctionArn": f"{arn}:function:worker",
        "FunctionResponseTypes": [],
        "MaximumBatchingWindowInSeconds": 0,
        "State": "Creating",
        "StateTransitionReason": "USER_INITIATED",
        "UUID": name,
    }
    assert settled(api, name)["State"] == "Enabled"

    queue.sqs.send_message(
        QueueUrl=queue.url,
        MessageBody="hello",
        MessageAttributes={"Author": {"StringValue": "Grisham", "DataType": "String"}},
    )
    until(lambda: api.invoker.invoked)
    (invocation,) = api.invoker.invoked
    assert invocation.invoked_arn == f"{arn}:function:worker"
    (record,) = json.loads(invocation.payload)["Records"]
    assert list(record) == [
        "messageId",
        "receiptHandle",
        "body",
        "attributes",
        "messageAttributes",
        "md5OfMessageAttributes",
        "md5OfBody",
        "eventSource",
        "eventSourceARN",
        "awsRegion",
    ]
    assert record["body"] == "hello"
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["messageAttributes"] == {
        "Author": {
            "stringValue": "Grisham",
            "stringListValues": [],
            "binaryListValues": [],
            "dataType": "String",
        }
    }
    assert (record["eventSource"], record["eventSourceARN"]) == ("aws:sqs", queue.arn)

    # Disabled, it takes nothing, and what was sent meanwhile is there when it is enabled again.
    changed = api.client.update_event_source_mapping(UUID=name, Enabled=False)
    assert changed["State"] == "Disabling"
    assert settled(api, name)["State"] == "Disabled"
    queue.sqs.send_message(QueueUrl=queue.url, MessageBody="later")
    assert len(api.invoker.invoked) == 1
    changed = api.client.update_event_source_mapping(UUID=name, Enabled=True, BatchSize=5)
    assert (changed["State"], changed["BatchSize"]) == ("Enabling", 5)
    until(lambda: len(api.invoker.invoked) == 2)
    settled(api, name)

    deleted = api.client.delete_event_source_mapping(UUID=name)
    assert deleted["State"] == "Deleting"
    gone(api, name)
    missing = (404, "ResourceNotFoundException", "The resource you requested does not exist.")
    assert api.refusal("get_event_source_mapping", UUID=name) == missing
    assert api.refusal("delete_event_source_mapping", UUID=name) == missing
    assert api.refusal("update_event_source_mapping", UUID=name, Enabled=False) == missing


def test_a_mapping_goes_on_after_a_restart(tmp_path: Path, aws: Aws, queue: Queue) -> None:
    with serving(tmp_path, aws_endpoint=aws.url) as api:
        api.create("worker")
        name = api.client.create_event_source_mapping(
            FunctionName="worker", EventSourceArn=queue.arn
        )["UUID"]
    queue.sqs.send_message(QueueUrl=queue.url, MessageBody="while it was down")
    with serving(tmp_path, aws_endpoint=aws.url) as api:
        until(lambda: api.invoker.invoked)
        assert settled(api, name)["State"] == "Enabled"


def test_a_second_server_of_the_folder_leaves_mappings_and_states_alone(
    tmp_path: Path, aws: Aws, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path, aws_endpoint=aws.url) as first:
        first.create("worker")
        first.client.create_function(**asked("other"))  # it may still be Pending
        name = first.client.create_event_source_mapping(
            FunctionName="worker", EventSourceArn=queue.arn
        )["UUID"]
        with serving(tmp_path, aws_endpoint=aws.url) as second:
            queue.sqs.send_message(QueueUrl=queue.url, MessageBody="one")
            until(lambda: first.invoker.invoked)
            assert second.client.get_event_source_mapping(UUID=name)["UUID"] == name
            code = second.refusal("delete_event_source_mapping", UUID=name)[1]
            assert code == "ResourceConflictException"
            assert not second.invoker.invoked
        assert settled(first, name)["State"] == "Enabled"
    assert "event source mappings are not polled by this server" in caplog.text


def test_what_is_refused(api: Api, aws: Aws, queue: Queue) -> None:
    api.create("worker", Timeout=31)
    api.create("quick")
    fifo = aws.queue(aws.name("q") + ".fifo", FifoQueue="true").arn

    def refused(**changes: Any) -> tuple[int, str, str]:
        given = {"FunctionName": "quick", "EventSourceArn": queue.arn, **changes}
        given = {key: value for key, value in given.items() if value is not None}
        return api.refusal("create_event_source_mapping", **given)

    assert refused(EventSourceArn=None) == (400, IPV, "Unrecognized event source.")
    assert refused(FunctionName="nobody") == (400, IPV, "Function does not exist")
    assert refused(EventSourceArn=queue.arn + "-not")[:2] == (400, IPV)
    assert refused(EventSourceArn=queue.arn + "-not")[2] == (
        "Error occurred while ReceiveMessage. SQS Error Code: "
        "AWS.SimpleQueueService.NonExistentQueue. "
        "SQS Error Message: The specified queue does not exist."
    )
    assert refused(FunctionName="worker") == (
        400,
        IPV,
        "Queue visibility timeout: 30 seconds is less than Function timeout: 31 seconds",
    )
    assert refused(BatchSize=11) == (
        400,
        IPV,
        "Maximum batch window in seconds must be greater than 0 if maximum batch size is "
        "greater than 10",
    )
    assert refused(EventSourceArn=fifo, BatchSize=11, MaximumBatchingWindowInSeconds=1)[1] == IPV
    for pattern in (json.dumps(None), "simple string", '{"eventSource": "aws:sqs"}', '{"a": []}'):
        assert refused(FilterCriteria={"Filters": [{"Pattern": pattern}]}) == (
            400,
            IPV,
            "Invalid filter pattern definition.",
        )
    assert refused(DestinationConfig={"OnFailure": {"Destination": queue.arn}}) == (
        400,
        IPV,
        "Unsupported DestinationConfig parameter for given event source mapping type.",
    )
    stream = "arn:aws:kinesis:us-east-1:123456789012:stream/s"
    assert "kinesis are not supported by lambox" in refused(EventSourceArn=stream)[2]
    assert api.client.list_event_source_mappings()["EventSourceMappings"] == []

    name = api.client.create_event_source_mapping(FunctionName="quick", EventSourceArn=queue.arn)
    assert refused() == (
        409,
        "ResourceConflictException",
        f'An event source mapping with SQS arn (" {queue.arn} ") and function (" quick ") already '
        f"exists. Please update or delete the existing mapping with UUID {name['UUID']}",
    )


def test_without_an_endpoint_it_is_said_what_is_missing(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create("worker")
        arn = f"arn:aws:sqs:us-east-1:{ACCOUNT}:work"
        status, code, message = api.refusal(
            "create_event_source_mapping", FunctionName="worker", EventSourceArn=arn
        )
        assert (status, code) == (400, IPV)
        assert "no endpoint is set" in message


def test_pages(api: Api, aws: Aws) -> None:
    api.create("worker")
    queues = [aws.queue().arn for _ in range(3)]
    made = {
        api.client.create_event_source_mapping(
            FunctionName="worker", EventSourceArn=arn, Enabled=False
        )["UUID"]
        for arn in queues
    }
    pages = api.client.get_paginator("list_event_source_mappings").paginate(
        FunctionName="worker", PaginationConfig={"PageSize": 2}
    )
    found = [[one["UUID"] for one in page["EventSourceMappings"]] for page in pages]
    assert [len(page) for page in found] == [2, 1]
    assert {name for page in found for name in page} == made
    only = api.client.list_event_source_mappings(EventSourceArn=queues[0])["EventSourceMappings"]
    assert [one["EventSourceArn"] for one in only] == queues[:1]
