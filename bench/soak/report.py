"""Owns the report of a soak: one dict for the JSON file, and the same for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from bench.soak.ledger import Log, Request
from bench.soak.neighbours import bound_ms

if TYPE_CHECKING:
    from bench.soak.__main__ import Soak

SHOWN = 25
"""Problems printed; the file has all of them."""


def result(soak: Soak, log: Log, seconds: float) -> dict[str, Any]:
    requests = soak.ledger.requests
    turns = sum(counted["START"] for counted in log.turns.values())
    return {
        "seed": soak.chosen.seed,
        "minutes": soak.chosen.minutes,
        "clients": soak.chosen.clients,
        "serve_args": soak.chosen.serve_args,
        "seconds": round(seconds, 1),
        "requests": len(requests),
        "kinds": dict(Counter(one.kind for one in requests)),
        "outcomes": dict(Counter(map(_outcome, requests)).most_common()),
        "executions": sum(log.executions.values()),
        "turns": turns,
        "killed": dict(soak.chaos.killed.most_common()) if soak.chaos else {},
        "revisions": dict(soak.chaos.revisions) if soak.chaos else {},
        "stop_s": round(soak.stop_s, 2),
        "log_errors": dict(Counter(line[:120] for line in log.errors).most_common(20)),
        "quiet_points": soak.points,
        "neighbours": {
            hog: {
                "quiet": pair.quiet.figures(),
                "hogged": pair.hogged.figures(),
                "bound_ms": round(bound_ms(soak.pairs), 1),
                "disturbed": pair.before and pair.before.quiet.figures(),
            }
            for hog, pair in soak.pairs.items()
        },
        "problems": soak.problems,
    }


def show(told: dict[str, Any]) -> None:
    print(
        f"\nsoak of {told['seconds']:.0f} s, seed {told['seed']}, {told['clients']} clients: "
        f"{told['requests']} requests, {told['executions']} executions, {told['turns']} turns"
    )
    _row("kinds", told["kinds"])
    _row("outcomes", told["outcomes"])
    _row("killed", told["killed"])
    _row("reloads", told["revisions"])
    _row("in the log", told["log_errors"])
    points = told["quiet_points"]
    print(f"stopped in {told['stop_s']} s\n\nat quiet points (the first is not counted):")
    for kind in sorted(set().union(*points)):
        print(f"  {kind:36}" + " ".join(f"{point.get(kind, 0):8g}" for point in points))
    if told["neighbours"]:
        print(
            "\nneighbour of       quiet p50    p99  worst   beside it p50    p99  worst   bound (ms)"
        )
    for hog, row in told["neighbours"].items():
        quiet, hogged = row["quiet"], row["hogged"]
        print(
            f"  {hog:16} {quiet['p50_ms']:9} {quiet['p99_ms']:6} {quiet['worst_ms']:6}   "
            f"{hogged['p50_ms']:13} {hogged['p99_ms']:6} {hogged['worst_ms']:6} {row['bound_ms']:7}"
            + (f"   again: quiet p99 was {first['p99_ms']}" if (first := row["disturbed"]) else "")
        )
    problems = told["problems"]
    print(f"\n{len(problems)} problems" if problems else "\nall is well")
    for problem in problems[:SHOWN]:
        print(f"  {problem}")
    if len(problems) > SHOWN:
        print(f"  and {len(problems) - SHOWN} more")


def _row(name: str, counted: dict[str, int]) -> None:
    print(f"  {name:12}" + ", ".join(f"{what} {count}" for what, count in counted.items()))


def _outcome(request: Request) -> str:
    if request.unanswered:
        return "not answered"
    if request.kind == "left":
        return "left"
    return f"{request.status}{' function error' if request.function_error else ''}"
