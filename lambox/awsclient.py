"""Owns calls of AWS's services (SQS, SNS, EventBridge, S3) at the endpoints that the settings name, and nowhere else.

botocore is imported and runs in threads: it blocks, and importing it takes 0.2 s, which no start of a server
waits for. Without an endpoint nothing is sent: real AWS has to be named like any other (`https://sqs.us-east-1.
amazonaws.com`). Credentials are the environment's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; without them
"test" and "test", which emulators take, and which never go to a host of AWS's.

    AwsProblem          the call has not done what it should; the tree:
      NoEndpoint        no setting names where this service is
      Unreachable       nobody answered, or not in time
      Refused           the service answered with an error: AWS's `code` and `message`
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import trio

if TYPE_CHECKING:
    from botocore.client import BaseClient

log = logging.getLogger(__name__)
SETTINGS = {
    "sqs": "endpoint_sqs",
    "sns": "endpoint_sns",
    "events": "endpoint_eventbridge",
    "s3": "endpoint_s3",
}
"""botocore's name of a service -> the setting that says where it is, before `aws_endpoint` does."""
CONNECT_S = 5.0
ANSWER_S = 25.0
"""Longest silence of an endpoint."""
AT_ONCE = 8
"""Calls of one service at a time; more wait."""
POOL = 256
EMULATORS_KEY = "test"
OF_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws", ".amazonaws.eu")


class AwsProblem(Exception):
    """The message is for people: service, endpoint, what was said."""


class NoEndpoint(AwsProblem):
    pass


class Unreachable(AwsProblem):
    pass


class Refused(AwsProblem):
    def __init__(self, code: str, message: str, where: str) -> None:
        super().__init__(f"{where}: {code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where services are, and who we are there."""

    of_all: str | None = None
    """The setting `aws_endpoint`."""
    of_service: Mapping[str, str | None] = field(default_factory=dict)
    """Service -> address; before `of_all`."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    def address(self, service: str) -> str:
        """Raises NoEndpoint."""
        found = self.of_service.get(service) or self.of_all
        if not found:
            setting = SETTINGS.get(service, "aws_endpoint")
            raise NoEndpoint(
                f"nothing is sent to {service}: no endpoint is set. "
                f"Hint: {setting} or aws_endpoint in lambox.toml, or AWS_ENDPOINT_URL"
            )
        return found.rstrip("/")

    def credentials(self, address: str) -> dict[str, str]:
        """botocore's arguments. Raises NoEndpoint: AWS itself, and nothing to show there."""
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        found = {name: self.environ.get(name.upper(), "") for name in names}
        if found[names[0]] and found[names[1]]:
            return {name: value for name, value in found.items() if value}
        host = urlsplit(address).hostname or ""
        if host.endswith(OF_AWS):
            raise NoEndpoint(
                f"nothing is sent to {address}: it is AWS's, and there are no credentials. "
                "Hint: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the server's environment"
            )
        return dict.fromkeys(names[:2], EMULATORS_KEY)


class _Lane:
    """The calls of one service: `turns` are those that somebody waits for, `threads` also those given up."""

    def __init__(self, threads: trio.CapacityLimiter, turns: float) -> None:
        self.threads = threads
        self.turns = trio.CapacityLimiter(turns)


class AwsClients:
    """Calls services from trio. Nothing is to be closed: connections go with the last reference."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._clients: dict[tuple[str, str], BaseClient] = {}
        self._making = threading.Lock()
        self._lanes: dict[str, _Lane] = {}

    async def call(
        self,
        service: str,
        operation: str,
        parameters: Mapping[str, Any],
        *,
        region: str,
        within_s: float = CONNECT_S + ANSWER_S,
        limiter: trio.CapacityLimiter | None = None,
    ) -> dict[str, Any]:
        """botocore's answer, such as `call("sqs", "send_message", {...}, region="us-east-1")`.

        `within_s` holds from the moment a thread is free. Cancelled, it returns at once; the thread goes on to
        the end of its call, which may therefore have been done. `limiter`: of one's own, for calls that wait
        for long (SQS's long polling). Raises AwsProblem.
        """
        where = f"{service} at {self._endpoints.address(service)}"
        lane = self._lane(service) if limiter is None else _Lane(limiter, limiter.total_tokens)
        call = partial(self._call, service, operation, parameters, region)
        async with lane.turns:
            with trio.move_on_after(within_s):
                try:
                    # Threads of their own: an endpoint that hangs must not take those that write to disk.
                    return await trio.to_thread.run_sync(
                        call, abandon_on_cancel=True, limiter=lane.threads
                    )
                except RuntimeError as exc:  # "can't start new thread"
                    raise Unreachable(f"{where}: {exc}") from exc
        raise Unreachable(f"{where}: no answer within {within_s:g} s")

    def queue_url(self, *, account: str, name: str) -> str:
        """Of an SQS queue: where every implementation has it. Raises NoEndpoint."""
        return f"{self._endpoints.address('sqs')}/{account}/{quote(name)}"

    def _lane(self, service: str) -> _Lane:
        if service not in self._lanes:
            self._lanes[service] = _Lane(trio.CapacityLimiter(AT_ONCE), AT_ONCE)
        return self._lanes[service]

    def _call(
        self, service: str, operation: str, parameters: Mapping[str, Any], region: str
    ) -> dict[str, Any]:
        """In a thread."""
        import botocore.exceptions as said

        where = f"{service} at {self._endpoints.address(service)}"
        try:
            method: Callable[..., dict[str, Any]] = getattr(
                self._client(service, region), operation
            )
            return method(**parameters)
        except said.ClientError as exc:
            error = exc.response.get("Error", {})
            code, message = str(error.get("Code", "")), str(error.get("Message", ""))
            raise Refused(code, message, where) from exc
        except said.ParamValidationError as exc:
            raise Refused("ParamValidationError", str(exc), where) from exc
        except (said.BotoCoreError, OSError, ValueError) as exc:
            raise Unreachable(f"{where}: {exc}") from exc
        except Exception as exc:  # botocore trips over answers of another form, such as `[]`
            raise Unreachable(f"{where}: its answer cannot be read: {exc!r}") from exc

    def _client(self, service: str, region: str) -> BaseClient:
        with self._making:  # sessions are no two threads' at once
            found = self._clients.get((service, region))
            if found is None:
                found = self._clients[service, region] = self._made(service, region)
            return found

    def _made(self, service: str, region: str) -> BaseClient:
        import botocore.config
        import botocore.session

        address = self._endpoints.address(service)
        session = botocore.session.Session()
        # Nothing of a user's own ~/.aws: what counts is in the settings and the environment.
        session.session_var_map["profile"] = (None, None, None, None)
        session.set_config_variable("config_file", os.devnull)
        session.set_config_variable("credentials_file", os.devnull)
        return session.create_client(
            service,
            region_name=region,
            endpoint_url=address,
            config=botocore.config.Config(
                connect_timeout=CONNECT_S,
                read_timeout=ANSWER_S,
                # Whoever calls tries again, after longer and longer times.
                retries={"total_max_attempts": 1},
                # Pollers of queues hold connections, too; one more than this is made and thrown away, with a warning.
                max_pool_connections=POOL,
                # What emulators and other people's S3 understand.
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
            **self._endpoints.credentials(address),
        )
