"""FilterCriteria: EventBridge's patterns, as Lambda's documentation has them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.sources.filters import BadPattern, matches, parse

EVENT = {
    "messageId": "1",
    "body": {
        "city": "Zürich",
        "price": 300,
        "sale": True,
        "tags": ["red", "round"],
        "none": None,
        "file": "a/b/report.PDF",
        "inner": {"deep": "x"},
    },
}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"city": ["Zürich"]}, True),
        ({"city": ["Bern"]}, False),
        ({"city": ["Bern", "Zürich"]}, True),
        ({"city": ["Zürich"], "price": [1]}, False),
        ({"sale": [True]}, True),
        ({"sale": [1]}, False),
        ({"price": [300.0]}, True),
        ({"none": [None]}, True),
        ({"missing": [None]}, False),
        ({"missing": [{"exists": False}]}, True),
        ({"city": [{"exists": False}]}, False),
        ({"city": [{"exists": True}]}, True),
        ({"inner": [{"exists": True}]}, False),  # leaves alone exist
        ({"inner": {"deep": ["x"]}}, True),
        ({"city": {"deep": ["x"]}}, False),
        ({"tags": ["round"]}, True),
        ({"tags": ["blue"]}, False),
        ({"city": [{"prefix": "Zü"}]}, True),
        ({"file": [{"suffix": ".pdf"}]}, False),
        ({"file": [{"suffix": {"equals-ignore-case": ".pdf"}}]}, True),
        ({"city": [{"equals-ignore-case": "ZÜRICH"}]}, True),
        ({"file": [{"wildcard": "a/*/report.*"}]}, True),
        ({"file": [{"wildcard": "a/*report"}]}, False),
        ({"price": [{"numeric": [">", 100]}]}, True),
        ({"price": [{"numeric": [">", 0, "<", 300]}]}, False),
        ({"price": [{"numeric": ["=", 300]}]}, True),
        ({"city": [{"numeric": [">", 0]}]}, False),
        ({"city": [{"anything-but": ["Bern"]}]}, True),
        ({"city": [{"anything-but": "Zürich"}]}, False),
        ({"price": [{"anything-but": [1, 2]}]}, True),
        ({"missing": [{"anything-but": [1]}]}, False),
        ({"city": [{"anything-but": {"prefix": "Z"}}]}, False),
        ({"$or": [{"city": ["Bern"]}, {"price": [300]}]}, True),
        ({"$or": [{"city": ["Bern"]}, {"price": [1]}]}, False),
    ],
    ids=json.dumps,
)
def test_what_matches(body: dict[str, Any], wanted: bool) -> None:
    assert matches([parse(json.dumps({"body": body}))], EVENT) is wanted


def test_one_pattern_is_enough_and_none_takes_everything() -> None:
    no, yes = parse('{"body": {"city": ["Bern"]}}'), parse('{"messageId": ["1"]}')
    assert matches([no, yes], EVENT)
    assert matches([], EVENT)
    assert not matches([no], EVENT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "text",
        "{}",
        "[]",
        '{"a": "aws:sqs"}',
        '{"a": []}',
        '{"a": {}}',
        '{"a": [[1]]}',
        '{"a": [{"like": "x"}]}',
        '{"a": [{"prefix": 1}]}',
        '{"a": [{"prefix": "x", "suffix": "y"}]}',
        '{"a": [{"numeric": [">"]}]}',
        '{"a": [{"numeric": ["~", 1]}]}',
        '{"a": [{"exists": 1}]}',
        '{"$or": [{"a": [1]}]}',
        '{"a":' * 100 + "[1]" + "}" * 100,
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(BadPattern):
        parse(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(JSON, st.dictionaries(st.text(max_size=5), JSON))
def test_whatever_is_taken_for_a_pattern_can_be_asked(pattern: Any, event: dict[str, Any]) -> None:
    try:
        parsed = parse(json.dumps(pattern))
    except BadPattern:
        return
    assert matches([parsed], event) in (True, False)


@given(st.text(alphabet="ab*", max_size=8), st.text(alphabet="ab", max_size=8))
def test_wildcards_agree_with_a_regular_expression(wanted: str, value: str) -> None:
    import re

    if "**" in wanted:
        return
    found = matches([parse(json.dumps({"k": [{"wildcard": wanted}]}))], {"k": value})
    assert found is bool(re.fullmatch(wanted.replace("*", ".*"), value))
