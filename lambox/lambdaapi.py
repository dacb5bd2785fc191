"""Owns the putting together of the Lambda API: database < registry < functions, and what its operations need."""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType

import trio

from lambox.awsclient import AwsClients
from lambox.config import Config
from lambox.queues import SqsQueue
from lambox.s3code import S3Code
from rootfs.codestore import CodeStore
from rootfs.runtimes import Runtimes
from rootfs.trees import LayerStore
from runtimeapi.control.control import Control, host_architecture
from runtimeapi.control.folders import Folders
from runtimeapi.intake import read_trace_id
from sandbox.catalog import Catalog
from sandbox.errors import CallerError, PlatformFault
from sandbox.function import FunctionVersion
from sandbox.functiontoml import FunctionDefaults
from sandbox.invocation import Invocation, Outcome
from sandbox.provisioning import Provisioned
from sandbox.registry.activation import Activator
from sandbox.registry.database import Database, open_database
from sandbox.registry.garbage import Garbage
from sandbox.registry.registry import open_registry
from sandbox.registry.resolving import AllFunctions
from sandbox.sources.poller import Poller, Source
from sandbox.sources.sources import EventSources

log = logging.getLogger(__name__)
AGAIN_S = 10.0
"""Until what the disk has not taken is tried again."""


@dataclass(frozen=True, slots=True)
class LambdaApi:
    """Made by `open_lambda_api`."""

    functions: AllFunctions
    control: Control
    garbage: Garbage
    """To be `run` by whoever knows what is running."""


@asynccontextmanager
async def open_lambda_api(
    config: Config,
    catalog: Catalog,
    runtimes: Runtimes,
    *,
    layers: LayerStore,
    defaults: FunctionDefaults,
    clients: AwsClients,
    unavailable: Mapping[str, str] = MappingProxyType({}),
    provisioned: Callable[[str, str], Provisioned] = lambda name, version: Provisioned(0),
) -> AsyncIterator[LambdaApi]:
    """All functions there are, and the API that changes them. Its background work ends with it.

    `unavailable`: networks this host does not give, and why.
    `provisioned`: (function, version) -> how far the engine has come with its provisioned concurrency; raises
    CallerError where the version cannot run.
    """
    code = CodeStore(config.state / "code")
    async with (
        open_database(config.state) as database,
        open_registry(database, code.missing) as registry,
        trio.open_nursery() as nursery,
    ):
        functions = AllFunctions(
            catalog,
            registry,
            code=code,
            layers=layers,
            runtimes=runtimes,
            defaults=defaults,
            unavailable=unavailable,
        )
        await trio.to_thread.run_sync(_recover, database, code)
        activator = Activator(registry, functions, _new_id)
        await trio.to_thread.run_sync(functions.prepare_all)
        await _spared(activator.retry)
        nursery.start_soon(_to_its_end, activator.finish)

        def in_background(work: Callable[[], Awaitable[None]]) -> None:
            nursery.start_soon(_to_its_end, work)

        yield LambdaApi(
            functions,
            Control(
                registry=registry,
                functions=functions,
                folder=functions.folder,
                folders=Folders(config.account, host_architecture()),
                code=code,
                region=config.region,
                account=config.account,
                now=lambda: datetime.now(UTC),
                in_background=in_background,
                activate=activator.activate,
                make_ready=activator.make_ready,
                account_concurrency=config.account_concurrency,
                provisioned=provisioned,
                new_id=_new_id,
                fetch_code=S3Code(clients, config.region).fetch,
                queue_timeout_s=lambda arn: SqsQueue(clients, arn).visibility_timeout_s(),
            ),
            Garbage(database, registry, functions, code, layers),
        )
        nursery.cancel_scope.cancel()


def _recover(database: Database, code: CodeStore) -> None:
    with database.alone() as alone:
        if alone:
            code.recover()


async def _spared(work: Callable[[], Awaitable[None]]) -> bool:
    """What goes wrong ends one piece of work, not the server. Returns whether it is worth another try."""
    try:
        await work()
    except CallerError as exc:
        # The folder is another server's, which has work of its own for what is to be done.
        log.info("work that the Lambda API had begun is left to another server: %s", exc)
    except PlatformFault as exc:
        log.error("work that the Lambda API had begun is not kept yet: %s", exc)
        return True
    except Exception:
        log.exception("work that the Lambda API had begun is left for the next start")
    return False


async def _to_its_end(work: Callable[[], Awaitable[None]]) -> None:
    """Until the disk takes it: nobody else would have a Pending function run, but the next start."""
    while await _spared(work):  # noqa: ASYNC110  no disk says when it has room
        await trio.sleep(AGAIN_S)


def event_sources(
    api: LambdaApi,
    clients: AwsClients,
    invoke: Callable[[Invocation], Awaitable[Outcome]],
    find: Callable[[str, str | None], FunctionVersion],
) -> EventSources:
    """Polls what the registry's event source mappings say, while its `run` does."""

    def make(name: str, source: Source) -> Poller:
        return Poller(
            source,
            SqsQueue(clients, source.queue_arn),
            invoke=invoke,
            find=find,
            trace_id=lambda: read_trace_id(None),
            tell=partial(_tell, api.control.mapping_problems, name),
        )

    return EventSources(api.control.registry, make)


def _tell(problems: dict[str, str], name: str, problem: str) -> None:
    if problem:
        problems[name] = problem
    else:
        problems.pop(name, None)


def _new_id() -> str:
    return str(uuid.uuid4())
