"""Owns the settings that say where AWS's services are: SQS, SNS, EventBridge and S3.

botocore's own variables are the defaults (AWS_ENDPOINT_URL_SQS, AWS_ENDPOINT_URL...), as whoever runs
LocalStack, moto or ElasticMQ has them set already.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from lambox.setting import Default, Setting
from sandbox.checks import Wrong


def _endpoint(value: Any) -> str:
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        well = False
    if not well or re.search(r"[\s?#]", value):
        raise Wrong('must be an address, such as "http://127.0.0.1:4566"')
    return str(value)


def _from(variable: str) -> Default:
    def default(environ: Mapping[str, str]) -> str | None:
        ignored = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        return None if ignored else environ.get(variable) or None

    return default


def _of(service: str, name: str, variable: str) -> Setting:
    return Setting(
        name,
        _endpoint,
        _from(variable),
        "an http(s) address",
        f"where {service} is, if not at `aws_endpoint`",
        f"`{variable}` of the environment",
        True,
    )


AWS_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "aws_endpoint",
        _endpoint,
        _from("AWS_ENDPOINT_URL"),
        "an http(s) address",
        "where SQS, SNS, EventBridge and S3 are; without it nothing is sent to them",
        "`AWS_ENDPOINT_URL` of the environment",
        True,
    ),
    _of("SQS", "endpoint_sqs", "AWS_ENDPOINT_URL_SQS"),
    _of("SNS", "endpoint_sns", "AWS_ENDPOINT_URL_SNS"),
    _of("EventBridge", "endpoint_eventbridge", "AWS_ENDPOINT_URL_EVENTBRIDGE"),
    _of("S3", "endpoint_s3", "AWS_ENDPOINT_URL_S3"),
)


def is_server(endpoint: str, host: str, port: int) -> bool:
    """Whether an endpoint is a server that listens on `host` (an IP address) and `port`."""
    parts = urlsplit(endpoint)
    try:
        if (parts.port or (443 if parts.scheme == "https" else 80)) != port:
            return False
        name = parts.hostname or ""
        address = ipaddress.ip_address("127.0.0.1" if name == "localhost" else name)
    except ValueError:  # no port, a name
        return False
    listens = ipaddress.ip_address(host)
    return address == listens or (listens.is_unspecified and address.is_loopback)
