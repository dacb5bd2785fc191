"""sandbox.registry.eventinvoke: what may be configured of events through the API, in AWS's words, and what it means."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.errors import InvalidRequest
from sandbox.eventconfig import EventConfig, parse_target
from sandbox.registry.eventinvoke import (
    check_config,
    check_dead_letter,
    check_destinations,
    document_of,
    event_config,
)
from sandbox.registry.records import AliasRecord, Code, FunctionRecord, VersionRecord

PREFIX = "arn:aws:lambda:us-east-1:123456789012:function"
QUEUE = "arn:aws:sqs:us-east-1:123456789012:q"
DEAD = "arn:aws:sns:us-east-1:123456789012:dead"


def check(config: dict[str, Any]) -> None:
    check_destinations(
        config,
        name="mine",
        region="us-east-1",
        account="123456789012",
        exists=lambda name, qualifier: name in ("mine", "other") and qualifier in (None, "1"),
    )


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check(config)
    assert caught.value.code == "InvalidParameterValueException"
    return caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        QUEUE,
        DEAD,
        "arn:aws:events:us-east-1:123456789012:event-bus/b",
        f"{PREFIX}:other",
        f"{PREFIX}:other:1",
        "https://example.com/hook",
    ],
)
def test_destinations_of_both_kinds(text: str) -> None:
    check({"OnSuccess": {"Destination": text}, "OnFailure": {"Destination": text}})


@pytest.mark.parametrize(
    "config", [{}, {"OnSuccess": {}}, {"OnFailure": {}}, {"OnFailure": {"Destination": ""}}]
)
def test_no_destination_is_none(config: dict[str, Any]) -> None:
    check(config)


def test_a_bucket_is_told_of_failures_alone() -> None:
    bucket = {"Destination": "arn:aws:s3:::b"}
    check({"OnFailure": bucket})
    assert refusal({"OnSuccess": bucket}) == (
        "The provided destination config DestinationConfig(onSuccess=OnSuccess(destination=arn:aws:s3:::b), "
        "onFailure=null) is invalid."
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"OnSuccess": {"Destination": f"{PREFIX}:mine"}},
            "You can't specify the function as a destination for itself.",
        ),
        (
            {"OnFailure": {"Destination": f"{PREFIX}:mine:1"}},
            "You can't specify the function as a destination for itself.",
        ),
        (
            {"OnSuccess": {"Destination": f"{PREFIX}:doesnotexist"}},
            f"The destination ARN {PREFIX}:doesnotexist is invalid.",
        ),
        (
            {"OnSuccess": {"Destination": f"{PREFIX}:other:7"}},
            f"The destination ARN {PREFIX}:other:7 is invalid.",
        ),
        (
            {"OnFailure": {"Destination": f"{PREFIX.replace('east', 'west')}:other"}},
            "The destination ARN arn:aws:lambda:us-west-1:123456789012:function:other is invalid.",
        ),
        (
            {"OnSuccess": {"Destination": f"{PREFIX.replace(':lambda:', ':iam:')}:mine"}},
            "The provided destination config DestinationConfig(onSuccess=OnSuccess(destination="
            "arn:aws:iam:us-east-1:123456789012:function:mine), onFailure=null) is invalid.",
        ),
        (
            {"OnSuccess": {"Destination": QUEUE}, "OnFailure": {"Destination": "kafka://topic"}},
            f"The provided destination config DestinationConfig(onSuccess=OnSuccess(destination={QUEUE}), "
            "onFailure=OnFailure(destination=kafka://topic)) is invalid.",
        ),
    ],
)
def test_what_is_no_destination_is_refused_as_recorded(
    config: dict[str, Any], message: str
) -> None:
    assert refusal(config) == message


def test_something_has_to_be_configured() -> None:
    for given in ({"MaximumRetryAttempts": 0}, {"DestinationConfig": {}}):
        check_config(given)
    with pytest.raises(InvalidRequest, match="You must specify at least one of error handling or"):
        check_config({"FunctionName": "f"})


def test_dead_letters_go_to_queues_topics_functions_and_addresses() -> None:
    for text in (QUEUE, DEAD, f"{PREFIX}:other", "http://127.0.0.1/", "", None):
        check_dead_letter({"TargetArn": text}, name="mine")
    check_dead_letter({}, name="mine")
    for text in ("arn:aws:s3:::b", "arn:aws:iam::123456789012:role/r", f"{PREFIX}:mine"):
        with pytest.raises(InvalidRequest):
            check_dead_letter({"TargetArn": text}, name="mine")


# --- what it means


def version(number: str, dead_letter: str | None = None) -> VersionRecord:
    config = {"DeadLetterConfig": {"TargetArn": dead_letter}} if dead_letter is not None else {}
    code = Code(tree="", sha256="", size=0)
    return VersionRecord(
        version=number, config=config, code=code, identity="", last_modified="", revision_id=""
    )


def record(**changes: Any) -> FunctionRecord:
    values: dict[str, Any] = {"name": "f", "birth": "1", "latest": version("$LATEST", DEAD)}
    return FunctionRecord(**{**values, **changes})


DOCUMENT = {
    "MaximumRetryAttempts": 0,
    "MaximumEventAgeInSeconds": 60,
    "DestinationConfig": {"OnSuccess": {}, "OnFailure": {"Destination": QUEUE}},
}


def test_each_qualifier_has_its_own_and_each_version_its_dead_letters() -> None:
    found = record(
        versions={"1": version("1"), "2": version("2", QUEUE)},
        aliases={
            "live": AliasRecord(
                name="live", version="2", description="", weights={}, revision_id=""
            )
        },
        attached={"event_invoke": {"live": DOCUMENT}},
    )
    assert event_config(found, None, None) == EventConfig(dead_letter=parse_target(DEAD))
    assert event_config(found, None, "1") == EventConfig()
    assert event_config(found, None, "live") == EventConfig(
        0, 60, None, parse_target(QUEUE), parse_target(QUEUE)
    )


def test_an_empty_dead_letter_config_is_none() -> None:
    assert event_config(record(latest=version("$LATEST", "")), None, "$LATEST") == EventConfig()


@pytest.mark.parametrize(("said", "allowed"), [("Allow", True), ("Terminate", False)])
def test_the_functions_recursion_config_counts_for_all_of_it(said: str, allowed: bool) -> None:
    attached = {"recursion": {"$LATEST": {"RecursiveLoop": said}}}
    found = record(attached=attached, versions={"1": version("1")})
    for qualifier in (None, "$LATEST", "1"):
        assert event_config(found, None, qualifier).allows_recursion is allowed


def test_a_folders_settings_count_until_something_is_put() -> None:
    folder = EventConfig(
        retries=1,
        on_success=parse_target("other"),
        dead_letter=parse_target(DEAD),
        allows_recursion=True,
    )
    plain = record(latest=None, versions={"1": version("1")})
    assert event_config(plain, folder, None) == folder
    assert event_config(plain, folder, "1") == EventConfig(allows_recursion=True)
    put = record(latest=None, attached={"event_invoke": {"$LATEST": DOCUMENT}})
    assert event_config(put, folder, "$LATEST") == EventConfig(
        0, 60, None, parse_target(QUEUE), parse_target(DEAD), True
    )


def test_a_folders_settings_as_the_api_shows_them() -> None:
    assert document_of(EventConfig(dead_letter=parse_target(DEAD)), str) is None
    config = EventConfig(1, 60.0, parse_target("other"), parse_target(QUEUE))
    assert document_of(config, lambda target: f"{PREFIX}:{target.name}") == {
        "MaximumRetryAttempts": 1,
        "MaximumEventAgeInSeconds": 60,
        "DestinationConfig": {
            "OnSuccess": {"Destination": f"{PREFIX}:other"},
            "OnFailure": {"Destination": QUEUE},
        },
    }
