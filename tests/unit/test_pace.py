"""runtimeapi.pace and runtimeapi.connection.Slowness: pure arithmetic over a clock."""

from __future__ import annotations

from math import inf

import pytest
import trio
from trio.testing import MockClock

from runtimeapi.connection import FaceConfig, Slowness
from runtimeapi.pace import CREDIT, PAID_PER_S, Pace


@pytest.mark.trio
async def test_a_debt_is_paid_off_with_time(autojump_clock: MockClock) -> None:
    pace = Pace()
    for _ in range(int(CREDIT)):
        assert pace.wait_s == 0
        pace.charge(1)
    assert pace.wait_s == 0
    pace.charge(50)
    assert pace.wait_s == pytest.approx(50 / PAID_PER_S)
    began = trio.current_time()
    await pace.rest()
    assert trio.current_time() - began == pytest.approx(50 / PAID_PER_S)
    assert pace.wait_s == pytest.approx(0)


@pytest.mark.trio
async def test_credit_does_not_grow_without_end(autojump_clock: MockClock) -> None:
    pace = Pace()
    await trio.sleep(1000)
    pace.charge(CREDIT + 10)
    assert pace.wait_s == pytest.approx(10 / PAID_PER_S)


@pytest.mark.trio
async def test_many_that_wait_get_no_more_than_one_would(autojump_clock: MockClock) -> None:
    pace, done = Pace(), 0

    async def pester() -> None:
        nonlocal done
        while True:
            await pace.rest()
            pace.charge(1)
            done += 1
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(pester)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert done <= CREDIT + 10 * PAID_PER_S + 2 * 20


def slowness(**limits: float) -> Slowness:
    config = FaceConfig()
    for name, value in limits.items():
        setattr(config, name, value)
    return Slowness(config)


def test_nothing_under_way_has_no_limit() -> None:
    assert slowness(header_timeout_s=1, body_timeout_s=1).deadline(None, 5.0) == inf


def test_a_head_has_its_time_from_its_first_byte_on() -> None:
    slow = slowness(header_timeout_s=10)
    assert slow.deadline(("head", 0), 5.0) == 15
    slow.came(1)
    assert slow.deadline(("head", 0), 14.0) == 15
    assert slow.deadline(None, 14.5) == inf
    assert slow.deadline(("head", 1), 20.0) == 30


def test_a_body_may_pause_and_must_bring_its_bytes_on_average() -> None:
    slow = slowness(body_timeout_s=10, body_bytes_per_s=100)
    assert slow.deadline(("body", 1), 0.0) == 10
    slow.came(1)
    assert slow.deadline(("body", 1), 9.0) == pytest.approx(10.01)
    slow.came(5000)
    assert slow.deadline(("body", 1), 9.5) == 19.5
    assert slow.deadline(("body", 1), 55.0) == pytest.approx(60.01)
    assert slow.deadline(("body", 2), 60.0) == 70
