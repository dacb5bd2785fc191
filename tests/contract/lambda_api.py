"""The Lambda API over real HTTP, with a real registry and store on disk; only the engine is a fake.

Servers run in a thread of their own, so tests are plain calls of boto3. Every answer is validated against
botocore's model of it.
"""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import trio
from botocore.config import Config as ClientConfig
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator

from lambox.awsclient import AwsClients, Endpoints
from lambox.config import Config, load
from lambox.lambdaapi import LambdaApi, event_sources, open_lambda_api
from rootfs.runtimes import Runtimes, discover
from rootfs.trees import LayerStore
from runtimeapi.guard import Guard
from runtimeapi.invoke import make_invoke_app
from runtimeapi.lanes import caller_lane
from runtimeapi.server import caller_config, running_app
from sandbox.catalog import Catalog
from sandbox.provisioning import Provisioned
from tests.contract.fakes import REGION, FakeInvoker, FakeLogs, listening

ROLE = "arn:aws:iam::123456789012:role/lambda"
PYTHON = "python3.11"
HANDLER = "def handler(event, context):\n    return event\n"


def zipped(files: Mapping[str, str | bytes] | None = None) -> bytes:
    """A deployment package."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (files or {"index.py": HANDLER}).items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def asked(name: str, **changes: Any) -> dict[str, Any]:
    """What CreateFunction is to be given."""
    return {
        "FunctionName": name,
        "Runtime": PYTHON,
        "Handler": "index.handler",
        "Role": ROLE,
        "Code": {"ZipFile": zipped()},
        **changes,
    }


@dataclass
class Api:
    """A server, as a caller and as a test see it."""

    url: str
    client: Any
    """boto3's."""
    behind: LambdaApi
    invoker: FakeInvoker
    token: trio.lowlevel.TrioToken
    """Of the server's thread, for `trio.from_thread.run(..., trio_token=)`."""
    state: Path
    functions: Path
    """The folder of folders' functions."""

    def create(self, name: str = "hello", **changes: Any) -> Any:
        """A function, Active when this returns."""
        asked = {
            "FunctionName": name,
            "Runtime": PYTHON,
            "Handler": "index.handler",
            "Role": ROLE,
            "Code": {"ZipFile": zipped()},
            **changes,
        }
        created = self.client.create_function(**asked)
        self.wait(name)
        return created

    def wait(self, name: str) -> None:
        """Until it is Active and its last update is through."""
        for waiter in ("function_active_v2", "function_updated_v2"):
            self.client.get_waiter(waiter).wait(
                FunctionName=name, WaiterConfig={"Delay": 0.02, "MaxAttempts": 500}
            )

    def refusal(self, operation: str, **given: Any) -> tuple[int, str, str]:
        """(HTTP status, code, message)"""
        try:
            answer = getattr(self.client, operation)(**given)
        except ClientError as exc:
            found = exc.response
            return (
                found["ResponseMetadata"]["HTTPStatusCode"],
                found["Error"]["Code"],
                found["Error"]["Message"],
            )
        raise AssertionError(f"{operation} was not refused: {answer}")

    def kept(self) -> dict[str, str]:
        """All that the server has on disk: path -> hash. A refused call changes nothing of it."""
        return {
            str(path.relative_to(self.state)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.state.rglob("*"))
            if path.is_file()
        }

    def folder(self, name: str, files: Mapping[str, str] | None = None) -> Path:
        """Write a folder's function."""
        place = self.functions / name
        for file, text in (files or {"index.py": HANDLER}).items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(text)
        return place


def client_of(url: str, *, key: str = "test", secret: str = "test") -> Any:
    """Its own validation is off: bad input is the server's to refuse."""
    client = boto3.client(
        "lambda",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=ClientConfig(
            retries={"max_attempts": 0}, read_timeout=20, parameter_validation=False
        ),
    )
    client.meta.events.register("after-call.lambda.*", _validate)
    return client


def _validate(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
    if http_response.status_code >= 300 or model.output_shape is None:
        return
    if model.name == "GetFunctionCodeSigningConfig" and len(parsed) == 1:
        return  # AWS was recorded to answer `{}` where there is none, whatever the model requires
    answer = {key: value for key, value in parsed.items() if key != "ResponseMetadata"}
    streams = [name for name, value in answer.items() if hasattr(value, "read")]
    for name in streams:
        del answer[name]
    report = ParamValidator().validate(answer, model.output_shape)
    assert not report.has_errors(), f"{model.name}: {report.generate_report()}"


@cache
def _runtimes() -> Runtimes:
    return discover()


@contextmanager
def serving(
    folder: Path,
    *,
    provisioned: Callable[[str, str], Provisioned] = lambda name, version: Provisioned(0),
    guard: Guard | None = None,
    **settings: Any,
) -> Iterator[Api]:
    """Starts a server on what `folder` has. `settings`: flags of `lambox serve`.

    `provisioned`: what the engine says of provisioned concurrency.
    """
    functions = folder / "functions"
    functions.mkdir(exist_ok=True)
    flags = {"functions": str(functions), "state": str(folder / "state"), **settings}
    config = load(flags, environ={})
    started: list[Api] = []
    ready, stop = threading.Event(), trio.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            trio.run(_serve, config, started, ready, stop, provisioned, guard)
        except BaseException as exc:
            failed.append(exc)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(20)
    try:
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        if started:
            started[0].client.close()
            started[0].token.run_sync_soon(stop.set)
        thread.join(20)
    if failed:
        raise failed[0]


async def _serve(
    config: Config,
    started: list[Api],
    ready: threading.Event,
    stop: trio.Event,
    provisioned: Callable[[str, str], Provisioned],
    guard: Guard | None,
) -> None:
    runtimes = await trio.to_thread.run_sync(_runtimes)
    invoker, sock = FakeInvoker(), listening()
    layers = LayerStore(config.state / "layers")
    clients = AwsClients(Endpoints(config.aws_endpoint, {"s3": config.endpoint_s3}, environ={}))
    with Catalog(config.functions, runtimes, layers=layers) as catalog:
        async with (
            open_lambda_api(
                config,
                catalog,
                runtimes,
                layers=layers,
                defaults=config.defaults,
                clients=clients,
                provisioned=provisioned,
            ) as behind,
            trio.open_nursery() as nursery,
        ):
            app = make_invoke_app(
                behind.functions,
                invoker,
                FakeLogs().console(),
                region=config.region,
                account=config.account,
                guard=guard,
                control=behind.control,
            )
            lane = caller_lane(
                behind.functions,
                invoker,
                region=config.region,
                account=config.account,
                guard=guard,
            )
            async with running_app(app, caller_config(), lane) as served:
                invoker.nursery = nursery
                nursery.start_soon(behind.garbage.run)
                sources = event_sources(behind, clients, invoker.invoke, behind.functions.resolve)
                nursery.start_soon(sources.run)
                await nursery.start(served.serve, sock, {})
                url = f"http://127.0.0.1:{sock.getsockname()[1]}"
                token = trio.lowlevel.current_trio_token()
                started.append(
                    Api(
                        url,
                        client_of(url),
                        behind,
                        invoker,
                        token,
                        config.state,
                        config.functions,
                    )
                )
                ready.set()
                await stop.wait()
                nursery.cancel_scope.cancel()
