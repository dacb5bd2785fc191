"""Owns the reading of `function.toml`: text -> frozen `Description`, or every mistake at once.

FunctionTomlError       `problems`, each with file:line, key, value, allowed range and mend
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rootfs.environ import RESERVED, RESERVED_MESSAGE
from sandbox.checks import Check, Wrong, seconds, shorten, show, whole
from sandbox.eventconfig import (
    MAX_AGE_S,
    MIN_AGE_S,
    RETRIES,
    BadTarget,
    EventConfig,
    Kind,
    Target,
    parse_target,
)
from sandbox.function import LogFormat, Network
from sandbox.functionurl import UrlConfig, read_table
from sandbox.loggingconfig import (
    APPLICATION_LEVELS,
    FORMATS,
    LOG_GROUP,
    NOT_WITH_TEXT,
    SYSTEM_LEVELS,
)
from sandbox.schedules import Schedule, ScheduleError
from sandbox.schedules import parse as parse_schedule

MAX_BYTES = 1024 * 1024
MAX_LAYERS = 5
MAX_DESCRIPTION = 256
MAX_ENVIRONMENT_BYTES = 4096
MAX_HANDLER = 128
ENVIRONMENT_KEY = re.compile(r"[a-zA-Z][a-zA-Z0-9_]+\Z")
"""AWS's EnvironmentVariableName (SPEC 5.1)."""
RUNTIME = re.compile(r"(python3\.\d{1,2}|nodejs\d{1,2}\.x|provided(\.[a-z0-9]+)?)\Z")


class FunctionTomlError(Exception):
    """A function.toml with mistakes; `problems` has one complete message per mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FunctionDefaults:
    """What a function gets where its function.toml is silent; lambox.toml may set other ones."""

    runtime: str | None = None
    """For functions whose files fit its family."""
    timeout: int = 15
    memory_size: int = 128
    ephemeral_storage: int = 512
    idle_timeout: float = 30.0
    reserved_concurrency: int | None = None
    network: Network | None = None
    """None: the server chooses, "nat" where the host can."""
    freeze: bool = True
    environment: Mapping[str, str] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True)
class Description:
    """One function.toml, checked. `None` for runtime and handler: to be told from the files."""

    runtime: str | None = None
    handler: str | None = None
    timeout: int = 15
    memory_size: int = 128
    ephemeral_storage: int = 512
    idle_timeout: float = 30.0
    reserved_concurrency: int | None = None
    provisioned_concurrency: int = 0
    warm: tuple[Schedule, ...] = ()
    schedule: tuple[Schedule, ...] = ()
    waits_for_ping: bool = False
    """`warm` is set and the file says nothing of idle_timeout."""
    layers: tuple[str, ...] = ()
    """As written: relative to the function's folder, or absolute."""
    network: Network = "none"
    freeze: bool = True
    description: str = ""
    maximum_retry_attempts: int | None = None
    maximum_event_age: int | None = None
    on_success: Target | None = None
    on_failure: Target | None = None
    dead_letter: Target | None = None
    recursive_loop: str = "Terminate"
    log_format: LogFormat = "Text"
    application_log_level: str | None = None
    system_log_level: str | None = None
    log_group: str | None = None
    environment: Mapping[str, str] = field(default_factory=_nothing)
    url: UrlConfig | None = None

    @property
    def events(self) -> EventConfig:
        return EventConfig(
            retries=self.maximum_retry_attempts,
            max_age_s=self.maximum_event_age,
            on_success=self.on_success,
            on_failure=self.on_failure,
            dead_letter=self.dead_letter,
            allows_recursion=self.recursive_loop == "Allow",
        )


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("must be true or false (without quotes)")
    return value


