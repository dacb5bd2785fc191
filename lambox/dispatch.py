"""Owns how a message gets to its target: which call of which service, or which POST. Implements `telling.Deliver`."""

from __future__ import annotations

import re
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import trio

from lambox.awsclient import AwsClients, AwsProblem, Refused
from lambox.post import PostProblem, post
from sandbox.destinations import EVENTS_SOURCE, Attributes, Message
from sandbox.telling import Undelivered

POSTS_AT_ONCE = 8
"""Per host."""
TOO_LARGE = re.compile(r"must be shorter than|Message too long|is over the limit")
"""As SQS, SNS and EventBridge word it; their codes are those of any bad parameter."""
USER_AGENT = "lambox"
HEADERS = {
    "RequestID": "Lambox-Request-Id",
    "ErrorCode": "Lambox-Error-Code",
    "ErrorMessage": "Lambox-Error-Message",
}
"""Of a dead letter, by the attributes that SQS has of it."""


class Dispatch:
    """Sends messages. Nothing is to be closed."""

    def __init__(self, clients: AwsClients) -> None:
        self._clients = clients
        self._hosts: dict[str, trio.CapacityLimiter] = {}
        """One slow host does not keep others waiting. As many as there are hosts in configurations."""

    async def __call__(self, message: Message, /) -> None:
        try:
            match message.target.kind:
                case "sqs":
                    await self._sqs(message)
                case "sns":
                    await self._sns(message)
                case "events":
                    await self._events(message)
                case "s3":
                    await self._s3(message)
                case "http":
                    await self._http(message)
                case "function":
                    _not_ours()
        except Refused as exc:
            raise Undelivered(str(exc), too_large=bool(TOO_LARGE.search(exc.message))) from exc
        except PostProblem as exc:
            raise Undelivered(str(exc), too_large=exc.status == 413) from exc
        except AwsProblem as exc:
            raise Undelivered(str(exc)) from exc

    async def _sqs(self, message: Message) -> None:
        target = message.target
        parameters: dict[str, Any] = {
            "QueueUrl": self._clients.queue_url(account=target.account, name=target.name),
            "MessageBody": _text(message.body),
            "MessageAttributes": _attributes(message.attributes),
        }
        if message.trace_id:
            header = {"DataType": "String", "StringValue": message.trace_id}
            parameters["MessageSystemAttributes"] = {"AWSTraceHeader": header}
        await self._clients.call("sqs", "send_message", parameters, region=target.region)

    async def _sns(self, message: Message) -> None:
        parameters = {
            "TopicArn": message.target.text,
            "Message": _text(message.body),
            "MessageAttributes": _attributes(message.attributes),
        }
        await self._clients.call("sns", "publish", parameters, region=message.target.region)

    async def _events(self, message: Message) -> None:
        """SPEC 8.2: source and detail-type as recorded."""
        bus = message.target.text
        entry = {
            "Source": EVENTS_SOURCE,
            "DetailType": "Lambda Function Invocation Result - "
            + ("Success" if message.succeeded else "Failure"),
            "Detail": message.body.decode(),
            "Resources": [bus, message.function_arn],
            "EventBusName": bus,
        }
        region = message.target.region
        answer = await self._clients.call(
            "events", "put_events", {"Entries": [entry]}, region=region
        )
        if answer.get("FailedEntryCount"):
            refused = answer["Entries"][0]
            raise Undelivered(
                f"EventBridge: {refused.get('ErrorCode')}: {refused.get('ErrorMessage')}"
            )

    async def _s3(self, message: Message) -> None:
        parameters = {
            "Bucket": message.target.name,
            "Key": message.s3_key,
            "Body": message.body,
            "ContentType": "application/json",
        }
        # A bucket's ARN names no region; custom endpoints have one for all.
        region = message.function_arn.split(":")[3]
        await self._clients.call("s3", "put_object", parameters, region=region)

    async def _http(self, message: Message) -> None:
        """lambox's own: AWS has no such destination."""
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        if message.trace_id:
            headers["X-Amzn-Trace-Id"] = message.trace_id
        for name, (_, value) in message.attributes.items():
            headers[HEADERS[name]] = quote(value, safe=" ")
        address = message.target.text
        host = urlsplit(address).netloc
        if host not in self._hosts:
            self._hosts[host] = trio.CapacityLimiter(POSTS_AT_ONCE)
        async with self._hosts[host]:
            await post(address, message.body, headers)


def _not_ours() -> NoReturn:
    raise Undelivered("a function is told by the queue itself", hopeless=True)


def _text(body: bytes) -> str:
    """As SQS takes it: the two characters that it refuses can stand in JSON's strings alone, where they have
    another spelling."""
    return body.decode().replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def _attributes(attributes: Attributes) -> dict[str, dict[str, str]]:
    return {
        name: {"DataType": type_, "StringValue": value}
        for name, (type_, value) in attributes.items()
    }
