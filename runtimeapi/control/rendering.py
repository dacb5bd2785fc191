"""Owns what an operation's output looks like on the wire: AWS's rest-json, by the model's output shape."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from runtimeapi.replies import Reply, to_json

if TYPE_CHECKING:
    from botocore.model import OperationModel, Shape

Output = dict[str, Any]
"""botocore's member names. Members that are None are left out."""

STATUS = {"DeleteFunction": 204}
"""Where AWS answers another status than its model says (SPEC 10.1)."""


def render(operation: OperationModel, output: Output) -> Reply:
    """Raises KeyError for a member that the model does not have: that is a mistake of ours."""
    status = STATUS.get(operation.name, operation.http.get("responseCode", 200))
    shape = operation.output_shape
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    members: dict[str, Shape] = {} if shape is None else shape.members
    for name, value in output.items():
        member = members[name]
        if value is None:
            continue
        wire = member.serialization.get("name", name)
        place = member.serialization.get("location")
        if place == "statusCode":
            status = value
        elif place == "header":
            headers[wire] = str(value)
        else:
            body[wire] = _plain(member, value)
    if status == 204:
        return Reply(204, headers, b"")
    return Reply(status, {"Content-Type": "application/json", **headers}, to_json(body))


def _plain(shape: Shape, value: Any) -> Any:
    kind = shape.type_name
    if kind == "structure":
        members = shape.members
        return {
            members[name].serialization.get("name", name): _plain(members[name], item)
            for name, item in value.items()
            if item is not None
        }
    if kind == "list":
        return [_plain(shape.member, item) for item in value]
    if kind == "map":
        return {key: _plain(shape.value, item) for key, item in value.items()}
    if kind == "timestamp":
        return value.timestamp() if isinstance(value, datetime) else value
    if kind == "blob":
        return base64.b64encode(value).decode()
    return value


def timestamp(moment: datetime) -> str:
    """LastModified of functions: 2025-11-25T02:26:54.000+0000 (SPEC 10.1)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000+0000")
