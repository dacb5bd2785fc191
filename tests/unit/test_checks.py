"""sandbox.checks: what function.toml and lambox.toml check alike."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.checks import Wrong, seconds, show, whole


@pytest.mark.parametrize("value", [0, 7, 10])
def test_whole_numbers_within_bounds(value: int) -> None:
    assert whole("", 0, 10)(value) == value
    assert whole("MB", 0)(value) == value


@pytest.mark.parametrize("value", [-1, 11, 1.0, True, "1", None, [1]])
def test_what_is_no_whole_number_within_bounds(value: Any) -> None:
    with pytest.raises(Wrong, match=r"must be a whole number of MB from 0 to 10$"):
        whole("MB", 0, 10)(value)


def test_without_an_upper_bound() -> None:
    with pytest.raises(Wrong, match=r"must be a whole number of 0 or more$"):
        whole("", 0)(-1)


@pytest.mark.parametrize("value", [-0.1, 900.1, float("nan"), float("inf"), True, "1"])
def test_seconds(value: Any) -> None:
    assert seconds(0, 900)(0.5) == 0.5
    with pytest.raises(Wrong, match="must be a number of seconds from 0 to 900"):
        seconds(0, 900)(value)


def test_values_are_shown_as_written_and_shortened() -> None:
    assert show("ä") == '"ä"'
    assert show({"a": 1}) == "[table]"
    assert len(show("x" * 500)) == 80
