"""Owns the settings of a server: lambox.toml < LAMBOX_* variables < flags -> one frozen `Config`.

    ConfigError         what is wrong: file:line, variable or flag, value, allowed range, mend

SETTINGS is the one table: the file's keys, the variables' names, the flags of `lambox serve` and
docs/configuration.md all come from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal

from lambox import capacity
from lambox.awssettings import AWS_SETTINGS
from lambox.httpsettings import HTTP_SETTINGS, Auth, contradictions
from lambox.setting import PREFIX, Setting
from lambox.setting import matching as _matching
from lambox.setting import path as _path
from lambox.setting import switch as _switch
from sandbox import functiontoml
from sandbox.checks import Wrong, seconds, show, whole
from sandbox.confine import privilege
from sandbox.functiontoml import FunctionDefaults, FunctionTomlError

FILE = "lambox.toml"
DEFAULT_PREFIX = "LAMBOX_DEFAULT_"
OTHER_VARIABLES = {
    "LAMBOX_AUTH_TOKEN",
    "LAMBOX_CA_FILE",
    "LAMBOX_CI",
    "LAMBOX_CONFIG",
    "LAMBOX_ENDPOINT",
}
"""Ours, but no settings of a server."""
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
WEAKER = ("cgroups", "seccomp")
DEFAULTS = tuple(field.name for field in dataclasses.fields(FunctionDefaults))
"""Keys of [defaults]: those of function.toml that make sense for every function."""


class ConfigError(Exception):
    """Settings with mistakes; `problems` has one complete message per mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one server, checked."""

    functions: Path
    host: str
    port: int
    region: str
    account: str
    state: Path
    grace_s: float
    max_environment_age_s: float
    account_concurrency: int
    memory_budget_mb: int
    freeze_delay_ms: int
    init_timeout_s: float
    event_retry_s: float
    uid_base: int | None
    uid_count: int | None
    nat_range: IPv4Network | None
    max_starts: int
    zygote: bool
    pool_min: int
    pool_max: int
    preload: tuple[str, ...]
    tmp: Literal["auto", "disk", "memory"]
    allow_weaker: tuple[str, ...]
    seccomp: Literal["enforce", "log"]
    fast_lane: bool
    auth: Auth
    auth_keys_file: Path | None
    auth_token_file: Path | None
    allowed_hosts: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    keep_alive_s: float
    aws_endpoint: str | None
    endpoint_sqs: str | None
    endpoint_sns: str | None
    endpoint_eventbridge: str | None
    endpoint_s3: str | None
    defaults: FunctionDefaults


def _host(value: Any) -> str:
    if value == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError as exc:
        raise Wrong('must be an IP address, such as "127.0.0.1", or "localhost"') from exc


def _weaker(value: Any) -> tuple[str, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list) or any(item not in WEAKER for item in items):
        raise Wrong(f"must be a list out of {', '.join(map(json.dumps, WEAKER))}")
    return tuple(dict.fromkeys(items))


def _calls(value: Any) -> str:
    if value not in ("enforce", "log"):
        raise Wrong('must be "enforce" or "log"')
    return str(value)


def _nat_range(value: Any) -> IPv4Network:
    try:
        found = IPv4Network(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise Wrong('must be an IPv4 network, such as "10.77.0.0/16"') from exc
    if not 8 <= found.prefixlen <= 26:
        raise Wrong("must be a network of /8 to /26")
    return found


def _modules(value: Any) -> tuple[str, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    names = items if isinstance(items, list) else [None]
    if not all(isinstance(name, str) and MODULE.fullmatch(name) for name in names):
        raise Wrong('must be a list of Python modules, such as ["boto3"]')
    return tuple(dict.fromkeys(names))


def _state(environ: Mapping[str, str]) -> Path:
    if privilege.owns_files():
        return Path("/var/lib/lambox")
    base = environ.get("XDG_STATE_HOME", "")
    home = environ.get("HOME") or os.path.expanduser("~")
    return (Path(base) if base.startswith("/") else Path(home, ".local/state")) / "lambox"


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "functions",
        _path,
        lambda _: Path("functions"),
        "a folder",
        "folder of functions",
        "./functions",
        True,
    ),
    Setting(
        "host",
        _host,
        lambda _: "127.0.0.1",
        "an IP address",
        "address to listen on",
        is_text=True,
    ),
    Setting(
        "port",
        whole("", 0, 65535),
        lambda _: 9000,
        "0 to 65535",
        "port to listen on; 0 takes a free one",
    ),
    Setting(
        "region",
        _matching(r"[a-z]{2}(-[a-z]+)+-\d", 'must be a region of AWS, such as "us-east-1"'),
        lambda _: "us-east-1",
        "an AWS region",
        "region in ARNs and in AWS_REGION",
        is_text=True,
    ),
    Setting(
        "account",
        _matching(r"\d{12}", 'must be text of 12 digits, such as "123456789012"'),
        lambda _: "123456789012",
        "12 digits",
        "account in ARNs",
        is_text=True,
    ),
    Setting(
        "state",
        _path,
        _state,
        "a folder",
        "what must outlive the server: the Lambda API's functions and layers, accepted events; "
        "`:memory:` is a private temporary folder that goes with it",
        "/var/lib/lambox; ~/.local/state/lambox unless root",
        True,
    ),
    Setting(
        "grace_s",
        seconds(0, 900),
        lambda _: 10.0,
        "0 to 900 s",
        "how long running invocations may take to finish on a clean stop",
    ),
    Setting(
        "max_environment_age_s",
        seconds(1, 86400),
        lambda _: 7200.0,
        "1 to 86400 s",
        "an older environment is replaced by a fresh one",
    ),
    Setting(
        "account_concurrency",
        whole("", 1, 100_000),
        lambda _: 1000,
        "1 to 100000",
        "most invocations at a time, all functions together",
    ),
    Setting(
        "memory_budget_mb",
        whole("MB", 128, 1 << 30),
        lambda _: max(128, 2 * capacity.memory_mb()),
        "128 MB or more",
        "most memory_size of running invocations together",
        "twice the RAM (or the container's limit)",
    ),
    Setting(
        "freeze_delay_ms",
        whole("milliseconds", 0, 60_000),
        lambda _: 100,
        "0 to 60000 ms",
        "an environment is frozen when idle for this long",
    ),
    Setting(
        "init_timeout_s",
        seconds(0.1, 900),
        lambda _: 10.0,
        "0.1 to 900 s",
        "how long a function may take to initialise",
    ),
    Setting(
        "event_retry_s",
        seconds(0.01, 3600),
        lambda _: 60.0,
        "0.01 to 3600 s",
        "how long an Event that failed waits for its second attempt; for the third, twice as long",
    ),
    Setting(
        "uid_base",
        whole("", 1000, 4_294_900_000),
        lambda _: None,
        "1000 to 4294900000",
        "first of the uids for sandboxes, where more than our own is mapped",
        "chosen at start",
    ),
    Setting(
        "uid_count",
        whole("", 1, 1_000_000),
        lambda _: None,
        "1 to 1000000",
        "how many uids from uid_base on; each live sandbox has its own, and a server a sixteenth "
        "of them for itself, 256 at least",
        "65536",
    ),
    Setting(
        "nat_range",
        _nat_range,
        lambda _: None,
        "an IPv4 network of /8 to /26",
        'addresses of functions with network = "nat"; no route of the host may know them',
        "the first free of 10.219.0.0/16, 172.27.0.0/16, 100.127.0.0/16",
        is_text=True,
    ),
    Setting(
        "max_starts",
        whole("", 1, 1024),
        lambda _: 2 * capacity.cores(),
        "1 to 1024",
        "most environments that start at the same time",
        "twice the number of CPUs",
    ),
    Setting(
        "zygote",
        _switch,
        lambda _: True,
        "true or false",
        "make sandboxes ahead and fork Python runtimes into them, where the host allows it",
        "true",
    ),
    Setting(
        "pool_min",
        whole("", 0, 1024),
        lambda _: 8,
        "0 to 1024",
        "fewest sandboxes kept ready per kind of runtime in use",
    ),
    Setting(
        "pool_max",
        whole("", 0, 1024),
        lambda _: 16,
        "0 to 1024",
        "most sandboxes kept ready per kind, when many were started in the last 10 s",
    ),
    Setting(
        "preload",
        _modules,
        lambda _: (),
        "names of modules",
        "Python modules of the runtime (not of functions) that are loaded before a function is known",
        "nothing",
        is_list=True,
    ),
    Setting(
        "tmp",
        _matching("auto|disk|memory", 'must be "auto", "disk" or "memory"'),
        lambda _: "auto",
        "auto, disk, memory",
        "where /tmp of environments lies: on a disk of its own each, or in their memory; auto: on disk if possible",
        is_text=True,
    ),
    Setting(
        "allow_weaker",
        _weaker,
        lambda _: (),
        "cgroups, seccomp",
        "isolation to go without where this host lacks it",
        "nothing",
        is_list=True,
    ),
    Setting(
        "seccomp",
        _calls,
        lambda _: "enforce",
        "enforce, log",
        "log: for a search, let system calls run that the filter would refuse, and log them",
        is_text=True,
    ),
    Setting(
        "fast_lane",
        _switch,
        lambda _: True,
        "true, false",
        "plain requests bypass the web framework; false is for comparison",
        "true",
    ),
    *HTTP_SETTINGS,
    *AWS_SETTINGS,
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def load(
    flags: Mapping[str, str] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Read all three places. `flags`: setting -> text as given on the command line.

    `file` (--config) and LAMBOX_CONFIG name the file, which then must exist; else ./lambox.toml
    is read if there is one. Raises ConfigError with everything that is wrong.
    """
    reader = _Reader()
    named = file or (Path(environ["LAMBOX_CONFIG"]) if environ.get("LAMBOX_CONFIG") else None)
    reader.read_file(named or Path(FILE), must_exist=named is not None)
    reader.read_environ(environ)
    for name, text in (flags or {}).items():
        setting = _BY_NAME[name]
        reader.take(setting, setting.flag, _from_text(setting, text))
    if reader.values.get("uid_count") is not None and reader.values.get("uid_base") is None:
        reader.problems.append("uid_count is set without uid_base. Hint: set uid_base too")
    if not reader.problems:
        set_ = {name: value for name, value in reader.values.items() if value is not None}
        reader.problems += contradictions({"host": "127.0.0.1", **set_})
    if reader.problems:
        raise ConfigError(reader.problems)
    reader.values.setdefault("auth", "none")
    values = {setting.name: setting.default(environ) for setting in SETTINGS} | reader.values
    return Config(**values, defaults=FunctionDefaults(**reader.defaults))


