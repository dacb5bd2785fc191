"""lambox.node: what is to be launched for a function version, and who looks for changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from lambox.config import load
from lambox.node import Kitchen, Node
from rootfs.runtimes import Runtime, Runtimes
from tests.fakes import make_function

PYTHON = Runtime("python3.11", "python", "/p/bin/python3.11", "/p")
RUNTIMES = Runtimes({"python3.11": PYTHON}, "python3.11")


def kitchen(tmp_path: Path) -> Kitchen:
    flags = {"functions": str(tmp_path), "state": str(tmp_path / "state")}
    return Kitchen(load(flags, environ={}), RUNTIMES)


def test_the_version_is_told_inside(tmp_path: Path) -> None:
    _, program = kitchen(tmp_path).prepare(make_function("hello", version="7"), "hello-v7-1")
    assert program.env["AWS_LAMBDA_FUNCTION_VERSION"] == "7"
    day, _, rest = program.env["AWS_LAMBDA_LOG_STREAM_NAME"].rpartition("/")
    assert (len(day), rest[:3], len(rest)) == (10, "[7]", 35)


def test_what_to_keep_ready_is_made_anew_for_what_has_changed_alone(tmp_path: Path) -> None:
    cook = kitchen(tmp_path)
    one, two = make_function("f"), make_function("f", version="1")
    first = cook.specs([one, two])
    same = cook.specs([replace(one), two])
    assert all(spec is before for spec, before in zip(same, first, strict=True))
    wider = replace(two, memory_mb=512, revision="2")
    changed = cook.specs([one, wider])
    assert changed[0] is first[0]
    assert changed[1].limits.memory_bytes == 4 * first[1].limits.memory_bytes
    assert len(cook.specs([one])) == 1


async def test_a_look_at_the_functions_that_trips_is_told_and_the_next_one_made(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0

    class Functions:
        async def changed(self) -> None:
            await trio.sleep(1)

        def refresh(self) -> None:
            nonlocal looks
            looks += 1
            raise RuntimeError("nobody thought of this")

    part: Any = SimpleNamespace(describe=lambda: "", functions=Functions(), control=None)
    part.garbage = None
    node = Node(*[part] * 11)
    with trio.move_on_after(2.5):
        await node._watch_functions()
    assert looks == 2
    assert "nobody thought of this" in caplog.text
