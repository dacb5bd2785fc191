"""The soak's accounts: what it must call wrong, and what it must not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from bench.soak import neighbours
from bench.soak.census import growth, least
from bench.soak.functions import reload, write
from bench.soak.ledger import Ledger, Log, Request, spooled_ids
from bench.soak.neighbours import Pair, Window

ID = "8f9ecd4a-4e4d-4bb4-a0a3-1b1c2d3e4f50"
RAN = [
    f"[plain] START RequestId: {ID} Version: $LATEST",
    f"[plain] SOAK {ID}",
    f"[plain] END RequestId: {ID}",
    f"[plain] REPORT RequestId: {ID}\tDuration: 1 ms",
]


def request(kind: Any = "sync", act: str = "echo", **changes: Any) -> Request:
    made = Request(ID, kind, "plain", act, 10.0, 11.0, 200, body=json.dumps({"id": ID}).encode())
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def judged(
    one: Request, lines: list[str], kills: tuple[float, ...] = (), spooled: tuple[str, ...] = ()
) -> list[str]:
    log = Log()
    log.read(lines)
    return [text.split(":")[0] for text in Ledger([one], list(kills)).judge(log, set(spooled))]


def error(kind: str) -> dict[str, Any]:
    return {"function_error": True, "body": json.dumps({"errorType": kind}).encode()}


FINE = {
    "a success": (request(), RAN, ()),
    "a crash": (request(act="crash", **error("RuntimeError")), RAN, ()),
    "killed": (request(**error("Runtime.ExitError")), RAN, (10.5,)),
    "killed a moment before": (request(**error("Runtime.ExitError")), RAN, (9.5,)),
    "a start that was killed": (request(status=500), [], (10.5,)),
    "throttled": (request(status=429, function="reserved"), [], ()),
    "a dry run": (request("dry", status=204), [], ()),
    "an event": (request("event", status=202), RAN, ()),
    "an event that was tried three times": (
        request("event", "crash", status=202),
        RAN * 3,
        (),
    ),
    "left before it began": (request("left", status=0), [], ()),
    "left meanwhile": (request("left", status=0), RAN, ()),
    "refused": (request("bad", status=400, expected=(400,)), [], ()),
    "a newer revision": (
        request(revision=3, body=json.dumps({"id": ID, "revisions": [4, 4]}).encode()),
        RAN,
        (),
    ),
}


@pytest.mark.parametrize(("one", "lines", "kills"), FINE.values(), ids=FINE)
def test_what_is_as_it_must_be(one: Request, lines: list[str], kills: tuple[float, ...]) -> None:
    assert judged(one, lines, kills) == []


WRONG = {
    "not answered (reset)": (request(status=0, unanswered="reset"), []),
    "ran more than once": (request(**error("Runtime.ExitError")), RAN * 2),
    "succeeded, and did not run once": (request(), []),
    "succeeded, and should have failed": (request(act="crash"), RAN),
    "somebody else's answer": (request(body=b'{"id": "x"}'), RAN),
    "a function error that nothing explains": (request(**error("Runtime.ExitError")), RAN),
    "an answer that nothing explains": (request(status=500), []),
    "throttled, and should not have been": (request(status=429), []),
    "a dry run was no dry run": (request("dry", status=204), RAN),
    "an accepted event is lost": (request("event", status=202), []),
    "an event that succeeds ran again": (request("event", status=202), RAN * 2),
    "an event ran more often than it is tried": (
        request("event", "crash", status=202),
        RAN * 4,
    ),
    "bad input was not answered with (400,)": (request("bad", status=200, expected=(400,)), []),
    "an answer of mixed revisions": (
        request(body=json.dumps({"id": ID, "revisions": [4, 3]}).encode()),
        RAN,
    ),
    "code from before 5, which was there when it was asked for": (
        request(revision=5, body=json.dumps({"id": ID, "revisions": [4, 4]}).encode()),
        RAN,
    ),
    "a turn did not begin and end alike": (request(), RAN[:2]),
}


@pytest.mark.parametrize(("problem", "case"), WRONG.items(), ids=WRONG)
def test_what_is_not(problem: str, case: tuple[Request, list[str]]) -> None:
    assert judged(*case) == [problem]


def test_an_event_left_for_the_next_start_is_not_lost() -> None:
    assert judged(request("event", status=202), [], spooled=(ID,)) == []
    dropped = f"lambox: ERROR sandbox.asyncqueue: event {ID} of plain is dropped, its retries"
    assert judged(request("event", status=202), [dropped]) == []


def test_a_kill_explains_one_failure() -> None:
    ledger = Ledger([request(**error("Runtime.ExitError")) for _ in range(2)], [10.5])
    log = Log()
    log.read(RAN)
    assert list(ledger.judge(log, set())) == ["1 kills do not explain 2 failures"]


def test_functions_cannot_forge_lines() -> None:
    log = Log()
    log.read(["[plain] lambox: ERROR x", "[plain] Traceback (most recent call last):"])
    assert not log.errors
    assert not log.tracebacks


def test_a_traceback_is_one_request_of_500s_or_a_mistake() -> None:
    log = Log()
    log.read(["lambox: ERROR lambox.invoke: POST /x failed", "Traceback (most recent call last):"])
    assert not log.tracebacks
    log.read(
        ["lambox: ERROR sandbox.scheduler: x ended badly", "Traceback (most recent call last):"]
    )
    assert len(log.tracebacks) == 1


def test_growth_is_told_by_slope_not_by_one_point() -> None:
    assert growth([{"fd": n} for n in (10, 11, 12, 13)]) == {"fd": 1.0}
    assert growth([{"fd": n} for n in (10, 30, 10, 10)]) == {}
    assert growth([{"fd": n} for n in (10, 10, 10, 15)]) == {}
    assert growth([{"fd": n} for n in (13, 12, 11, 10)]) == {}
    assert growth([{"rss_mb": n} for n in (70.0, 70.5, 71.0, 71.5)]) == {}
    assert growth([{"rss_mb": n} for n in (70.0, 72.5, 75.0, 77.5)]) == {"rss_mb": 2.5}
    assert growth([{}, {"socket": 1}, {"socket": 2}]) == {"socket": 1.0}


def pair(quiet_ms: float = 3.0, hogged_ms: float = 200.0) -> Pair:
    return Pair(Window([quiet_ms] * 100), Window([hogged_ms] * 100))


def beside(*others: float, **of_hog: float) -> list[str]:
    """The problems of a hog beside others of those quiet p99s."""
    pairs = {"hog": pair(**of_hog)} | {f"{n}": pair(quiet) for n, quiet in enumerate(others)}
    return list(neighbours.problems(pairs))


@pytest.mark.parametrize(
    ("quiet", "hogged_ms", "bound"),
    [
        ((3, 3, 3), 249, None),
        ((3, 3, 3), 251, 250),
        ((40, 40, 40), 399, None),
        ((40, 40, 40), 401, 400),
        # One that was disturbed allows its hog no more.
        ((90, 3, 3), 251, 250),
        # A slow machine allows none a second.
        ((99, 99, 99), 991, 990),
        ((99.9, 99.9, 99.9), 998, None),
    ],
)
def test_the_bound_of_a_neighbour(
    quiet: tuple[float, ...], hogged_ms: float, bound: float | None
) -> None:
    said = [] if bound is None else [f"beside a hog: p99 {hogged_ms} ms, bound {bound} ms"]
    assert beside(*quiet[1:], quiet_ms=quiet[0], hogged_ms=hogged_ms) == said


def test_no_bound_is_beyond_the_cap() -> None:
    pairs = {name: pair(500.0, 1100.0) for name in "abc"}
    assert neighbours.bound_ms(pairs) == 1000
    assert [one for one in neighbours.problems(pairs) if "bound" in one] == [
        f"beside a {name}: p99 1100.0 ms, bound 1000 ms" for name in "abc"
    ]


def test_a_quiet_neighbour_that_was_disturbed_is_a_problem() -> None:
    """However well it did beside the hog: then this was measured on another machine, so to say."""
    said = "before a hog: p99 503.9 ms with nobody beside it, usual are 3.0 ms"
    assert beside(3, 3, quiet_ms=503.9, hogged_ms=5.0) == [said]
    assert beside(3, 3, quiet_ms=99.0, hogged_ms=5.0) == []


def test_one_that_nobody_answered_is_a_problem() -> None:
    pairs = {"hog": Pair(), "other": pair()}
    assert list(neighbours.problems(pairs)) == ["beside a hog: nothing was answered"]


@pytest.mark.parametrize("quiet_ms", [3.0, 600.0])
async def test_what_was_disturbed_is_measured_again_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quiet_ms: float
) -> None:
    """Its latencies count no more; its failures do, and the second time is the last."""
    measured: list[list[str]] = []

    async def measure(port: int, functions: object, found: dict[str, Pair], s: float) -> None:
        measured.append(list(found))
        for one in found.values():
            one.quiet.latencies += [quiet_ms] * 50
            one.hogged.latencies += [20.0] * 50

    monkeypatch.setattr(neighbours, "measure", measure)
    first = pair(503.9, 5000.0)
    first.hogged.failures.append("status 500")
    pairs = {"hog": first, "other": pair(), "third": pair()}
    functions = write(tmp_path / "functions")
    assert await neighbours.measure_again(1, functions, pairs, 3.0, 2) == ["hog"]
    assert measured == [["hog"], ["hog"]]
    assert list(pairs) == ["hog", "other", "third"]
    assert len(pairs["hog"].quiet.latencies) == 100
    said = list(neighbours.problems(pairs))
    assert said[0] == "beside a hog: status 500"
    assert [one.split(":")[0] for one in said[1:]] == (["before a hog"] if quiet_ms > 100 else [])


class Nobody:
    def __init__(self, _: int) -> None:
        pass

    def drop(self) -> None:
        pass


async def test_a_hog_counts_until_it_is_gone_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object, tmp_path: Path
) -> None:
    """It answers after 4 s, and takes 3 more to be cleared away."""
    gone_at: list[float] = []
    calls: dict[int, list[float]] = {}

    async def invoke(*_: object) -> None:
        gone_at.append(trio.current_time() + 7)
        await trio.sleep(4)

    async def once(window: Window, *_: object) -> None:
        calls.setdefault(id(window), []).append(trio.current_time())
        await trio.sleep(0.01)

    async def here(look: Any, *args: Any) -> Any:
        return look(*args)

    def is_there(*_: object) -> bool:
        return trio.current_time() < gone_at[-1]

    monkeypatch.setattr(neighbours, "Caller", Nobody)
    monkeypatch.setattr(neighbours, "_invoke", invoke)
    monkeypatch.setattr(neighbours, "_once", once)
    monkeypatch.setattr(neighbours, "_is_there", is_there)
    monkeypatch.setattr(trio.to_thread, "run_sync", here)
    pairs = {"hog": Pair(), "next": Pair()}
    await neighbours.measure(1, write(tmp_path / "functions"), pairs, 3.0)
    first, last = gone_at[0], gone_at[-1]
    assert first - 0.1 < max(calls[id(pairs["hog"].hogged)]) < first + 0.2
    assert min(calls[id(pairs["next"].quiet)]) > first + 0.5
    assert last - 0.1 < max(calls[id(pairs["next"].hogged)]) < last + 0.2


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write(tmp_path / "functions")
    return tmp_path / "functions"


def test_code_is_replaced_in_one_go(written: Path) -> None:
    for name in ("reloaded", "renamed"):
        reload(written, name, 7)
        assert "REVISION = 7" in (written / name / "handler.py").read_text()
        for path in written.glob("*/*.py"):
            compile(path.read_text(), str(path), "exec")
    assert (written / "reloaded" / "revision.txt").read_text() == "7"


def test_events_that_are_left(tmp_path: Path) -> None:
    assert spooled_ids(tmp_path) == set()


def test_the_least_of_what_was_seen_counts() -> None:
    assert least([{"a": 3, "b": 1}, {"a": 2}, {"a": 5, "b": 4}]) == {"a": 2, "b": 0}


def test_the_page_names_every_test_of_make_fuzz() -> None:
    tests = Path(__file__).resolve().parents[1]
    page = (tests.parent / "docs/soak.md").read_text()
    patterns = re.search(r"LAMBOX_FUZZ=.*\\\n\t+(.*)", (tests.parent / "Makefile").read_text())
    assert patterns
    run = {
        str(path.relative_to(tests))
        for pattern in patterns[1].split()
        for path in tests.parent.glob(pattern)
    }
    assert run == set(re.findall(r"`(\w+/test_\w+\.py)`", page))
    named = {*tests.glob("*/test_*_stateful.py"), *tests.glob("*/test_fuzz_*.py")}
    assert run == {str(path.relative_to(tests)) for path in named}
