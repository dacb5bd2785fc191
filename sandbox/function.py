"""Owns what a function version is once it has been read and checked: a frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from sandbox.eventconfig import NOTHING, EventConfig
from sandbox.functionurl import UrlConfig
from sandbox.schedules import Schedule

LATEST = "$LATEST"
Network = Literal["none", "nat", "host"]
LogFormat = Literal["Text", "JSON"]


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """One version of one function. Two values with the same `revision` run the same thing."""

    name: str
    runtime: str
    """AWS's identifier: python3.11, nodejs20.x, provided.al2023 ..."""
    handler: str
    code: Path
    """The folder that is /var/task inside."""
    revision: str
    """Changes whenever code, layers or configuration change that a running environment would see."""
    version: str = LATEST
    layers: tuple[Path, ...] = ()
    """Folders, in AWS's order (a later one overwrites an earlier one in /opt)."""
    extensions: tuple[str, ...] = ()
    """Names of the external extensions in the layers (`rootfs.extensions`), in the order of their launch."""
    timeout_s: int = 15
    memory_mb: int = 128
    ephemeral_storage_mb: int = 512
    idle_timeout_s: float = 30.0
    reserved_concurrency: int | None = None
    provisioned_concurrency: int = 0
    """Environments that are initialised ahead of any invocation, and stay."""
    warm: tuple[Schedule, ...] = ()
    """When keep-warm pings are sent."""
    schedule: tuple[Schedule, ...] = ()
    """When it is sent an Event, as by EventBridge rules."""
    waits_for_ping: bool = False
    """An idle environment waits for the next ping, and only then for `idle_timeout_s`."""
    network: Network = "none"
    freeze: bool = True
    description: str = ""
    events: EventConfig = NOTHING
    """Of its asynchronous invocations, as its folder has it."""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    log_format: LogFormat = "Text"
    application_log_level: str | None = None
    """With JSON: TRACE, DEBUG, INFO, WARN, ERROR or FATAL (None: INFO); with Text nothing is filtered."""
    system_log_level: str | None = None
    """With JSON: DEBUG, INFO or WARN (None: INFO)."""
    log_group: str | None = None
    """None: AWS's own, `/aws/lambda/NAME`."""
    url: UrlConfig | None = None
    """What its function.toml says of a function URL."""

    def arn(self, region: str, account: str) -> str:
        """The unqualified ARN."""
        return f"arn:aws:lambda:{region}:{account}:function:{self.name}"

    def qualified_arn(self, region: str, account: str) -> str:
        """With the number of a published version; $LATEST's is the unqualified one."""
        number = "" if self.version == LATEST else f":{self.version}"
        return self.arn(region, account) + number


@dataclass(frozen=True, slots=True)
class BrokenFunction:
    """A function folder that cannot be a function as it stands; `problem` names file, key, value, mend."""

    name: str
    code: Path
    problem: str
