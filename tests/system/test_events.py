"""Accepted events with a real server, real sandboxes, a real queue (moto's) and kill -9."""

from __future__ import annotations

import json

from tests.aws import Aws
from tests.system.conftest import Functions, Start, until
from tests.system.crashing import Crash


def test_accepted_events_survive_kill_9(aws: Aws, functions: Functions, start: Start) -> None:
    """The quick one; tests/faults has 500 and more kills."""
    figures = Crash(aws, functions, start).run(60, [0.4])
    print(figures)
    assert figures.lost == set(), figures


def test_a_switched_off_function_tells_at_once_and_a_missing_endpoint_is_told(
    aws: Aws, functions: Functions, start: Start
) -> None:
    queue = aws.queue()
    functions.add(
        "off",
        "def handler(event, context): ...",
        f'reserved_concurrency = 0\non_failure = "{queue.arn}"\ndead_letter = "arn:aws:sns:us-east-1:123456789012:t"',
    )
    server = start(LAMBOX_ENDPOINT_SQS=aws.url)
    answer = server.client().invoke(FunctionName="off", InvocationType="Event", Payload=b"[1]")
    assert answer["StatusCode"] == 202
    found: list[dict[str, object]] = []
    until(lambda: found.extend(queue.bodies()) or found)
    (record,) = found
    assert record["requestContext"] == {
        "requestId": answer["ResponseMetadata"]["RequestId"],
        "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:off:$LATEST",
        "condition": "ZeroReservedConcurrency",
        "approximateInvokeCount": 0,
    }
    assert record["requestPayload"] == [1]
    assert "responseContext" not in json.dumps(record)
    server.wait_log(
        "arn:aws:sns:us-east-1:123456789012:t does not take its dead letter",
        "nothing is sent to sns: no endpoint is set. Hint: endpoint_sns or aws_endpoint",
    )
