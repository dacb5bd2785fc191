"""Accepted events: run, retried, written down, taken up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from sandbox.asyncqueue import Rules, open_queue
from sandbox.errors import FunctionNotFound, PlatformFault, TooManyRequests
from sandbox.eventstore import EventStore, StoreProblem
from sandbox.function import FunctionVersion
from tests.fakes import find_any, make_function, make_invocation
from tests.queues import BAD, GOOD, Backend, at_once, kept, queueing

Clock = trio.testing.MockClock


async def test_an_event_runs_once_when_it_succeeds(autojump_clock: Clock, tmp_path: Path) -> None:
    backend = Backend(GOOD)
    async with queueing(backend, tmp_path / "spool") as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
        await queue.settle()
    assert [invocation.payload for _, invocation in backend.attempts] == [b"1"]
    assert kept(tmp_path / "spool") == 0


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


async def test_the_time_between_attempts_can_be_set(autojump_clock: Clock, tmp_path: Path) -> None:
    backend = Backend(BAD)
    store = EventStore(tmp_path, "key")
    async with open_queue(
        *(backend, find_any, store),
        wall=trio.current_time,
        rules=Rules(concurrency=2, retry_s=0.5),
        aside=at_once,
    ) as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    assert backend.times == [0, 0.5, 1.5]


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
    assert kept(spool) == 5
    backend = Backend(GOOD)
    async with queueing(backend, spool) as queue:
        await queue.settle()
    assert {(i.function.name, i.payload) for _, i in backend.attempts} == {
        (f"f{number}", b"%d" % number) for number in range(5)
    }
    assert kept(spool) == 0


async def test_an_event_is_kept_until_it_has_ended(autojump_clock: Clock, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    async with queueing(Backend(None), spool) as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
        await queue.accept(make_invocation(make_function(), b"2"))
    async with queueing(Backend(GOOD, None), spool) as queue:
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue) == 1
    assert kept(spool) == 1


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
    def gone(name: str, qualifier: str | None) -> FunctionVersion:
        raise FunctionNotFound(name)

    async with queueing(Backend(GOOD), tmp_path / "spool", gone) as queue:
        await queue.accept(make_invocation(make_function()))
        await queue.settle()
    assert "the function is gone" in caplog.text


@pytest.mark.parametrize("restart", [False, True])
async def test_each_attempt_runs_what_the_alias_means_by_then(
    autojump_clock: Clock, tmp_path: Path, restart: bool
) -> None:
    function, alias = make_function(version="1"), {"live": "1"}

    def find(name: str, qualifier: str | None) -> FunctionVersion:
        assert qualifier is not None
        return make_function(name, version=alias[qualifier])

    backend, arn = Backend(BAD), f"{function.arn('us-east-1', '123456789012')}:live"
    async with queueing(backend, tmp_path / "spool", find) as queue:
        await queue.accept(make_invocation(function, invoked_arn=arn))
        await trio.sleep(1)
        alias["live"] = "2"
        if not restart:
            await queue.settle()
    if restart:
        async with queueing(backend, tmp_path / "spool", find) as queue:
            await queue.settle()
    ran = [invocation for _, invocation in backend.attempts]
    assert [one.function.version for one in ran] == ["1", "2", "2"]
    assert {one.invoked_arn for one in ran} == {arn}


async def test_one_events_unforeseen_trouble_ends_neither_the_others_nor_the_event(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    backend = Backend(KeyError("nobody thought of this"), GOOD)  # type: ignore[arg-type]
    async with queueing(backend, spool) as queue:
        await queue.accept(make_invocation(make_function(), b"odd"))
        await queue.settle()
        await queue.accept(make_invocation(make_function(), b"good"))
        await queue.settle()
    assert "is left for the next start" in caplog.text
    assert kept(spool) == 1
    backend = Backend(GOOD)
    async with queueing(backend, spool) as queue:
        await queue.settle()
    assert [invocation.payload for _, invocation in backend.attempts] == [b"odd"]
    assert kept(spool) == 0


async def test_a_damaged_event_does_not_cost_the_others(
    autojump_clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    async with queueing(Backend(None), spool) as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
    store = EventStore(spool, "key")
    store.commit({"bad": "{damaged", "worse": "[]", "empty": "{}"}, sync=True)
    store.close()
    backend = Backend(GOOD)
    async with queueing(backend, spool) as queue:
        await queue.settle()
    assert len(backend.attempts) == 1
    assert "damaged" in caplog.text
    assert kept(spool) == 0


@pytest.mark.parametrize("hours", [1, -1, 24 * 365, -24 * 365])
async def test_a_clock_that_is_set_neither_ages_events_nor_holds_them_up(
    autojump_clock: Clock, tmp_path: Path, hours: int
) -> None:
    """Retries come at their intervals, and an event is not dropped as too old."""
    stepped = [0.0]
    backend = Backend(BAD, TooManyRequests("X"), GOOD)
    async with queueing(
        backend, tmp_path, wall=lambda: 1e9 + trio.current_time() + stepped[0]
    ) as queue:
        await queue.accept(make_invocation(make_function()))
        await trio.sleep(1)
        stepped[0] = hours * 3600.0
        await queue.settle()
    assert backend.times == [0, 60, 61]


@pytest.mark.parametrize(("hours", "attempts"), [(5, 2), (-5, 2), (7, 1)])
async def test_age_counts_across_a_restart_by_the_wall_clock(
    autojump_clock: Clock, tmp_path: Path, hours: int, attempts: int
) -> None:
    """Older than six hours it has one more try; a clock set back makes it no younger than new."""
    async with queueing(Backend(None), tmp_path, wall=lambda: 1e9) as queue:
        await queue.accept(make_invocation(make_function()))
    backend = Backend(TooManyRequests("X"), GOOD)
    async with queueing(backend, tmp_path, wall=lambda: 1e9 + hours * 3600) as queue:
        await queue.settle()
    assert len(backend.attempts) == attempts


class FullDisk(EventStore):
    """Takes nothing while `full`."""

    full = False
    commits = 0

    def commit(self, put: Mapping[str, str], drop: Collection[str] = (), *, sync: bool) -> None:
        self.commits += 1
        if self.full:
            raise StoreProblem("database or disk is full")
        super().commit(put, drop, sync=sync)


async def test_a_full_disk_refuses_events_and_forgets_no_end(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """An event that cannot be written is refused and never runs; one that ended meanwhile is dropped later."""
    store, backend = FullDisk(tmp_path, "key"), Backend(None)
    async with open_queue(
        backend, find_any, store, wall=trio.current_time, rules=Rules(concurrency=2), aside=at_once
    ) as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
        store.full = True
        with pytest.raises(PlatformFault, match="disk is full"):
            await queue.accept(make_invocation(make_function(), b"2"))
        backend.plan = [GOOD]
        store.full = False
        await queue.accept(make_invocation(make_function(), b"3"))
        await trio.testing.wait_all_tasks_blocked()
        assert [one.payload for _, one in backend.attempts] == [b"1", b"3"]
        assert len(queue) == 1
    assert kept(tmp_path) == 1


async def test_ends_are_written_once_the_disk_takes_them(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    store, backend = FullDisk(tmp_path, "key"), Backend(GOOD)
    async with open_queue(
        backend, find_any, store, wall=trio.current_time, rules=Rules(concurrency=2), aside=at_once
    ) as queue:
        await queue.accept(make_invocation(make_function(), b"1"))
        store.full = True
        await queue.settle()
        await trio.sleep(10.5)
        assert 10 <= store.commits <= 14  # once a second, not more
        store.full = False
        await trio.sleep(2)
    assert kept(tmp_path) == 0


async def test_a_caller_that_goes_while_its_event_is_written_loses_nothing(
    autojump_clock: Clock, tmp_path: Path
) -> None:
    """What is on disk runs, whether its 202 could be sent or not."""
    backend = Backend(GOOD)
    async with queueing(backend, tmp_path) as queue, trio.open_nursery() as nursery:
        nursery.start_soon(queue.accept, make_invocation(make_function(), b"1"))
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
    assert len(backend.attempts) in (0, 1)
    assert kept(tmp_path) == 0


async def test_many_events_share_a_write(autojump_clock: Clock, tmp_path: Path) -> None:
    store, backend = FullDisk(tmp_path, "key"), Backend(None)
    async with open_queue(
        backend, find_any, store, wall=trio.current_time, rules=Rules(concurrency=2), aside=at_once
    ) as queue:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                invocation = make_invocation(make_function(), b"%d" % number)
                nursery.start_soon(queue.accept, invocation)
        assert store.commits <= 3
    assert kept(tmp_path) == 100
