"""A server that is killed while it changes its state: the old or the new, never half (40 times; 3 in `make test`)."""

from __future__ import annotations

import random
from pathlib import Path

from tests.state_crash import kill_again_and_again


def test_what_is_there_is_whole_whenever_it_was_killed(tmp_path: Path) -> None:
    told = kill_again_and_again(tmp_path, 40, random.Random(5))
    assert told > 100
    print(f"\n40 kills, {told} changes on disk, none lost, none half")
