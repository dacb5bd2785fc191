"""Owns what lambox's own verbs (list, ps, logs) ask a running node over HTTP: /healthz and
/_lambox/*."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from importlib.metadata import version
from typing import Any

import trio
from quart import Response, request

from runtimeapi.app import FaceApp, respond
from runtimeapi.ports import Console, Functions
from runtimeapi.replies import to_json
from runtimeapi.urls.directory import UrlDirectory
from runtimeapi.urls.names import address
from sandbox.errors import FunctionNotFound
from sandbox.function import LATEST, BrokenFunction, FunctionVersion

JSON = {"Content-Type": "application/json"}
TEXT = "text/plain; charset=utf-8"


def mount_console(
    app: FaceApp, functions: Functions, console: Console, urls: UrlDirectory, region: str
) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return respond(200, JSON, to_json({"status": "ok", "version": version("lambox")}))

    @app.get("/_lambox/functions")
    async def list_functions() -> Response:
        functions.refresh()
        rows = [described(one) for one in functions.all()]
        published = _published(functions)
        for row in rows:
            row["versions"] = published.get(row["name"], [])
        return respond(200, JSON, to_json(rows))

    def described(function: FunctionVersion | BrokenFunction) -> dict[str, Any]:
        found = describe(function)
        if isinstance(function, FunctionVersion):
            host, secure = request.headers.get("host", ""), request.scheme == "https"
            found["urls"] = [
                address(url.id, host=host, secure=secure, region=region)
                for url in urls.of_function(function)
            ]
        return found

    @app.get("/_lambox/environments")
    async def list_environments() -> Response:
        return respond(200, JSON, to_json(console.environments()))

    @app.get("/_lambox/prepared")
    async def list_prepared() -> Response:
        return respond(200, JSON, to_json(console.prepared()))

    @app.get("/_lambox/supervisor")
    async def show_supervisor() -> Response:
        return respond(200, JSON, to_json(supervisor()))

    @app.get("/_lambox/logs")
    @app.get("/_lambox/logs/<name>")
    async def logs(name: str | None = None) -> Response:
        kept: list[str] = console.log_lines(name)
        if request.args.get("follow", "") in {"", "0", "false"}:
            if not kept and name is not None:
                _must_exist(functions, name)
            return respond(200, {"Content-Type": TEXT}, b"".join(map(as_line, kept)))
        # Asked for right here, before anything is awaited: no line falls between the kept and the
        # new.
        return Response(FollowedLog(kept, console.follow_logs(name)), 200, content_type=TEXT)


def supervisor() -> dict[str, Any]:
    """What this process holds now: `bench.soak` looks for growth in it."""
    tasks: Counter[str] = Counter()
    pending = [trio.lowlevel.current_root_task()]
    while pending:
        task = pending.pop()
        if task is not None:
            tasks[task.name] += 1
            pending += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return {"pid": os.getpid(), "threads": threading.active_count(), "tasks": dict(tasks)}


def describe(function: FunctionVersion | BrokenFunction) -> dict[str, Any]:
    if isinstance(function, BrokenFunction):
        return {
            "name": function.name,
            "state": "broken",
            "problem": function.problem,
            "code": str(function.code),
        }
    return {
        "name": function.name,
        "state": "ready",
        "version": function.version,
        "runtime": function.runtime,
        "handler": function.handler,
        "timeout_s": function.timeout_s,
        "memory_mb": function.memory_mb,
        "reserved_concurrency": function.reserved_concurrency,
        "provisioned_concurrency": function.provisioned_concurrency,
        "warm": [schedule.expression for schedule in function.warm],
        "network": function.network,
        "description": function.description,
        "code": str(function.code),
    }


def _published(functions: Functions) -> dict[str, list[str]]:
    """By function: the numbers of the versions that can be invoked, oldest first."""
    found: dict[str, list[str]] = {}
    for one in functions.live():
        if one.version != LATEST:
            found.setdefault(one.name, []).append(one.version)
    return {name: sorted(numbers, key=int) for name, numbers in found.items()}


def _must_exist(functions: Functions, name: str) -> None:
    """A name without lines may be a mistake in the name: FunctionNotFound. A broken function has a
    name too."""
    functions.refresh()
    if all(one.name != name for one in functions.all()):
        raise FunctionNotFound(f"Function not found: {name}")


class FollowedLog:
    """Kept lines, then those that come; quart calls `aclose` when the reader is gone."""

    def __init__(self, kept: Iterable[str], coming: AsyncIterable[str]) -> None:
        self._kept = b"".join(map(as_line, kept))
        self._coming = coming.__aiter__()

    def __aiter__(self) -> FollowedLog:
        return self

    async def __anext__(self) -> bytes:
        if self._kept:
            kept, self._kept = self._kept, b""
            return kept
        return as_line(await self._coming.__anext__())

    async def aclose(self) -> None:
        if isinstance(self._coming, AsyncGenerator):
            await self._coming.aclose()


def as_line(text: str) -> bytes:
    return (text.rstrip("\r\n") + "\n").encode("utf-8", "replace")
