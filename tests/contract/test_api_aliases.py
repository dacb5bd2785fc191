"""Aliases through the Lambda API (SPEC 10.4), and whom they lead to."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.lambda_api import Api, serving

ARN = "arn:aws:lambda:us-east-1:123456789012:function:fn"
INVALID = "InvalidParameterValueException"
MISSING = "ResourceNotFoundException"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """With a function `fn` that has versions 1 and 2."""
    with serving(tmp_path) as api:
        _two_versions(api)
        yield api


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The same, with an alias `live` too, and nothing is to change."""
    with serving(tmp_path_factory.mktemp("still")) as api:
        _two_versions(api)
        api.client.create_alias(FunctionName="fn", Name="live", FunctionVersion="1")
        yield api


def _two_versions(api: Api) -> None:
    api.create("fn", Publish=True, Environment={"Variables": {"NUMBER": "1"}})
    api.client.update_function_configuration(
        FunctionName="fn", Environment={"Variables": {"NUMBER": "2"}}
    )
    api.wait("fn")
    api.client.publish_version(FunctionName="fn")


def test_an_aliass_life(api: Api) -> None:
    """As recorded: LS test_alias_lifecycle."""
    client = api.client
    made = client.create_alias(FunctionName="fn", Name="live", FunctionVersion="1")
    assert made.pop("ResponseMetadata")["HTTPStatusCode"] == 201
    revision = made.pop("RevisionId")
    assert made == {
        "AliasArn": ARN + ":live",
        "Description": "",
        "FunctionVersion": "1",
        "Name": "live",
    }
    function = client.get_function(FunctionName="fn", Qualifier="live")["Configuration"]
    assert (function["Version"], function["FunctionArn"]) == ("1", ARN + ":live")
    moved = client.update_alias(
        FunctionName="fn",
        Name="live",
        FunctionVersion="2",
        Description="now two",
        RoutingConfig={"AdditionalVersionWeights": {"1": 0.25}},
        RevisionId=revision,
    )
    assert moved["RoutingConfig"] == {"AdditionalVersionWeights": {"1": 0.25}}
    assert moved["RevisionId"] != revision
    found = client.get_alias(FunctionName="fn", Name="live")
    assert {**found, "ResponseMetadata": 0} == {**moved, "ResponseMetadata": 0}
    plain = client.update_alias(FunctionName="fn", Name="live", RoutingConfig={})
    assert "RoutingConfig" not in plain
    assert (plain["FunctionVersion"], plain["Description"]) == ("2", "now two")
    answer = client.invoke(FunctionName=ARN + ":live", Payload=b"1")
    assert answer["ExecutedVersion"] == "2"
    for _ in range(2):  # one that is not there is no mistake
        gone = client.delete_alias(FunctionName="fn", Name="live")
        assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert api.refusal("invoke", FunctionName="fn", Qualifier="live") == (
        404,
        MISSING,
        f"Function not found: {ARN}:live",
    )


def test_aliases_are_listed_by_name_and_version(api: Api) -> None:
    client = api.client
    for name, version in (("c", "1"), ("a", "2"), ("b", "1"), ("latest", "$LATEST")):
        client.create_alias(FunctionName="fn", Name=name, FunctionVersion=version)
    pages = client.get_paginator("list_aliases").paginate(
        FunctionName="fn", PaginationConfig={"PageSize": 3}
    )
    assert [[one["Name"] for one in page["Aliases"]] for page in pages] == [
        ["a", "b", "c"],
        ["latest"],
    ]
    ones = client.list_aliases(FunctionName="fn", FunctionVersion="1")["Aliases"]
    assert [one["Name"] for one in ones] == ["b", "c"]
    assert client.invoke(FunctionName="fn", Qualifier="latest")["ExecutedVersion"] == "$LATEST"


def test_weights_are_kept_fairly(api: Api) -> None:
    """10,000 draws at 0.3: within four standard deviations, which one run in 16,000 is not."""
    api.client.create_alias(
        FunctionName="fn",
        Name="canary",
        FunctionVersion="1",
        RoutingConfig={"AdditionalVersionWeights": {"2": 0.3}},
    )
    functions, draws = api.behind.functions, 10_000
    functions._draw = random.Random(20261121).random
    drawn = Counter(functions.resolve("fn", "canary").version for _ in range(draws))
    assert set(drawn) == {"1", "2"}
    assert abs(drawn["2"] - 0.3 * draws) < 4 * math.sqrt(draws * 0.3 * 0.7), drawn


