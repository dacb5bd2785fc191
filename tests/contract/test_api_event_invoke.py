"""EventInvokeConfig through the Lambda API, as boto3 sees it (SPEC 8.1, 8.2, 10.5): one server, recorded answers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from sandbox.eventconfig import EventConfig, parse_target
from tests.contract.lambda_api import Api, serving
from tests.contract.versioned import add_alias, add_version

ARN = "arn:aws:lambda:us-east-1:123456789012:function"
QUEUE = "arn:aws:sqs:us-east-1:123456789012:q"
TOPIC = "arn:aws:sns:us-east-1:123456789012:dead"
PATTERN = (
    r"$|kafka://([^.]([a-zA-Z0-9\-_.]{0,248}))|arn:(aws[a-zA-Z0-9-]*):([a-zA-Z0-9\-])+:"
    r"((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1})?:(\d{12})?:(.*)"
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("api")) as api:
        for name in ("fn", "other"):
            api.create(name)
        add_version(api, "fn")
        add_alias(api, "fn", "live", "1")
        yield api


@pytest.fixture
def fn(api: Api) -> Iterator[str]:
    """A function with nothing configured; nothing is when the test ends."""
    yield "fn"
    for found in listed(api):
        api.client.delete_function_event_invoke_config(FunctionName=found["FunctionArn"])


def listed(api: Api, **how: Any) -> list[dict[str, Any]]:
    answer = api.client.list_function_event_invoke_configs(FunctionName="fn", **how)
    return list(answer["FunctionEventInvokeConfigs"])


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what changes; LastModified is now."""
    answer = {key: value for key, value in answer.items() if key != "ResponseMetadata"}
    assert abs(answer.pop("LastModified") - datetime.now(UTC)).total_seconds() < 30
    return answer


def test_put_replaces_and_update_keeps(api: Api, fn: str) -> None:
    put, update = (
        api.client.put_function_event_invoke_config,
        api.client.update_function_event_invoke_config,
    )
    empty = {"OnSuccess": {}, "OnFailure": {}}
    base = {"FunctionArn": f"{ARN}:fn:$LATEST", "DestinationConfig": empty}
    first = plain(put(FunctionName=fn, MaximumRetryAttempts=0))
    assert first == {**base, "MaximumRetryAttempts": 0}
    assert plain(put(FunctionName=fn, MaximumEventAgeInSeconds=60)) == {
        **base,
        "MaximumEventAgeInSeconds": 60,
    }
    both = {**base, "MaximumEventAgeInSeconds": 60, "MaximumRetryAttempts": 1}
    assert plain(update(FunctionName=fn, MaximumRetryAttempts=1)) == both
    for qualifier in ({}, {"Qualifier": "$LATEST"}):
        found = api.client.get_function_event_invoke_config(FunctionName=fn, **qualifier)
        assert plain(found) == both
    told = {"OnSuccess": {"Destination": f"{ARN}:other"}, "OnFailure": {"Destination": QUEUE}}
    assert plain(update(FunctionName=fn, DestinationConfig=told)) == {
        **both,
        "DestinationConfig": told,
    }
    assert plain(put(FunctionName=fn, DestinationConfig={"OnSuccess": {}})) == base


def test_each_version_and_alias_has_its_own(api: Api, fn: str) -> None:
    put = api.client.put_function_event_invoke_config
    for name, qualifier in (
        (fn, None),
        (f"{fn}:1", None),
        (fn, "live"),
        (f"{ARN}:fn:live", "live"),
    ):
        given = {"Qualifier": qualifier} if qualifier else {}
        answer = put(FunctionName=name, MaximumRetryAttempts=1, **given)
    assert answer["FunctionArn"] == f"{ARN}:fn:live"
    arns = [f"{ARN}:fn:{qualifier}" for qualifier in ("$LATEST", "1", "live")]
    assert [one["FunctionArn"] for one in listed(api)] == arns
    first = api.client.list_function_event_invoke_configs(FunctionName=fn, MaxItems=2)
    rest = listed(api, MaxItems=2, Marker=first["NextMarker"])
    assert [one["FunctionArn"] for one in rest] == arns[2:]
    gone = api.client.delete_function_event_invoke_config(FunctionName=fn, Qualifier="1")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert [one["FunctionArn"] for one in listed(api)] == [arns[0], arns[2]]


def none(of: str) -> str:
    return f"The function {ARN}:{of} doesn't have an EventInvokeConfig"


