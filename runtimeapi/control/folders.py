"""Owns how a folder's function looks through the Lambda API: as a VersionRecord, derived anew each time.

It is read only there: what it is stands in its folder.
"""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime

import trio

from rootfs.fingerprint import fingerprint
from rootfs.packing import Packed, pack
from runtimeapi.control.rendering import timestamp
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.loggingconfig import LoggingConfig
from sandbox.registry.records import LATEST, Code, Document, FunctionRecord, VersionRecord

log = logging.getLogger(__name__)
UNREAD = Packed("", "", 0, 0.0)
"""Of a folder that cannot be read."""


class Folders:
    """Folders' functions for one node. Remembers the hash of each folder's content while it looks untouched."""

    def __init__(self, account: str, architecture: str) -> None:
        self._role = f"arn:aws:iam::{account}:role/lambox"
        self._architecture = architecture
        self._packed: dict[str, tuple[str, Packed]] = {}

    async def latest(
        self, function: FunctionVersion | BrokenFunction, record: FunctionRecord | None
    ) -> VersionRecord:
        """$LATEST. Reads the whole folder when it has changed since the last call."""
        if isinstance(function, BrokenFunction):
            return self._broken(function)
        # A file system that does not answer keeps nobody but who asks for it.
        packed = await trio.to_thread.run_sync(self._read, function, abandon_on_cancel=True)
        published = record.next_version if record is not None else 1
        return VersionRecord(
            version=LATEST,
            config=self._config(function),
            code=Code(tree=packed.tree, sha256=packed.sha256, size=packed.size),
            identity=function.revision,
            here=_here(function),
            last_modified=timestamp(datetime.fromtimestamp(packed.modified, UTC)),
            # As SPEC 10.2 says, publishing changes it too.
            revision_id=_uuid(function.name, function.revision, packed.tree, str(published)),
        )

    def _read(self, function: FunctionVersion) -> Packed:
        """Blocks."""
        try:
            # Not the function's revision: that leaves out what no environment need be replaced for.
            looks = fingerprint(function.code).digest
            known = self._packed.get(function.name)
            if known is not None and known[0] == looks:
                return known[1]
            packed = pack(function.code)
        except (OSError, ValueError) as exc:
            log.warning("function %s: %s cannot be read: %s", function.name, function.code, exc)
            return UNREAD
        self._packed[function.name] = looks, packed
        return packed

    def _config(self, function: FunctionVersion) -> Document:
        logs = LoggingConfig(
            function.log_format,
            function.application_log_level,
            function.system_log_level,
            function.log_group,
        )
        config: Document = {
            "Runtime": function.runtime,
            "Role": self._role,
            "Handler": function.handler,
            "Description": function.description,
            "Timeout": function.timeout_s,
            "MemorySize": function.memory_mb,
            "Architectures": [self._architecture],
            "EphemeralStorage": {"Size": function.ephemeral_storage_mb},
            "PackageType": "Zip",
            "TracingConfig": {"Mode": "PassThrough"},
            "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
            "LoggingConfig": logs.response(function.name),
        }
        if function.events.dead_letter is not None:
            config["DeadLetterConfig"] = {"TargetArn": function.events.dead_letter.text}
        if function.environment:
            config["Environment"] = {"Variables": dict(function.environment)}
        return config

    def _broken(self, function: BrokenFunction) -> VersionRecord:
        return VersionRecord(
            version=LATEST,
            config={"Role": self._role, "PackageType": "Zip"},
            code=Code(tree="", sha256="", size=0),
            identity=function.problem,
            last_modified=timestamp(datetime.fromtimestamp(0, UTC)),
            revision_id=_uuid(function.name, function.problem, ""),
            state="Failed",
            state_reason=function.problem,
            state_reason_code="FunctionError",
            last_update_status="Failed",
            last_update_status_reason=function.problem,
            last_update_status_reason_code="FunctionError",
        )


def _here(function: FunctionVersion) -> Document:
    here = {
        "network": function.network,
        "idle_timeout_s": function.idle_timeout_s,
        "freeze": function.freeze,
    }
    # Layers from this host have no hash of their own: the function's revision changes with them.
    return {**here, "layers": function.revision} if function.layers else here


def _uuid(*parts: str) -> str:
    """The same for the same parts, and unlike any other."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(parts)))
