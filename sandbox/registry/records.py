"""Owns the records of the Lambda API: frozen values, written as JSON, one row each.

What a caller sent is kept in AWS's own shape (botocore's member names), so that an answer is what was asked
for plus what lambox knows. Dicts in here are never changed, only replaced: `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

LATEST = "$LATEST"

Document = dict[str, Any]
"""Members of one of botocore's shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A deployment package in the store (`rootfs/codestore.py`)."""

    tree: str
    """Name in the store: SHA-256 of the zip, in hex."""
    sha256: str
    """CodeSha256: the same in base64."""
    size: int
    """CodeSize: bytes of the zip."""
    unzipped: int = 0
    """Bytes of the files in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One version of a function, `$LATEST` too: FunctionConfiguration without what is the function's."""

    version: str
    config: Document
    """Members of CreateFunction that say how it runs (Runtime, Handler, Role, Timeout, Environment...), AWS's
    defaults filled in."""
    code: Code
    identity: str
    """New whenever code or configuration change: what the engine calls `revision`."""
    content: str = ""
    """Of a published version: what $LATEST was then, in a word. Publishing the same again makes no new version."""
    here: Document = field(default_factory=dict)
    """Of a version published from a folder, what AWS has no word for: network, idle_timeout_s, freeze; as
    `opt` the package in the store that is its merged layers, as `layers` the revision they were read at."""
    last_modified: str
    """2025-11-25T02:26:54.000+0000 (SPEC 10.1)."""
    revision_id: str
    state: str = "Active"
    state_reason: str | None = None
    state_reason_code: str | None = None
    last_update_status: str | None = "Successful"
    """None while it is being created (SPEC 10.2)."""
    last_update_status_reason: str | None = None
    last_update_status_reason_code: str | None = None

    @property
    def unsettled(self) -> bool:
        """Being created or updated: not ready yet."""
        return self.state == "Pending" or self.last_update_status == "InProgress"

    def packages(self) -> set[str]:
        """Names of everything in the code store that it needs."""
        layers = {layer["tree"] for layer in self.config.get("Layers", ())}
        return {self.code.tree, *layers, *filter(None, [self.here.get("opt")])}


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRecord:
    name: str
    version: str
    description: str
    weights: dict[str, float]
    """AdditionalVersionWeights; the rest goes to `version`."""
    revision_id: str

    def leads_to(self, version: str) -> bool:
        return version == self.version or version in self.weights


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRecord:
    """A function, or what was attached to a folder's function."""

    name: str
    birth: str
    """Unique: a function made again under its name is another one."""
    latest: VersionRecord | None
    """None: the folder of this name is $LATEST."""
    versions: dict[str, VersionRecord] = field(default_factory=dict)
    """Published ones, by number, in ascending order."""
    next_version: int = 1
    """Numbers are never given twice (SPEC 10.2)."""
    aliases: dict[str, AliasRecord] = field(default_factory=dict)
    reserved_concurrency: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    attached: dict[str, dict[str, Document]] = field(default_factory=dict)
    """feature -> qualifier ($LATEST, a version or an alias) -> what is configured of it: "policy", "url",
    "event_invoke", "provisioned"... Each feature's module in `runtimeapi/control` owns its documents."""

    def with_version(self, version: VersionRecord) -> FunctionRecord:
        """With this one in the place of the one of its number, or as a new one."""
        if version.version == LATEST:
            return replace(self, latest=version)
        return replace(self, versions={**self.versions, version.version: version})

    def without(self, qualifier: str) -> FunctionRecord:
        """Without the version or alias of this name, and without what was configured of it."""
        return replace(
            self,
            versions={key: one for key, one in self.versions.items() if key != qualifier},
            aliases={key: one for key, one in self.aliases.items() if key != qualifier},
            attached={
                feature: {key: one for key, one in documents.items() if key != qualifier}
                for feature, documents in self.attached.items()
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerVersionRecord:
    version: int
    code: Code
    document: Document
    """Description, CompatibleRuntimes, CompatibleArchitectures, LicenseInfo as they were sent."""
    created: str
    policy: Document = field(default_factory=dict)
    """StatementId -> statement, and RevisionId."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    name: str
    versions: dict[str, LayerVersionRecord] = field(default_factory=dict)
    """By number; those that were deleted are gone."""
    next_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingRecord:
    """An event source mapping."""

    name: str
    """Its UUID."""
    function: str
    qualifier: str | None
    document: Document
    """EventSourceMappingConfiguration, without what is derived."""
    tags: dict[str, str] = field(default_factory=dict)


Record = FunctionRecord | LayerRecord | MappingRecord
KINDS: dict[str, type[Record]] = {
    "function": FunctionRecord,
    "layer": LayerRecord,
    "mapping": MappingRecord,
}


def kind_of(record: Record) -> str:
    return next(kind for kind, type_ in KINDS.items() if isinstance(record, type_))


def packages(record: Record) -> set[str]:
    """Names of all packages in the store that it refers to."""
    if isinstance(record, LayerRecord):
        return {version.code.tree for version in record.versions.values()}
    if isinstance(record, FunctionRecord):
        versions = [*record.versions.values(), *([record.latest] if record.latest else [])]
        return set().union(*(version.packages() for version in versions))
    return set()
