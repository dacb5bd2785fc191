"""AWS's own Python runtime interface client, as it is, against the Runtime API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.contract.fakes import LANES, REQUEST_ID, Environments, FakeEnvironment, event

HANDLER = """
def handler(event, context):
    if event == "raise":
        raise ValueError("as asked <&>")
    return {
        "event": event,
        "id": context.aws_request_id,
        "arn": context.invoked_function_arn,
        "client": context.client_context and context.client_context.custom,
        "left": context.get_remaining_time_in_millis() > 0,
    }
"""


@pytest.fixture(params=sorted(LANES))
async def env(request: pytest.FixtureRequest) -> AsyncIterator[Environments]:
    pytest.importorskip("awslambdaric")
    with trio.fail_after(30):
        async with LANES[request.param][1](1) as served:
            yield served


@asynccontextmanager
async def runtime(env: Environments, code: Path, handler: str) -> AsyncIterator[FakeEnvironment]:
    """The client in a process of its own. Resource handling: kills and reaps it."""
    (code / "app.py").write_text(HANDLER)
    host, port = env.addresses[0]
    variables = {
        "AWS_LAMBDA_RUNTIME_API": f"{host}:{port}",
        "LAMBDA_TASK_ROOT": str(code),
        "_HANDLER": handler,
        "PATH": os.environ["PATH"],
    }
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-m", "awslambdaric", handler],
                env=variables,
                cwd=code,
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        yield env.faces[0]
        process.kill()


@pytest.mark.trio
async def test_events_and_errors(env: Environments, tmp_path: Path) -> None:
    async with runtime(env, tmp_path, "app.handler") as face:
        await face.parked.wait()
        face.put.send_nowait(event(b'{"n": 1}', client_context='{"custom": {"k": "\u00e4"}}'))
        answer = await face.done.receive()
        assert (answer.call, answer.request_id) == ("response", REQUEST_ID)
        assert json.loads(answer.body) == {
            "event": {"n": 1},
            "id": REQUEST_ID,
            "arn": event().invoked_arn,
            "client": {"k": "\u00e4"},
            "left": True,
        }
        assert answer.details["invocation_id"] == "nonce-1"
        assert answer.details["content_type"] == "application/json"
        face.put.send_nowait(event(b'"raise"'))
        error = await face.done.receive()
        assert error.call == "error"
        assert json.loads(error.body)["errorMessage"] == "as asked <&>"


@pytest.mark.trio
async def test_a_handler_that_cannot_be_loaded(env: Environments, tmp_path: Path) -> None:
    async with runtime(env, tmp_path, "nowhere.handler") as face:
        error = await face.done.receive()
    assert error.call == "init_error"
    assert error.details["error_type"] == "Runtime.ImportModuleError"
    assert "nowhere" in json.loads(error.body)["errorMessage"]


@pytest.mark.trio
async def test_a_large_event_and_response(env: Environments, tmp_path: Path) -> None:
    payload = json.dumps("x" * 6_000_000).encode()
    async with runtime(env, tmp_path, "app.handler") as face:
        face.put.send_nowait(event(payload))
        answer = await face.done.receive()
    assert json.loads(answer.body)["event"] == "x" * 6_000_000