def _choice(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if value not in allowed:
            raise Wrong(f"must be one of {', '.join(json.dumps(name) for name in allowed)}")
        return str(value)

    return check


def _runtime(value: Any) -> str:
    if not isinstance(value, str) or not RUNTIME.match(value):
        raise Wrong('must be "python3.x", "nodejsN.x" or "provided.al2023", such as "python3.11"')
    return value


def _handler(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"\S{{1,{MAX_HANDLER}}}", value):
        raise Wrong(
            f"must be text of 1 to {MAX_HANDLER} characters without spaces, "
            'such as "handler.handler"'
        )
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_DESCRIPTION:
        raise Wrong(f"must be text of at most {MAX_DESCRIPTION} characters")
    return value


def _log_group(value: Any) -> str:
    if not isinstance(value, str) or not LOG_GROUP.match(value):
        raise Wrong(
            "must be text of 1 to 512 letters, digits, ., -, _, / and #, such as "
            '"/aws/lambda/hello"'
        )
    return value


def _layers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise Wrong('must be a list of folders or zip files, such as ["../layers/pandas"]')
    if len(value) > MAX_LAYERS:
        raise Wrong(f"has {len(value)} entries. Cannot reference more than {MAX_LAYERS} layers.")
    if len(set(value)) < len(value):
        raise Wrong("names a layer twice")
    return tuple(value)


def _times(value: Any) -> tuple[Schedule, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Wrong('must be text or a list of text, such as "rate(5 minutes)"')
    found: dict[str, Schedule] = {}
    for text in texts:
        try:
            schedule = parse_schedule(text)
        except ScheduleError as exc:
            raise Wrong(str(exc) if text is value else f"{show(text)}: {exc}") from exc
        if schedule.expression in found:
            raise Wrong(f"names {schedule.expression} twice")
        found[schedule.expression] = schedule
    return tuple(found.values())


def _target(*but: Kind) -> Check:
    """Where a record may go; `but`: what AWS takes no such records with."""

    def check(value: Any) -> Target:
        try:
            target = parse_target(value if isinstance(value, str) else "")
        except BadTarget as exc:
            raise Wrong(str(exc)) from exc
        if target.kind in but:
            raise Wrong(f"must be something else: {value.split(':')[2]} takes none of these")
        return target

    return check


@dataclass(frozen=True, slots=True)
class Key:
    """One key of function.toml; help and docs are printed from this table."""

    name: str
    check: Check
    allowed: str
    doc: str


KEYS: tuple[Key, ...] = (
    Key("runtime", _runtime, "python3.x, nodejsN.x, provided.*", "told from the files if absent"),
    Key("handler", _handler, "module.function", "told from the files if absent"),
    Key("timeout", whole("seconds", 1, 900), "1 to 900 s", "after it the environment is killed"),
    Key("memory_size", whole("MB", 128, 10240), "128 to 10240 MB", "memory, and CPU with it"),
    Key("ephemeral_storage", whole("MB", 512, 10240), "512 to 10240 MB", "size of /tmp"),
    Key("idle_timeout", seconds(0, 86400), "0 to 86400 s", "how long an environment is kept idle"),
    Key("reserved_concurrency", whole("", 0), "0 or more", "most invocations at a time"),
    Key("provisioned_concurrency", whole("", 0), "0 or more", "environments always initialised"),
    Key("warm", _times, "rate(...), cron(...), list", "when a ping keeps an environment warm"),
    Key("schedule", _times, "rate(...), cron(...), list", "when it is sent an Event"),
    Key("layers", _layers, "up to 5 folders or zips", "merged into /opt in this order"),
    Key(
        "network", _choice("none", "nat", "host"), "none, nat, host", "what the function can reach"
    ),
    Key("freeze", _boolean, "true, false", "whether idle environments stand still"),
    Key(
        "maximum_retry_attempts",
        whole("", 0, RETRIES),
        "0 to 2",
        "how often an Event is tried again after the function's errors",
    ),
    Key(
        "maximum_event_age",
        whole("seconds", MIN_AGE_S, MAX_AGE_S),
        "60 to 21600 s",
        "how long an Event may wait and be tried again",
    ),
    Key("on_success", _target("s3"), "a function, ARN, address", "who is told of Events that ran"),
    Key("on_failure", _target(), "a function, ARN, address", "who is told of Events that failed"),
    Key(
        "dead_letter",
        _target("s3", "events"),
        "a function, ARN, address",
        "who gets Events that failed, as they were",
    ),
    Key(
        "recursive_loop",
        _choice("Terminate", "Allow"),
        "Terminate, Allow",
        "whether an Event may come through more than 16 functions",
    ),
    Key("description", _text, "up to 256 characters", "for people"),
    Key("log_format", _choice(*FORMATS), ", ".join(FORMATS), "how the platform's log lines look"),
    Key(
        "application_log_level",
        _choice(*APPLICATION_LEVELS),
        ", ".join(APPLICATION_LEVELS),
        "with JSON: the function's own lines from here up",
    ),
    Key(
        "system_log_level",
        _choice(*SYSTEM_LEVELS),
        ", ".join(SYSTEM_LEVELS),
        "with JSON: the platform's lines from here up",
    ),
    Key("log_group", _log_group, "1 to 512 characters", "what the function is told it is"),
    Key("environment", lambda value: value, "[environment] table", "variables of the function"),
    Key("url", lambda value: value, "[url] table", "an HTTP address of its own"),
)
_BY_NAME = {key.name: key for key in KEYS}


def parse(
    text: str, *, file: str = "function.toml", defaults: FunctionDefaults | None = None
) -> Description:
    """Check `text`. Raises FunctionTomlError with everything that is wrong in it."""
    defaults = defaults or FunctionDefaults()
    try:
        table = tomllib.loads(text)
    except ValueError as exc:  # a number of more than 4,300 digits too
        raise FunctionTomlError([f"{file}: not valid TOML: {exc}"]) from exc
    except RecursionError as exc:
        problem = "not valid TOML: its brackets are nested too deeply"
        raise FunctionTomlError([f"{file}: {problem}"]) from exc
    reader = _Reader(file, text)
    for name, value in table.items():
        reader.take(name, value)
    given = reader.values
    environment = {**defaults.environment, **given.pop("environment", {})}
    reader.check_size(environment)
    base = {f.name: getattr(defaults, f.name) for f in dataclasses.fields(defaults)}
    reader.check_provisioned({**base, **given}["reserved_concurrency"])
    reader.check_levels()
    if reader.problems:
        raise FunctionTomlError(reader.problems)
    base.pop("environment")
    base["network"] = base["network"] or "none"
    base.pop("runtime")  # which of its family a function gets: `rootfs.handlers.detect` decides
    return Description(
        **{**base, **given},
        environment=MappingProxyType(environment),
        waits_for_ping=bool(given.get("warm")) and "idle_timeout" not in given,
    )


def read(path: Path, *, defaults: FunctionDefaults | None = None) -> Description:
    """Read and check a file; a missing one means all defaults. Raises FunctionTomlError."""
    try:
        text = _content(path)
    except FileNotFoundError:
        text = ""
    except OSError as exc:
        raise FunctionTomlError(
            [f"{path}: cannot be read: {exc.strerror}. Hint: chmod a+r {path}"]
        ) from exc
    except UnicodeDecodeError as exc:
        raise FunctionTomlError(
            [f"{path}: is not UTF-8 text (byte {exc.start}). Hint: save it as UTF-8"]
        ) from exc
    return parse(text, file=str(path), defaults=defaults)


def _content(path: Path) -> str:
    """Raises OSError, UnicodeDecodeError, FunctionTomlError. Waits for no writer: it may be a pipe."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FunctionTomlError([f"{path}: is no regular file. Hint: write one in its place"])
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FunctionTomlError(
            [f"{path}: is larger than {MAX_BYTES} bytes. Hint: shorten it, 4 KB is much"]
        )
    return data.decode("utf-8")


class _Reader:
    """Takes keys one by one and collects values and problems."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []

    def take(self, name: str, value: Any) -> None:
        key = _BY_NAME.get(name)
        if key is None:
            self._unknown(name, value)
        elif name == "environment":
            self._environment(value)
        elif name == "url":
            self._url(value)
        else:
            try:
                self.values[name] = key.check(value)
            except Wrong as wrong:
                self._problem(name, f"{name} = {show(value)}: {wrong}")

    def check_size(self, environment: Mapping[str, str]) -> None:
        """AWS measures the JSON rendering (SPEC 10.4)."""
        rendered = json.dumps(environment, separators=(",", ":"), ensure_ascii=False)
        if len(rendered.encode()) > MAX_ENVIRONMENT_BYTES:
            self._problem(
                "environment",
                "[environment]: Lambda was unable to configure your environment variables because "
                "the environment variables you have provided exceeded the 4KB limit. "
                f"String measured: {shorten(rendered, 200)}",
            )

    def check_provisioned(self, reserved: int | None) -> None:
        """As on AWS: provisioned environments are part of the reservation."""
        count = self.values.get("provisioned_concurrency", 0)
        if reserved is not None and count > reserved:
            self._problem(
                "provisioned_concurrency",
                f"provisioned_concurrency = {count}: must not be more than reserved_concurrency, "
                f"which is {reserved}. Hint: lower the one or raise the other",
            )

    def check_levels(self) -> None:
        """As on AWS: a text log is not filtered (SPEC 4.5)."""
        for key in ("application_log_level", "system_log_level"):
            if key in self.values and self.values.get("log_format", "Text") == "Text":
                self._problem(
                    key,
                    f"{key} = {show(self.values[key])}: {NOT_WITH_TEXT} "
                    'Hint: write log_format = "JSON", or remove the line',
                )

    def _environment(self, value: Any) -> None:
        if not isinstance(value, dict):
            self._problem("environment", "environment: must be a table. Hint: write [environment]")
            return
        good: dict[str, str] = {}
        for name, item in value.items():
            if name in RESERVED:
                continue
            if not ENVIRONMENT_KEY.match(name):
                self._problem(
                    name,
                    f"[environment] {name}: must be a letter and then letters, digits or _ "
                    "(two characters or more)",
                )
            elif not isinstance(item, str) or "\0" in item:
                hint = f'. Hint: write {name} = "{item}"' if type(item) in (int, float) else ""
                self._problem(name, f"[environment] {name} = {show(item)}: must be text{hint}")
            else:
                good[name] = item
        if reserved := [name for name in value if name in RESERVED]:
            self._problem(reserved[0], f"[environment]: {RESERVED_MESSAGE}{', '.join(reserved)}")
        self.values["environment"] = good

    def _url(self, value: Any) -> None:
        found, problems = read_table(value)
        for name, message in problems:
            self._problem(name, message)
        self.values["url"] = found

    def _unknown(self, name: str, value: Any) -> None:
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_")
        near = difflib.get_close_matches(snake, _BY_NAME, n=1, cutoff=0.5)
        near = near or [key for key in _BY_NAME if snake and key.startswith(snake)][:1]
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(_BY_NAME)}"
        self._problem(name, f"{name} = {show(value)}: unknown key; {hint}")

    def _problem(self, name: str, message: str) -> None:
        line = self._line(name)
        self.problems.append(f"{self.file}{line and f':{line}'}: {message}")

    def _line(self, name: str) -> int | str:
        """Where `name` is set. tomllib keeps no positions: look for the assignment or table."""
        quoted = re.escape(name)
        pattern = re.compile(
            rf"""\s*(["']?{quoted}["']?\s*(=|\.)|\[+\s*["']?{quoted}["']?\s*[\].])"""
        )
        for number, line in enumerate(self.lines, 1):
            if pattern.match(line):
                return number
        return ""
