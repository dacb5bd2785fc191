"""Owns where a function's code comes from: a zip in the request, or S3."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, BinaryIO, TypeVar

import trio

from rootfs.codestore import BadPackage, Empty, Package, TooLarge
from runtimeapi.control.checks import NO_IMAGES
from runtimeapi.control.control import Control, invalid
from runtimeapi.control.parsing import Input
from sandbox.errors import InvalidRequest, PlatformFault
from sandbox.registry.records import Code

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_ZIPPED = 52_428_800
"""Bytes of a zip in a request (SPEC 10.6)."""
EMPTY = "Uploaded file must be a non-empty zip"
NOT_A_ZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."


def check_source(given: dict[str, Any]) -> None:
    """That exactly one source is named. Raises CallerError."""
    if "ImageUri" in given:
        raise invalid(NO_IMAGES)
    if "ZipFile" in given:
        if any(member in given for member in ("S3Bucket", "S3Key", "S3ObjectVersion")):
            raise invalid(
                "Please do not provide other FunctionCode parameters when providing a ZipFile."
            )
    elif "S3Bucket" not in given or "S3Key" not in given:
        raise invalid("Please provide a source for function code.")


@asynccontextmanager
async def taken_code(control: Control, given: Input, *, keep: bool = True) -> AsyncIterator[Code]:
    """The package that a request names, in the store as long as the block lasts, and then if something refers to
    it; without `keep` looked through only. Raises CallerError, PlatformFault."""
    with control.code.hold() as hold:
        put = hold.put if keep else control.code.check
        data = given.get("ZipFile")
        if data is not None:
            if len(data) > MAX_ZIPPED:
                raise InvalidRequest(
                    f"Zipped size must be smaller than {MAX_ZIPPED} bytes",
                    code="RequestEntityTooLargeException",
                    status=413,
                )
            yield await _stored(control, put, data)
            return
        with await _kept(control, control.code.scratch) as file:
            await control.fetch_code(
                given["S3Bucket"], given["S3Key"], given.get("S3ObjectVersion"), file
            )
            yield await _stored(control, put, file)


async def _stored(
    control: Control, put: Callable[[bytes | BinaryIO], Package], source: bytes | BinaryIO
) -> Code:
    try:
        found = await _kept(control, partial(put, source))
    except TooLarge as exc:
        raise invalid(str(exc)) from exc
    except Empty as exc:
        raise invalid(EMPTY) from exc
    except BadPackage as exc:
        log.info("a package is refused: %s", exc)
        raise invalid(NOT_A_ZIP) from exc
    return Code(tree=found.tree, sha256=found.sha256, size=found.size, unzipped=found.unzipped)


async def _kept(control: Control, work: Callable[[], T]) -> T:
    """In a thread. Raises PlatformFault where the disk does not take it."""
    try:
        return await trio.to_thread.run_sync(work)
    except OSError as exc:
        where = exc.filename or control.code.folder
        log.error("a package cannot be kept: %s: %s", where, exc.strerror)
        raise PlatformFault(f"the package cannot be kept: {exc.strerror}") from exc
