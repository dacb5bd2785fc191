"""Owns the command: `python -m bench.soak`. Rounds of load with a quiet point after each, then hogs, then the
accounts. Exit code 0: all is well; 1: something is off, and the report says what.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from bench import report as bench_report
from bench.servers import Server, Variant, lambox
from bench.soak import functions, neighbours, report
from bench.soak.caller import Caller
from bench.soak.census import census, get, growth, least, traces
from bench.soak.chaos import Chaos
from bench.soak.functions import HOG_NAMES, Written
from bench.soak.ledger import Ledger, Log, spooled_ids
from bench.soak.load import API, Client, compact
from bench.soak.neighbours import Pair
from bench.stage import temporary

LATEST = Path(__file__).resolve().parents[1] / "results" / "soak.json"
QUIET_PATIENCE_S = 45.0
EVENTS_PATIENCE_S = 60.0
HOG_ROUNDS = 4
"""In 10 minutes."""
STOP_PATIENCE_S = 60.0
LOG_FILL = 1_300_000
"""Bytes that each function logs first: what `lambox logs` keeps has then reached its bound."""


@dataclass(slots=True)
class Soak:
    """One run: what it found out."""

    chosen: argparse.Namespace
    server: Server
    folder: Path
    log: Path
    written: Written
    ledger: Ledger = field(default_factory=Ledger)
    points: list[dict[str, float]] = field(default_factory=list)
    pairs: dict[str, Pair] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    chaos: Chaos | None = None
    stop_s: float = 0.0

    @property
    def rounds(self) -> int:
        return 4 if self.chosen.minutes <= 2.5 else 10

    async def run(self) -> None:
        revisions = dict.fromkeys(self.written.reloaded, 0)
        pid = self.server.process.pid
        self.chaos = Chaos(self.chosen.seed, pid, self.folder, self.ledger, revisions)
        clients = [
            Client(n, self.chosen.seed, self.server.port, self.written, self.ledger, revisions)
            for n in range(self.chosen.clients)
        ]
        seconds = self.chosen.minutes * 60
        rounds = self.rounds
        per_hog = 3.0
        share = 0.7 * seconds if self.chosen.hogs else seconds
        await self._fill_logs()
        for number in range(rounds + 1):
            # One more than is counted: pools, caches and heaps find their size in the first.
            length = max(5.0, share / rounds) if number else 5.0
            say(f"round {number} of {rounds}: load, {length:.0f} s")
            await self._load(clients, length)
            await self._quiet(f"round {number}")
        if self.chosen.hogs:
            self.pairs = {hog: Pair() for hog in HOG_NAMES}
            hog_rounds = max(1, round(seconds / 600 * HOG_ROUNDS))
            for number in range(1, hog_rounds + 1):
                say(f"neighbours of hogs, round {number}")
                await neighbours.measure(self.server.port, self.written, self.pairs, per_hog)
                await self._quiet(f"hogs, round {number}")
            for hog, pair in self.pairs.items():
                if pair.disturbed:
                    quiet = pair.quiet.figures()["p99_ms"]
                    say(f"DISTURBED before a {hog}: quiet p99 {quiet} ms; it is measured again")
            if await neighbours.measure_again(
                self.server.port, self.written, self.pairs, per_hog, hog_rounds
            ):
                await self._quiet("hogs, again")
        await self._events_ran()

    async def _load(self, clients: list[Client], seconds: float) -> None:
        assert self.chaos is not None
        end = trio.current_time() + seconds
        async with trio.open_nursery() as storm:
            storm.start_soon(self.chaos.run)
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(
                        client.run, lambda: trio.current_time() >= end, self.chosen.think
                    )
            storm.cancel_scope.cancel()

    async def _fill_logs(self) -> None:
        caller = Caller(self.server.port)
        for name in self.written.everyone:
            id_ = str(uuid.uuid4())
            event = compact({"id": id_, "act": "log", "n": LOG_FILL})
            headers = {"x-amzn-RequestId": id_}
            await caller.ask("POST", f"{API}/{name}/invocations", headers, event)
        caller.drop()

    async def _quiet(self, after: str) -> None:
        """Until idle environments are gone and the pools have their size; then count.

        Events between two attempts go on coming, for minutes. While there are any that may not come to pass:
        then what counts is the least that was seen of each kind.
        """
        say(f"quiet after {after}")
        seen: list[dict[str, float]] = []
        with trio.move_on_after(QUIET_PATIENCE_S):
            quiet = 0
            while (
                quiet < 8
            ):  # for 2 s: pools change size, connections and threads take their time to go
                quiet = quiet + 1 if self._is_quiet() else 0
                if not quiet:
                    seen.append(census(self.server.process.pid, self.server.port))
                await trio.sleep(0.25 if quiet else 1.0)
            seen = []
        last = census(self.server.process.pid, self.server.port)
        if seen and not last.get("task AsyncQueue._run"):
            rows = get(self.server.port, "/_lambox/environments")
            self.problems.append(
                f"after {after}: not quiet within {QUIET_PATIENCE_S:.0f} s: {rows}"
            )
        self.points.append(least([*seen, last]))

    def _is_quiet(self) -> bool:
        rows = get(self.server.port, "/_lambox/environments")
        prepared = get(self.server.port, "/_lambox/prepared")
        least = self.chosen.pool
        return (
            all(row["type"] == "provisioned" and row["state"] == "frozen" for row in rows)
            and len(rows) == 2
            and all(row["ready"] == row["wanted"] for row in prepared)
            and all(row["wanted"] <= max(least, 1) for row in prepared)
        )

    async def _events_ran(self) -> None:
        """Every accepted event is tried within the patience; retries may be left for the file."""
        say("waiting for events")
        accepted = {
            one.id for one in self.ledger.requests if one.kind == "event" and one.status == 202
        }
        with trio.move_on_after(EVENTS_PATIENCE_S):
            while accepted - set(self.read_log().executions):  # noqa: ASYNC110  the same
                await trio.sleep(1.0)

    def read_log(self) -> Log:
        log = Log()
        with self.log.open(errors="replace") as lines:
            log.read(lines)
        return log

    def stop(self) -> None:
        """A clean stop; then nothing of the server may be left."""
        say("stopping")
        process = self.server.process
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_PATIENCE_S)
        self.stop_s = time.monotonic() - began
        if code:
            self.problems.append(f"the server ended with {code}")
        self.problems += [f"left behind: {trace}" for trace in traces(process.pid)]

    def judge(self) -> Log:
        log = self.read_log()
        spools = self.folder.parent.glob("state-*/events")
        spooled = set[str]().union(*map(spooled_ids, spools))
        self.problems += self.ledger.judge(log, spooled)
        if log.lost_lines:
            self.problems.append("the server dropped log lines, so executions cannot be counted")
        if log.tracebacks:
            self.problems.append(f"{len(log.tracebacks)} tracebacks in the server's log")
        # The first of each has filled pools, caches and heaps.
        for what, points in (
            ("load", self.points[1 : self.rounds + 1]),
            ("hogs", self.points[self.rounds + 1 :]),
        ):
            for kind, slope in growth(points).items() if len(points) > 2 else ():
                row = [point.get(kind, 0) for point in points]
                self.problems.append(f"{kind} grow by {slope:.2f} per round of {what}: {row}")
        self.problems += neighbours.problems(self.pairs)
        return log


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of load and hogs (10)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, help="of an earlier run, for the same decisions")
    parser.add_argument("--think", type=float, default=0.1, help="mean pause of a client, in s")
    parser.add_argument("--pool", type=int, default=4, help="sandboxes kept ready per kind")
    parser.add_argument("--no-hogs", dest="hogs", action="store_false")
    parser.add_argument("--serve-args", default="", help="for `lambox serve`")
    parser.add_argument("--json", type=Path, default=LATEST, metavar="PATH")
    parser.add_argument("--keep-log", type=Path, metavar="PATH", help="the server's log, copied")
    chosen = parser.parse_args(argv)
    if chosen.seed is None:
        chosen.seed = random.SystemRandom().randrange(1 << 32)
    if chosen.minutes <= 0 or chosen.clients < 1:
        parser.error("--minutes and --clients must be more than 0")
    return chosen


def main() -> int:
    chosen = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    say(f"seed {chosen.seed}")
    with temporary() as temp:
        folder = temp / "functions"
        written = functions.write(folder)
        settings = {
            "LAMBOX_POOL_MIN": str(chosen.pool),
            "LAMBOX_POOL_MAX": str(chosen.pool if chosen.minutes < 5 else 2 * chosen.pool),
            "LAMBOX_GRACE_S": "5",
            # Or else they would come in all quiet points, for minutes.
            "LAMBOX_EVENT_RETRY_S": "2",
        }
        variant = Variant.of(chosen.serve_args)
        with lambox(variant, folder, temp, **settings) as server:
            soak = Soak(chosen, server, folder, temp / "lambox.log", written)
            try:
                trio.run(functools.partial(soak.run))
            finally:
                if chosen.keep_log:
                    chosen.keep_log.write_bytes(soak.log.read_bytes())
            soak.stop()
        log = soak.judge()
        if chosen.keep_log:
            chosen.keep_log.write_bytes(soak.log.read_bytes())
        result: dict[str, Any] = report.result(soak, log, time.monotonic() - began)
    result["host"] = bench_report.host()
    report.show(result)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {chosen.json}")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
