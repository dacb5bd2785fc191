"""Frames of the event stream, read back by botocore's own decoder."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from runtimeapi.eventstream import (
    MAX_FRAME_PAYLOAD,
    encode_event,
    invoke_complete,
    payload_chunks,
)


def decode(data: bytes) -> list[Any]:
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return list(buffer)


@given(st.binary(max_size=2000))
def test_any_payload_survives(payload: bytes) -> None:
    (message,) = decode(encode_event("PayloadChunk", "application/octet-stream", payload))
    assert message.payload == payload
    assert message.headers == {
        ":message-type": "event",
        ":event-type": "PayloadChunk",
        ":content-type": "application/octet-stream",
    }


@pytest.mark.parametrize("size", [0, 1, MAX_FRAME_PAYLOAD, MAX_FRAME_PAYLOAD + 1])
def test_large_payloads_are_cut(size: int) -> None:
    payload = b"x" * size
    messages = decode(b"".join(payload_chunks(payload)))
    assert b"".join(message.payload for message in messages) == payload
    assert len(messages) == -(-size // MAX_FRAME_PAYLOAD)


@pytest.mark.parametrize(
    ("error", "tail", "members"),
    [
        (None, None, {}),
        (None, b"log", {"LogResult": base64.b64encode(b"log").decode()}),
        (("Unhandled", 'd"'), None, {"ErrorCode": "Unhandled", "ErrorDetails": 'd"'}),
        (None, b"", {"LogResult": ""}),
    ],
)
def test_invoke_complete(
    error: tuple[str, str] | None, tail: bytes | None, members: dict[str, str]
) -> None:
    (message,) = decode(invoke_complete(error, tail))
    assert message.headers[":event-type"] == "InvokeComplete"
    assert message.headers[":content-type"] == "application/json"
    assert json.loads(message.payload) == members
