"""Owns SQS queues as pollers ask them, over `awsclient.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from lambox.awsclient import AwsClients, AwsProblem, Refused
from sandbox.sources.batches import Message
from sandbox.sources.poller import NoSuchQueue, QueueProblem

ANSWER_S = 25.0
GONE = ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist")


class SqsQueue:
    """Implements `sandbox.sources.poller.Queue`."""

    def __init__(self, clients: AwsClients, arn: str) -> None:
        self._clients = clients
        _, _, _, self._region, self._account, self._name = arn.split(":", 5)
        # Long polling holds a thread: not one of those that others call with.
        self._polling = trio.CapacityLimiter(1)

    async def visibility_timeout_s(self) -> int:
        """Raises NoSuchQueue, QueueProblem."""
        answer = await self._call("get_queue_attributes", AttributeNames=["VisibilityTimeout"])
        return int(answer.get("Attributes", {}).get("VisibilityTimeout", 30))

    async def receive(self, most: int, wait_s: int) -> list[Message]:
        answer = await self._call(
            "receive_message",
            limiter=self._polling,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait_s,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return list(answer.get("Messages", ()))

    async def delete(self, messages: Sequence[Message]) -> None:
        if messages:
            answer = await self._call("delete_message_batch", Entries=_entries(messages))
            if left := answer.get("Failed"):
                raise QueueProblem(f"{len(left)} messages could not be deleted: {left[0]}")

    async def give_back(self, messages: Sequence[Message]) -> None:
        for at in range(0, len(messages), 10):
            entries = [
                {**entry, "VisibilityTimeout": 0} for entry in _entries(messages[at : at + 10])
            ]
            await self._call("change_message_visibility_batch", Entries=entries)

    async def _call(
        self, operation: str, *, limiter: trio.CapacityLimiter | None = None, **parameters: Any
    ) -> dict[str, Any]:
        try:
            url = self._clients.queue_url(account=self._account, name=self._name)
            return await self._clients.call(
                "sqs",
                operation,
                {"QueueUrl": url, **parameters},
                region=self._region,
                within_s=ANSWER_S,
                limiter=limiter,
            )
        except Refused as exc:
            kind = NoSuchQueue if exc.code in GONE else QueueProblem
            raise kind(str(exc)) from exc
        except AwsProblem as exc:
            raise QueueProblem(str(exc)) from exc


def _entries(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
        for number, message in enumerate(messages)
    ]
