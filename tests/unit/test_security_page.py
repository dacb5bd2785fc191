"""docs/security.md: whatever it calls proven is a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs/security.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:unit|contract|system|faults)/test_\w+\.py(?:::\w+)?)`", PAGE)))


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    file, _, test = name.partition("::")
    text = (TOP / "tests" / file).read_text()
    assert not test or re.search(rf"^(async )?def {test}\(", text, re.MULTILINE)


def test_every_row_names_one() -> None:
    rows = [line for line in PAGE.split("## What is not")[0].splitlines() if line.startswith("| ")]
    proofs = [row for row in rows if row.rsplit("| ", 1)[1].strip(" |") not in ("proof", "---")]
    assert len(proofs) > 40
    assert [row for row in proofs if not re.search(r"test_\w+\.py", row.rsplit(" | ", 1)[1])] == []
