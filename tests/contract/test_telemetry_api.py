"""PUT /2022-07-01/telemetry and PUT /2020-08-15/logs on the wire: what is taken, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from sandbox.telemetry import Destination, Subscription
from tests.contract.fakes import EXTENSION, LANES, Environments
from tests.contract.wire import Answer, ask

pytestmark = pytest.mark.trio
TELEMETRY, LOGS = "/2022-07-01/telemetry", "/2020-08-15/logs"
GOOD: dict[str, Any] = {
    "schemaVersion": "2022-12-13",
    "types": ["platform", "function"],
    "destination": {"protocol": "HTTP", "URI": "http://sandbox.localdomain:8080/in?x=1"},
}


@pytest.fixture
async def env() -> AsyncIterator[Environments]:
    """Subscribing is no business of the fast lane's: one lane is as good as the other."""
    with trio.fail_after(20):
        async with LANES["fast"][1](1) as served:
            yield served


async def put(
    env: Environments, path: str, body: Any, identifier: str | None = EXTENSION
) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if identifier is None else {"Lambda-Extension-Identifier": identifier}
    return await ask(env.addresses[0], "PUT", path, data, headers=headers)


def changed(**changes: Any) -> dict[str, Any]:
    whole = {**GOOD, **changes}
    return {key: value for key, value in whole.items() if value is not ...}


async def test_a_subscription_is_taken_with_awss_defaults(env: Environments) -> None:
    answer = await put(env, TELEMETRY, GOOD)
    assert (answer.status, answer.body) == (200, b'"OK"')
    assert answer.headers["content-type"] == "application/json"
    (found,) = env.faces[0].subscriptions
    assert found == (
        "agent",
        Subscription(
            "telemetry",
            "2022-12-13",
            ("platform", "function"),
            Destination("HTTP", 8080, "/in?x=1", "sandbox.localdomain", "POST"),
            max_items=10_000,
            max_bytes=262_144,
            timeout_ms=1000,
        ),
    )


async def test_everything_can_be_said(env: Environments) -> None:
    body = changed(
        types=["extension", "function", "function"],
        destination={"protocol": "TCP", "port": 4243},
        buffering={"maxItems": 1000, "maxBytes": 1_048_576, "timeoutMs": 25},
        schemaVersion="2025-01-29",
    )
    assert (await put(env, TELEMETRY + "/", body)).status == 200
    (_, found) = env.faces[0].subscriptions[0]
    assert found == Subscription(
        "telemetry",
        "2025-01-29",
        ("extension", "function"),
        Destination("TCP", 4243),
        max_items=1000,
        max_bytes=1_048_576,
        timeout_ms=25,
    )


async def test_the_logs_api_has_a_default_schema_and_a_method(env: Environments) -> None:
    http = {"protocol": "HTTP", "URI": "http://sandbox:1", "method": "PUT"}
    body = changed(schemaVersion=..., destination=http)
    assert (await put(env, LOGS, body)).status == 200
    (_, found) = env.faces[0].subscriptions[0]
    assert (found.api, found.schema) == ("logs", "2020-08-15")
    assert found.destination == Destination("HTTP", 1, "/", "sandbox", "PUT")


URI = "http://sandbox.localdomain:8080"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "failed to parse JSON: "),
        (b"[]", "failed to parse JSON: it is no object"),
        (b"[" * 60_000, "failed to parse JSON: "),
        (b'"\xff"', "failed to parse JSON: "),
        (changed(types=...), "types should not be empty"),
        (changed(types=[]), "types should not be empty"),
        (changed(types=["platform", "trace"]), 'types ["platform", "trace"] should be a list'),
        (changed(types=[["platform"]]), "should be a list"),
        (changed(types="platform"), "should be a list"),
        (changed(schemaVersion=...), "schemaVersion should not be empty"),
        (changed(schemaVersion="2021-03-18"), 'schemaVersion "2021-03-18" is not supported'),
        (changed(schemaVersion=["2022-12-13"]), "is not supported"),
        (changed(destination=...), "destination should not be empty"),
        (changed(destination={"protocol": "UDP"}), 'protocol "UDP" is not supported'),
        (changed(destination={"protocol": "TCP"}), "port null should be a number"),
        (changed(destination={"protocol": "TCP", "port": True}), "port true should be a number"),
        (changed(destination={"protocol": "TCP", "port": 65536}), "from 1 to 65535"),
        (changed(destination={"protocol": "TCP", "port": 9001}), "port 9001 is reserved"),
        (changed(destination={"protocol": "HTTP"}), "URI null should be http://"),
        (
            changed(destination={"protocol": "HTTP", "URI": "http://sandbox.localdomain"}),
            "URI port is not provided",
        ),
        (
            changed(destination={"protocol": "HTTP", "URI": "http://sandbox.localdomain:9001"}),
            "port 9001 is reserved",
        ),
        (
            changed(destination={"protocol": "HTTP", "URI": "http://169.254.169.254:80/"}),
            "URI host should be sandbox.localdomain",
        ),
        (
            changed(destination={"protocol": "HTTP", "URI": "https://sandbox.localdomain:80"}),
            "should be http://",
        ),
        (
            changed(destination={"protocol": "HTTP", "URI": URI + "/ HTTP/1.1\r\nX: y"}),
            "should be http://",
        ),
        (
            changed(destination={"protocol": "HTTP", "URI": "http://a@sandbox.localdomain:80"}),
            "URI host should be",
        ),
        (
            changed(destination={"protocol": "HTTP", "URI": URI, "method": "PUT"}),
            'method "PUT" is not supported',
        ),
        (changed(buffering=[]), "buffering should be an object"),
        (
            changed(buffering={"maxItems": 999}),
            "maxItems 999 should be a number from 1000 to 10000",
        ),
        (
            changed(buffering={"maxBytes": 1}),
            "maxBytes 1 should be a number from 262144 to 1048576",
        ),
        (changed(buffering={"timeoutMs": 1e3}), "timeoutMs 1000.0 should be a number from 25"),
        (changed(buffering={"timeoutMs": 30_001}), "timeoutMs 30001 should be"),
    ],
)
async def test_a_bad_subscription_is_told(env: Environments, body: Any, said: str) -> None:
    answer = await put(env, TELEMETRY, body)
    assert answer.status == 400
    assert set(answer.json) == {"errorType", "errorMessage"}
    assert answer.json["errorType"] == "ValidationError"
    assert said in answer.json["errorMessage"]
    assert len(answer.json["errorMessage"]) < 400
    assert env.faces[0].subscriptions == []


async def test_all_mistakes_are_told_at_once(env: Environments) -> None:
    http = {"protocol": "HTTP", "URI": "http://sandbox.localdomain"}
    answer = await put(env, LOGS, {"types": [], "destination": http})
    assert answer.status == 400
    assert answer.json == {
        "errorType": "Logs.ValidationError",
        "errorMessage": "types should not be empty; URI port is not provided",
    }


async def test_who_asks_comes_first(env: Environments) -> None:
    answer = await put(env, TELEMETRY, b"nonsense", identifier="somebody")
    assert answer.status == 403
    assert answer.json["errorType"] == "Extension.UnknownExtensionIdentifier"


async def test_a_huge_subscription_is_refused(env: Environments) -> None:
    assert (await put(env, TELEMETRY, b" " * 70_000)).status == 413
