"""Owns where a function's code comes from: a zip in the request, or S3."""

from __future__ import annotations

from typing import Any

import trio

from rootfs.codestore import BadPackage, Package, TooLarge
from runtimeapi.control.checks import NO_IMAGES
from runtimeapi.control.control import Control, invalid
from runtimeapi.control.parsing import Input
from sandbox.errors import InvalidRequest
from sandbox.registry.records import Code

MAX_ZIPPED = 52_428_800
"""Bytes of a zip in a request (SPEC 10.6)."""
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


async def take_code(control: Control, given: Input, *, keep: bool = True) -> Code:
    """The package that a request names, in the store; or looked through only. Raises CallerError."""
    data = given.get("ZipFile")
    if data is None:
        data = await control.fetch_code(
            given["S3Bucket"], given["S3Key"], given.get("S3ObjectVersion")
        )
    elif len(data) > MAX_ZIPPED:
        raise InvalidRequest(
            f"Zipped size must be smaller than {MAX_ZIPPED} bytes",
            code="RequestEntityTooLargeException",
            status=413,
        )
    try:
        found: Package = await trio.to_thread.run_sync(
            control.code.put if keep else control.code.check, data
        )
    except TooLarge as exc:
        raise invalid(str(exc)) from exc
    except BadPackage as exc:
        raise invalid(NOT_A_ZIP) from exc
    return Code(tree=found.tree, sha256=found.sha256, size=found.size)
