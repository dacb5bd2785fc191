"""Accepted events: run, retried, written down, taken up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sandbox.asyncqueue import AsyncQueue, open_queue
from sandbox.errors import FunctionNotFound, TooManyRequests
from sandbox.function import FunctionVersion
from sandbox.invocation import Invocation, Outcome
from tests.fakes import make_function, make_invocation

Clock = trio.testing.MockClock


class Backend:
    """Answers attempt by attempt from `plan` (the last entry for ever); None hangs."""

    def __init__(self, *plan: Outcome | Exception | None) -> None:
        self.plan = list(plan)
        self.attempts: list[tuple[float, Invocation]] = []

    async def __call__(self, invocation: Invocation) -> Outcome:
        self.attempts.append((trio.current_time(), invocation))
        step = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        if step is None:
            await trio.sleep_forever()
        if isinstance(step, Exception):
            raise step
        assert step is not None
        return step

    @property
    def times(self) -> list[float]:
        return [round(time, 3) for time, _ in self.attempts]


GOOD = Outcome("success")
BAD = Outcome("error", error_type="Boom")


@asynccontextmanager
async def queueing(
    backend: Backend,
    spool: Path,
    find: Callable[..., FunctionVersion] = make_function,
) -> AsyncIterator[AsyncQueue]:
    async with open_queue(backend, find, spool, wall=trio.current_time, concurrency=2) as queue:
        yield queue


async def test_an_event_runs_once_when_it_succeeds(autojump_clock: Clock, tmp_path: Path) -> None:
    backend = Backend(GOOD)
    async with queueing(backend, tmp_path / "spool") as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
        await queue.settle()
    assert [invocation.payload for _, invocation in backend.attempts] == [b"1"]
    assert not (tmp_path / "spool").exists()


async def test_function_errors_are_retried_after_one_and_two_minutes(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend(BAD)
    async with queueing(backend, tmp_path / "spool") as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    assert backend.times == [0, 60, 180]
    assert len({invocation.request_id for _, invocation in backend.attempts}) == 1
    assert "retries are used up" in caplog.text


async def test_throttles_back_off_and_do_not_count(autojump_clock: Clock, tmp_path: Path) -> None:
    throttle = TooManyRequests("X")
    backend = Backend(throttle, throttle, throttle, GOOD)
    async with queueing(backend, tmp_path / "spool") as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    assert backend.times == [0, 1, 3, 7]


async def test_after_six_hours_an_event_is_dropped_aloud(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with queueing(Backend(TooManyRequests("X")), tmp_path / "spool") as queue:
        await queue.accept(make_invocation(make_function(), b"precious"))
        await queue.settle()
    assert trio.current_time() <= 6 * 3600
    assert "older than six hours" in caplog.text
    assert "precious" in caplog.text


async def test_what_is_open_at_a_stop_is_run_at_the_next_start(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    spool = tmp_path / "state" / "spool"
    async with queueing(Backend(None), spool) as queue:
        for number in range(5):
            await queue.accept(make_invocation(make_function(f"f{number}"), b"%d" % number))
        await trio.testing.wait_all_tasks_blocked()
    assert spool.exists()
    assert spool.parent.stat().st_mode & 0o777 == 0o700
    backend = Backend(GOOD)
    async with queueing(backend, spool) as queue:
        await queue.settle()
    assert {(i.function.name, i.payload) for _, i in backend.attempts} == {
        (f"f{number}", b"%d" % number) for number in range(5)
    }
    assert not spool.exists()


async def test_the_file_stays_until_the_last_of_its_events_has_ended(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    async with queueing(Backend(None), spool) as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
        await queue.accept(make_invocation(make_function(), b"2"))
    async with queueing(Backend(GOOD, None), spool) as queue:
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue) == 1
        assert spool.exists()


async def test_retries_keep_their_count_across_a_restart(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    async with queueing(Backend(BAD), spool) as queue:
        await queue.accept(make_invocation(make_function()))
        await trio.sleep(100)
    backend = Backend(BAD)
    async with queueing(backend, spool) as queue:
        await queue.settle()
    assert len(backend.attempts) == 1


async def test_a_function_that_is_gone_ends_the_event_aloud(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(name: str) -> FunctionVersion:
        raise FunctionNotFound(name)

    async with queueing(Backend(GOOD), tmp_path / "spool", gone) as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    assert "the function is gone" in caplog.text


async def test_a_damaged_line_does_not_cost_the_others(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    async with queueing(Backend(None), spool) as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
    spool.write_text("{damaged\n" + spool.read_text())
    backend = Backend(GOOD)
    async with queueing(backend, spool) as queue:
        await queue.settle()
    assert len(backend.attempts) == 1
    assert "damaged" in caplog.text
