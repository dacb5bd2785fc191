"""Owns layers: PublishLayerVersion, the lists, Get, Delete (SPEC 10.6). A version never changes; its number is never
given again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from runtimeapi.control import downloads
from runtimeapi.control.code import check_source, taken_code
from runtimeapi.control.control import Control, invalid, missing
from runtimeapi.control.paging import page
from runtimeapi.control.parsing import Input
from runtimeapi.control.rendering import Output
from sandbox.registry.records import Document, LayerRecord, LayerVersionRecord

COMPATIBLE = ("CompatibleRuntimes", "CompatibleArchitectures")


@dataclass(frozen=True, slots=True)
class LayerRef:
    """A LayerName as it was given: a name, or the ARN of a layer."""

    name: str
    region: str
    account: str

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:layer:{self.name}"

    def version_arn(self, number: int) -> str:
        return f"{self.arn}:{number}"


def layer_ref(control: Control, given: str) -> LayerRef:
    """The model's pattern has been checked."""
    parts = given.split(":")
    if len(parts) == 1:
        return LayerRef(given, control.region, control.account)
    return LayerRef(parts[6], parts[3], parts[4])


def find(control: Control, ref: LayerRef, number: int) -> LayerVersionRecord | None:
    """None: not here, which a layer of another region or account is not either."""
    record = _record(control, ref)
    return record.versions.get(str(number)) if record is not None else None


def _record(control: Control, ref: LayerRef) -> LayerRecord | None:
    here = (ref.region, ref.account) == (control.region, control.account)
    return control.registry.layer(ref.name) if here else None


def check_number(number: int) -> None:
    """Raises CallerError."""
    if number < 1:
        raise invalid("Layer Version Cannot be less than 1")


async def publish_layer_version(control: Control, given: Input) -> Output:
    ref = layer_ref(control, given["LayerName"])
    if (ref.region, ref.account) != (control.region, control.account):
        raise invalid(f"{ref.arn} is none of this account in {control.region}.")
    check_source(given["Content"])
    async with taken_code(control, given["Content"]) as code, control.registry.edit() as edit:
        record = edit.layer(ref.name) or LayerRecord(name=ref.name)
        version = LayerVersionRecord(
            version=record.next_version,
            code=code,
            document={
                "Description": given.get("Description", ""),
                **{key: given[key] for key in (*COMPATIBLE, "LicenseInfo") if key in given},
            },
            created=control.stamp(),
        )
        versions = {**record.versions, str(version.version): version}
        edit.put(replace(record, versions=versions, next_version=record.next_version + 1))
    return _shown(control, ref, version)


async def get_layer_version(control: Control, given: Input) -> Output:
    check_number(given["VersionNumber"])
    return _got(control, layer_ref(control, given["LayerName"]), given["VersionNumber"])


async def get_layer_version_by_arn(control: Control, given: Input) -> Output:
    layer, _, number = given["Arn"].rpartition(":")
    if ":layer:" not in layer:  # AWS's own layers: arn:aws:lambda:::awslayer:NAME
        raise missing()
    return _got(control, layer_ref(control, layer), int(number))


def _got(control: Control, ref: LayerRef, number: int) -> Output:
    version = find(control, ref, number)
    if version is None:
        raise missing()
    return _shown(control, ref, version)


def _shown(control: Control, ref: LayerRef, version: LayerVersionRecord) -> Output:
    return {
        **_listed(ref, version),
        "LayerArn": ref.arn,
        "Content": {
            "Location": downloads.stored(control, version.code.tree),
            "CodeSha256": version.code.sha256,
            "CodeSize": version.code.size,
        },
    }


def _listed(ref: LayerRef, version: LayerVersionRecord) -> Output:
    """LayerVersionsListItem."""
    return {
        "LayerVersionArn": ref.version_arn(version.version),
        "Version": version.version,
        "CreatedDate": version.created,
        **version.document,
    }


async def list_layers(control: Control, given: Input) -> Output:
    """Each layer with its newest version that the filters let through; layers without one are left out."""
    newest: dict[str, LayerVersionRecord] = {}
    for record in control.registry.layers():
        matching = _matching(record, given)
        if matching:
            newest[record.name] = matching[-1]
    keys, marker = page([(name, 0) for name in newest], given)
    found: list[Document] = []
    for name, _ in keys:
        ref = layer_ref(control, name)
        latest = _listed(ref, newest[name])
        found.append({"LayerName": name, "LayerArn": ref.arn, "LatestMatchingVersion": latest})
    return {"Layers": found, "NextMarker": marker}


async def list_layer_versions(control: Control, given: Input) -> Output:
    """Newest first; a layer that is not there has none."""
    ref = layer_ref(control, given["LayerName"])
    record = _record(control, ref)
    versions = {version.version: version for version in _matching(record, given)} if record else {}
    keys, marker = page([(ref.name, -number) for number in versions], given)
    return {
        "LayerVersions": [_listed(ref, versions[-number]) for _, number in keys],
        "NextMarker": marker,
    }


def _matching(record: LayerRecord, given: Input) -> list[LayerVersionRecord]:
    """In ascending order. A version that names no runtimes or architectures is compatible with none of them."""
    wanted: dict[str, Any] = {
        "CompatibleRuntimes": given.get("CompatibleRuntime"),
        "CompatibleArchitectures": given.get("CompatibleArchitecture"),
    }
    return [
        version
        for version in record.versions.values()
        if all(one is None or one in version.document.get(key, ()) for key, one in wanted.items())
    ]


async def delete_layer_version(control: Control, given: Input) -> Output:
    """One that is not there is no mistake. Functions that have it keep it."""
    check_number(given["VersionNumber"])
    ref, number = layer_ref(control, given["LayerName"]), str(given["VersionNumber"])
    async with control.registry.edit() as edit:
        record = edit.layer(ref.name) if _record(control, ref) is not None else None
        if record is not None and number in record.versions:
            versions = {key: one for key, one in record.versions.items() if key != number}
            # The layer stays, for the number of its next version.
            edit.put(replace(record, versions=versions))
    return {}


OPERATIONS = {
    "PublishLayerVersion": publish_layer_version,
    "GetLayerVersion": get_layer_version,
    "GetLayerVersionByArn": get_layer_version_by_arn,
    "ListLayers": list_layers,
    "ListLayerVersions": list_layer_versions,
    "DeleteLayerVersion": delete_layer_version,
}
