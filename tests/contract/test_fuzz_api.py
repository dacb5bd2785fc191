"""Whatever is sent to whatever operation of the Lambda API: an answer or a refusal, never a fault of ours.

`make fuzz` sends FUZZ times as much, at random.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimeapi.control import model
from runtimeapi.control.operations import OPERATIONS
from tests.contract.lambda_api import Api, serving
from tests.machines import effort

PLACE = "arn:aws:lambda:us-east-1:123456789012"
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "\x00", "9" * 400, "a" * 300, 2**31, 2**63, 1e308, "$LATEST"]),
)
JSON = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = [
    "one", "one:1", "one:live", "one:$LATEST", "none", f"{PLACE}:function:one", f"{PLACE}:function:one:live",
    "1", "live", "$LATEST", "layer", f"{PLACE}:layer:layer:1", "s3.amazonaws.com", "lambda:InvokeFunction",
    "python3.11",
    "index.handler", "arn:aws:iam::123456789012:role/r", "NONE", "12345678-1234-1234-1234-123456789012",
    f"{PLACE}:event-source-mapping:12345678-1234-1234-1234-123456789012", "arn:aws:sqs:us-east-1:123456789012:q",
    '{"Statement": {"Effect": "Allow", "Principal": "*", "Action": "*"}}',
]  # fmt: skip


def fitting(shape: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Mostly what the shape asks for, so that operations are reached; now and then anything."""
    rules = shape.metadata
    kind = shape.type_name
    good: st.SearchStrategy[Any]
    if "enum" in rules:
        good = st.sampled_from(rules["enum"])
    elif kind == "structure":
        good = structure(shape, depth)
    elif kind == "list":
        good = st.lists(fitting(shape.member, depth + 1), max_size=2)
    elif kind == "map":
        good = st.dictionaries(
            st.sampled_from(["KEY", "1", "2", "SELF"]), fitting(shape.value, depth + 1), max_size=2
        )
    elif kind in ("integer", "long"):
        low = int(rules.get("min", 0))
        good = st.integers(low, min(int(rules.get("max", low + 10)), 2**31 - 1))
    elif kind in ("float", "double"):
        good = st.floats(0, 1)
    elif kind == "boolean":
        good = st.booleans()
    elif kind == "blob":
        good = st.sampled_from(["UEsFBg==", "", "AAAA"])
    else:
        good = st.sampled_from(NAMES)
    return st.one_of(good, good, good, JSON) if depth else good


def structure(shape: Any, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    members = {
        member.serialization.get("name", name): fitting(member, depth + 1)
        for name, member in shape.members.items()
        if depth < 4
    }
    required = {
        shape.members[name].serialization.get("name", name) for name in shape.required_members
    }
    return st.fixed_dictionaries(
        {name: one for name, one in members.items() if name in required},
        optional={name: one for name, one in members.items() if name not in required},
    )


@cache
def _inputs(name: str) -> st.SearchStrategy[dict[str, Any]]:
    shape = next(one.input_shape for one in model.load().operations if one.name == name)
    return structure(shape, 0)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(method, path with its query, body)."""
    operation = draw(st.sampled_from(model.load().operations))
    uri, _, own = operation.http["requestUri"].partition("?")
    shape = operation.input_shape
    given: dict[str, Any] = {} if shape is None else draw(_inputs(operation.name))
    query, body = [own] if own else [], {}
    for name, member in ({} if shape is None else shape.members).items():
        wire = member.serialization.get("name", name)
        if wire not in given:
            continue
        place = member.serialization.get("location")
        text = quote(str(given[wire]).encode("utf-8", "replace"), safe="")
        if place == "uri":
            uri = re.sub(rf"\{{{wire}\+?\}}", text or "x", uri)
        elif place == "querystring":
            query.append(urlencode({wire: str(given[wire]).encode("utf-8", "replace")}))
        elif place is None:
            body[wire] = given[wire]
    path = uri + ("?" + "&".join(query) if query else "")
    sent = draw(st.one_of(*[st.just(json.dumps(body).encode())] * 9, st.binary(max_size=30)))
    return operation.http["method"], path, sent


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("fuzz")) as api:
        api.create("one")
        if "PublishVersion" in OPERATIONS:
            api.client.publish_version(FunctionName="one")
            api.client.create_alias(FunctionName="one", Name="live", FunctionVersion="1")
        yield api


@given(sent=requests())
@settings(parent=effort(60))
def test_no_request_is_a_fault(api: Api, sent: tuple[str, str, bytes]) -> None:
    method, path, body = sent
    found = urlsplit(api.url)
    assert found.hostname is not None
    connection = http.client.HTTPConnection(found.hostname, found.port, timeout=20)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        told = answer.read()
        assert answer.status < 500 or answer.status in (501, 502), told
        if answer.status >= 300:
            error = json.loads(told)
            assert {key.lower() for key in error} >= {"message"}, error
            assert answer.getheader("x-amzn-ErrorType")
        elif told and answer.getheader("Content-Type") == "application/json":
            json.loads(told)
    finally:
        connection.close()
