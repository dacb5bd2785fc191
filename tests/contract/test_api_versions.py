"""Published versions through the Lambda API (SPEC 10.2, 10.4)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.lambda_api import Api, serving, zipped

ARN = "arn:aws:lambda:us-east-1:123456789012:function:fn"
OTHER = zipped({"index.py": "# other"})


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        yield api


def test_published_on_creation(api: Api) -> None:
    """As recorded: LS test_publish_version_on_create."""
    client = api.client
    created = api.create("fn", Publish=True)
    assert (created["Version"], created["FunctionArn"], created["State"]) == ("1", ARN, "Pending")
    plain = client.get_function(FunctionName="fn")["Configuration"]
    assert (plain["Version"], plain["FunctionArn"]) == ("$LATEST", ARN)
    latest = client.get_function(FunctionName="fn", Qualifier="$LATEST")["Configuration"]
    assert latest == {**plain, "FunctionArn": ARN + ":$LATEST"}
    first = client.get_function(FunctionName="fn", Qualifier="1")["Configuration"]
    assert (first["Version"], first["FunctionArn"]) == ("1", ARN + ":1")
    assert (first["State"], first["LastUpdateStatus"]) == ("Active", "Successful")
    assert len({one["RevisionId"] for one in (created, latest, first)}) == 3
    again = client.publish_version(FunctionName="fn")
    assert again["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert {**again, "ResponseMetadata": 0} == {**first, "ResponseMetadata": 0}
    assert client.get_function(FunctionName="fn")["Configuration"] == plain


def test_a_versions_life(api: Api) -> None:
    """As recorded: LS test_version_lifecycle."""
    client = api.client
    api.create("fn", Description="none yet")
    before = client.get_function_configuration(FunctionName="fn")
    first = client.publish_version(
        FunctionName="fn",
        Description="first",
        CodeSha256=before["CodeSha256"],
        RevisionId=before["RevisionId"],
    )
    assert (first["Version"], first["Description"], first["State"]) == ("1", "first", "Active")
    latest = client.get_function_configuration(FunctionName="fn")
    assert latest["Description"] == "none yet"
    assert len({one["RevisionId"] for one in (before, first, latest)}) == 3
    assert client.publish_version(FunctionName="fn", Description="again")["Version"] == "1"
    client.update_function_configuration(FunctionName="fn", Description="second")
    api.wait("fn")
    assert client.publish_version(FunctionName="fn")["Description"] == "second"
    client.update_function_code(FunctionName="fn", ZipFile=OTHER)
    api.wait("fn")
    third = client.publish_version(FunctionName="fn")
    assert third["Version"] == "3"
    listed = client.list_versions_by_function(FunctionName="fn")["Versions"]
    assert [one["FunctionArn"].removeprefix(ARN) for one in listed] == [
        ":$LATEST",
        ":1",
        ":2",
        ":3",
    ]
    assert all("State" not in one for one in listed)
    unchanged = client.get_function_configuration(FunctionName="fn", Qualifier="1")
    assert {**unchanged, "ResponseMetadata": 0} == {**first, "ResponseMetadata": 0}
    functions = api.behind.functions
    assert (functions.resolve("fn", "1").code / "index.py").read_text().startswith("def handler")
    assert (functions.resolve("fn", "3").code / "index.py").read_text() == "# other"
    assert functions.resolve("fn", "2").description == "second"


def test_numbers_are_never_given_twice(api: Api) -> None:
    client = api.client
    api.create("fn", Publish=True)
    client.delete_function(FunctionName="fn", Qualifier="1")
    assert api.refusal("get_function", FunctionName="fn", Qualifier="1")[0] == 404
    assert api.refusal("invoke", FunctionName="fn", Qualifier="1") == (
        404,
        "ResourceNotFoundException",
        f"Function not found: {ARN}:1",
    )
    gone = client.delete_function(FunctionName="fn", Qualifier="1")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert client.publish_version(FunctionName="fn")["Version"] == "2"
    client.delete_function(FunctionName="fn")
    assert client.list_functions(FunctionVersion="ALL")["Functions"] == []
    for operation in ("get_function", "delete_function", "list_versions_by_function"):
        assert api.refusal(operation, FunctionName="fn")[2] == f"Function not found: {ARN}"
    assert api.create("fn", Publish=True)["Version"] == "3"


def test_published_with_new_code(api: Api) -> None:
    """As recorded: LS test_publish_with_update."""
    api.create("fn")
    client = api.client
    answer = client.update_function_code(FunctionName="fn", ZipFile=OTHER, Publish=True)
    assert (answer["Version"], answer["FunctionArn"]) == ("1", ARN + ":1")
    assert answer["State"] == "Pending"
    assert "LastUpdateStatus" not in answer
    api.wait("fn")
    first = client.get_function_configuration(FunctionName="fn", Qualifier="1")
    assert (first["State"], first["CodeSha256"]) == ("Active", answer["CodeSha256"])
    again = client.update_function_code(FunctionName="fn", ZipFile=OTHER, Publish=True)
    assert again["Version"] == "1"


def test_versions_are_listed_in_pages(api: Api) -> None:
    api.create("fn", Publish=True)
    for number in range(2, 12):
        api.client.update_function_configuration(FunctionName="fn", Description=str(number))
        api.wait("fn")
        api.client.publish_version(FunctionName="fn")
    pages = api.client.get_paginator("list_versions_by_function").paginate(
        FunctionName="fn", PaginationConfig={"PageSize": 5}
    )
    found = [[one["Version"] for one in page["Versions"]] for page in pages]
    assert found == [["$LATEST", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"], ["10", "11"]]


def test_what_is_refused(api: Api) -> None:
    api.create("fn", Publish=True)
    api.client.create_alias(FunctionName="fn", Name="live", FunctionVersion="1")
    sha256 = api.client.get_function_configuration(FunctionName="fn")["CodeSha256"]
    before = api.kept()
    assert api.refusal("publish_version", FunctionName="fn", CodeSha256="other") == (
        400,
        "InvalidParameterValueException",
        f"CodeSHA256 (other) is different from current CodeSHA256 in $LATEST ({sha256}). "
        "Please try again with the CodeSHA256 in $LATEST.",
    )
    assert api.refusal("publish_version", FunctionName="fn", PublishTo="LATEST_PUBLISHED")[:2] == (
        400,
        "InvalidParameterValueException",
    )
    assert api.refusal("delete_function", FunctionName="fn", Qualifier="1") == (
        409,
        "ResourceConflictException",
        "Unable to delete version because the following aliases reference it: [live]",
    )
    assert api.kept() == before


def test_versions_are_there_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create("fn", Publish=True)
        api.client.update_function_code(FunctionName="fn", ZipFile=OTHER)
        api.wait("fn")
        api.client.create_alias(FunctionName="fn", Name="live", FunctionVersion="1")
    with serving(tmp_path) as api:
        for qualifier in ("1", "live"):
            version = api.behind.functions.resolve("fn", qualifier)
            assert version.version == "1"
            assert (version.code / "index.py").read_text().startswith("def handler")
