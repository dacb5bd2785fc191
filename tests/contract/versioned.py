"""Versions and aliases put straight into a server's registry, for tests of what hangs on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import trio

from sandbox.registry.records import AliasRecord, FunctionRecord, Record
from tests.contract.lambda_api import Api


def change(api: Api, name: str, how: Callable[[FunctionRecord], FunctionRecord]) -> None:
    async def work() -> None:
        registry = api.behind.control.registry
        async with registry.edit() as edit:
            record = edit.function(name)
            assert record is not None
            edit.put(how(record))

    trio.from_thread.run(work, trio_token=api.token)
    api.behind.functions.prepare_all()


def add_version(api: Api, name: str, number: str = "1") -> None:
    def how(record: FunctionRecord) -> FunctionRecord:
        assert record.latest is not None
        version = replace(record.latest, version=number, revision_id=f"revision-{number}")
        return replace(record, versions={**record.versions, number: version})

    change(api, name, how)


def add_alias(api: Api, name: str, alias: str, version: str, **weights: float) -> None:
    made = AliasRecord(
        name=alias,
        version=version,
        description="",
        weights={number.strip("v"): weight for number, weight in weights.items()},
        revision_id=f"revision-{alias}",
    )
    change(api, name, partial(_with_alias, made))


def _with_alias(made: AliasRecord, record: FunctionRecord) -> FunctionRecord:
    return replace(record, aliases={**record.aliases, made.name: made})


def put_record(api: Api, record: Record) -> None:
    async def work() -> None:
        async with api.behind.control.registry.edit() as edit:
            edit.put(record)

    trio.from_thread.run(work, trio_token=api.token)
