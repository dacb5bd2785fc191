"""Queues polled by a real server, worked off by aws-lambda-powertools' own batch processor."""

from __future__ import annotations

from pathlib import Path

from tests.aws import Aws
from tests.system.conftest import Functions, Start
from tests.system.powertools import layer
from tests.waiting import until

WORKER = """
    from aws_lambda_powertools import Logger
    from aws_lambda_powertools.utilities.batch import (
        BatchProcessor, EventType, process_partial_response,
    )

    logger = Logger(service="orders")
    processor = BatchProcessor(event_type=EventType.SQS)

    def order(record):
        first = record.attributes.approximate_receive_count == "1"
        if first and int(record.body) % 5 == 0:
            raise ValueError("not yet")
        logger.info("done", order=record.body)

    @logger.inject_lambda_context
    def handler(event, context):
        return process_partial_response(
            event=event, record_handler=order, processor=processor, context=context
        )
    """


def test_a_queue_is_worked_off(
    aws: Aws, functions: Functions, start: Start, tmp_path: Path
) -> None:
    """Every fifth message fails the first time: it alone comes again, after its visibility timeout."""
    queue, orders = aws.queue(VisibilityTimeout="2"), 40
    powertools = layer(tmp_path)
    functions.add("orders", WORKER, f'layers = ["{powertools}"]\nmemory_size = 1769\ntimeout = 2')
    server = start(LAMBOX_AWS_ENDPOINT=aws.url)
    for first in range(0, orders, 10):
        entries = [{"Id": str(n), "MessageBody": str(n)} for n in range(first, first + 10)]
        queue.sqs.send_message_batch(QueueUrl=queue.url, Entries=entries)
    made = server.client().create_event_source_mapping(
        FunctionName="orders",
        EventSourceArn=queue.arn,
        FunctionResponseTypes=["ReportBatchItemFailures"],
    )
    names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")

    def left() -> int:
        answer = queue.sqs.get_queue_attributes(QueueUrl=queue.url, AttributeNames=list(names))
        return sum(int(answer["Attributes"][name]) for name in names)

    until(lambda: left() == 0, 30)
    log = server.log.read_text()
    until(lambda: server.log.read_text().count('"message":"done"') >= orders)
    log = server.log.read_text()
    for number in range(orders):
        assert log.count(f'"order":"{number}"') == 1, number
    found = server.client().get_event_source_mapping(UUID=made["UUID"])
    assert (found["State"], found.get("LastProcessingResult")) == ("Enabled", None)
