"""How events are written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from sandbox import queued
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation
from sandbox.queued import Accepted, Response, from_text, to_text

pytestmark = pytest.mark.trio


def accepted(payload: bytes, response: Response | None) -> Accepted:
    function = FunctionVersion("f", "", "", Path(), "")
    arn = "arn:aws:lambda:us-east-1:000000000000:function:f"
    invocation = Invocation(
        function, payload, arn, "8f9ecd4a-4e4d-4bb4-a0a3-1b1c2d3e4f50", kind="Event"
    )
    return Accepted(invocation, 1000.0, trio.current_time(), attempts=1, response=response)


@pytest.mark.parametrize("response", [None, Response(200, b'"\xc3\xa4\n"', "7", failed=False)])
async def test_what_is_written_is_read_again(response: Response | None) -> None:
    event = accepted(b'{"a": "\\"}"}', response)
    found = from_text(to_text(event), 1000.0)
    assert found.invocation.payload == event.invocation.payload
    assert found.response == response
    assert found.attempts == 1


async def test_payloads_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a response of 6 MB that kept the event loop for 60 ms."""
    sizes: list[int] = []
    real = json.dumps

    def dumps(value: Any) -> str:
        text = real(value)
        sizes.append(len(text))
        return text

    monkeypatch.setattr(queued.json, "dumps", dumps)
    text = to_text(accepted(b"1" * 100_000, Response(200, b"2" * 100_000)))
    assert len(text) > 200_000
    assert max(sizes) < 1000
