"""Folders' functions through the Lambda API: shown like any other, changed in their folder only."""

from __future__ import annotations

import io
import logging
import shutil
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from sandbox.registry.resolving import NotReady
from tests.contract.lambda_api import PYTHON, Api, serving

ARN = "arn:aws:lambda:us-east-1:123456789012:function:"
TOML = """
runtime = "python3.11"
handler = "index.handler"
timeout = 7
network = "none"
idle_timeout = 5
[environment]
AA = "1"
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        api.folder("fn", {"index.py": "# one\n", "lib/more.py": "", "function.toml": TOML})
        yield api


def test_it_is_shown_like_any_other(api: Api) -> None:
    api.create("other")
    found = api.client.get_function(FunctionName="fn")["Configuration"]
    assert found["FunctionArn"] == ARN + "fn"
    assert (found["Runtime"], found["Handler"], found["Timeout"]) == (PYTHON, "index.handler", 7)
    assert (found["State"], found["LastUpdateStatus"]) == ("Active", "Successful")
    assert found["Environment"] == {"Variables": {"AA": "1"}}
    assert found["Role"] == "arn:aws:iam::123456789012:role/lambox"
    assert found["CodeSize"] > 0
    listed = api.client.list_functions()["Functions"]
    assert [one["FunctionName"] for one in listed] == ["fn", "other"]
    assert listed[0]["CodeSha256"] == found["CodeSha256"]
    again = api.client.get_function_configuration(FunctionName="fn", Qualifier="$LATEST")
    assert again["RevisionId"] == found["RevisionId"]
    (api.functions / "fn" / "index.py").write_text("# two, longer\n")
    changed = api.client.get_function_configuration(FunctionName="fn")
    assert changed["CodeSha256"] != found["CodeSha256"]
    assert changed["RevisionId"] != found["RevisionId"]


def test_its_code_can_be_downloaded(api: Api) -> None:
    place = api.client.get_function(FunctionName="fn")["Code"]["Location"]
    with urllib.request.urlopen(place) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == ["function.toml", "index.py", "lib/", "lib/more.py"]
    assert archive.read("index.py") == b"# one\n"


def test_a_broken_one_says_why(api: Api) -> None:
    api.folder("broken", {"function.toml": "timeout = 0\n", "index.py": ""})
    found = api.client.get_function_configuration(FunctionName="broken")
    assert (found["State"], found["StateReasonCode"]) == ("Failed", "FunctionError")
    assert "function.toml" in found["StateReason"]
    assert "broken" in [one["FunctionName"] for one in api.client.list_functions()["Functions"]]
    refused = api.refusal("publish_version", FunctionName="broken")
    assert refused[:2] == (409, "ResourceConflictException")
    assert "function.toml" in refused[2]


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        ("update_function_code", {"ZipFile": b"x"}),
        ("update_function_configuration", {"Timeout": 3}),
        ("delete_function", {}),
    ],
)
def test_it_is_changed_in_its_folder(api: Api, operation: str, given: dict[str, object]) -> None:
    status, code, message = api.refusal(operation, FunctionName="fn", **given)
    assert (status, code) == (409, "ResourceConflictException")
    assert str(api.functions / "fn") in message
    assert "Hint: " in message


def test_its_name_is_taken(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    asked = {
        "FunctionName": "fn",
        "Runtime": PYTHON,
        "Handler": "index.handler",
        "Role": "arn:aws:iam::123456789012:role/r",
        "Code": {"ZipFile": b"x"},
    }
    assert api.refusal("create_function", **asked) == (
        409,
        "ResourceConflictException",
        "Function already exist: fn",
    )
    api.create("late")
    api.folder("late", {"handler.py": "# hidden"})
    for _ in range(3):
        found = api.client.list_functions()["Functions"]
    assert [one["FunctionName"] for one in found] == ["fn", "late"]
    told = [one for one in caplog.messages if "function late was made by the Lambda API" in one]
    assert len(told) == 1
    version = api.behind.functions.resolve("late", None)
    assert not (version.code / "handler.py").exists()
    api.client.delete_function(FunctionName="late")
    version = api.behind.functions.resolve("late", None)
    assert (version.code / "handler.py").read_text() == "# hidden"


def test_its_versions_are_copies(api: Api) -> None:
    client, functions = api.client, api.behind.functions
    before = client.get_function_configuration(FunctionName="fn")
    first = client.publish_version(
        FunctionName="fn",
        Description="a copy",
        RevisionId=before["RevisionId"],
        CodeSha256=before["CodeSha256"],
    )
    assert (first["Version"], first["CodeSha256"]) == ("1", before["CodeSha256"])
    assert first["Description"] == "a copy"
    assert client.publish_version(FunctionName="fn")["Version"] == "1"
    assert (
        client.get_function_configuration(FunctionName="fn")["RevisionId"] != before["RevisionId"]
    )
    (api.functions / "fn" / "index.py").write_text("# two, longer\n")
    assert client.publish_version(FunctionName="fn")["Version"] == "2"
    client.create_alias(FunctionName="fn", Name="live", FunctionVersion="1")
    version = functions.resolve("fn", "live")
    assert (version.code / "index.py").read_text() == "# one\n"
    assert (version.timeout_s, version.idle_timeout_s, version.network) == (7, 5, "none")
    assert dict(version.environment) == {"AA": "1"}
    with urllib.request.urlopen(
        client.get_function(FunctionName="fn", Qualifier="1")["Code"]["Location"]
    ) as answer:
        assert zipfile.ZipFile(io.BytesIO(answer.read())).read("index.py") == b"# one\n"
    every = client.list_functions(FunctionVersion="ALL")["Functions"]
    assert [one["Version"] for one in every] == ["$LATEST", "1", "2"]
    client.delete_function(FunctionName="fn", Qualifier="2")
    versions = client.list_versions_by_function(FunctionName="fn")["Versions"]
    assert [one["Version"] for one in versions] == ["$LATEST", "1"]


def test_settings_that_replace_no_environment_are_content_too(api: Api) -> None:
    client, toml = api.client, api.functions / "fn" / "function.toml"
    before = client.get_function_configuration(FunctionName="fn")
    toml.write_text("reserved_concurrency = 5\n" + TOML)
    after = client.get_function_configuration(FunctionName="fn")
    assert after["CodeSha256"] != before["CodeSha256"]
    assert after["RevisionId"] != before["RevisionId"]
    published = client.publish_version(FunctionName="fn", CodeSha256=after["CodeSha256"])
    assert published["Version"] == "1"
    assert client.get_function(FunctionName="fn")["Concurrency"] == {
        "ReservedConcurrentExecutions": 5
    }
    functions = api.behind.functions
    assert functions.resolve("fn", "1").reserved_concurrency == 5  # all versions share it
    toml.write_text("reserved_concurrency = 6\n" + TOML)
    functions.refresh()
    assert functions.resolve("fn", "1").reserved_concurrency == 6
    client.put_function_concurrency(FunctionName="fn", ReservedConcurrentExecutions=7)
    assert functions.resolve("fn", "1").reserved_concurrency == 7
    assert functions.resolve("fn", None).reserved_concurrency == 7


def test_a_version_has_the_layers_of_its_day(api: Api, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "data").write_text("one")
    toml = api.functions / "fn" / "function.toml"
    toml.write_text(f'layers = ["{layer}"]\n{TOML}')
    api.client.publish_version(FunctionName="fn")
    (layer / "data").write_text("two, and more")
    assert api.client.publish_version(FunctionName="fn")["Version"] == "2"
    texts = []
    for qualifier in ("1", "2", None):
        (opt,) = api.behind.functions.resolve("fn", qualifier).layers
        texts.append((opt / "data").read_text())
    assert texts == ["one", "two, and more", "two, and more"]
    trio.from_thread.run(api.behind.garbage.collect, trio_token=api.token)
    control = api.behind.control
    (record,) = control.registry.functions()
    for version in record.versions.values():
        assert len(version.packages()) == 2
        assert control.code.missing(version.packages()) == []


def test_a_network_that_this_host_gives_no_more(api: Api) -> None:
    api.client.publish_version(FunctionName="fn")
    functions, record = api.behind.functions, api.behind.control.registry.function("fn")
    assert record is not None
    functions._unavailable = {"none": "it is switched off"}
    made = functions.make(record, record.versions["1"])
    assert isinstance(made, NotReady)
    assert 'network = "none": it is switched off' in made.error.message


def test_what_cannot_be_copied_is_not_published(api: Api) -> None:
    (api.functions / "fn" / "out").symlink_to("../../elsewhere")
    refused = api.refusal("publish_version", FunctionName="fn")
    assert refused[:2] == (409, "ResourceConflictException")
    assert "out -> ../../elsewhere" in refused[2]
    assert not list(api.behind.control.registry.functions())


def test_what_was_published_outlives_the_folder(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    api.client.publish_version(FunctionName="fn")
    shutil.rmtree(api.functions / "fn")
    assert api.refusal("get_function", FunctionName="fn")[0] == 404
    assert api.refusal("publish_version", FunctionName="fn")[2] == (
        f"Function not found: {ARN}fn:$LATEST"
    )
    assert api.client.list_functions()["Functions"] == []
    assert api.client.invoke(FunctionName="fn", Qualifier="1")["ExecutedVersion"] == "1"
    versions = api.client.list_versions_by_function(FunctionName="fn")["Versions"]
    assert [one["Version"] for one in versions] == ["1"]
    api.client.delete_function(FunctionName="fn")
    assert api.refusal("invoke", FunctionName="fn", Qualifier="1")[0] == 404
