"""Owns the kinds of sandboxes that the attempts are made in, and running all attempts in one."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import trio

from rootfs.layout import Bind
from rootfs.runtimes import discover
from sandbox.confine import launcher as launcher_module
from sandbox.confine.launcher import BwrapLauncher, open_launcher
from sandbox.confine.pool import PoolLimits
from sandbox.confine.spec import SandboxSpec
from tests.system.confine_fixtures import (
    CLIENT,
    MAKING,
    PYTHON,
    PYTHON_FORKS,
    ROOT,
    Box,
    confined,
    made_ahead,
)
from tests.system.escape import prey
from tests.system.escape.attempts import numbered

Results = dict[str, str]
NEIGHBOUR = """
    words = "NEIGHBOUR"
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\\0escape-neighbour")
    abstract.listen()
    server = socket.create_server(("127.0.0.1", 5555))
    open("/tmp/neighbour", "w").write("secret")
    libc.shmget(5555, 4096, 0o1666)
    say("there")
    signal.pause()
"""

ONCE = "import sys, json; sys.path.insert(0, '/var/task'); import inside; print(json.dumps(inside.run()))"
NODE = f"""
import {{ execFileSync }} from "node:child_process";
export const handler = async () => JSON.parse(execFileSync("python3", ["-I", "-c", `{ONCE}`]));
"""
BOOTSTRAP = """#!/usr/bin/env python3
import http.client, json, os, sys
import inside
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
path = "/2018-06-01/runtime/invocation"
while True:
    api.request("GET", f"{path}/next")
    event = api.getresponse()
    event.read()
    answer = f"{path}/{event.headers['Lambda-Runtime-Aws-Request-Id']}/response"
    api.request("POST", answer, json.dumps(inside.run()))
    api.getresponse().read()
"""
OTHER_RUNTIMES = {
    "nodejs": ("index.mjs", NODE, "index.handler"),
    "provided": ("bootstrap", BOOTSTRAP, "none"),
}


async def direct(making: str, folder: Path, facts: dict[str, Any]) -> Results:
    """In a sandbox of the launcher's: made "scratch", "ready" or "forked", as MAKINGS says."""
    token = MAKING.set(making)
    try:
        pool = None if making == "scratch" else PoolLimits(2, 2)
        async with open_launcher(pool=pool) as launcher:
            if making != "scratch":
                await made_ahead(launcher, kind())
            return await _beside_a_neighbour(launcher, folder, facts)
    finally:
        MAKING.reset(token)


async def _beside_a_neighbour(
    launcher: BwrapLauncher, folder: Path, facts: dict[str, Any]
) -> Results:
    code = folder / "functions/attack"
    prey.tell(code, facts | {"supervisor": os.getpid()}, numbered())
    async with confined(launcher, name="neighbour") as neighbour:
        await neighbour.python(NEIGHBOUR)
        assert await neighbour.heard() == "there"
        how = {"name": "attacker", "late": (Bind(str(code), "/var/task"),)}
        async with confined(launcher, root=ROOT, memory_bytes=512 << 20, **how) as box:
            ahead = box.sandbox.name.startswith("ready-")
            assert ahead == (MAKING.get() != "scratch")
            await _attack(box)
            with trio.fail_after(60):
                results: Results = await box.heard()
            # Whatever it did to itself: the supervisor still kills it, and its neighbour is well.
            assert (await box.sandbox.kill()).killed
        assert (await neighbour.sandbox.kill()).killed
    return results


def kind() -> SandboxSpec:
    """What `confined` would launch now, but for what is a function's own."""
    if MAKING.get() == "forked":
        return SandboxSpec("kind", (*ROOT, *CLIENT), preparation=PYTHON_FORKS)
    return SandboxSpec("kind", ROOT)


async def _attack(box: Box) -> None:
    await box.run(PYTHON, "-I", "-S", "/var/task/inside.py", cwd="/var/task")


@contextmanager
def _runtime(code: Path, family: Literal["nodejs", "provided"] | None) -> Iterator[None]:
    """The function is of that family for a while; a Python of the host's /usr makes the attempts."""
    if family is None:
        yield
        return
    runtime = discover().newest(family)
    assert runtime is not None
    name, text, handler = OTHER_RUNTIMES[family]
    toml = code / "function.toml"
    before = toml.read_text()
    toml.write_text(f'{before}runtime = "{runtime.identifier}"\nhandler = "{handler}"\n')
    (code / name).write_text(text)
    (code / name).chmod(0o755)
    try:
        yield
    finally:
        toml.write_text(before)
        (code / name).unlink()


async def handled(
    folder: Path,
    facts: dict[str, Any],
    family: Literal["nodejs", "provided"] | None = None,
    **env: str,
) -> Results:
    """In a handler of a real server: what its runtime was forked from, if it was, is in it."""
    from tests.system.conftest import Functions, serving

    code = folder / "functions/attack"

    def run() -> Results:
        state = folder / f"state-{os.getpid()}"
        # A server says so when it cannot read all of a function, and does not start it.
        unreadable = code / "hard link"
        kept = unreadable.rename(folder / "kept") if unreadable.exists() else None
        try:
            log = Path(os.environ.get("TMPDIR", folder), "log")
            with (
                _runtime(code, family),
                serving(Functions(folder / "functions"), state, log, **env) as server,
            ):
                told = facts | {"supervisor": server.process.pid}
                prey.tell(code, told, numbered())
                forked = family is None and env.get("LAMBOX_ZYGOTE") != "false"
                if forked and os.geteuid() == 0:
                    server.wait_prepared()
                url = f"{server.url}/invoke/attack"
                with urllib.request.urlopen(url, data=b"{}", timeout=60) as reply:
                    results: Results = json.load(reply)
                assert server.get("/healthz")["status"] == "ok"
                return results
        finally:
            shutil.rmtree(state, ignore_errors=True)
            if kept is not None:
                kept.rename(unreadable)

    return await trio.to_thread.run_sync(run)


async def unfiltered(folder: Path, facts: dict[str, Any]) -> Results:
    """Without the system call filter: what the other layers hold by themselves."""
    kept = launcher_module._filter
    launcher_module._filter = lambda *_: None
    try:
        return await direct("scratch", folder, facts)
    finally:
        launcher_module._filter = kept


Variant = Callable[[Path, dict[str, Any]], Awaitable[Results]]
VARIANTS: dict[str, Variant] = {
    "bwrap on demand": lambda folder, facts: direct("scratch", folder, facts),
    "made ahead": lambda folder, facts: direct("ready", folder, facts),
    "forked, executes": lambda folder, facts: direct("forked", folder, facts),
    "handler, forked": handled,
    "handler, no zygote": lambda folder, facts: handled(folder, facts, LAMBOX_ZYGOTE="false"),
    "handler, Node.js": lambda folder, facts: handled(folder, facts, "nodejs"),
    "bootstrap": lambda folder, facts: handled(folder, facts, "provided"),
}
