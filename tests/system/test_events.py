"""Accepted events with a real server, real sandboxes, a real queue (moto's) and kill -9."""

from __future__ import annotations

import json
from typing import Any

from tests.aws import Aws, Queue
from tests.contract.lambda_api import PYTHON, ROLE, zipped
from tests.system.conftest import Functions, Start
from tests.system.crashing import Crash
from tests.waiting import until

FAILS = """
def handler(event, context):
    if event.get("fail"):
        raise ValueError("as asked")
"""


def test_accepted_events_survive_kill_9(aws: Aws, functions: Functions, start: Start) -> None:
    """The quick one; tests/faults has 500 and more kills."""
    figures = Crash(aws, functions, start).run(60, [0.4])
    print(figures)
    assert figures.lost == set(), figures


def taken(queue: Queue) -> dict[str, Any]:
    """The one message there."""
    found: list[dict[str, Any]] = []
    until(lambda: found.extend(queue.messages()) or found)
    (message,) = found
    return message


def test_what_the_api_configured_counts_and_a_missing_endpoint_is_told(
    aws: Aws, functions: Functions, start: Start
) -> None:
    failed, dead = aws.queue(), aws.queue()
    server = start(LAMBOX_ENDPOINT_SQS=aws.url)
    client = server.client()
    client.create_function(
        FunctionName="fails",
        Runtime=PYTHON,
        Role=ROLE,
        Handler="index.handler",
        Code={"ZipFile": zipped({"index.py": FAILS})},
        DeadLetterConfig={"TargetArn": dead.arn},
    )
    client.get_waiter("function_active_v2").wait(
        FunctionName="fails", WaiterConfig={"Delay": 0.05, "MaxAttempts": 200}
    )
    client.put_function_event_invoke_config(
        FunctionName="fails",
        MaximumRetryAttempts=0,
        DestinationConfig={
            "OnFailure": {"Destination": failed.arn},
            "OnSuccess": {"Destination": "arn:aws:sns:us-east-1:123456789012:t"},
        },
    )
    id_ = invoke(client, b'{"fail": true}')
    record = json.loads(taken(failed)["Body"])
    assert record["requestContext"] == {
        "requestId": id_,
        "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:fails:$LATEST",
        "condition": "RetriesExhausted",
        "approximateInvokeCount": 1,
    }
    assert record["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    assert record["responsePayload"]["errorMessage"] == "as asked"
    letter = taken(dead)
    assert json.loads(letter["Body"]) == {"fail": True}
    values = {name: one["StringValue"] for name, one in letter["MessageAttributes"].items()}
    assert values == {"RequestID": id_, "ErrorCode": "200", "ErrorMessage": "as asked"}

    client.put_function_concurrency(FunctionName="fails", ReservedConcurrentExecutions=0)
    invoke(client, b"[1]")
    record = json.loads(taken(failed)["Body"])
    assert record["requestContext"]["condition"] == "ZeroReservedConcurrency"
    assert record["requestContext"]["approximateInvokeCount"] == 0
    assert "responseContext" not in record

    client.delete_function_concurrency(FunctionName="fails")
    invoke(client, b"{}")
    server.wait_log(
        "arn:aws:sns:us-east-1:123456789012:t does not take its record",
        "nothing is sent to sns: no endpoint is set. Hint: endpoint_sns or aws_endpoint",
    )


def invoke(client: Any, payload: bytes) -> str:
    answer = client.invoke(FunctionName="fails", InvocationType="Event", Payload=payload)
    assert answer["StatusCode"] == 202
    return str(answer["ResponseMetadata"]["RequestId"])
