"""Functions through the Lambda API, as boto3 sees them (SPEC 10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.lambda_api import ROLE, Api, serving, zipped


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        yield api


def test_a_functions_life(api: Api) -> None:
    created = api.create("hello", Environment={"Variables": {"STAGE": "test"}})
    assert created["State"] == "Pending"
    assert created["StateReasonCode"] == "Creating"
    assert "LastUpdateStatus" not in created
    found = api.client.get_function(FunctionName="hello")["Configuration"]
    assert (found["State"], found["LastUpdateStatus"]) == ("Active", "Successful")
    assert found["RevisionId"] != created["RevisionId"]
    assert [one["FunctionName"] for one in api.client.list_functions()["Functions"]] == ["hello"]
    gone = api.client.delete_function(FunctionName="hello")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert api.refusal("get_function", FunctionName="hello") == (
        404,
        "ResourceNotFoundException",
        "Function not found: arn:aws:lambda:us-east-1:123456789012:function:hello",
    )


def test_functions_are_there_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        before = api.create()["CodeSha256"]
    with serving(tmp_path) as api:
        found = api.client.get_function(FunctionName="hello")["Configuration"]
        assert (found["CodeSha256"], found["State"]) == (before, "Active")
        assert api.client.invoke(FunctionName="hello", Payload=b"[1]")["Payload"].read() == b"[1]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Role": "admin"},
            "1 validation error detected: Value 'admin' at 'role' failed to satisfy constraint: Member must "
            "satisfy regular expression pattern: "
            r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
        ),
        (
            {"Architectures": ["x86_64", "arm64"]},
            "1 validation error detected: Value '[x86_64, arm64]' at 'architectures' failed to satisfy "
            "constraint: Member must have length less than or equal to 1",
        ),
        (
            {"Architectures": ["sparc"]},
            "1 validation error detected: Value '[sparc]' at 'architectures' failed to satisfy constraint: "
            "Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], "
            "Member must not be null]",
        ),
    ],
)
def test_bad_input_is_told_in_awss_words(
    api: Api, changes: dict[str, object], message: str
) -> None:
    given = {"FunctionName": "bad", "Role": ROLE, "Code": {"ZipFile": zipped()}, **changes}
    assert api.refusal("create_function", **given) == (400, "ValidationException", message)
    assert api.client.list_functions()["Functions"] == []


def test_an_operation_that_lambox_has_not_got(api: Api) -> None:
    assert api.refusal("create_capacity_provider") == (
        501,
        "NotImplementedException",
        "CreateCapacityProvider is not supported by lambox.",
    )
