"""docs/faults.md names tests that exist, and every test of a fault stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TABLE = (TESTS.parent / "docs" / "faults.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", TABLE)
OF_FAULTS = [*(TESTS / "faults").glob("test_*.py"), *(TESTS / "system").glob("test_faults_*.py")]


def names_in(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_named_test_exists(file: str) -> None:
    assert {name for other, name in NAMED if other == file} <= names_in(TESTS / file)


@pytest.mark.parametrize("path", OF_FAULTS, ids=lambda path: path.name)
def test_every_test_of_a_fault_is_named(path: Path) -> None:
    file = str(path.relative_to(TESTS))
    assert names_in(path) <= {name for other, name in NAMED if other == file}


def test_every_row_has_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    for row in rows:
        assert "::test_" in row or row.startswith(("| fault", "| ---")), row
