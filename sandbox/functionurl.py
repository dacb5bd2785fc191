"""Owns what a function URL is configured to be, and the [url] table of function.toml (SPEC 9.1). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

from sandbox.checks import Wrong, show, whole

AuthType = Literal["NONE", "AWS_IAM"]
InvokeMode = Literal["BUFFERED", "RESPONSE_STREAM"]
AUTH_TYPES = ("NONE", "AWS_IAM")
INVOKE_MODES = ("BUFFERED", "RESPONSE_STREAM")
MAX_AGE_S = 86_400
MOST_METHODS = 6
MOST_ITEMS = 100
ID_LENGTH = 32
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class Cors:
    """Which pages of other origins may call a URL from a browser. Lists as they were configured."""

    allow_origins: tuple[str, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    allow_credentials: bool = False
    max_age: int = 0
    """Seconds that a browser may keep the answer of a preflight."""


@dataclass(frozen=True, slots=True)
class UrlConfig:
    auth_type: AuthType
    invoke_mode: InvokeMode = "BUFFERED"
    cors: Cors | None = None


@lru_cache(maxsize=4096)
def derived_id(name: str, region: str, account: str) -> str:
    """The URL id of a folder's function: the same on every host, and no secret."""
    digest = hashlib.sha256(f"lambox function url\0{account}\0{region}\0{name}".encode()).digest()
    number, letters = int.from_bytes(digest), []
    for _ in range(ID_LENGTH):
        number, letter = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)


# -- function.toml


def _one_of(allowed: tuple[str, ...], value: Any) -> str:
    if value not in allowed:
        raise Wrong(f"must be one of {', '.join(show(one) for one in allowed)}")
    return str(value)


def _texts(most: int, longest: int, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(_is_text(one, longest) for one in value):
        raise Wrong(f"must be a list of text, each of 1 to {longest} printable characters")
    if len(value) > most:
        raise Wrong(f"has {len(value)} entries, {most} at most")
    return tuple(value)


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= longest and value.isprintable()


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("must be true or false (without quotes)")
    return value


URL_KEYS: dict[str, Callable[[Any], Any]] = {
    "auth_type": partial(_one_of, AUTH_TYPES),
    "invoke_mode": partial(_one_of, INVOKE_MODES),
    "cors": lambda value: value,
}
CORS_KEYS: dict[str, Callable[[Any], Any]] = {
    "allow_origins": partial(_texts, MOST_ITEMS, 253),
    "allow_methods": partial(_texts, MOST_METHODS, 6),
    "allow_headers": partial(_texts, MOST_ITEMS, 1024),
    "expose_headers": partial(_texts, MOST_ITEMS, 1024),
    "allow_credentials": _boolean,
    "max_age": whole("seconds", 0, MAX_AGE_S),
}


def read_table(value: Any) -> tuple[UrlConfig | None, list[tuple[str, str]]]:
    """The [url] table -> what it configures, and (key, message) of every mistake in it."""
    problems: list[tuple[str, str]] = []
    if not isinstance(value, dict):
        return None, [("url", f"url = {show(value)}: must be a table. Hint: write [url]")]
    given = _take(value, URL_KEYS, "[url]", problems)
    if "auth_type" not in value:
        hint = 'Hint: "NONE" lets anyone call it, "AWS_IAM" who signs with a key of this server'
        problems.append(("url", f"[url]: auth_type is missing. {hint}"))
    if (table := given.pop("cors", None)) is not None:
        given["cors"] = _cors(table, problems)
    return (None if problems else UrlConfig(**given)), problems


def _cors(value: Any, problems: list[tuple[str, str]]) -> Cors | None:
    if not isinstance(value, dict):
        problems.append(("cors", f"[url] cors = {show(value)}: must be a table. Hint: [url.cors]"))
        return None
    given = _take(value, CORS_KEYS, "[url.cors]", problems)
    if given.get("allow_credentials") and "*" in given.get("allow_origins", ()):
        # Browsers refuse it, and whoever makes them take it shows every page what is the user's alone.
        message = 'allow_credentials = true: not with allow_origins = ["*"]. Hint: name the origins'
        problems.append(("allow_credentials", f"[url.cors] {message}"))
    return Cors(**given)


def _take(
    table: dict[str, Any],
    keys: dict[str, Callable[[Any], Any]],
    where: str,
    problems: list[tuple[str, str]],
) -> dict[str, Any]:
    given = {}
    for name, value in table.items():
        check = keys.get(name)
        if check is None:
            message = f"unknown key; the keys are {', '.join(keys)}"
            problems.append((name, f"{where} {name} = {show(value)}: {message}"))
            continue
        try:
            given[name] = check(value)
        except Wrong as wrong:
            problems.append((name, f"{where} {name} = {show(value)}: {wrong}"))
    return given
