"""What a server keeps, seen through the Lambda API: what goes and when, two servers on one folder, a damaged file."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.lambda_api import ROLE, Api, serving, zipped
from tests.tinydisk import tiny_disk
from tests.waiting import until


def packages(api: Api) -> set[str]:
    return {path.name for path in (api.state / "code").glob("trees/*")}


def test_code_that_nothing_refers_to_goes(tmp_path: Path) -> None:
    """Refused or replaced or deleted; a published version keeps its own."""
    with serving(tmp_path) as api:
        api.create("f", Publish=True)
        (first,) = packages(api)
        api.client.update_function_code(FunctionName="f", ZipFile=zipped({"index.py": "# 2"}))
        api.wait("f")
        assert len(packages(api)) == 2
        (second,) = packages(api) - {first}
        api.client.update_function_code(FunctionName="f", ZipFile=zipped({"index.py": "# 3"}))
        api.wait("f")
        until(lambda: second not in packages(api))
        assert first in packages(api)
        taken = {"FunctionName": "f", "Code": {"ZipFile": zipped({"index.py": "# taken"})}}
        given = {"Runtime": "python3.11", "Handler": "index.handler", "Role": ROLE}
        assert api.refusal("create_function", **taken, **given)[0] == 409
        api.client.delete_function(FunctionName="f")
        code = api.state / "code"
        until(lambda: sorted(os.listdir(code)) == ["trees", "zips"])
        until(lambda: os.listdir(code / "trees") == os.listdir(code / "zips") == [])


def test_code_that_a_killed_server_left_goes_at_the_start(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create("f")
        (kept,) = packages(api)
        api.behind.control.code.put(zipped({"index.py": "# committed nowhere"}))
    with serving(tmp_path) as api:
        until(lambda: packages(api) == {kept})


def test_a_second_server_serves_and_changes_nothing(tmp_path: Path) -> None:
    """And as long as it does, the first throws nothing away."""
    with serving(tmp_path) as first:
        first.create("f")
        with serving(tmp_path) as second:
            assert (
                second.client.get_function(FunctionName="f")["Configuration"]["State"] == "Active"
            )
            function = second.behind.functions.get("f")
            before = second.kept()
            status, code, message = second.refusal("delete_function", FunctionName="f")
            assert (status, code) == (409, "ResourceConflictException")
            assert f"(pid {os.getpid()})" in message
            assert "lambox serve --state DIR" in message
            refused = second.refusal(
                "publish_layer_version", LayerName="l", Content={"ZipFile": zipped({"a": "a"})}
            )
            assert refused == (409, "ResourceConflictException", message)
            assert second.kept() == before
            first.client.delete_function(FunctionName="f")
            first.create("g")
            assert (function.code / "index.py").is_file()
        first.create("h")
        until(lambda: len(packages(first)) == 1)


def test_a_second_server_may_find_a_function_in_the_middle_of_its_creation(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        first.create("f")
    database = sqlite3.connect(tmp_path / "state/lambox.db")
    with database:
        database.execute(
            'UPDATE records SET value = replace(CAST(value AS TEXT), \'"state":"Active"\', \'"state":"Pending"\')'
        )
    database.close()
    with serving(tmp_path) as third:
        third.wait("f")  # what a killed server had begun
    with sqlite3.connect(tmp_path / "state/lambox.db") as database:
        database.execute(
            'UPDATE records SET value = replace(CAST(value AS TEXT), \'"state":"Active"\', \'"state":"Pending"\')'
        )
    database.close()
    with open_elsewhere(tmp_path / "state"), serving(tmp_path) as second:
        found = second.client.get_function(FunctionName="f")["Configuration"]
        assert found["State"] == "Pending"


@contextmanager
def open_elsewhere(state: Path) -> Iterator[None]:
    """Held as a server holds it."""
    fd = os.open(state / "lambox.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def test_a_damaged_database_costs_no_code(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create("f")
        before = packages(api)
    (tmp_path / "state/lambox.db").write_bytes(b"damaged" * 1000)
    with serving(tmp_path) as api:
        assert api.client.list_functions()["Functions"] == []
        api.create("g", Code={"ZipFile": zipped({"index.py": "# g"})})
        api.client.delete_function(FunctionName="g")
    with serving(tmp_path) as api:
        api.create("h", Code={"ZipFile": zipped({"index.py": "# h"})})
        assert packages(api) > before


def test_a_newer_lamboxs_database_leaves_folders_running(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create("f")
        kept = packages(api)
    database = sqlite3.connect(tmp_path / "state/lambox.db")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with serving(tmp_path) as api:
        api.folder("folder")
        names = [one["FunctionName"] for one in api.client.list_functions()["Functions"]]
        assert names == ["folder"]
        status, code, _ = api.refusal("delete_function", FunctionName="folder")
        assert (status, code) == (500, "ServiceException")
        assert packages(api) == kept


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A state folder of 1 MiB."""
    with tiny_disk(tmp_path, "1m") as folder:
        yield folder


def test_a_full_disk_refuses_and_changes_nothing(tmp_path: Path, tiny: Path) -> None:
    with serving(tmp_path, state=str(tiny)) as api:
        api.create("f")
        large = zipped({"index.py": "", "random": os.urandom(800_000)})
        before = api.client.list_functions()["Functions"]
        code = {"Code": {"ZipFile": large}, "Runtime": "python3.11", "Handler": "index.handler"}
        for operation, given in [
            ("create_function", {"FunctionName": "g", "Role": ROLE, **code}),
            ("update_function_code", {"FunctionName": "f", "ZipFile": large}),
            ("publish_layer_version", {"LayerName": "l", "Content": {"ZipFile": large}}),
        ]:
            assert api.refusal(operation, **given)[:2] == (500, "ServiceException")
        assert api.client.list_functions()["Functions"] == before
        assert len(packages(api)) == 1
        api.client.update_function_code(FunctionName="f", ZipFile=zipped({"index.py": "# small"}))
        api.wait("f")
