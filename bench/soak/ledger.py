"""Owns the accounts: what was asked, what was answered, what the server's log says ran. Pure.

Every request is judged by itself (`Ledger.judge`): answered once, run as often as its kind allows, ended as
asked, or as a kill at that time explains. Every turn in the log that has a START has one END and one REPORT.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["sync", "event", "dry", "bad", "left"]
"""`left`: the caller went away before its answer."""

KILL_REACH_S = 4.0
"""How long after a kill an invocation may be given to what was killed, or a start fail for it: a zygote's end is
found out by the next fork, that of a process in a frozen sandbox when that is thawed (idle for 2 s at most)."""
_SOAK = re.compile(r"\[([^\]]+)\] (?:.*\s)?SOAK ([0-9a-f-]{36})\s*$")
_TURN = re.compile(r"\[[^\]]+\] (START|END|REPORT) RequestId: ([0-9a-f-]{36})")
_DROPPED = re.compile(r"event ([0-9a-f-]{36}) of \S+ is dropped")
BY_KILL = {"Runtime.ExitError", "Runtime.TruncatedResponse", "Sandbox.Failure"}
EXPECTED_TYPES = {
    "crash": {"RuntimeError", "Error"},
    "exit": {"Runtime.ExitError"},
    "signal": {"Runtime.ExitError"},
    "oom": {"Runtime.ExitError"},
    "timeout": {"Sandbox.Timedout"},
}
"""Acts that end in a function error, and what its errorType then is."""


@dataclass(slots=True)
class Request:
    """One request as its caller saw it. Times: seconds of one monotonic clock."""

    id: str
    kind: Kind
    function: str
    act: str
    began: float
    ended: float = 0.0
    status: int = 0
    """0: not answered."""
    function_error: bool = False
    body: bytes = b""
    unanswered: str = ""
    expected: tuple[int, ...] = ()
    """Of bad input: the statuses that are right."""
    revision: int = -1
    """The newest one in place when it began; -1: of no matter."""


@dataclass(slots=True)
class Log:
    """What the server's log told."""

    executions: Counter[str] = field(default_factory=Counter)
    turns: dict[str, Counter[str]] = field(default_factory=dict)
    dropped_events: set[str] = field(default_factory=set)
    tracebacks: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    lost_lines: bool = False
    _told: bool = False
    """The lines that follow tell of a request that was answered with 500, which is judged by itself."""

    def read(self, lines: Iterable[str]) -> None:
        for line in lines:
            if found := _TURN.match(line):
                self.turns.setdefault(found[2], Counter())[found[1]] += 1
            elif found := _SOAK.match(line):
                self.executions[found[2]] += 1
            elif found := _DROPPED.search(line):
                self.dropped_events.add(found[1])
            elif line.startswith("Traceback"):
                if not self._told:
                    self.tracebacks.append(line.strip())
            elif line.startswith("lambox: "):
                self._told = line.startswith("lambox: ERROR lambox.invoke: ")
                if line.startswith(("lambox: ERROR", "lambox: CRITICAL")):
                    self.errors.append(line.strip())
            elif "log lines dropped" in line:
                self.lost_lines = True


@dataclass(slots=True)
class Ledger:
    requests: list[Request] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    """When something was killed from outside."""
    explained: list[Request] = field(default_factory=list)
    """By a kill: each takes one invocation along at most."""

    def judge(self, log: Log, spooled: set[str]) -> Iterator[str]:
        """One line for everything that is not as it must be. `spooled`: events left in the file."""
        for request in self.requests:
            for problem in self._problems(request, log, spooled):
                yield f"{problem}: {self.tell(request, log)}"
        if len(self.explained) > len(self.kills):
            yield f"{len(self.kills)} kills do not explain {len(self.explained)} failures"
        for id_, counted in log.turns.items():
            if len(set(counted.values())) != 1 or len(counted) != 3:
                yield f"a turn did not begin and end alike: {id_} {dict(counted)}"

    def tell(self, request: Request, log: Log) -> str:
        about = (
            f"{request.id} {request.kind} {request.function}/{request.act} status {request.status}"
        )
        took = f"{request.began:.2f}+{request.ended - request.began:.2f} s"
        return f"{about}, {took}, ran {log.executions[request.id]}: {request.body[:200]!r}"

    def _problems(self, request: Request, log: Log, spooled: set[str]) -> Iterator[str]:
        ran = log.executions[request.id]
        if request.kind == "left":
            if ran > 1:
                yield "ran more than once"
        elif request.unanswered:
            yield f"not answered ({request.unanswered})"
        elif request.kind == "bad":
            if request.status not in request.expected:
                yield f"bad input was not answered with {request.expected}"
        elif request.kind == "dry":
            if request.status != 204 or ran:
                yield "a dry run was no dry run"
        elif request.kind == "event":
            yield from self._event(request, log, spooled, ran)
        elif ran > 1:
            yield "ran more than once"
        elif request.status == 200 and not request.function_error:
            yield from _success(request, ran)
        elif request.status == 200:
            yield from self._function_error(request)
        elif request.status == 429:
            if ran or request.function != "reserved":
                yield "throttled, and should not have been"
        elif request.status == 500 and self.killed_during(request):
            if ran:
                yield "a fault of the platform after it had run"
        else:
            yield "an answer that nothing explains"

    def _event(self, request: Request, log: Log, spooled: set[str], ran: int) -> Iterator[str]:
        if request.status != 202:
            if request.status != 429:
                yield "an event was not accepted"
            elif ran:
                yield "a refused event ran"
            return
        ended = request.id in spooled or request.id in log.dropped_events
        if not ran and not ended:
            yield "an accepted event is lost"
        if ran > 3:
            yield "an event ran more often than it is tried"
        if request.act not in EXPECTED_TYPES and ran > 1 and not self.killed_during(request, 180):
            yield "an event that succeeds ran again"

    def _function_error(self, request: Request) -> Iterator[str]:
        told = _json(request.body)
        type_ = told.get("errorType") if isinstance(told, dict) else None
        if type_ in EXPECTED_TYPES.get(request.act, ()):
            return
        # Those that are provisioned may have been dead in the freezer for any time.
        reach = math.inf if request.function == "provisioned" else KILL_REACH_S
        if type_ in BY_KILL and self.killed_during(request, before_s=reach):
            self.explained.append(request)
            return
        yield "a function error that nothing explains"

    def killed_during(
        self, request: Request, longer_s: float = 0.0, before_s: float = KILL_REACH_S
    ) -> bool:
        began, ended = request.began - before_s, request.ended + longer_s
        return any(began <= at <= ended for at in self.kills)


def _success(request: Request, ran: int) -> Iterator[str]:
    if ran != 1:
        yield "succeeded, and did not run once"
    if request.act in EXPECTED_TYPES:
        yield "succeeded, and should have failed"
    told = _json(request.body)
    if not isinstance(told, dict) or told.get("id") != request.id:
        yield "somebody else's answer"
    elif "revisions" in told:
        revisions = set(told["revisions"])
        if len(revisions) != 1:
            yield "an answer of mixed revisions"
        elif min(revisions) < request.revision:
            yield f"code from before {request.revision}, which was there when it was asked for"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def spooled_ids(folder: Path) -> set[str]:
    """Request ids of the events that a stopped server left for the next one, in SQLite files."""
    found = set()
    for path in folder.glob("*.db"):
        with closing(sqlite3.connect(path)) as database:
            for (event,) in database.execute("SELECT event FROM events"):
                found.add(json.loads(event)["request_id"])
    return found
