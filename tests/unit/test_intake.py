"""What of a caller's request is checked, and how AWS words it."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimeapi.intake import (
    MOST_VALUES,
    check_json,
    check_json_aside,
    read_client_context,
    read_request_id,
    read_trace_id,
)
from sandbox.errors import CallerError

ROOT = "1-65f0f0f0-0123456789abcdef01234567"


def fields(trace_id: str) -> dict[str, str]:
    return dict(part.split("=") for part in trace_id.split(";"))


@pytest.mark.parametrize(
    "upstream", [None, "", "nonsense", "Root=1-2-3", f"Parent={'a' * 16}", "Root=\n", "x" * 600]
)
def test_a_root_is_made(upstream: str | None) -> None:
    made = fields(read_trace_id(upstream))
    assert list(made) == ["Root", "Parent", "Sampled"]
    assert len(made["Root"]) == len(ROOT)
    assert made["Sampled"] == "0"


def test_the_callers_root_survives() -> None:
    assert fields(read_trace_id(f"Root={ROOT}"))["Root"] == ROOT
    whole = f"Root={ROOT};Parent=0123456789abcdef;Sampled=1;Lineage=a:1"
    assert read_trace_id(whole) == whole
    assert read_trace_id(whole.replace(";", "; ")) == whole


def test_request_id() -> None:
    assert read_request_id(None) != read_request_id(None)
    given_id = "8F9ECD4A-4E4D-4BB4-A0A3-1B1C2D3E4F50"
    assert read_request_id(given_id) == given_id.lower()
    with pytest.raises(CallerError, match="must be a UUID"):
        read_request_id("1")


def test_client_context() -> None:
    text = '{"custom": {"a": "\u00e4"}}'
    assert read_client_context(base64.b64encode(text.encode()).decode()) == text
    assert read_client_context(None) is None
    with pytest.raises(CallerError, match="valid Base64-encoded JSON object"):
        read_client_context(base64.b64encode(b"[1]").decode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


CHECKS = [check_json, check_json_aside]
"""In the event loop, and for a thread."""


@pytest.mark.parametrize("check", CHECKS)
@given(value=JSON)
def test_all_json_is_taken(check: Callable[[bytes], None], value: object) -> None:
    check(json.dumps(value).encode())
    check(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _says(check: Callable[[bytes], None], payload: bytes) -> str:
    try:
        check(payload)
    except CallerError as exc:
        return exc.message
    return "good"


PIECES = st.sampled_from(
    [
        b'"', b"\\", b"\\u00", b"a", b"1", b"0", b"-", b"+", b".", b"e", b"E", b",", b":", b"[", b"]", b"{", b"}",
        b" ", b"\t", b"\r\n", b"\x0b", b"\x00", b"\x01", b"\x7f", b"\xc3\xa4", b"\xc2\xa0", b"\xef\xbb\xbf",
        b"\xff", b"\xed\xa0\x80", b"true", b"null", b"NaN", b"Infinity", b"//", b"/**/", b"'", b"0x1", b'"a":1',
    ]
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=8).map(b"".join) | JSON.map(json.dumps).map(str.encode))
def test_both_checks_say_the_same(payload: bytes) -> None:
    assert _says(check_json_aside, payload) == _says(check_json, payload)


def test_what_is_no_json_and_has_very_many_values_is_not_looked_through() -> None:
    """Python's scanner kept the interpreter to itself for 0.9 s of 6 MB, and made 130 MB of it."""
    check_json_aside(b"[" + b"[]," * MOST_VALUES + b"[]]")
    few, many = b"[" + b"[]," * (MOST_VALUES // 2 - 1), b"[" + b"[]," * 10 * MOST_VALUES
    for wrong in (few, b'["a" 1,' + many[1:], b"[" * 5000 + many):
        assert _says(check_json_aside, wrong) == _says(check_json, wrong)
    tracemalloc.start()
    try:
        for rest in (b"", b"]]", b'"', b"tru"):
            assert "too many values" in _says(check_json_aside, many + rest)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(many)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("check", CHECKS)
def test_numbers_of_any_length_are_json(check: Callable[[bytes], None]) -> None:
    check(b"1" * 10_000)
    check(b"-0.5e+9999999")


@pytest.mark.parametrize(
    ("payload", "diagnosis", "place"),
    [
        (b"\x87", "Invalid UTF-8 start byte 0x87", "line: 1, column: 1]"),
        (b"\x01", "Unexpected character ((CTRL-CHAR, code 1)): expected", "line: 1, column: 1]"),
        (b'{\n "a": x}', "Unexpected character ('x' (code 120)): ", "line: 2, column: 7]"),
        (b"[1,", "Unexpected end-of-input", "line: 1, column: 4]"),
        (b" ", "Unexpected end-of-input", "column: 2]"),
        (b"1 2", "Unexpected character ('2' (code 50)): ", "column: 3]"),
        (b"[NaN]", "Unexpected character ('N' (code 78)): ", "column: 1]"),
        (b"-Infinity", "Unexpected character ('-' (code 45)): ", "column: 1]"),
        (b"[" * 200_000 + b"]" * 200_000, "Document nesting", "column: 1]"),
        (b"[" * 200_000, "Document nesting depth exceeds the maximum allowed", "column: 1]"),
    ],
)
@pytest.mark.parametrize("check", CHECKS)
def test_what_is_not_json(
    check: Callable[[bytes], None], payload: bytes, diagnosis: str, place: str
) -> None:
    with pytest.raises(CallerError) as caught:
        check(payload)
    error = caught.value
    assert (error.status, error.code) == (400, "InvalidRequestContentException")
    assert error.message.startswith(
        f"Could not parse request body into json: Could not parse payload into json: {diagnosis}"
    )
    assert error.message.endswith(place)
