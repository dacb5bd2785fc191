"""Owns taking in a response body: whole or passed on chunk by chunk, bounded either way."""

from __future__ import annotations

import base64
import binascii

from sandbox.invocation import MAX_PAYLOAD, MAX_STREAMED, ChunkSink, ResponseBody


class TooLarge(Exception):
    """The body is longer than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"Exceeded maximum allowed payload size ({limit} bytes).")
        self.limit = limit


async def collect(body: ResponseBody, limit: int = MAX_PAYLOAD) -> bytes:
    """The whole body. Raises TooLarge as soon as it is, and whatever the body raises."""
    payload = bytearray()
    async for chunk in body:
        payload += chunk
        if len(payload) > limit:
            raise TooLarge(limit)
    return bytes(payload)


async def forward(body: ResponseBody, sink: ChunkSink, limit: int = MAX_STREAMED) -> int:
    """Pass the body on as it comes -> its bytes. Raises TooLarge after `limit` of them have gone through."""
    sent = 0
    async for chunk in body:
        sent += len(chunk)
        if sent > limit:
            raise TooLarge(limit)
        await sink.send(chunk)
    return sent


def midstream_error(body: ResponseBody) -> tuple[str, bytes] | None:
    """(type, error JSON) of a response that failed midway; it says so in two trailers (SPEC 2.1)."""
    error_type = body.trailers.get("lambda-runtime-function-error-type")
    if not error_type:
        return None
    encoded = body.trailers.get("lambda-runtime-function-error-body", "")
    try:
        return error_type, base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return error_type, b""
