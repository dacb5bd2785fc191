"""Owns what a soak's clients ask for: a seeded sequence of decisions per client, and asking them."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from bench.soak.caller import Caller, Unanswered
from bench.soak.functions import Written
from bench.soak.ledger import Kind, Ledger, Request

THINK_S = 0.1
"""Mean pause of a client between two requests."""
KINDS: Mapping[Kind, int] = {"sync": 80, "event": 8, "dry": 3, "bad": 5, "left": 4}
ACTS = {
    "crash": 3, "exit": 1, "signal": 1, "oom": 2, "timeout": 2,
    "echo": 45, "sleep": 20, "spin": 8, "log": 4, "big": 5, "tmp": 3, "leave-child": 3,
    "leave-thread": 3,
}  # fmt: skip
"""In hundredths: 5 crash, 2 run out of memory, 2 out of time."""
OTHERS_KNOW = ("echo", "sleep", "crash", "exit")
SIGNALS = (11, 6, 9, 15)
API = "/2015-03-31/functions"


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that has to be refused: method, path, headers, body, and the statuses that are right."""

    expected: tuple[int, ...]
    path: str
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"


BAD = (
    Bad((400,), f"{API}/plain/invocations", b"{"),
    Bad((400,), f"{API}/plain/invocations", b"\xff\xfe"),
    Bad((400,), f"{API}/plain/invocations", b'{"a": NaN}'),
    Bad((400,), f"{API}/plain/invocations", b"[" * 3000 + b"]" * 2999),
    Bad((404,), f"{API}/nobody/invocations"),
    Bad((404,), f"{API}/plain/invocations?Qualifier=7"),
    Bad((400,), f"{API}/pl%20ain/invocations"),
    Bad((400,), f"{API}/plain/invocations", headers=(("X-Amz-Invocation-Type", "Sideways"),)),
    Bad((400,), f"{API}/plain/invocations", headers=(("X-Amz-Client-Context", "%%%"),)),
    Bad((400,), f"{API}/plain/invocations", headers=(("x-amzn-RequestId", "7"),)),
    Bad((404, 405), f"{API}/plain/invocations", method="DELETE"),
    Bad((404, 405, 501), "/2015-03-31/nothing"),
    Bad((404, 405), "/"),
    Bad((413,), f"{API}/plain/invocations", b'"' + b"x" * 6_300_000 + b'"'),
)
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /invoke/plain HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{}",
    b"POST /invoke/plain HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /invoke/plain HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    b"GET / HTTP/9.9\r\n\r\n",
    b"\r\n\r\n\r\n",
    b"\x00" * 100,
    b"POST /invoke/plain HTTP/1.1\r\n" + b"A: b\r\n" * 5000,
)


class Client:
    """One of the callers. Its decisions come from its own seed, whatever the others do."""

    def __init__(
        self,
        number: int,
        seed: int,
        port: int,
        functions: Written,
        ledger: Ledger,
        revisions: Mapping[str, int],
    ) -> None:
        self._dice = random.Random(f"{seed}/{number}")
        self._caller = Caller(port)
        self._functions = functions
        self._ledger = ledger
        self._revisions = revisions

    async def run(self, until: Callable[[], bool], think_s: float = THINK_S) -> None:
        """Ask until told to stop; the last request is waited for."""
        try:
            while not until():
                await self._one()
                await trio.sleep(self._dice.expovariate(1 / think_s) if think_s else 0)
        finally:
            self._caller.drop()

    async def _one(self) -> None:
        kind: Kind = self._dice.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "bad":
            await self._ask_badly()
            return
        function, event = self._choose(kind)
        id_ = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        request = Request(id_, kind, function, event["act"], trio.current_time())
        request.revision = self._revisions.get(function, -1)
        self._ledger.requests.append(request)
        headers = {"x-amzn-RequestId": id_}
        if kind in ("event", "dry"):
            headers["X-Amz-Invocation-Type"] = "Event" if kind == "event" else "DryRun"
        if self._dice.random() < 0.1:
            headers["X-Amz-Log-Type"] = "Tail"
        path = f"{API}/{function}/invocations"
        patience = self._dice.expovariate(20) if kind == "left" else float("inf")
        with trio.move_on_after(patience):
            await self._ask(request, path, headers, compact({"id": id_, **event}))

    def _choose(self, kind: Kind) -> tuple[str, dict[str, Any]]:
        dice, functions = self._dice, self._functions
        act = dice.choices(list(ACTS), list(ACTS.values()))[0]
        if act == "oom":
            return functions.oom, {"act": act}
        if act == "timeout":
            return functions.late, {"act": act}
        amount = {
            "exit": dice.choice((0, 1, 139)),
            "signal": dice.choice(SIGNALS),
            "sleep": dice.choice((1, 10, 50, 200)),
            "spin": dice.choice((1, 5, 20)),
            "log": dice.choice((100, 5000, 100_000)),
            "big": dice.choice((1000, 50_000, 1_000_000)),
            "tmp": dice.choice((10, 1_000_000)),
        }.get(act, 0)
        names = [*functions.plain, functions.reserved]
        if act in OTHERS_KNOW:
            names += functions.others
        if act == "echo" and kind != "event":
            names += functions.reloaded * 2
        return dice.choice(names), {"act": act, "n": amount}

    async def _ask(
        self,
        request: Request,
        path: str,
        headers: dict[str, str],
        body: bytes,
        method: str = "POST",
    ) -> None:
        try:
            answer = await self._caller.ask(method, path, headers, body)
        except Unanswered as exc:
            request.unanswered = str(exc)
        else:
            request.status = answer.status
            request.function_error = "x-amz-function-error" in answer.headers
            request.body = answer.body[:1000]
            if request.act == "big" and request.status == 200 and not request.function_error:
                request.body = _without_padding(answer.body)
        finally:
            request.ended = trio.current_time()

    async def _ask_badly(self) -> None:
        if self._dice.random() < 0.3:
            garbage = self._dice.choice(GARBAGE)
            await self._caller.raw(garbage, half_close=self._dice.random() < 0.7)
            return
        bad = self._dice.choice(BAD)
        request = Request("-", "bad", bad.path, "bad", trio.current_time(), expected=bad.expected)
        self._ledger.requests.append(request)
        await self._ask(request, bad.path, dict(bad.headers), bad.body, bad.method)


def compact(event: dict[str, Any]) -> bytes:
    """bash looks for an act by its text."""
    return json.dumps(event, separators=(",", ":")).encode()


def _without_padding(body: bytes) -> bytes:
    """What is left to be judged; an answer that is no whole JSON is left as it is."""
    try:
        told = json.loads(body)
        told.pop("pad")
    except (ValueError, AttributeError, KeyError):
        return body[:1000]
    return json.dumps(told).encode()
