"""sandbox.catalog: folders are functions or not, and every edit before a refresh is seen by it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from rootfs.runtimes import Runtime, Runtimes
from rootfs.trees import LayerStore
from rootfs.watch import Watch, WatchUnavailable
from sandbox import functiontoml
from sandbox.catalog import Catalog
from sandbox.confine import privilege
from sandbox.errors import FunctionFailed, FunctionNotFound, InvalidRuntime
from sandbox.function import BrokenFunction
from sandbox.functiontoml import FunctionDefaults

RUNTIMES = Runtimes(
    {
        "python3.11": Runtime("python3.11", "python", "/p/bin/python3.11", "/p", "3.11.7", "/c"),
        "python3.9": Runtime("python3.9", "python", problem="has no client"),
    },
    "python3.11",
)

Open = Callable[..., Catalog]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "functions"
    made.mkdir()
    return made


@pytest.fixture(params=["inotify", "stat"])
def open_catalog(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Open]:
    opened: list[Catalog] = []

    def make(**options: object) -> Catalog:
        options.setdefault("layers", LayerStore(tmp_path / "state"))
        catalog = Catalog(folder, RUNTIMES, watch=request.param == "inotify", **options)  # type: ignore[arg-type]
        opened.append(catalog)
        return catalog

    yield make
    for catalog in opened:
        catalog.close()


def function(folder: Path, name: str, toml: str = "", code: str = "def handler(e, c): ...") -> Path:
    place = folder / name
    place.mkdir(exist_ok=True)
    (place / "handler.py").write_text(code)
    if toml:
        (place / "function.toml").write_text(toml)
    return place


def names(catalog: Catalog) -> list[str]:
    return [found.name for found in catalog.all()]


def broken(catalog: Catalog, name: str) -> str:
    (found,) = [f for f in catalog.all() if f.name == name]
    assert isinstance(found, BrokenFunction)
    return found.problem


def test_a_folder_is_a_function(folder: Path, open_catalog: Open) -> None:
    place = function(folder, "hello", 'timeout = 3\n[environment]\nCOLOUR = "blue"')
    found = open_catalog().get("hello")
    assert (found.name, found.runtime, found.handler) == ("hello", "python3.11", "handler.handler")
    assert (found.code, found.timeout_s, found.memory_mb) == (place, 3, 128)
    assert dict(found.environment) == {"COLOUR": "blue"}
    assert len(found.revision) == 16


def test_an_unknown_function_is_named(open_catalog: Open) -> None:
    with pytest.raises(FunctionNotFound) as caught:
        open_catalog().get("nobody")
    assert caught.value.message == "nobody"


def test_hidden_folders_and_files_are_no_functions(folder: Path, open_catalog: Open) -> None:
    for name in (".git", "_shared", "__pycache__", "hello"):
        function(folder, name)
    (folder / "README.md").touch()
    assert names(open_catalog()) == ["hello"]


def test_nothing_changed_keeps_the_revision(folder: Path, open_catalog: Open) -> None:
    function(folder, "hello")
    catalog = open_catalog()
    before = catalog.get("hello")
    catalog.refresh()
    assert catalog.get("hello") is before


@pytest.mark.parametrize("file", ["handler.py", "data/deep/x.txt", "function.toml"])
def test_an_edit_changes_the_revision(folder: Path, open_catalog: Open, file: str) -> None:
    place = function(folder, "hello", "timeout = 3")
    (place / "data/deep").mkdir(parents=True)
    (place / "data/deep/x.txt").write_text("1")
    catalog = open_catalog()
    before = catalog.get("hello").revision
    (place / file).write_text("timeout = 4" if file.endswith("toml") else "other")
    catalog.refresh()
    assert catalog.get("hello").revision != before


INSIDE = (
    "timeout = 9", "memory_size = 256", "ephemeral_storage = 600", 'handler = "handler.other"',
    'network = "host"', "freeze = false", 'environment = {AB = "1"}', 'layers = ["../../layer"]',
    'log_format = "JSON"', 'log_group = "other"',
    'log_format = "JSON"\napplication_log_level = "DEBUG"',
    'log_format = "JSON"\nsystem_log_level = "DEBUG"',
)  # fmt: skip
OUTSIDE = (
    "idle_timeout = 9", "reserved_concurrency = 9", "provisioned_concurrency = 1",
    'warm = "rate(5 minutes)"',
    'schedule = "rate(5 minutes)"', 'description = "x"', "# nothing",
    "maximum_retry_attempts = 1", "maximum_event_age = 60", 'on_success = "other"',
    'on_failure = "other"', 'dead_letter = "arn:aws:sqs:us-east-1:000000000000:q"',
    'recursive_loop = "Allow"', 'url = {auth_type = "NONE"}',
)  # fmt: skip


@pytest.mark.parametrize("line", INSIDE + OUTSIDE)
def test_what_an_environment_would_not_notice_keeps_the_revision(
    folder: Path, open_catalog: Open, line: str
) -> None:
    place = function(folder, "hello", "")
    (folder.parent / "layer").mkdir()
    (place / "handler.py").write_text("def handler(): ...\ndef other(): ...\n")
    catalog = open_catalog()
    before = catalog.get("hello")
    (place / "fresh").write_text(line)
    (place / "fresh").rename(place / "function.toml")
    catalog.refresh()
    after = catalog.get("hello")
    assert (after.revision == before.revision) == (line in OUTSIDE)
    assert (after == before) == (line == "# nothing")


def test_every_key_of_function_toml_is_inside_or_outside() -> None:
    named = {line.rpartition("\n")[2].partition(" =")[0] for line in INSIDE + OUTSIDE}
    assert {key.name for key in functiontoml.KEYS} - named == {"runtime"}


def test_files_in_folders_made_later_are_seen(folder: Path, open_catalog: Open) -> None:
    place = function(folder, "hello")
    catalog = open_catalog()
    (place / "new").mkdir()
    (place / "new/a.py").write_text("1")
    catalog.refresh()
    before = catalog.get("hello").revision
    (place / "new/a.py").write_text("22")
    catalog.refresh()
    assert catalog.get("hello").revision != before


@pytest.mark.parametrize("file", ["__pycache__/a.pyc", ".handler.py.swp", "handler.py~", "4913"])
def test_byte_code_and_swap_files_change_nothing(
    folder: Path, open_catalog: Open, file: str
) -> None:
    place = function(folder, "hello")
    catalog = open_catalog()
    before = catalog.get("hello").revision
    (place / file).parent.mkdir(exist_ok=True)
    (place / file).write_text("x")
    catalog.refresh()
    assert catalog.get("hello").revision == before


def test_an_atomically_replaced_file_is_seen(folder: Path, open_catalog: Open) -> None:
    place = function(folder, "hello")
    catalog = open_catalog()
    before = catalog.get("hello").revision
    (folder.parent / "fresh").write_text("new")
    (folder.parent / "fresh").rename(place / "handler.py")
    catalog.refresh()
    assert catalog.get("hello").revision != before


def test_functions_come_and_go(folder: Path, open_catalog: Open) -> None:
    catalog = open_catalog()
    assert names(catalog) == []
    place = function(folder, "late")
    catalog.refresh()
    assert names(catalog) == ["late"]
    place.rename(folder / "renamed")
    catalog.refresh()
    assert names(catalog) == ["renamed"]
    shutil.rmtree(folder / "renamed")
    catalog.refresh()
    assert names(catalog) == []
    function(folder, "renamed", "timeout = 7")
    catalog.refresh()
    assert catalog.get("renamed").timeout_s == 7


def test_a_link_that_points_elsewhere_is_seen(folder: Path, open_catalog: Open) -> None:
    first = function(folder.parent, "v1", "timeout = 1")
    second = function(folder.parent, "v2", "timeout = 2")
    (folder / "app").symlink_to(first)
    catalog = open_catalog()
    assert catalog.get("app").code == first
    (folder / "fresh").symlink_to(second)
    (folder / "fresh").rename(folder / "app")
    catalog.refresh()
    assert catalog.get("app").timeout_s == 2
    (second / "function.toml").write_text("timeout = 22")
    catalog.refresh()
    assert catalog.get("app").timeout_s == 22


def test_a_broken_toml_takes_down_that_function_alone(folder: Path, open_catalog: Open) -> None:
    function(folder, "good")
    place = function(folder, "bad", "timeout = 0\nnetwrok = 1")
    catalog = open_catalog()
    assert catalog.get("good")
    with pytest.raises(FunctionFailed) as caught:
        catalog.get("bad")
    assert f"{place}/function.toml:1: timeout = 0" in caught.value.message
    assert "did you mean network?" in caught.value.message
    (place / "function.toml").write_text("timeout = 1")
    catalog.refresh()
    assert catalog.get("bad").timeout_s == 1


def test_a_missing_runtime_is_awss_502(folder: Path, open_catalog: Open) -> None:
    function(folder, "old", 'runtime = "python3.9"')
    function(folder, "new", 'runtime = "nodejs99.x"')
    catalog = open_catalog()
    with pytest.raises(InvalidRuntime, match="has no client"):
        catalog.get("old")
    with pytest.raises(InvalidRuntime, match="not on this host"):
        catalog.get("new")


def test_a_name_must_be_a_function_name(folder: Path, open_catalog: Open) -> None:
    function(folder, "has.dot")
    assert "no function name" in broken(open_catalog(), "has.dot")


def test_an_empty_folder_is_broken_until_it_is_filled(folder: Path, open_catalog: Open) -> None:
    (folder / "young").mkdir()
    catalog = open_catalog()
    assert "Hint: add one" in broken(catalog, "young")
    function(folder, "young")
    catalog.refresh()
    assert catalog.get("young")


@pytest.mark.skipif(
    not privilege.may_change_uid(), reason="host: needs uids for environments to have"
)
def test_code_that_others_cannot_read_is_broken(folder: Path, open_catalog: Open) -> None:
    place = function(folder, "private")
    (place / "handler.py").chmod(0o600)
    catalog = open_catalog()
    assert "handler.py: cannot be read by the function's user. Hint: chmod -R a+rX" in broken(
        catalog, "private"
    )
    (place / "handler.py").chmod(0o644)
    catalog.refresh()
    assert catalog.get("private")


def test_one_folder_of_layers_is_opt(folder: Path, open_catalog: Open) -> None:
    layer = folder.parent / "layer"
    layer.mkdir()
    function(folder, "hello", 'layers = ["../../layer"]')
    catalog = open_catalog()
    before = catalog.get("hello")
    assert before.layers == (layer,)
    (layer / "x").write_text("1")
    catalog.refresh()
    assert catalog.get("hello").revision != before.revision


def test_several_layers_are_merged_and_watched(folder: Path, open_catalog: Open) -> None:
    layer = folder.parent / "layer"
    layer.mkdir()
    (layer / "x").write_text("1")
    archive = folder.parent / "b.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("y", "1")
    function(folder, "hello", 'layers = ["../../layer", "../../b.zip"]')
    catalog = open_catalog()
    (before,) = catalog.get("hello").layers
    assert sorted(p.name for p in before.iterdir()) == ["x", "y"]
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("z", "1")
    catalog.refresh()
    (after,) = catalog.get("hello").layers
    assert sorted(p.name for p in after.iterdir()) == ["x", "z"]


def test_a_missing_layer_may_appear_later(folder: Path, open_catalog: Open) -> None:
    function(folder, "hello", 'layers = ["../../far/away/layer"]')
    catalog = open_catalog()
    catalog.refresh()
    assert "far/away/layer" in broken(catalog, "hello")
    (folder.parent / "far/away/layer").mkdir(parents=True)
    catalog.refresh()
    assert catalog.get("hello").layers


def test_the_folder_itself_may_be_missing_and_come_back(folder: Path, open_catalog: Open) -> None:
    function(folder, "hello")
    shutil.move(folder, folder.parent / "away")
    catalog = open_catalog()
    assert names(catalog) == []
    shutil.move(folder.parent / "away", folder)
    catalog.refresh()
    assert names(catalog) == ["hello"]
    shutil.rmtree(folder)
    catalog.refresh()
    assert names(catalog) == []
    folder.mkdir()
    function(folder, "again")
    catalog.refresh()
    assert names(catalog) == ["again"]
    function(folder, "more")
    catalog.refresh()
    assert names(catalog) == ["again", "more"]


def test_server_wide_defaults(folder: Path, open_catalog: Open) -> None:
    function(folder, "hello")
    catalog = open_catalog(defaults=FunctionDefaults(timeout=99))
    assert catalog.get("hello").timeout_s == 99


def test_without_inotify_it_says_so_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(self: Watch, owner: str, folder: str, only: str) -> None:
        raise WatchUnavailable("cannot watch: No space left on device. Hint: sysctl")

    monkeypatch.setattr(Watch, "_add", no_space)
    function(folder, "hello")
    with Catalog(folder, RUNTIMES) as catalog:
        before = catalog.get("hello").revision
        (folder / "hello/handler.py").write_text("changed")
        catalog.refresh()
        assert catalog.get("hello").revision != before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text


async def test_changed_wakes_up(folder: Path) -> None:
    function(folder, "hello")
    with Catalog(folder, RUNTIMES) as catalog, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.changed)
            await trio.testing.wait_all_tasks_blocked()
            (folder / "hello/handler.py").write_text("changed")


async def test_closing_wakes_up_who_waits_for_changes(folder: Path) -> None:
    catalog = Catalog(folder, RUNTIMES)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(catalog.changed)
            await trio.testing.wait_all_tasks_blocked()
            catalog.close()


def test_lost_events_mean_that_all_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function(folder, "hello")
    with Catalog(folder, RUNTIMES) as catalog:
        before = catalog.get("hello").revision
        monkeypatch.setattr(Watch, "touched", lambda self: {"*"})
        (folder / "hello/handler.py").write_text("changed")
        catalog.refresh()
        assert catalog.get("hello").revision != before


def test_more_provisioned_than_the_account_may_have_is_told(
    folder: Path, open_catalog: Open
) -> None:
    place = function(folder, "hello", "provisioned_concurrency = 6")
    catalog = open_catalog(account_concurrency=5)
    problem = broken(catalog, "hello")
    assert f"{place}/function.toml: provisioned_concurrency = 6: must not be more than" in problem
    assert "account_concurrency, which is 5. Hint: " in problem
    (place / "function.toml").write_text("provisioned_concurrency = 5")
    catalog.refresh()
    assert catalog.get("hello").provisioned_concurrency == 5


@pytest.mark.parametrize(("qualifier", "found"), [(None, True), ("$LATEST", True), ("1", False)])
def test_a_folder_is_latest_and_nothing_else(
    folder: Path, open_catalog: Open, qualifier: str | None, found: bool
) -> None:
    function(folder, "hello")
    function(folder, "bad", "timeout = 0")
    catalog = open_catalog()
    assert [one.version for one in catalog.live()] == ["$LATEST"]
    with pytest.raises(FunctionFailed):
        catalog.resolve("bad", qualifier)
    if found:
        assert catalog.resolve("hello", qualifier) is catalog.get("hello")
        return
    with pytest.raises(FunctionNotFound) as caught:
        catalog.resolve("hello", qualifier)
    assert caught.value.message == "hello"


def test_the_reserved_total_follows_the_folder(folder: Path, open_catalog: Open) -> None:
    function(folder, "a", "reserved_concurrency = 3\n")
    function(folder, "b", "reserved_concurrency = 4\n")
    function(folder, "c")
    catalog = open_catalog()
    assert catalog.reserved_total == 7
    (folder / "b" / "function.toml").write_text("reserved_concurrency = 1\n")
    catalog.refresh()
    assert catalog.reserved_total == 4
    (folder / "a" / "function.toml").write_text("nonsense = 1\n")
    catalog.refresh()
    assert catalog.reserved_total == 1


def test_a_function_is_no_destination_of_its_own(folder: Path, open_catalog: Open) -> None:
    function(folder, "a", 'on_failure = "b"\nmaximum_retry_attempts = 1')
    function(folder, "b", 'on_failure = "function:b:$LATEST"')
    catalog = open_catalog()
    events = catalog.get("a").events
    assert events.retries == 1
    assert events.on_failure is not None
    assert (events.on_failure.kind, events.on_failure.name) == ("function", "b")
    with pytest.raises(FunctionFailed, match="on_failure: You can't specify the function as a"):
        catalog.get("b")
