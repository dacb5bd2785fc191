"""Owns the addresses at which callers get packages back: `Code.Location`, `Content.Location`.

On AWS they are presigned addresses of S3; here they lead to this server. Whoever has one may use it, for ten minutes
and until the server ends: a token in it stands for all else that a caller has to show.
"""

from __future__ import annotations

import hashlib
import hmac
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import trio
from quart import Response, request

from rootfs.packing import pack
from runtimeapi.app import FaceApp, on_request_end, path_of
from runtimeapi.control.control import Control, missing
from runtimeapi.guard import DOWNLOADS
from sandbox.errors import InvalidRequest
from sandbox.function import BrokenFunction

VALID_S = 600
"""How long an address can be used, as on AWS (SPEC 10.2)."""
CHUNK = 256 * 1024
FORBIDDEN = InvalidRequest(
    "This address is not valid, or not any more. Hint: GetFunction and GetLayerVersion give a fresh one.",
    code="AccessDeniedException",
    status=403,
)


def stored(control: Control, package: str) -> str:
    """Address of a package in the store. Only while a request is answered."""
    return _signed(control, f"stored/{package}.zip")


def of_folder(control: Control, name: str) -> str:
    """Address of a folder's function as a zip, made when it is asked for."""
    return _signed(control, f"folder/{name}.zip")


def _signed(control: Control, what: str) -> str:
    expires = int(control.now().timestamp()) + VALID_S
    path = DOWNLOADS.decode() + what
    token = _token(control, path, expires)
    return f"{request.scheme}://{request.host}{path}?expires={expires}&token={token}"


def _token(control: Control, path: str, expires: int) -> str:
    return hmac.digest(control.secret, f"{path} {expires}".encode(), hashlib.sha256).hex()


def mount_downloads(app: FaceApp, control: Control) -> None:
    path = DOWNLOADS.decode()

    @app.get(path + "stored/<name>.zip")
    async def stored_package(name: str) -> Response:
        _check(control)
        return await _sent(partial(_open, control.code.zip(name)))

    @app.get(path + "folder/<name>.zip")
    async def folders_package(name: str) -> Response:
        _check(control)
        control.functions.refresh()
        function = control.folder(name)
        if function is None or isinstance(function, BrokenFunction):
            raise missing()
        return await _sent(partial(_packed, function.code))


def _check(control: Control) -> None:
    """Raises CallerError."""
    expires = request.args.get("expires", "")
    known = expires.isascii() and expires.isdigit() and len(expires) < 12
    if not known or int(expires) < control.now().timestamp():
        raise FORBIDDEN
    if not hmac.compare_digest(
        request.args.get("token", "").encode(),
        _token(control, path_of(request), int(expires)).encode(),
    ):
        raise FORBIDDEN


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise missing() from exc


def _packed(folder: Path) -> BinaryIO:
    file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  # the caller closes it
    try:
        pack(folder, file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


async def _sent(opened: partial[BinaryIO]) -> Response:
    file = await trio.to_thread.run_sync(opened)
    on_request_end(request, file.close)
    size = file.seek(0, 2)
    file.seek(0)
    return Response(
        _chunks(file), 200, {"Content-Type": "application/zip", "Content-Length": str(size)}
    )


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await trio.to_thread.run_sync(file.read, CHUNK):
        yield chunk
