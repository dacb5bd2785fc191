"""Owns what an event is while it is in the queue, and how it is written down: frozen values and their JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import trio

from sandbox.eventconfig import BadTarget, EventConfig, Target, parse_target
from sandbox.function import FunctionVersion
from sandbox.ids import new_request_id
from sandbox.invocation import Invocation

Condition = Literal[
    "Success",
    "RetriesExhausted",
    "EventAgeExceeded",
    "ZeroReservedConcurrency",
    "RecursiveInvocation",
]
"""AWS's (SPEC 8.2), but for the last: what AWS says of events that went round too often is not known."""
Role = Literal["destination", "dead letter"]


@dataclass(frozen=True, slots=True)
class Response:
    """What an attempt came to. `status` is HTTP's: 200 when the function itself answered, well or not."""

    status: int
    payload: bytes = b""
    executed_version: str = ""
    failed: bool = True

    @property
    def answered(self) -> bool:
        return self.status == 200


@dataclass(frozen=True, slots=True)
class Drop:
    """One hand-over that is still to be made."""

    role: Role
    target: Target


@dataclass(frozen=True, slots=True)
class Ended:
    """How an event ended, until those who are to know of it have been told."""

    condition: Condition
    at: float
    """Unix seconds."""
    since: float
    """The same moment on trio's clock."""
    patience_s: float
    """How long from then on it is tried to tell them."""
    left: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """One event in the queue."""

    invocation: Invocation
    accepted_at: float
    """Unix seconds, so that it means something after a restart."""
    since: float
    """The same moment on trio's clock, which nobody sets: what its age is counted from."""
    attempts: int = 0
    """Attempts that the function itself answered."""
    hops: int = 0
    """Functions that it came through as a record of their invocations."""
    response: Response | None = None
    """Of the last attempt that the function answered; else of the last attempt."""
    ended: Ended | None = None
    """None: it is still to be run."""

    @property
    def name(self) -> str:
        """Of the function."""
        return self.invocation.function.name

    @property
    def qualified_arn(self) -> str:
        """As it was invoked, with $LATEST where no qualifier was named."""
        arn = self.invocation.invoked_arn
        return arn if self.invocation.qualifier else f"{arn}:$LATEST"


def drops_of(condition: Condition, config: EventConfig) -> tuple[Drop, ...]:
    """Who is to be told of such an end."""
    if condition == "Success":
        return (Drop("destination", config.on_success),) if config.on_success else ()
    drops = []
    # What went round too often must not go on to one more function.
    if config.on_failure and not (
        condition == "RecursiveInvocation" and config.on_failure.kind == "function"
    ):
        drops.append(Drop("destination", config.on_failure))
    if config.dead_letter:
        drops.append(Drop("dead letter", config.dead_letter))
    return tuple(drops)


def without(accepted: Accepted, drop: Drop) -> Accepted:
    """Ended, with this one told."""
    ended = accepted.ended
    assert ended is not None
    left = tuple(one for one in ended.left if one != drop)
    return replace(accepted, ended=replace(ended, left=left))


def handed_over(accepted: Accepted, target: Target, record: bytes, *, now: float) -> Accepted:
    """The event that a record is to the function it goes to. Raises BadTarget: that one is not of this server."""
    prefix = accepted.invocation.invoked_arn.split(":function:")[0]
    region, account = prefix.split(":")[3:5]
    if (target.region or region, target.account or account) != (region, account):
        raise BadTarget(f"this server's functions are those of {account} in {region}")
    qualifier = f":{target.qualifier}" if target.qualifier else ""
    invocation = replace(
        accepted.invocation,
        function=FunctionVersion(target.name, "", "", Path(), ""),
        payload=record,
        invoked_arn=f"{prefix}:function:{target.name}{qualifier}",
        request_id=new_request_id(),
    )
    return Accepted(invocation, now, trio.current_time(), hops=accepted.hops + 1)


def to_text(accepted: Accepted) -> str:
    invocation = accepted.invocation
    row: dict[str, Any] = {
        "function": invocation.function.name,
        "invoked_arn": invocation.invoked_arn,
        "request_id": invocation.request_id,
        "content_type": invocation.content_type,
        "trace_id": invocation.trace_id,
        "accepted_at": accepted.accepted_at,
        "attempts": accepted.attempts,
    }
    if accepted.hops:
        row["hops"] = accepted.hops
    if (ended := accepted.ended) is not None:
        row["ended"] = {
            "condition": ended.condition,
            "at": ended.at,
            "patience_s": ended.patience_s,
            "left": [[drop.role, drop.target.text] for drop in ended.left],
        }
    text = _with_payload(row, invocation.payload)
    if (response := accepted.response) is None:
        return text
    fields = {
        "status": response.status,
        "version": response.executed_version,
        "failed": response.failed,
    }
    return f'{text[:-1]}, "response": {_with_payload(fields, response.payload)}}}'


def _with_payload(fields: dict[str, Any], payload: bytes) -> str:
    """base64 is put in as it is: `json.dumps` looks at every letter of it for 60 ms, where a response has 6 MB."""
    return f'{json.dumps(fields)[:-1]}, "payload": "{base64.b64encode(payload).decode()}"}}'


def from_text(text: str, now: float) -> Accepted:
    """`now`: Unix seconds. Raises ValueError, KeyError, TypeError: it was not written by `to_text`."""
    row: dict[str, Any] = json.loads(text)
    accepted_at = float(row["accepted_at"])
    return Accepted(
        Invocation(
            # Only the name matters: what the function is now is looked up before each attempt.
            function=FunctionVersion(row["function"], "", "", Path(), ""),
            payload=base64.b64decode(row["payload"]),
            invoked_arn=row["invoked_arn"],
            request_id=row["request_id"],
            content_type=row["content_type"],
            trace_id=row["trace_id"],
            kind="Event",
        ),
        accepted_at=accepted_at,
        since=_on_our_clock(accepted_at, now),
        attempts=int(row["attempts"]),
        hops=int(row.get("hops", 0)),
        response=_response(row["response"]) if "response" in row else None,
        ended=_ended(row["ended"], now) if "ended" in row else None,
    )


def _on_our_clock(at: float, now: float) -> float:
    return trio.current_time() - max(0.0, now - at)


def _response(row: dict[str, Any]) -> Response:
    payload = base64.b64decode(row["payload"])
    return Response(int(row["status"]), payload, str(row["version"]), bool(row["failed"]))


def _ended(row: dict[str, Any], now: float) -> Ended:
    at = float(row["at"])
    return Ended(
        condition=row["condition"],
        at=at,
        since=_on_our_clock(at, now),
        patience_s=float(row["patience_s"]),
        left=tuple(Drop(role, parse_target(text)) for role, text in row["left"]),
    )
