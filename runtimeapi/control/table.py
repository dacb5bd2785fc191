"""Owns docs/api.md: every operation of botocore's model and what becomes of it here.

Made from the model, `OPERATIONS`, and what each module of operations says beside them: `NOTES` (operation -> what it
does not do, or does differently) and `ACCEPTED` (operations that are answered without being of effect).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from runtimeapi.control import model
from runtimeapi.control.operations import OPERATIONS

Status = Literal["supported", "accepted", "not supported"]

INVOCATIONS = {
    "Invoke": "X-Amz-Tenant-Id and names of durable executions are ignored.",
    "InvokeAsync": "",
    "InvokeWithResponseStream": "",
}
"""Answered by `runtimeapi/invoke.py`."""
REFUSED = (
    (
        re.compile(r".*CodeSigningConfig"),
        "No signatures of code are verified, so none can be asked for.",
    ),
    (
        re.compile(r".*CapacityProvider|.*ScalingConfig"),
        "There are no managed instances to run functions on.",
    ),
    (re.compile(r".*DurableExecution.*"), "There are no durable executions."),
)
"""Why what is in no table is not supported."""
NOT_YET = "Not made yet."
HEAD = """\
# Operations of the Lambda API

<!-- Made by `python -m runtimeapi.control > docs/api.md`. -->

Every operation that botocore {version} knows of, and what becomes of it here: {supported} of {all} are supported,
{accepted} are accepted, {refused} are not supported.

- *supported*: does what AWS's does, but for what is said beside it.
- *accepted*: answers as AWS does, and changes nothing about how functions run: what is sent is checked, kept and
  shown, or there is nothing of the kind here and the answer says that.
- *not supported*: 501 `NotImplementedException`, in AWS's shape, and nothing is changed.

[lambda-api.md](lambda-api.md) tells how to use them.

| operation | request | status | what it does not do, or why |
| --- | --- | --- | --- |
"""


@dataclass(frozen=True, slots=True)
class Row:
    operation: str
    request: str
    status: Status
    note: str


def rows() -> list[Row]:
    """By name."""
    return [_row(one.name, one.http) for one in model.load().operations]


def _row(name: str, http: dict[str, str]) -> Row:
    request = f"`{http['method']} {http['requestUri']}`"
    if name in INVOCATIONS:
        return Row(name, request, "supported", INVOCATIONS[name])
    handler = OPERATIONS.get(name)
    if handler is None:
        why = next((why for names, why in REFUSED if names.fullmatch(name)), NOT_YET)
        return Row(name, request, "not supported", why)
    beside = sys.modules[handler.__module__]
    accepted = name in getattr(beside, "ACCEPTED", ())
    note: str = getattr(beside, "NOTES", {}).get(name, "")
    return Row(name, request, "accepted" if accepted else "supported", note)


def page() -> str:
    """docs/api.md."""
    from botocore import __version__

    found = rows()
    counted = Counter(row.status for row in found)
    head = HEAD.format(
        version=__version__,
        all=len(found),
        supported=counted["supported"],
        accepted=counted["accepted"],
        refused=counted["not supported"],
    )
    lines = [f"| {row.operation} | {row.request} | {row.status} | {row.note} |\n" for row in found]
    return head + "".join(lines)