@pytest.mark.parametrize(("weight", "version"), [(0.0, "1"), (1.0, "2")])
def test_all_or_nothing(api: Api, weight: float, version: str) -> None:
    api.client.create_alias(
        FunctionName="fn",
        Name="canary",
        FunctionVersion="1",
        RoutingConfig={"AdditionalVersionWeights": {"2": weight}},
    )
    drawn = {api.behind.functions.resolve("fn", "canary").version for _ in range(100)}
    assert drawn == {version}


ROUTING = "1 validation error detected: Value '{%s}' at 'routingConfig.additionalVersionWeights' failed to satisfy "
VALUE = (
    "constraint: Map value must satisfy constraint: [Member must have value less than or equal to 1.0, Member must "
    "have value greater than or equal to 0.0, Member must not be null]"
)
NAMED = (
    "1 validation error detected: Value '%s' at 'name' failed to satisfy constraint: Member must satisfy regular "
    "expression pattern: (?!^[0-9]+$)([a-zA-Z0-9-_]+)"
)


def weights(**given: float) -> dict[str, dict[str, float]]:
    return {"AdditionalVersionWeights": {key.strip("v"): value for key, value in given.items()}}


@pytest.mark.parametrize(
    ("operation", "given", "answer"),
    [
        (
            "create_alias",
            {"RoutingConfig": weights(v2=0.1, v3=0.1)},
            (400, INVALID, "Number of items in AdditionalVersionWeights cannot be greater than 1"),
        ),
        (
            "create_alias",
            {"RoutingConfig": weights(v2=2.0)},
            (400, "ValidationException", ROUTING % "2=2.0" + VALUE),
        ),
        (
            "create_alias",
            {"RoutingConfig": weights(v2=-1.0)},
            (400, "ValidationException", ROUTING % "2=-1.0" + VALUE),
        ),
        (
            "create_alias",
            {"RoutingConfig": weights(v1=0.5)},
            (
                400,
                INVALID,
                "Invalid function version 1. Function version 1 is already included in routing configuration.",
            ),
        ),
        (
            "create_alias",
            {"FunctionVersion": "10"},
            (404, MISSING, f"Function not found: {ARN}:10"),
        ),
        (
            "create_alias",
            {"RoutingConfig": weights(v10=0.5)},
            (404, MISSING, f"Function not found: {ARN}:10"),
        ),
        (
            "create_alias",
            {"FunctionVersion": "$LATEST", "RoutingConfig": weights(v1=0.5)},
            (400, INVALID, "$LATEST is not supported for an alias pointing to more than 1 version"),
        ),
        (
            "create_alias",
            {"RoutingConfig": {"AdditionalVersionWeights": {"$LATEST": 0.5}}},
            (
                400,
                "ValidationException",
                ROUTING
                % "$LATEST=0.5"
                + "constraint: Map keys must satisfy constraint: [Member must have length "
                "less than or equal to 1024, Member must have length greater than or equal to 1, Member must "
                "satisfy regular expression pattern: [0-9]+]",
            ),
        ),
        (
            "create_alias",
            {"FunctionName": "none"},
            (404, MISSING, f"Function not found: {ARN.removesuffix('fn')}none:1"),
        ),
        (
            "create_alias",
            {"Name": "live"},
            (409, "ResourceConflictException", f"Alias already exists: {ARN}:live"),
        ),
        ("create_alias", {"Name": "2024"}, (400, "ValidationException", NAMED % "2024")),
        ("get_alias", {"Name": "none"}, (404, MISSING, f"Cannot find alias arn: {ARN}:none")),
        ("update_alias", {"Name": "none"}, (404, MISSING, f"Alias not found: {ARN}:none")),
        (
            "update_alias",
            {"Name": "live", "RevisionId": "old"},
            (
                412,
                "PreconditionFailedException",
                "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias "
                "API to retrieve the latest Revision Id",
            ),
        ),
        (
            "update_alias",
            {"Name": "live", "FunctionVersion": "7"},
            (404, MISSING, f"Function not found: {ARN}:7"),
        ),
        (
            "list_aliases",
            {"FunctionName": "none"},
            (404, MISSING, f"Function not found: {ARN.removesuffix('fn')}none"),
        ),
    ],
)
def test_what_is_refused_changes_nothing(
    still: Api, operation: str, given: dict[str, object], answer: tuple[int, str, str]
) -> None:
    before = still.kept()
    asked = {"FunctionName": "fn", "Name": "made", "FunctionVersion": "1", **given}
    if operation == "get_alias":
        asked.pop("FunctionVersion")
    if operation == "list_aliases":
        asked.pop("Name")
    assert still.refusal(operation, **asked) == answer
    assert still.kept() == before