@pytest.mark.parametrize(
    ("operation", "given", "expected"),
    [
        ("put", {"FunctionName": "missing", "MaximumRetryAttempts": 1}, "The function doesn't exist."),
        ("update", {"FunctionName": "missing", "MaximumRetryAttempts": 1}, "The function doesn't exist."),
        ("put", {"Qualifier": "none", "MaximumRetryAttempts": 1}, "The function doesn't exist."),
        ("list", {"FunctionName": "missing"}, "The function doesn't exist."),
        ("get", {}, none("fn:$LATEST")),
        ("get", {"FunctionName": "missing"}, none("missing:$LATEST")),
        ("get", {"Qualifier": "none"}, none("fn:none")),
        ("delete", {}, none("fn:$LATEST")),
        ("delete", {"FunctionName": "missing"}, none("missing:$LATEST")),
        ("update", {"FunctionName": f"{ARN}:fn:live", "MaximumRetryAttempts": 0},
         none("fn:live")),
    ],
)  # fmt: skip
def test_what_is_not_there_is_told_as_recorded(
    api: Api, fn: str, operation: str, given: dict[str, Any], expected: str
) -> None:
    plural = "s" if operation == "list" else ""
    name = f"{operation}_function_event_invoke_config{plural}"
    found = api.refusal(name, **{"FunctionName": fn, **given})
    assert found == (404, "ResourceNotFoundException", expected)


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"FunctionName": "missing"}, "InvalidParameterValueException",
         "You must specify at least one of error handling or destination setting."),
        ({"Qualifier": "live", "FunctionName": "fn:1", "MaximumRetryAttempts": 1}, "InvalidParameterValueException",
         "The derived qualifier from the function name does not match the specified qualifier."),
        ({"DestinationConfig": {"OnSuccess": {"Destination": f"{ARN}:fn"}}}, "InvalidParameterValueException",
         "You can't specify the function as a destination for itself."),
        ({"DestinationConfig": {"OnSuccess": {"Destination": f"{ARN}:no"}}}, "InvalidParameterValueException",
         f"The destination ARN {ARN}:no is invalid."),
        ({"DestinationConfig": {"OnSuccess": {"Destination": f"{ARN}:other:7"}}}, "InvalidParameterValueException",
         f"The destination ARN {ARN}:other:7 is invalid."),
        ({"DestinationConfig": {"OnFailure": {"Destination": "arn:aws:_-/!lambda:us-east-1:123456789012:function:fn"}}},
         "ValidationException",
         "1 validation error detected: Value 'arn:aws:_-/!lambda:us-east-1:123456789012:function:fn' at "
         "'destinationConfig.onFailure.destination' failed to satisfy constraint: Member must satisfy regular "
         f"expression pattern: {PATTERN}"),
        ({"MaximumRetryAttempts": 3}, "ValidationException",
         "1 validation error detected: Value '3' at 'maximumRetryAttempts' failed to satisfy constraint: "
         "Member must have value less than or equal to 2"),
        ({"MaximumEventAgeInSeconds": 59}, "ValidationException",
         "1 validation error detected: Value '59' at 'maximumEventAgeInSeconds' failed to satisfy constraint: "
         "Member must have value greater than or equal to 60"),
    ],
)  # fmt: skip
def test_bad_input_changes_nothing(
    api: Api, fn: str, given: dict[str, Any], code: str, message: str
) -> None:
    for operation in ("put_function_event_invoke_config", "update_function_event_invoke_config"):
        if operation[0] == "u":
            api.client.put_function_event_invoke_config(FunctionName=fn, MaximumRetryAttempts=2)
        assert api.refusal(operation, **{"FunctionName": fn, **given}) == (400, code, message)
    (kept,) = listed(api)
    assert kept["MaximumRetryAttempts"] == 2


def test_what_is_configured_counts(api: Api, fn: str) -> None:
    """An HTTP address is lambox's own; DeadLetterConfig is the version's."""
    api.client.put_function_event_invoke_config(
        FunctionName=fn,
        Qualifier="live",
        MaximumRetryAttempts=0,
        DestinationConfig={"OnFailure": {"Destination": "https://example.com/hook"}},
    )
    api.create("dead", DeadLetterConfig={"TargetArn": TOPIC})
    functions = api.behind.functions
    assert functions.event_config("fn", "live") == EventConfig(
        retries=0, on_failure=parse_target("https://example.com/hook")
    )
    assert functions.event_config("fn", None) == EventConfig()
    assert functions.event_config("dead", None).dead_letter == parse_target(TOPIC)
    code, message = api.refusal(
        "create_function",
        FunctionName="bad",
        Runtime="python3.11",
        Handler="index.handler",
        Role="arn:aws:iam::123456789012:role/r",
        Code={"ZipFile": b"x"},
        DeadLetterConfig={"TargetArn": "arn:aws:s3:::b"},
    )[1:]
    assert (code, message) == (
        "InvalidParameterValueException",
        "Invalid dead letter ARN: must be of an SQS queue or SNS topic: arn:aws:s3:::b",
    )


def test_a_folders_own_settings_are_shown_and_can_be_replaced(api: Api) -> None:
    folder = api.functions / "folder"
    folder.mkdir()
    (folder / "handler.py").write_text("def handler(event, context): ...\n")
    (folder / "function.toml").write_text(
        "maximum_retry_attempts = 1\non_success = 'other'\n"
        f"dead_letter = '{TOPIC}'\nrecursive_loop = 'Allow'\n"
    )
    ask = {"FunctionName": "folder"}
    found = api.client.get_function_event_invoke_config(**ask)
    assert found["DestinationConfig"] == {
        "OnSuccess": {"Destination": f"{ARN}:other"},
        "OnFailure": {},
    }
    assert api.client.get_function_recursion_config(**ask)["RecursiveLoop"] == "Allow"
    shown = api.client.get_function_configuration(**ask)
    assert shown["DeadLetterConfig"] == {"TargetArn": TOPIC}
    status, code, message = api.refusal("delete_function_event_invoke_config", **ask)
    assert (status, code) == (409, "ResourceConflictException")
    assert message == "The EventInvokeConfig of folder is in its function.toml."
    api.client.update_function_event_invoke_config(**ask, MaximumEventAgeInSeconds=60)
    assert api.behind.functions.event_config("folder", None) == EventConfig(
        1, 60, parse_target(f"{ARN}:other"), None, parse_target(TOPIC), True
    )
    api.client.put_function_event_invoke_config(**ask, MaximumRetryAttempts=0)
    api.client.put_function_recursion_config(**ask, RecursiveLoop="Terminate")
    assert api.behind.functions.event_config("folder", None) == EventConfig(
        0, dead_letter=parse_target(TOPIC)
    )
    # A version that is published keeps its dead letters, and has its own EventInvokeConfig.
    api.client.publish_version(**ask)
    assert api.behind.functions.event_config("folder", "1") == EventConfig(
        dead_letter=parse_target(TOPIC)
    )
    api.client.delete_function_event_invoke_config(**ask)
    assert api.behind.functions.event_config("folder", None).retries == 1
