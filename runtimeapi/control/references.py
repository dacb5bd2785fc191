"""Owns what a function's `Layers` may name (SPEC 10.6), and what is kept of them."""

from __future__ import annotations

from collections.abc import Sequence

from rootfs.trees import MAX_LAYERS, MAX_UNZIPPED
from runtimeapi.control.control import Control, invalid
from sandbox.registry.records import Code, Document


def referenced(control: Control, arns: Sequence[str]) -> list[Document]:
    """Arn, CodeSize and the package of each layer version. Raises CallerError.

    The package is kept with the function, so a layer version that is deleted later keeps working there.
    """
    if len(arns) > MAX_LAYERS:
        raise invalid(f"Cannot reference more than {MAX_LAYERS} layers.")
    seen: dict[str, str] = {}
    found = []
    for arn in arns:
        region, account, name, number = _parts(arn)
        if region != control.region:
            raise invalid(
                "Layers are not in the same region as the function. "
                f"Layers are expected to be in region {control.region}."
            )
        record = control.registry.layer(name) if account == control.account else None
        version = record.versions.get(number) if record is not None else None
        if version is None:
            raise invalid(f"Layer version {arn} does not exist.")
        if name in seen:
            raise invalid(
                "Two different versions of the same layer are not allowed to be referenced in the same "
                f"function. {seen[name]} and {arn} are versions of the same layer."
            )
        seen[name] = arn
        code = version.code
        found.append(
            {"Arn": arn, "CodeSize": code.size, "tree": code.tree, "unzipped": code.unzipped}
        )
    return found


def check_size(code: Code, config: Document) -> None:
    """Of code and layers together, unzipped. Raises CallerError."""
    layers = sum(layer.get("unzipped", 0) for layer in config.get("Layers", ()))
    if layers >= MAX_UNZIPPED:
        raise invalid(f"Layers consume more than the available size of {MAX_UNZIPPED} bytes")
    if layers and code.unzipped + layers >= MAX_UNZIPPED:
        raise invalid(
            "Function code combined with layers exceeds the maximum allowed size of "
            f"{MAX_UNZIPPED} bytes. The actual size is {code.unzipped + layers} bytes."
        )


def _parts(arn: str) -> tuple[str, str, str, str]:
    """Region, account, name and version: the model's pattern has been checked."""
    parts = arn.split(":")
    if len(parts) != 8:  # AWS's own layers: arn:aws:lambda:::awslayer:NAME
        raise invalid(f"Layer version {arn} does not exist.")
    return parts[3], parts[4], parts[6], parts[7]
