"""Owns AWS's LoggingConfig: what it may say, and which lines and events a JSON log then has.

Pure. The rules are SPEC 4.5's, the filters SPEC 4.4's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandbox.errors import CallerError, InvalidRequest
from sandbox.function import LogFormat

FORMATS = ("Text", "JSON")
APPLICATION_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")
SYSTEM_LEVELS = ("DEBUG", "INFO", "WARN")
DEFAULT_LEVEL = "INFO"
LOG_GROUP = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}\Z")
RANKS = {level: rank for rank, level in enumerate(APPLICATION_LEVELS)}
NOT_WITH_TEXT = (
    'LogLevel is not supported when LogFormat is set to "Text". Remove LogLevel from your request '
    'or change the LogFormat to "JSON" and try again.'
)
PARSED_BYTES = 32 * 1024
"""A longer line's own level is not looked for: parsing costs the event loop 0.3 ms at this length."""


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """A function version's, complete: with JSON both levels are set, with Text neither is."""

    log_format: LogFormat = "Text"
    application_log_level: str | None = None
    system_log_level: str | None = None
    log_group: str | None = None
    """None: AWS's own, `/aws/lambda/NAME`."""

    def response(self, function: str) -> dict[str, str]:
        """As GetFunctionConfiguration shows it."""
        shown = {"LogFormat": str(self.log_format)}
        if self.application_log_level is not None:
            shown["ApplicationLogLevel"] = self.application_log_level
        if self.system_log_level is not None:
            shown["SystemLogLevel"] = self.system_log_level
        return {**shown, "LogGroup": self.log_group or f"/aws/lambda/{function}"}


def complete(
    log_format: LogFormat = "Text",
    application: str | None = None,
    system: str | None = None,
    log_group: str | None = None,
) -> LoggingConfig:
    """The whole of it. Raises ValueError: levels with Text."""
    if log_format == "Text":
        if application is not None or system is not None:
            raise ValueError(NOT_WITH_TEXT)
        return LoggingConfig(log_group=log_group)
    return LoggingConfig("JSON", application or DEFAULT_LEVEL, system or DEFAULT_LEVEL, log_group)


def from_api(given: Mapping[str, Any], before: LoggingConfig | None = None) -> LoggingConfig:
    """The LoggingConfig member of CreateFunction or, with what there was `before`, of UpdateFunctionConfiguration.

    What an update does not name stays; going back to Text takes the levels with it. Raises CallerError
    (InvalidParameterValueException) and InvalidRequest (ValidationException), with AWS's words.
    """
    problems = [
        *_one_of(given, "LogFormat", ("JSON", "Text")),  # the model's order
        *_one_of(given, "ApplicationLogLevel", APPLICATION_LEVELS),
        *_one_of(given, "SystemLogLevel", SYSTEM_LEVELS),
        *_log_group(given),
    ]
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        raise InvalidRequest(count + "; ".join(problems), code="ValidationException")
    before = before or LoggingConfig()
    log_format: LogFormat = given.get("LogFormat") or before.log_format
    kept = before if log_format == before.log_format else LoggingConfig()
    try:
        return complete(
            log_format,
            given.get("ApplicationLogLevel") or kept.application_log_level,
            given.get("SystemLogLevel") or kept.system_log_level,
            given.get("LogGroup") or before.log_group,
        )
    except ValueError as exc:
        raise CallerError(str(exc)) from exc


def _one_of(given: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> list[str]:
    value = given.get(key)
    if value is None or value in allowed:
        return []
    return [
        f"Value '{value}' at '{_path(key)}' failed to satisfy constraint: "
        f"Member must satisfy enum value set: [{', '.join(allowed)}]"
    ]


def _log_group(given: Mapping[str, Any]) -> list[str]:
    value = given.get("LogGroup")
    if value is None or (isinstance(value, str) and LOG_GROUP.match(value)):
        return []
    at = f"Value '{value}' at '{_path('LogGroup')}' failed to satisfy constraint: Member must "
    if not isinstance(value, str):
        return [at + "be a string"]
    if not value:
        return [at + "have length greater than or equal to 1"]
    if len(value) > 512:
        return [at + "have length less than or equal to 512"]
    return [at + r"satisfy regular expression pattern: [\.\-_/#A-Za-z0-9]+"]


def _path(key: str) -> str:
    return f"loggingConfig.{key[0].lower()}{key[1:]}"


def parsed_object(line: str) -> dict[str, Any] | None:
    """`line` if it is one JSON object of at most PARSED_BYTES, else None."""
    if not line.startswith("{") or len(line) > PARSED_BYTES:
        return None
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def level_of(line: str) -> str:
    """What a line of the function says its level is; INFO where it says nothing that is known."""
    fields = parsed_object(line) or {}
    level = fields.get("level", fields.get("log_level"))
    level = level.upper() if isinstance(level, str) else ""
    return level if level in RANKS else _ALIASES.get(level, DEFAULT_LEVEL)


_ALIASES = {"WARNING": "WARN", "CRITICAL": "FATAL"}
"""Python's names."""
