"""Owns what is configured of a function's asynchronous invocations: how often, how long, and where to afterwards.

Pure values. A target is an ARN of AWS's (SQS, SNS, EventBridge, S3, another function) or, lambox's own, an
HTTP address; functions may be named without an ARN, as Invoke takes them (SPEC 10.3).

    BadTarget           what a target must be instead
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["function", "sqs", "sns", "events", "s3", "http"]

RETRIES = 2
"""MaximumRetryAttempts where nothing is configured (SPEC 8.1)."""
MAX_AGE_S = 6 * 3600
"""MaximumEventAgeInSeconds, the same."""
MIN_AGE_S = 60
MOST_HOPS = 16
"""Times that one event may go on from function to function (SPEC 7)."""
MAX_TARGET = 350
"""Characters (AWS's DestinationArn)."""

_FUNCTION = re.compile(
    r"(?:arn:aws[a-zA-Z-]*:lambda:)?"
    r"(?:(?P<region>(?:eusc-)?[a-z]{2}(?:-[a-z]+)+-\d):)?"
    r"(?:(?P<account>\d{12}):)?"
    r"(?:function:)?"
    r"(?P<name>[a-zA-Z0-9-_]{1,64})(?::(?P<qualifier>\$LATEST|[a-zA-Z0-9-_]{1,128}))?"
)
_ARN = re.compile(
    r"arn:aws[a-zA-Z0-9-]*:(?P<service>sqs|sns|events|s3):"
    r"(?P<region>[a-z0-9-]*):(?P<account>\d{12})?:(?P<name>[^\s:]+)"
)
_BUS = "event-bus/"


class BadTarget(ValueError):
    """What a target must be instead."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a record of an invocation goes."""

    kind: Kind
    text: str
    """As it was configured: an ARN, an address, a function's name."""
    name: str = ""
    """Of the function, queue, topic, bus or bucket."""
    qualifier: str | None = None
    """Of a function."""
    region: str = ""
    """Empty: not in the text."""
    account: str = ""


@dataclass(frozen=True, slots=True)
class EventConfig:
    """EventInvokeConfig of one qualifier, DeadLetterConfig of its version, RecursionConfig of the function."""

    retries: int | None = None
    """MaximumRetryAttempts: after errors of the function itself. None: 2."""
    max_age_s: float | None = None
    """MaximumEventAgeInSeconds. None: six hours, and one attempt however old an event is by then."""
    on_success: Target | None = None
    on_failure: Target | None = None
    dead_letter: Target | None = None
    allows_recursion: bool = False
    """RecursiveLoop is Allow."""

    @property
    def most_retries(self) -> int:
        return RETRIES if self.retries is None else self.retries

    @property
    def most_age_s(self) -> float:
        return MAX_AGE_S if self.max_age_s is None else self.max_age_s


NOTHING = EventConfig()


def parse_target(text: str) -> Target:
    """Raises BadTarget. Whether it exists is not asked."""
    if len(text) > MAX_TARGET:
        raise BadTarget(f"must be no longer than {MAX_TARGET} characters")
    if re.match(r"https?:", text):
        return _endpoint(text)
    if found := _ARN.fullmatch(text):
        return _resource(text, found)
    if found := _FUNCTION.fullmatch(text):
        region, account = found["region"] or "", found["account"] or ""
        return Target("function", text, found["name"], found["qualifier"], region, account)
    raise BadTarget(
        "must be the name or ARN of a function, the ARN of an SQS queue, SNS topic, EventBridge event bus or "
        "S3 bucket, or an address that begins with http:// or https://"
    )


def _resource(text: str, found: re.Match[str]) -> Target:
    service, name = found["service"], found["name"]
    if service == "s3":
        if "/" in name:
            raise BadTarget("must be the ARN of a bucket, such as arn:aws:s3:::failures")
        return Target("s3", text, name)
    if not found["region"] or not found["account"]:
        raise BadTarget(
            f"must name region and account, such as arn:aws:{service}:us-east-1:123456789012:NAME"
        )
    if service == "events":
        if not name.startswith(_BUS):
            raise BadTarget("must be the ARN of an event bus: arn:aws:events:...:event-bus/NAME")
        name = name.removeprefix(_BUS)
    kind: Kind = "sqs" if service == "sqs" else "sns" if service == "sns" else "events"
    return Target(kind, text, name, None, found["region"], found["account"] or "")


def _endpoint(text: str) -> Target:
    try:
        parts = urlsplit(text)
        well = bool(parts.hostname) and (parts.port or 1) > 0 and text.isascii()
    except ValueError:  # no port, half an IPv6 address
        well = False
    if not well or parts.username or parts.fragment or re.search(r"[\x00-\x20\x7f]", text):
        raise BadTarget("must be an address such as https://host:8443/path, without user and #")
    return Target("http", text)
