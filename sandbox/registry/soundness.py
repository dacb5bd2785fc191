"""Owns whether a record that was read from disk is one that lambox can work with.

Records are written by operations that have checked everything; what is on disk may all the same come from another
lambox, or from an editor. Nothing behind `Registry.load` looks at types again, and what stumbled there would take
the server along.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Required, TypedDict

from sandbox.registry.records import (
    LATEST,
    FunctionRecord,
    LayerRecord,
    MappingRecord,
    Record,
    VersionRecord,
    packages,
)

PACKAGE = re.compile(r"[0-9A-Za-z_-]+")
"""A name in the code store: of nothing above it or below."""


class _Size(TypedDict):
    Size: int


class _Variables(TypedDict, total=False):
    Variables: dict[str, str]


class _Layer(TypedDict):
    tree: str


class _Config(TypedDict, total=False):
    Runtime: Required[str]
    Timeout: Required[int]
    MemorySize: Required[int]
    EphemeralStorage: Required[_Size]
    Handler: str
    Description: str
    Environment: _Variables
    LoggingConfig: dict[str, str]
    Layers: list[_Layer]
    DeadLetterConfig: dict[str, str]


class _Here(TypedDict, total=False):
    network: str
    idle_timeout_s: float
    freeze: bool
    opt: str


class _Cors(TypedDict, total=False):
    AllowOrigins: list[str]
    AllowMethods: list[str]
    AllowHeaders: list[str]
    ExposeHeaders: list[str]
    AllowCredentials: bool
    MaxAge: int


class _Url(TypedDict, total=False):
    UrlId: Required[str]
    AuthType: Required[str]
    InvokeMode: str
    Cors: _Cors | None


class _Provisioned(TypedDict):
    RequestedProvisionedConcurrentExecutions: int


class _EventInvoke(TypedDict, total=False):
    MaximumRetryAttempts: int | None
    MaximumEventAgeInSeconds: int | None
    DestinationConfig: dict[str, dict[str, str]]


class _Policy(TypedDict):
    Policy: dict[str, Any]


FEATURES: dict[str, type] = {
    "url": _Url,
    "provisioned": _Provisioned,
    "event_invoke": _EventInvoke,
    "policy": _Policy,
}
"""Of FunctionRecord.attached, those that are read without anybody asking for them."""


class _Mapping(TypedDict):
    EventSourceArn: str
    FunctionArn: str
    BatchSize: int
    State: str
    Enabled: bool
    LastModified: float


def check(key: str, record: Record) -> None:
    """`key`: of its row. Raises ValueError, which says what is wrong."""
    if record.name != key:
        raise ValueError(f"its name is {record.name!r}")
    if isinstance(record, MappingRecord):
        _convert(record.document, _Mapping)
    elif isinstance(record, LayerRecord):
        _numbered({key: str(one.version) for key, one in record.versions.items()})
    else:
        _check_function(record)
    for package in packages(record):
        if not PACKAGE.fullmatch(package):
            raise ValueError(f"{package!r} is no package")


def _check_function(record: FunctionRecord) -> None:
    _numbered({key: one.version for key, one in record.versions.items()})
    if record.latest is not None and record.latest.version != LATEST:
        raise ValueError(f"its {LATEST} is {record.latest.version!r}")
    for version in _versions(record):
        _convert(version.config, _Config)
        _convert(version.here, _Here)
    for name, alias in record.aliases.items():
        if alias.name != name:
            raise ValueError(f"alias {name!r} is {alias.name!r}")
    for feature, documents in record.attached.items():
        for document in documents.values():
            _convert(document, FEATURES.get(feature, dict))


def _versions(record: FunctionRecord) -> Iterator[VersionRecord]:
    if record.latest is not None:
        yield record.latest
    yield from record.versions.values()


def _numbered(versions: dict[str, str]) -> None:
    for key, version in versions.items():
        if key != version or not (key.isascii() and key.isdigit()):
            raise ValueError(f"version {key!r} is {version!r}")


def _convert(document: dict[str, Any], type_: type) -> None:
    import msgspec

    msgspec.convert(document, type_)
