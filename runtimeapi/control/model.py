"""Owns botocore's model of the Lambda API, as lambox asks it: routes, input shapes, output shapes.

Loading takes 0.2 s (botocore is imported), so `load` runs in a thread at the first request that needs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from botocore.model import OperationModel, ServiceModel

INVOCATIONS = frozenset({"Invoke", "InvokeAsync", "InvokeWithResponseStream"})
"""Operations that `runtimeapi/invoke.py` answers itself."""
LABEL = re.compile(r"\{(\w+)(\+?)\}")


@dataclass(frozen=True, slots=True)
class Route:
    """Where an operation is found."""

    operation: OperationModel
    method: str
    pattern: re.Pattern[str]
    labels: tuple[str, ...]
    query: tuple[tuple[str, str], ...]
    """Query parameters that belong to the operation's address (`?List=ALL`, `?find=LayerVersion`)."""


@dataclass(frozen=True, slots=True)
class Match:
    operation: OperationModel
    labels: dict[str, str]
    """URI members by their name on the wire, decoded."""


class Model:
    """Made once by `load`; nothing in it changes."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._routes = routes

    @property
    def operations(self) -> list[OperationModel]:
        """All, by name."""
        return sorted((route.operation for route in self._routes), key=lambda one: one.name)

    def match(self, method: str, path: str, query: dict[str, list[str]]) -> Match | None:
        """Whose request this is. `path` as it was sent, still percent-encoded."""
        for route in self._routes:
            if route.method != method or not all(
                value in query.get(name, ()) for name, value in route.query
            ):
                continue
            found = route.pattern.fullmatch(path)
            if found is not None:
                values = (unquote(value, errors="replace") for value in found.groups())
                return Match(route.operation, dict(zip(route.labels, values, strict=True)))
        return None

    def methods(self, path: str) -> set[str]:
        """What may be asked of this path."""
        return {route.method for route in self._routes if route.pattern.fullmatch(path)}


@cache
def load() -> Model:
    """Blocks for 0.2 s the first time."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    described = Loader().load_service_model("lambda", "service-2")
    service = ServiceModel(described, "lambda")
    # Addresses with a query of their own are more particular than those without.
    routes = sorted(map(_route, _operations(service)), key=lambda route: -len(route.query))
    return Model(tuple(routes))


def _operations(service: ServiceModel) -> Iterator[OperationModel]:
    for name in service.operation_names:
        yield service.operation_model(name)


def _route(operation: OperationModel) -> Route:
    uri, _, query = operation.http["requestUri"].partition("?")
    labels = tuple(label for label, _ in LABEL.findall(uri))
    pattern, at = "", 0
    for found in LABEL.finditer(uri):
        pattern += re.escape(uri[at : found.start()]) + ("(.+)" if found[2] else "([^/]+)")
        at = found.end()
    pattern += re.escape(uri[at:].rstrip("/")) + "/?"
    pairs = [part.partition("=") for part in query.split("&") if part]
    return Route(
        operation,
        operation.http["method"],
        re.compile(pattern),
        labels,
        tuple((name, value) for name, _, value in pairs),
    )