class _Reader:
    """Takes values in rising order of precedence and collects problems."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.problems: list[str] = []

    def read_file(self, path: Path, *, must_exist: bool) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            table = tomllib.loads(text)
        except FileNotFoundError:
            if must_exist:
                self.problems.append(f"{path}: there is no such file. Hint: check --config")
            return
        except OSError as exc:
            self.problems.append(f"{path}: cannot be read: {exc.strerror}")
            return
        # ValueError: TOMLDecodeError, UnicodeDecodeError, a number of more than 4,300 digits.
        except (ValueError, RecursionError) as exc:
            self.problems.append(f"{path}: not valid TOML: {exc}")
            return
        lines = text.splitlines()
        for name, value in table.items():
            where = _at(path, lines, name)
            if name == "defaults":
                self._defaults_table(path, lines, value)
            elif (setting := _BY_NAME.get(name)) is None:
                self._unknown(f"{where}: {name} = {show(value)}", name, [*_BY_NAME, "defaults"])
            else:
                self.take(setting, f"{where}: {name}", value)
                if isinstance(path_ := self.values.get(name), Path):
                    self.values[name] = path.parent / path_

    def _defaults_table(self, path: Path, lines: list[str], table: Any) -> None:
        if not isinstance(table, dict):
            self.problems.append(
                f"{_at(path, lines, 'defaults')}: defaults: must be a table. Hint: write [defaults]"
            )
            return
        for name, value in table.items():
            where = _at(path, lines, name)
            if name not in DEFAULTS:
                self._unknown(f"{where}: [defaults] {name} = {show(value)}", name, DEFAULTS)
            else:
                self._default(name, value, f"{where}: [defaults] ")

    def read_environ(self, environ: Mapping[str, str]) -> None:
        settings = {setting.variable: setting for setting in SETTINGS}
        defaults = {DEFAULT_PREFIX + name.upper(): name for name in DEFAULTS}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
                continue
            if setting := settings.get(variable):
                self.take(setting, variable, _from_text(setting, text))
            elif name := defaults.get(variable):
                value = text if name in ("network", "runtime") else _number_or_text(text)
                self._default(name, value, f"{variable}: ")
            else:
                known = [*settings, *defaults, *OTHER_VARIABLES]
                self._unknown(f"{variable}={text}", variable, known)

    def take(self, setting: Setting, where: str, value: Any) -> None:
        try:
            self.values[setting.name] = setting.check(value)
        except Wrong as wrong:
            self.problems.append(f"{where} = {show(value)}: {wrong}")

    def _default(self, name: str, value: Any, where: str) -> None:
        """One key of [defaults], checked by function.toml's own reader: it takes text only."""
        try:
            description = functiontoml.parse(_as_toml(name, value), file="")
        except FunctionTomlError as exc:
            self.problems += [
                where + re.sub(r"^:\d*:? *|^: *", "", problem) for problem in exc.problems
            ]
        else:
            self.defaults[name] = getattr(description, name)

    def _unknown(self, what: str, name: str, known: list[str] | tuple[str, ...]) -> None:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        self.problems.append(f"{what}: unknown setting; {hint}")


def _from_text(setting: Setting, text: str) -> Any:
    return text if setting.is_text else _number_or_text(text)


def _number_or_text(text: str) -> Any:
    """`30`, `0.5`, `true`, `{"A": "b"}` as JSON has them; anything else is text."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(text: str) -> float:
    raise ValueError(text)


def _as_toml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        items = (f"{_quote(str(key))} = {_literal(item)}\n" for key, item in value.items())
        return f"[{name}]\n" + "".join(items)
    return f"{name} = {_literal(value)}\n"


def _literal(value: Any) -> str:
    """A TOML literal. Neither text, number nor truth value: a list, which no key takes."""
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, int | float) else f"[{_quote(str(value))}]"


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _at(path: Path, lines: list[str], name: str) -> str:
    """file:line of a key. tomllib keeps no positions: look for the assignment or table."""
    pattern = re.compile(rf"""\s*(\[\s*)*["']?([\w-]+\.)*{re.escape(name)}["']?\s*[=.\]]""")
    for number, line in enumerate(lines, 1):
        if pattern.match(line):
            return f"{path}:{number}"
    return str(path)
