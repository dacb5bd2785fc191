"""Owns getting packages from S3: S3Bucket, S3Key and S3ObjectVersion of the Lambda API, from the endpoint the
settings name (`awsclient.py`).
"""

from __future__ import annotations

from typing import Any, BinaryIO

import trio

from lambox.awsclient import AwsClients, AwsProblem, NoEndpoint, Refused
from rootfs.trees import MAX_UNZIPPED
from sandbox.errors import InvalidRequest, PlatformFault

CHUNK = 1024 * 1024
TOTAL_S = 300.0
"""A whole object; `awsclient.py` bounds the silence within."""


class S3Code:
    """Implements `Control.fetch_code`."""

    def __init__(self, clients: AwsClients, region: str) -> None:
        self._clients = clients
        self._region = region

    async def fetch(self, bucket: str, key: str, version: str | None, into: BinaryIO) -> None:
        """Raises InvalidRequest (SPEC 10.4), PlatformFault where S3 does not answer."""
        asked = {"Bucket": bucket, "Key": key}
        if version is not None:
            asked["VersionId"] = version
        try:
            answer = await self._clients.call("s3", "get_object", asked, region=self._region)
        except NoEndpoint as exc:
            raise _invalid(f"S3Bucket: {exc}; or send the zip itself as ZipFile") from exc
        except Refused as exc:
            raise _invalid(
                f"Error occurred while GetObject. S3 Error Code: {exc.code}. S3 Error Message: {exc.message}"
            ) from exc
        except AwsProblem as exc:
            raise PlatformFault(f"s3://{bucket}/{key} cannot be fetched: {exc}") from exc
        where = f"s3://{bucket}/{key}"
        with trio.move_on_after(TOTAL_S):
            await trio.to_thread.run_sync(
                _copy, answer["Body"], into, where, abandon_on_cancel=False
            )
            return
        raise PlatformFault(f"{where} cannot be fetched: not whole after {TOTAL_S:g} s")


def _copy(body: Any, into: BinaryIO, where: str) -> None:
    from botocore.exceptions import BotoCoreError

    size = 0
    try:
        while chunk := body.read(CHUNK):
            trio.from_thread.check_cancelled()
            size += len(chunk)
            if size >= MAX_UNZIPPED:  # of which no zip becomes less
                raise _invalid(f"Unzipped size must be smaller than {MAX_UNZIPPED} bytes")
            into.write(chunk)
    except BotoCoreError as exc:
        raise PlatformFault(f"{where} cannot be fetched: {exc}") from exc
    except OSError as exc:
        raise PlatformFault(f"{where} cannot be kept: {exc.strerror or exc}") from exc
    finally:
        body.close()


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="InvalidParameterValueException")
