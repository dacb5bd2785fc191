"""Accepted events and crashes at any byte: what was accepted before is there afterwards, and runs to its end.

A crash is a copy of the files as they are on disk at that moment, as a power cut or a SIGKILL leaves them, with the
last of what SQLite was writing cut off anywhere.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.asyncqueue import Rules, open_queue
from sandbox.destinations import Message
from sandbox.errors import PlatformFault, TooManyRequests
from sandbox.eventconfig import NOTHING, EventConfig, parse_target
from sandbox.eventstore import EventStore
from sandbox.invocation import Invocation, Outcome
from sandbox.telling import Undelivered
from tests.fakes import find_any, make_function, make_invocation
from tests.machines import effort

SHARED = "/dev/shm"
"""What is tried here is the order of writes; the disk's own time would be most of the test's."""
KEYS = st.sampled_from(["a", "b", "c", "d"])
COMMITS = st.lists(
    st.tuples(st.dictionaries(KEYS, st.text(max_size=3000), max_size=3), st.sets(KEYS, max_size=2)),
    min_size=1,
    max_size=6,
)


def copied(folder: Path, where: Path, cut: Callable[[int], int] | None = None) -> Path:
    """The files as a crash leaves them; of the write-ahead log only its first `cut(size)` bytes."""
    shutil.copytree(folder, where)
    for path in where.glob("*-wal"):
        if cut is not None:
            path.write_bytes(path.read_bytes()[: cut(path.stat().st_size)])
    return where


@effort(40)
@given(COMMITS, st.integers(0, 1 << 20))
def test_a_crash_at_any_byte_costs_no_commit_before_it(
    commits: list[tuple[dict[str, str], set[str]]], at: int
) -> None:
    with tempfile.TemporaryDirectory(dir=SHARED) as temp:
        folder = Path(temp, "events")
        store = EventStore(folder, "key")
        state: dict[str, str] = {}
        written: list[tuple[int, dict[str, str]]] = []
        try:
            for put, drop in commits:
                store.commit(put, drop, sync=True)
                state = {key: text for key, text in {**state, **put}.items() if key not in drop}
                (wal,) = folder.glob("*-wal")
                written.append((wal.stat().st_size, state))
            end = at % (written[-1][0] + 1)
            crashed = copied(folder, Path(temp, "crashed"), lambda size: end)
        finally:
            store.close()
        expected = [state for size, state in written if size <= end]
        again = EventStore(crashed, "key")
        try:
            assert again.take_up() == (expected[-1] if expected else {})
            again.commit({"new": "1"}, sync=True)
        finally:
            again.close()


# --- the queue above it

TARGETS = ("", "arn:aws:sqs:us-east-1:123456789012:q", "audit")
TROUBLES = st.lists(st.sampled_from(["down", "hang", "taken, but"]), max_size=4)
DEEDS = st.lists(
    st.sampled_from(["success", *["error"] * 4, "throttled", "fault", "hang"]), max_size=8
)
STEPS = st.lists(
    st.sampled_from(["accept", "accept", "wait", "long wait", "crash", "stop"]), max_size=10
)


class Functions:
    """Does with each attempt what comes next; `success` when there is nothing left to go wrong."""

    def __init__(self, deeds: list[str], troubles: list[str]) -> None:
        self.deeds = deeds
        self.troubles = troubles
        """What comes in the way of telling."""
        self.told: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    async def invoke(self, invocation: Invocation) -> Outcome:
        if invocation.function.name == "audit":
            await trio.sleep(0.01)
            self._tell(invocation.payload)
            return Outcome("success", b"{}")
        deed = self.deeds.pop() if self.deeds else "success"
        await trio.sleep(0.01)
        if deed == "hang":
            await trio.sleep(50)
        elif deed == "throttled":
            raise TooManyRequests("ConcurrentInvocationLimitExceeded")
        elif deed == "fault":
            raise PlatformFault("the host is ill")
        elif deed == "error":
            self.failed[invocation.request_id] += 1
            return Outcome("error", b"{}")
        self.succeeded[invocation.request_id] += 1
        return Outcome("success", b"{}")

    async def deliver(self, message: Message, /) -> None:
        trouble = self.troubles.pop() if self.troubles else ""
        await trio.sleep(50 if trouble == "hang" else 0.01)
        if trouble == "down":
            raise Undelivered("it is down")
        self._tell(message.body)
        if trouble == "taken, but":
            raise Undelivered("the connection broke")

    def _tell(self, record: bytes) -> None:
        self.told[json.loads(record)["requestContext"]["requestId"]] += 1


@effort(40)
@given(DEEDS, STEPS, TROUBLES, st.sampled_from(TARGETS))
@example(["error"] * 8, ["accept", "wait"], [], TARGETS[0])
@example(["error"] * 8, ["accept", "wait", "crash"], ["down", "hang"], TARGETS[1])
@example(["error"] * 8, ["accept", "long wait", "long wait", "crash"], [], TARGETS[2])
def test_each_accepted_event_ends_whatever_the_server_does(
    deeds: list[str], steps: list[str], troubles: list[str], target: str
) -> None:
    """In a success, or told as a failure: to a destination, or in the log where there is none."""
    functions = Functions(deeds, troubles)
    config = EventConfig(on_failure=parse_target(target) if target else None)
    with tempfile.TemporaryDirectory(dir=SHARED) as temp:
        trio.run(_live, Path(temp), functions, config, [*steps, "stop"], clock=_clock())


def _clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


async def _live(temp: Path, functions: Functions, config: EventConfig, steps: list[str]) -> None:
    accepted: set[str] = set()
    lives = crashes = 0
    folder = temp / "0"
    while steps:
        async with _queue(folder, functions, config) as queue:
            while (step := steps.pop(0)) not in ("crash", "stop"):
                if step == "accept":
                    invocation = make_invocation(make_function(), kind="Event")
                    await queue.accept(invocation)
                    accepted.add(invocation.request_id)
                else:
                    await trio.sleep(0.05 if step == "wait" else 61)
            lives += 1
            if step == "crash":
                crashes += 1
                folder = copied(folder, temp / str(lives)) if folder.exists() else folder
    async with _queue(folder, functions, config) as queue:
        last = make_invocation(make_function(), kind="Event")
        await queue.accept(last)
        accepted.add(last.request_id)
        await queue.settle()
    # Dropped after three errors, and not before; else it has succeeded.
    for id_ in accepted:
        assert functions.succeeded[id_] or functions.failed[id_] >= 3
        # An attempt that a crash made nobody's is tried again; a stop forgets none.
        assert functions.failed[id_] <= 3 + crashes
        if config.on_failure is not None:
            assert functions.succeeded[id_] or functions.told[id_]
    # Nothing is left for a start after that.
    left = EventStore(folder, "key")
    assert left.take_up() == {}
    left.close()


def _queue(folder: Path, functions: Functions, config: EventConfig) -> Any:
    async def at_once(call: Callable[[], Any]) -> Any:
        """The clock must not jump while a thread writes."""
        await trio.lowlevel.checkpoint()
        return call()

    return open_queue(
        functions.invoke,
        find_any,
        EventStore(folder, "key"),
        wall=trio.current_time,
        rules=Rules(
            concurrency=2,
            config=lambda name, qualifier: NOTHING if name == "audit" else config,
            deliver=functions.deliver,
        ),
        aside=at_once,
    )
