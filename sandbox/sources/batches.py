"""Owns what SQS messages look like to a function, and what its result says of them (SPEC 8.4). Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox.invocation import MAX_PAYLOAD, Outcome

Message = Mapping[str, Any]
"""As ReceiveMessage gives it: MessageId, ReceiptHandle, Body, Attributes, MessageAttributes, MD5OfBody..."""


def record(message: Message, *, queue_arn: str, region: str) -> dict[str, Any]:
    """One of the event's Records, keys in AWS's order."""
    found: dict[str, Any] = {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message.get("Body", ""),
        "attributes": dict(message.get("Attributes", {})),
        "messageAttributes": {
            name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()
        },
    }
    if "MD5OfMessageAttributes" in message:
        found["md5OfMessageAttributes"] = message["MD5OfMessageAttributes"]
    found["md5OfBody"] = message.get("MD5OfBody", "")
    return {
        **found,
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": region,
    }


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "StringValue" in value:
        found["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        found["binaryValue"] = base64.b64encode(value["BinaryValue"]).decode()
    return {
        **found,
        "stringListValues": [],
        "binaryListValues": [],
        "dataType": value.get("DataType", "String"),
    }


def filtered(one: Mapping[str, Any]) -> dict[str, Any]:
    """The record as filters see it: a body that is a JSON object is looked into."""
    try:
        body = json.loads(one["body"])
    except (ValueError, RecursionError):
        return dict(one)
    return {**one, "body": body} if isinstance(body, dict) else dict(one)


def events(records: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, list[str]]]:
    """(payload, its messages' ids), as few as fit into an invocation's payload."""
    made: list[tuple[bytes, list[str]]] = []
    pieces: list[bytes] = []
    ids: list[str] = []
    size = 0
    for one in records:
        piece = json.dumps(one, separators=(",", ":")).encode()
        if pieces and size + len(piece) + 1 > MAX_PAYLOAD - 64:
            made.append((_event(pieces), ids))
            pieces, ids, size = [], [], 0
        pieces.append(piece)
        ids.append(one["messageId"])
        size += len(piece) + 1
    if pieces:
        made.append((_event(pieces), ids))
    return made


def _event(pieces: Sequence[bytes]) -> bytes:
    return b'{"Records":[' + b",".join(pieces) + b"]}"


def failed(outcome: Outcome, ids: Sequence[str], *, reports: bool) -> frozenset[str]:
    """The messages that are to come again. `reports`: the mapping has ReportBatchItemFailures."""
    everything = frozenset(ids)
    if outcome.status != "success":
        return everything
    if not reports:
        return frozenset()
    try:
        response = json.loads(outcome.payload) if outcome.payload.strip() else None
    except (ValueError, RecursionError):
        return everything
    if response is None or response == "":
        return frozenset()
    if not isinstance(response, dict):
        return everything
    listed = response.get("batchItemFailures")
    if listed is None:
        return frozenset()
    if not isinstance(listed, list):
        return everything
    found = frozenset(
        str(one.get("itemIdentifier")) if isinstance(one, dict) else "" for one in listed
    )
    return found if found <= everything else everything
