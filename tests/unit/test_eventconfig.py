"""sandbox.eventconfig: what can be a destination, and what it is then."""

from __future__ import annotations

import pytest

from sandbox.eventconfig import BadTarget, Target, parse_target

QUEUE = "arn:aws:sqs:eu-west-1:000000000000:dead-letters"
BUS = "arn:aws:events:us-east-1:123456789012:event-bus/orders"
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:audit"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (QUEUE, Target("sqs", QUEUE, "dead-letters", None, "eu-west-1", "000000000000")),
        (
            "arn:aws-cn:sns:cn-north-1:000000000000:t",
            Target(
                "sns",
                "arn:aws-cn:sns:cn-north-1:000000000000:t",
                "t",
                None,
                "cn-north-1",
                "000000000000",
            ),
        ),
        (BUS, Target("events", BUS, "orders", None, "us-east-1", "123456789012")),
        ("arn:aws:s3:::failures", Target("s3", "arn:aws:s3:::failures", "failures")),
        (FUNCTION, Target("function", FUNCTION, "audit", None, "us-east-1", "123456789012")),
        (
            f"{FUNCTION}:live",
            Target("function", f"{FUNCTION}:live", "audit", "live", "us-east-1", "123456789012"),
        ),
        ("audit", Target("function", "audit", "audit")),
        ("audit:$LATEST", Target("function", "audit:$LATEST", "audit", "$LATEST")),
        (
            "123456789012:function:audit:7",
            Target("function", "123456789012:function:audit:7", "audit", "7", "", "123456789012"),
        ),
        ("http://127.0.0.1:8080/in?a=b", Target("http", "http://127.0.0.1:8080/in?a=b")),
        ("https://[::1]/", Target("http", "https://[::1]/")),
    ],
)
def test_targets_are_told_apart(text: str, expected: Target) -> None:
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    ("text", "must"),
    [
        ("", "must be the name or ARN of a function"),
        ("a b", "must be the name or ARN of a function"),
        ("ftp://host/", "must be the name or ARN of a function"),
        ("kafka://topic", "must be the name or ARN of a function"),
        ("arn:aws:iam:us-east-1:123456789012:role/x", "must be the name or ARN of a function"),
        ("arn:aws:sqs:us-east-1::q", "must name region and account"),
        ("arn:aws:events:us-east-1:123456789012:rule/x", "must be the ARN of an event bus"),
        ("arn:aws:s3:::bucket/key", "must be the ARN of a bucket"),
        ("http://", "must be an address such as"),
        ("https://user:secret@host/", "must be an address such as"),
        ("https://host:99999/", "must be an address such as"),
        ("https://host/#there", "must be an address such as"),
        ("https://höst/", "must be an address such as"),
        ("https://host/a\r\nHost: b", "must be an address such as"),
        ("https://" + "h" * 350, "must be no longer than 350 characters"),
    ],
)
def test_what_is_no_target_is_told_what_it_must_be(text: str, must: str) -> None:
    with pytest.raises(BadTarget, match=must):
        parse_target(text)
