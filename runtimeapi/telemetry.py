"""Owns the requests to subscribe: PUT /2022-07-01/telemetry and PUT /2020-08-15/logs (SPEC 6.4, 6.5).

A request is checked whole, and everything that is wrong with it told at once. What comes of it is the
environment's (`sandbox/telemetry.py`), how events reach the subscriber `delivery.py`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from quart import Response, request

from runtimeapi.app import FaceApp, body_of, respond
from runtimeapi.bodies import read_all
from runtimeapi.ports import RuntimeFace
from sandbox.lifecycle import Refused
from sandbox.telemetry import CATEGORIES, SCHEMAS, Api, Category, Destination, Subscription

MOST_BODY = 64 * 1024
"""Bytes of a subscription; a real one has 300."""
RESERVED_PORT = 9001
HOSTS = ("sandbox.localdomain", "sandbox")
URI = re.compile(r"(?i:http)://([^/:?#\s]*)(?::(\d{1,5}))?(/[!-~]*)?\Z")
BUFFERING = {
    "maxItems": ("max_items", 1000, 10_000),
    "maxBytes": ("max_bytes", 262_144, 1_048_576),
    "timeoutMs": ("timeout_ms", 25, 30_000),
}
"""Key -> (field, least, most)."""
MOST_SHOWN = 80


def mount_telemetry(app: FaceApp, environment: Callable[[], RuntimeFace]) -> None:
    """`environment()`: whose socket a request arrived on."""

    async def subscribe(api: Api) -> Response:
        face = environment()
        # Who asks is looked at before what is asked, as on AWS.
        name = face.extension_name(request.headers.get("Lambda-Extension-Identifier"))
        body = await read_all(body_of(request), MOST_BODY)
        face.subscribe(name, parse(api, body))
        return respond(200, {"Content-Type": "application/json"}, b'"OK"')

    # AWS's reference writes it both ways.
    @app.put("/2022-07-01/telemetry", provide_automatic_options=False)
    @app.put("/2022-07-01/telemetry/", provide_automatic_options=False)
    async def telemetry() -> Response:
        return await subscribe("telemetry")

    @app.put("/2020-08-15/logs", provide_automatic_options=False)
    async def logs() -> Response:
        return await subscribe("logs")


def parse(api: Api, body: bytes) -> Subscription:
    """Raises Refused(400) with everything that is wrong."""
    problems: list[str] = []
    try:
        given = json.loads(body)
        if not isinstance(given, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as exc:
        raise _invalid(api, [f"failed to parse JSON: {exc or type(exc).__name__}"]) from exc
    schema = _schema(api, given, problems)
    types = _types(given.get("types"), problems)
    destination = _destination(api, given.get("destination"), problems)
    buffering = _buffering(given.get("buffering"), problems)
    if problems or destination is None:
        raise _invalid(api, problems)
    return Subscription(api, schema, types, destination, **buffering)


def _invalid(api: Api, problems: list[str]) -> Refused:
    kind = "ValidationError" if api == "telemetry" else "Logs.ValidationError"
    return Refused(400, kind, "; ".join(problems))


def _schema(api: Api, given: Mapping[str, Any], problems: list[str]) -> str:
    known = SCHEMAS[api]
    schema = given.get("schemaVersion", known[0] if api == "logs" else None)
    if schema is None:
        problems.append("schemaVersion should not be empty")
    elif schema not in known:
        problems.append(
            f"schemaVersion {_shown(schema)} is not supported, it should be one of {', '.join(known)}"
        )
    else:
        return str(schema)
    return ""


def _types(given: Any, problems: list[str]) -> tuple[Category, ...]:
    if not given:
        problems.append("types should not be empty")
        return ()
    if not isinstance(given, list) or not all(one in CATEGORIES for one in given):
        problems.append(
            f"types {_shown(given)} should be a list of some of {', '.join(CATEGORIES)}"
        )
        return ()
    return tuple(dict.fromkeys(given))


def _destination(api: Api, given: Any, problems: list[str]) -> Destination | None:
    if not isinstance(given, dict):
        problems.append("destination should not be empty")
        return None
    protocol = given.get("protocol")
    if protocol == "HTTP":
        return _http(api, given, problems)
    if protocol == "TCP":
        port = _port(given.get("port"), problems)
        return Destination("TCP", port) if port else None
    problems.append(f"protocol {_shown(protocol)} is not supported, it should be HTTP or TCP")
    return None


def _http(api: Api, given: Mapping[str, Any], problems: list[str]) -> Destination | None:
    before = len(problems)
    uri, method = given.get("URI"), given.get("method", "POST")
    if method not in (("POST", "PUT") if api == "logs" else ("POST",)):
        problems.append(f"method {_shown(method)} is not supported")
    found = URI.match(uri) if isinstance(uri, str) else None
    if found is None:
        problems.append(
            f"URI {_shown(uri)} should be http://{HOSTS[0]}:PORT, with a path if you like"
        )
        return None
    host, port, path = found.groups()
    if host not in HOSTS:
        problems.append(f"URI host should be {HOSTS[0]}")
    if port is None:
        problems.append("URI port is not provided")
    number = 0 if port is None else _port(int(port), problems)
    if len(problems) > before:
        return None
    return Destination("HTTP", number, path or "/", host, str(method))


def _port(port: Any, problems: list[str]) -> int:
    """0: it is none."""
    if type(port) is not int or not 1 <= port <= 65535:
        problems.append(f"port {_shown(port)} should be a number from 1 to 65535")
    elif port == RESERVED_PORT:
        problems.append(f"port {RESERVED_PORT} is reserved")
    else:
        return port
    return 0


def _buffering(given: Any, problems: list[str]) -> dict[str, int]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        problems.append("buffering should be an object")
        return {}
    found = {}
    for key, (field, least, most) in BUFFERING.items():
        value = given.get(key)
        if value is None:
            continue
        if type(value) is not int or not least <= value <= most:
            problems.append(f"{key} {_shown(value)} should be a number from {least} to {most}")
        found[field] = value
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."
