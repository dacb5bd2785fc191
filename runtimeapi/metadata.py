"""Owns the metadata endpoint of SPEC 1.9: where an environment runs, told to whoever has its token."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from quart import Response, request

from runtimeapi.app import FaceApp, respond
from runtimeapi.gojson import charge, go_json
from runtimeapi.ports import RuntimeFace

PATH = "/2026-01-15/metadata/execution-environment"
MAX_AGE_S = 43_200
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BEARER = "Bearer "


def mount_metadata(app: FaceApp, environment: Callable[[], RuntimeFace]) -> None:
    """`environment()`: whose socket a request arrived on."""

    @app.route(PATH, methods=METHODS, provide_automatic_options=False)
    async def execution_environment() -> Response:
        # The method first, then the token: as AWS's own does.
        if request.method != "GET":
            return _plain(405, "Method Not Allowed")
        charge()
        face = environment()
        given = request.headers.get("Authorization", "")
        token = given.removeprefix(BEARER).encode("utf-8", "replace")
        if not given.startswith(BEARER) or not hmac.compare_digest(
            token, face.metadata_token.encode()
        ):
            return _plain(401, "Unauthorized")
        if not face.zone_id:
            return _plain(503, "Service Unavailable")
        headers = {
            "Content-Type": "application/json",
            "Cache-Control": f"private, max-age={MAX_AGE_S}, immutable",
        }
        return respond(200, headers, go_json({"AvailabilityZoneID": face.zone_id}))


def _plain(status: int, words: str) -> Response:
    headers = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return respond(status, headers, f"{words}\n".encode())
