"""500 accepted events, servers killed at random moments: `make faults ARGS="-s -k events"` prints the figures."""

from __future__ import annotations

import random

import pytest

from tests.aws import Aws
from tests.system.conftest import Functions, Start
from tests.system.crashing import Crash

EVENTS = 500
KILLS = 3
LONGEST_S = 4.0
"""Of a server's life: by then most of them have ended."""


@pytest.mark.parametrize("round_", range(3))
def test_500_events_and_three_kills(
    aws: Aws, functions: Functions, start: Start, round_: int
) -> None:
    draw = random.Random()
    lives = [draw.uniform(0.05, LONGEST_S) for _ in range(KILLS)]
    figures = Crash(aws, functions, start).run(EVENTS, lives)
    print(f"\n{figures}; killed after {', '.join(f'{life:.2f} s' for life in lives)}")
    assert figures.lost == set(), figures
