"""Whatever an extension subscribes with, answers or prints: a refusal, a failed delivery, an event."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from runtimeapi.delivery import HttpCourier
from runtimeapi.telemetry import parse
from sandbox.errors import CallerError
from sandbox.lifecycle import Refused
from sandbox.loggingconfig import RANKS, from_api, level_of
from sandbox.telemetry import Destination, Subscription, Undelivered, _render
from tests.machines import effort

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
DESTINATIONS = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.sampled_from(["HTTP", "TCP", "http", 1]) | JSON,
        "URI": st.from_regex(r"https?://(sandbox(\.localdomain)?|a@b|\[::1\])?(:[0-9]{0,6})?(/.*)?")
        | JSON,
        "port": st.integers() | JSON,
        "method": st.sampled_from(["POST", "PUT", "GET"]) | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.sampled_from(["2022-07-01", "2022-12-13", "2021-03-18"]) | JSON,
        "types": st.lists(st.sampled_from(["platform", "function", "extension", "x"])) | JSON,
        "destination": DESTINATIONS | JSON,
        "buffering": st.dictionaries(
            st.sampled_from(["maxItems", "maxBytes", "timeoutMs", "x"]), st.integers() | JSON
        )
        | JSON,
    },
)


@effort(200)
@given(
    st.sampled_from(["telemetry", "logs"]),
    REQUESTS.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=50),
)
@example("telemetry", b"[" * 60_000)
@example("telemetry", b'{"types":' * 6000)
@example("telemetry", b'{"destination":{"protocol":"TCP","port":' + b"9" * 5000 + b"}}")
def test_a_subscription_is_one_or_is_refused(api: Any, body: bytes) -> None:
    try:
        found = parse(api, body)
    except Refused as refused:
        assert (refused.status, bool(refused.message)) == (400, True)
        return
    assert isinstance(found, Subscription)
    assert 1 <= found.destination.port <= 65535
    assert found.destination.port != 9001
    assert found.destination.host in ("sandbox", "sandbox.localdomain")
    assert found.destination.path.isascii()
    assert found.destination.path.isprintable()
    assert " " not in found.destination.path
    assert 25 <= found.timeout_ms <= 30_000


@effort(100)
@given(st.lists(st.binary(max_size=200), max_size=5), st.booleans())
@example([b"HTTP/1.1 200 OK\r\n", b"Content-Length: 2\r\n\r\nOK"], True)
@example([b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"], True)
@example([b"HTTP/1.1 999999999999 OK\r\n\r\n"], True)
@example([b"HTTP/1.0 200\r\n\r\n" + b"x" * 1000], True)
@example([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"], True)
def test_an_answer_is_a_delivery_or_is_none(pieces: list[bytes], head: bool) -> None:
    async def answer() -> None:
        ours, theirs = trio.testing.memory_stream_pair()

        async def dial(port: int) -> Any:
            ours.setsockopt = lambda *args: None  # type: ignore[attr-defined]
            return ours

        for number, piece in enumerate(pieces):
            status = b"HTTP/1.1 200 OK\r\n" if head and not number else b""
            await theirs.send_all((status if not piece.startswith(b"HTTP") else b"") + piece)
        await theirs.send_eof()
        with contextlib.suppress(Undelivered):
            await HttpCourier(Destination("HTTP", 8080), dial).deliver([b"{}"])

    trio.run(answer, clock=trio.testing.MockClock(autojump_threshold=0))


@effort(200)
@given(
    st.sampled_from(["telemetry", "objects", "2020-08-15", "2021-03-18"]),
    st.text(max_size=60)
    | JSON.map(json.dumps)
    | JSON.map(lambda value: json.dumps(value, indent=1)),
)
@example("objects", '{"a":NaN}')
@example("objects", '{"a":"\\ud800"}')
@example("objects", '{"a":\r\n"\\ud800"}')
@example("objects", "{" * 5000)
def test_a_line_is_one_line_of_json(form: str, line: str) -> None:
    item = _render(form, "function", line, 1e9)
    assert item is not None
    assert b"\n" not in item
    event = json.loads(item, parse_constant=pytest.fail)
    if isinstance(event["record"], str):
        assert event["record"] == line.encode("utf-8", "replace").decode()
    else:
        assert form == "objects"
        assert event["record"] == json.loads(line)
    assert level_of(line) in RANKS


@effort(100)
@given(JSON)
def test_a_logging_config_is_one_or_is_refused(given_: Any) -> None:
    whole = given_ if isinstance(given_, dict) else {"LogFormat": given_, "LogGroup": given_}
    try:
        found = from_api(whole)
    except CallerError as refused:
        assert refused.code == "ValidationException"
        return
    assert found.log_format in ("Text", "JSON")
