"""docs/api.md says what the code does."""

from __future__ import annotations

import sys
from pathlib import Path

from runtimeapi.control import model
from runtimeapi.control.operations import OPERATIONS
from runtimeapi.control.table import INVOCATIONS, NOT_YET, page, rows

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs/api.md").read_text() == page(), (
        "Hint: python -m runtimeapi.control > docs/api.md"
    )


def test_nothing_is_named_that_is_not_there() -> None:
    known = {one.name for one in model.load().operations}
    assert OPERATIONS.keys() <= known
    assert INVOCATIONS.keys() == model.INVOCATIONS
    assert not INVOCATIONS.keys() & OPERATIONS.keys()
    for handler in OPERATIONS.values():
        beside = sys.modules[handler.__module__]
        own = vars(beside)["OPERATIONS"].keys()
        assert set(getattr(beside, "NOTES", {})) <= own
        assert set(getattr(beside, "ACCEPTED", ())) <= own


def test_what_is_not_done_has_a_reason() -> None:
    for row in rows():
        assert row.note or row.status == "supported", row.operation
        assert row.note != NOT_YET, row.operation
        assert "|" not in row.note
        assert "\n" not in row.note
