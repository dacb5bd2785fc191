"""Owns the frames of `application/vnd.amazon.eventstream` that InvokeWithResponseStream answers
with. Pure.

Encoding only. Looked for first and not taken: botocore decodes but does not encode; awscrt is a
compiled 20 MB runtime; smithy-aws-event-stream needs Python 3.12 and its own HTTP stack. The format
is SPEC 2.3: lengths, header block, payload, two CRC-32s. botocore's decoder reads it back in the
tests.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from zlib import crc32

CONTENT_TYPE = "application/vnd.amazon.eventstream"
STRING = 7
"""The header value type `string`; the only one these events use."""
MAX_FRAME_PAYLOAD = 1024 * 1024
"""Bytes of one PayloadChunk. The format allows 24 MiB, botocore refuses above 24 MiB; one MiB keeps
memory at both ends small when a buffered response is sent as chunks."""


def encode_header(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return struct.pack("!B", len(key)) + key + struct.pack("!BH", STRING, len(text)) + text


def encode_event(event_type: str, content_type: str, payload: bytes) -> bytes:
    headers = (
        encode_header(":message-type", "event")
        + encode_header(":event-type", event_type)
        + encode_header(":content-type", content_type)
    )
    total = 12 + len(headers) + len(payload) + 4
    lengths = struct.pack("!II", total, len(headers))
    prelude = lengths + struct.pack("!I", crc32(lengths))
    checksum = crc32(payload, crc32(headers, crc32(prelude)))
    return b"".join((prelude, headers, payload, struct.pack("!I", checksum)))


def payload_chunks(data: bytes) -> Iterator[bytes]:
    """`data` as PayloadChunk frames; none for no bytes."""
    for start in range(0, len(data), MAX_FRAME_PAYLOAD):
        piece = data[start : start + MAX_FRAME_PAYLOAD]
        yield encode_event("PayloadChunk", "application/octet-stream", piece)


def invoke_complete(error: tuple[str, str] | None = None, log_tail: bytes | None = None) -> bytes:
    """The last frame. `error` is (ErrorCode, ErrorDetails); `log_tail` None when none was asked
    for."""
    members: dict[str, str] = {}
    if error is not None:
        members["ErrorCode"], members["ErrorDetails"] = error
    if log_tail is not None:
        members["LogResult"] = base64.b64encode(log_tail).decode()
    body = json.dumps(members, separators=(",", ":")).encode()
    return encode_event("InvokeComplete", "application/json", body)
