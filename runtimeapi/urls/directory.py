"""Owns which function URLs there are: URL id -> function, qualifier, configuration.

Those of the Lambda API have an id drawn at random, in `FunctionRecord.attached["url"][qualifier]`; those of
function.toml one derived from the function's name (`functionurl.derived_id`). Where a folder says what its URL is,
that counts, and nothing the API has for its $LATEST does.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtimeapi.ports import Functions
from sandbox.errors import CallerError
from sandbox.function import FunctionVersion
from sandbox.functionurl import ALPHABET, ID_LENGTH, Cors, UrlConfig, derived_id
from sandbox.registry.records import LATEST, Document, FunctionRecord
from sandbox.registry.registry import Registry

FEATURE = "url"
POLICY = "policy"
_MEMBERS = {
    "allow_origins": "AllowOrigins",
    "allow_methods": "AllowMethods",
    "allow_headers": "AllowHeaders",
    "expose_headers": "ExposeHeaders",
    "allow_credentials": "AllowCredentials",
    "max_age": "MaxAge",
}


@dataclass(frozen=True, slots=True)
class FunctionUrl:
    """One function URL."""

    id: str
    function: str
    qualifier: str | None
    """An alias, or None: $LATEST."""
    config: UrlConfig
    from_folder: bool = False
    """function.toml has it: open as written there, and its id can be guessed."""
    policy: Document | None = None
    """The resource policy of what it calls."""


def new_id() -> str:
    """165 bits: who has not been told it does not find it."""
    return "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))


class UrlDirectory:
    """All function URLs. `registry` None: only those of function.toml."""

    def __init__(
        self, functions: Functions, registry: Registry | None, *, region: str, account: str
    ) -> None:
        self._functions = functions
        self._registry = registry
        self._region = region
        self._account = account
        self._read_at = -1
        self._by_id: dict[str, FunctionUrl] = {}
        self._names: dict[str, str] = {}
        """Derived id -> name, of folders' functions that were seen; whether they are still there is asked."""
        self._named_at: object = None
        """Generation of the functions that `_names` is up to date with: anyone may ask for ids that are none, and
        must not have all functions looked through each time."""

    def find(self, id_: str) -> FunctionUrl | None:
        """Looks at the folders first, so that an edit made before a request counts for it."""
        self._functions.refresh()
        return self._of_folder_by_id(id_) or self._of_registry(id_)

    def of_folder(self, name: str) -> FunctionUrl | None:
        """What its function.toml says, of a function that is not broken."""
        try:
            function = self._functions.resolve(name, None)
        except CallerError:
            return None
        return self._declared(function)

    def of_function(self, function: FunctionVersion) -> list[FunctionUrl]:
        """Its $LATEST's and those of its aliases."""
        declared = self._declared(function)
        record = self._registry.function(function.name) if self._registry is not None else None
        kept = [] if record is None else list(_kept(record))
        if declared is not None:
            kept = [declared, *(one for one in kept if one.qualifier is not None)]
        return kept

    def _declared(self, function: FunctionVersion) -> FunctionUrl | None:
        if function.url is None:
            return None
        id_ = derived_id(function.name, self._region, self._account)
        return FunctionUrl(id_, function.name, None, function.url, from_folder=True)

    def _of_folder_by_id(self, id_: str) -> FunctionUrl | None:
        name = self._names.get(id_)
        known = name is not None or id_ in self._records()
        if not known and self._named_at != self._functions.generation:
            self._named_at = self._functions.generation
            for one in self._functions.all():
                if isinstance(one, FunctionVersion) and one.url is not None:
                    self._names[derived_id(one.name, self._region, self._account)] = one.name
            name = self._names.get(id_)
        return None if name is None else self.of_folder(name)

    def _of_registry(self, id_: str) -> FunctionUrl | None:
        found = self._records().get(id_)
        if found is None:
            return None
        if found.qualifier is None and self.of_folder(found.function) is not None:
            return None
        return found

    def _records(self) -> Mapping[str, FunctionUrl]:
        registry = self._registry
        if registry is not None and registry.generation != self._read_at:
            self._read_at = registry.generation
            self._by_id = {one.id: one for record in registry.functions() for one in _kept(record)}
        return self._by_id


def _kept(record: FunctionRecord) -> list[FunctionUrl]:
    return [
        FunctionUrl(
            id=document["UrlId"],
            function=record.name,
            qualifier=None if qualifier == LATEST else qualifier,
            config=config_of(document),
            policy=record.attached.get(POLICY, {}).get(qualifier, {}).get("Policy"),
        )
        for qualifier, document in record.attached.get(FEATURE, {}).items()
        if qualifier == LATEST or qualifier in record.aliases
    ]


def config_of(document: Document) -> UrlConfig:
    """What the registry keeps, in AWS's members."""
    told: dict[str, Any] | None = document.get("Cors")
    cors = None
    if told:
        given = {name: told[member] for name, member in _MEMBERS.items() if member in told}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
        }
        cors = Cors(**values)
    return UrlConfig(document["AuthType"], document.get("InvokeMode", "BUFFERED"), cors)


def cors_members(cors: Cors | None) -> dict[str, Any] | None:
    """The same the other way round, without what is empty."""
    if cors is None:
        return None
    given = {member: getattr(cors, name) for name, member in _MEMBERS.items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if v}
