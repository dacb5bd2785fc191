"""The state folder: what is written is there, whole; what is damaged is put aside; who may write, one server alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from rootfs.codestore import CodeStore
from rootfs.trees import LayerStore
from sandbox.errors import InvalidRequest, PlatformFault
from sandbox.registry.database import Database, DatabaseProblem, HeldByAnother, open_database
from sandbox.registry.garbage import Garbage, InUse
from sandbox.registry.records import Code, LayerRecord, LayerVersionRecord
from sandbox.registry.registry import Registry, open_registry
from tests.tinydisk import tiny_disk

ROWS = {("layer", f"l{n}"): b'{"n": %d}' % n for n in range(500)}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Database]:
    async with open_database(folder) as database:
        yield database


async def kept(folder: Path) -> dict[tuple[str, str], bytes]:
    async with opened(folder) as database:
        return await database.rows()


async def fill(folder: Path) -> None:
    async with opened(folder) as database:
        await database.commit(ROWS)


async def test_what_was_committed_is_there_in_order_and_what_was_dropped_is_not(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "state") as database:
        assert await database.rows() == {}
        await database.commit({("function", "b"): b"1", ("function", "a"): b"2"})
        await database.commit({("function", "c"): b"3"}, [("function", "b")])
    assert list((await kept(tmp_path / "state")).items()) == [
        (("function", "a"), b"2"),
        (("function", "c"), b"3"),
    ]


def file_modes(folder: Path) -> dict[str, int]:
    return {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in folder.iterdir()
        if path.name.startswith("lambox.")
    }


async def test_other_users_of_the_host_cannot_read_it(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        async with opened(tmp_path) as database:
            await database.commit(ROWS)
            modes = file_modes(tmp_path)
    finally:
        os.umask(umask)
    assert {"lambox.db", "lambox.db-wal", "lambox.lock"} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_a_file_that_was_open_to_all_is_closed(tmp_path: Path) -> None:
    await fill(tmp_path)
    (tmp_path / "lambox.db").chmod(0o644)
    await kept(tmp_path)
    assert stat.S_IMODE((tmp_path / "lambox.db").stat().st_mode) == 0o600


async def test_a_second_server_reads_and_may_not_write(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await first.commit({("function", "a"): b"1"})
        async with opened(tmp_path) as second:
            assert await second.rows() == {("function", "a"): b"1"}
            with pytest.raises(
                HeldByAnother, match=f"held by another lambox .pid {os.getpid()}.*--state"
            ):
                await second.commit({("function", "b"): b"1"})
            with first.alone() as alone:
                assert not alone
        with first.alone() as alone:
            assert alone
        assert await first.rows() == {("function", "a"): b"1"}


async def test_a_reader_stays_one_after_the_other_has_ended(tmp_path: Path) -> None:
    """What it has read may be out of date by then: writing on top of that would lose changes."""
    async with opened(tmp_path) as second:
        async with opened(tmp_path) as first:
            await first.rows()
            await second.rows()
            await first.commit({("function", "a"): b"1"})
        with pytest.raises(HeldByAnother):
            await second.commit({("function", "a"): b"2"})
    assert await kept(tmp_path) == {("function", "a"): b"1"}


async def test_a_second_servers_caller_is_told_in_a_refusal_not_a_fault(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        await first.rows()
        async with opened(tmp_path) as second, open_registry(second) as registry:
            with pytest.raises(InvalidRequest, match=r"The state folder .* is held") as refused:
                async with registry.edit():
                    pass
    assert (refused.value.code, refused.value.status) == ("ResourceConflictException", 409)


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"\0" * 8192, b"SQLite format 3\0" * 300]
)
async def test_what_is_no_database_is_put_aside_and_a_new_one_begun(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lambox.db").write_bytes(content)
    async with opened(tmp_path) as database:
        assert await database.rows() == {}
        await database.commit({("function", "a"): b"1"})
        (aside,) = database.damaged()
    assert aside.read_bytes() == content
    assert f"put aside as {aside.name}" in caplog.text
    assert await kept(tmp_path) == {("function", "a"): b"1"}


def damage(path: Path, at: bytes) -> None:
    """Overwrite the page in which this pattern is found."""
    found = re.search(at, path.read_bytes())
    assert found is not None
    with path.open("r+b") as file:
        file.seek(found.start() // 4096 * 4096)
        file.write(b"\xff" * 4096)


async def test_what_stands_before_and_behind_the_damage_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(tmp_path)
    damage(tmp_path / "lambox.db", rb'\{"n": 250\}')
    async with opened(tmp_path) as database:
        found = await database.rows()
        assert len(database.damaged()) == 1
    assert 0 < len(found) < len(ROWS)
    assert found.items() <= ROWS.items()
    assert {("layer", "l0"), ("layer", "l499")} <= found.keys()
    assert await kept(tmp_path) == found
    assert f"{len(found)} records could be read" in caplog.text


async def test_a_server_killed_in_the_middle_of_the_mending_loses_nothing(tmp_path: Path) -> None:
    """Before the damaged file goes, and between that and the mended one taking its name."""
    await fill(tmp_path)
    database = tmp_path / "lambox.db"
    shutil.copy(database, tmp_path / "lambox.mended")
    damage(database, rb'\{"n": 250\}')
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(tmp_path / "lambox.mended", half / "lambox.mended")
    (tmp_path / "lambox.mended").write_bytes(b"half written")
    found = await kept(tmp_path)
    assert 0 < len(found) < len(ROWS)
    assert await kept(half) == ROWS
    assert sorted(path.suffix for path in half.glob("lambox.*")) == [".db", ".lock"]


async def test_a_damaged_index_costs_no_record(tmp_path: Path) -> None:
    """It does not show in a scan, but every later change would be refused for it."""
    await fill(tmp_path)
    damage(tmp_path / "lambox.db", rb"layerl250(?!\{)")
    async with opened(tmp_path) as database:
        assert await database.rows() == ROWS
        await database.commit({("layer", "l250"): b"2"}, [("layer", "l0")])
    assert len(await kept(tmp_path)) == 499


async def test_a_newer_lamboxs_is_left_as_it_is(tmp_path: Path) -> None:
    await fill(tmp_path)
    with sqlite3.connect(tmp_path / "lambox.db") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    before = (tmp_path / "lambox.db").read_bytes()
    async with opened(tmp_path) as again, open_registry(again) as registry:
        assert registry.functions() == []
        assert not registry.complete
        with pytest.raises(
            PlatformFault, match=r"newer lambox \(schema 7, known here: 1\). Hint: upgrade"
        ):
            async with registry.edit():
                pass
    assert (tmp_path / "lambox.db").read_bytes() == before


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    with tiny_disk(tmp_path, "128k") as folder:
        yield folder


def layer(name: str, *, note: str = "") -> LayerRecord:
    code = Code(tree="0" * 64, sha256="", size=1)
    version = LayerVersionRecord(version=1, code=code, document={"Description": note}, created="")
    return LayerRecord(name=name, versions={"1": version})


async def put(registry: Registry, record: LayerRecord) -> None:
    async with registry.edit() as edit:
        edit.put(record)


async def test_a_full_disk_refuses_the_change_and_nothing_has_changed(tiny: Path) -> None:
    async with opened(tiny) as database, open_registry(database) as registry:
        await put(registry, layer("before"))
        (tiny / "filler").write_bytes(b"")
        with (tiny / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass
        with pytest.raises(PlatformFault, match=r"cannot be kept: .*lambox.db"):
            await put(registry, layer("large", note="x" * 60_000))
        assert [one.name for one in registry.layers()] == ["before"]
        (tiny / "filler").unlink()
        await put(registry, layer("after"))
    async with opened(tiny) as database, open_registry(database) as registry:
        assert [one.name for one in registry.layers()] == ["before", "after"]


async def test_a_change_that_is_cancelled_is_made_or_not_made(tmp_path: Path) -> None:
    async with opened(tmp_path) as database, open_registry(database) as registry:
        for number in range(20):
            with trio.move_on_after(0.0002 * number) as scope:
                await put(registry, layer("one", note=str(number)))
            found = registry.layer("one")
            if not scope.cancelled_caught:
                assert found is not None
                assert found.versions["1"].document == {"Description": str(number)}
            stored = (await database.rows()).get(("layer", "one"))
            assert (stored is None) == (found is None)
            if found is not None and stored is not None:
                note = found.versions["1"].document["Description"]
                assert f'"Description":"{note}"'.encode() in stored
    # A connection that nobody got would keep the process from ending, by its thread.
    for thread in threading.enumerate():
        if "apsw" in thread.name:
            thread.join(5)
            assert not thread.is_alive()


async def test_a_record_that_names_no_package_is_not_committed(tmp_path: Path) -> None:
    async with (
        opened(tmp_path) as database,
        open_registry(database, lambda names: sorted(names)) as registry,
    ):
        with pytest.raises(InvalidRequest, match="was removed meanwhile"):
            await put(registry, layer("one"))
        assert registry.layers() == []


def _config(**changes: Any) -> dict[str, Any]:
    found = {
        "Runtime": "python3.11",
        "Timeout": 3,
        "MemorySize": 128,
        "EphemeralStorage": {"Size": 512},
    }
    return {**found, **changes}


def _function(**changes: Any) -> dict[str, Any]:
    latest = {
        "version": "$LATEST",
        "config": _config(),
        "code": {"tree": "t", "sha256": "s", "size": 1},
        "identity": "i",
        "last_modified": "",
        "revision_id": "r",
    }
    return {
        "name": "odd",
        "birth": "b",
        "latest": {**latest, **changes.pop("latest", {})},
    } | changes


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("function", _function(latest={"config": {}})),
        ("function", _function(latest={"config": _config(Timeout="3")})),
        ("function", _function(latest={"config": _config(Environment={"Variables": {"A": 5}})})),
        ("function", _function(latest={"config": _config(Layers=[{"Arn": "a"}])})),
        ("function", _function(latest={"code": {"tree": "../../etc", "sha256": "", "size": 1}})),
        ("function", _function(latest={"code": {"tree": "a\0b", "sha256": "", "size": 1}})),
        ("function", _function(latest={"here": {"freeze": "no"}})),
        ("function", _function(versions={"x": _function()["latest"]})),
        ("function", _function(versions={"1": _function()["latest"]})),
        ("function", _function(attached={"url": {"$LATEST": {}}})),
        ("function", _function(attached={"provisioned": {"1": {}}})),
        ("function", _function(attached={"event_invoke": {"1": {"DestinationConfig": []}}})),
        ("function", _function(attached={"policy": {"$LATEST": {"Policy": 5}}})),
        ("function", _function(name="another")),
        ("mapping", {"name": "odd", "function": "f", "qualifier": None, "document": {}}),
        ("layer", {"name": "odd", "versions": {"0x1": {}}}),
    ],
)
async def test_a_row_that_nobody_could_work_with_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, row: dict[str, Any]
) -> None:
    sound = ("function", "sound"), json.dumps(_function(name="sound")).encode()
    async with opened(tmp_path) as database:
        await database.rows()
        await database.commit({(kind, "odd"): json.dumps(row).encode(), sound[0]: sound[1]})
    async with opened(tmp_path) as database, open_registry(database) as registry:
        assert [one.name for one in registry.functions()] == ["sound"]
        assert (registry.mappings(), registry.layers()) == ([], [])
        assert not registry.complete
    assert f"the {kind} odd cannot be read" in caplog.text


async def test_one_row_that_cannot_be_read_leaves_the_others_and_stops_the_sweeping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path) as database, open_registry(database) as registry:
        await put(registry, layer("good"))
        await database.commit({("layer", "bad"): b'{"name": 5}'})
    async with opened(tmp_path) as database, open_registry(database) as registry:
        assert [one.name for one in registry.layers()] == ["good"]
        assert not registry.complete
    assert "the layer bad cannot be read" in caplog.text


async def test_without_a_folder_to_write_to_it_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with opened(tmp_path / "file" / "state") as database:
        with pytest.raises(DatabaseProblem, match="Not a directory"):
            await database.rows()


async def test_a_look_for_garbage_that_trips_is_told_and_made_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0

    class Tripping(Garbage):
        async def collect(self, in_use: InUse = tuple) -> bool:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise RuntimeError("can't start new thread")
            return False

    async with opened(tmp_path) as database, open_registry(database) as registry:
        store, layers = CodeStore(tmp_path / "code"), LayerStore(tmp_path / "layers")
        functions: Any = None  # nobody looks at them here
        garbage = Tripping(database, registry, functions, store, layers)
        with trio.move_on_after(100):
            await garbage.run()
    assert looks == 2
    assert "can't start new thread" in caplog.text


def test_a_server_that_only_has_folders_does_not_load_sqlite(tmp_path: Path) -> None:
    """45 ms of its start."""
    program = (
        "import sys, trio, pathlib\n"
        "from sandbox.registry.database import open_database\n"
        "from sandbox.registry.registry import open_registry\n"
        "async def main():\n"
        "    async with open_database(pathlib.Path(sys.argv[1])) as d, open_registry(d): pass\n"
        "trio.run(main)\n"
        "assert 'apsw' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, timeout=30)


def test_records_know_their_packages() -> None:
    from sandbox.registry.records import packages

    record = layer("one")
    second = replace(record.versions["1"], version=2, code=Code(tree="1" * 64, sha256="", size=1))
    assert packages(replace(record, versions={**record.versions, "2": second})) == {
        "0" * 64,
        "1" * 64,
    }
