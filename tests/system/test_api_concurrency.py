"""What the Lambda API reserves and provisions, held by real environments (SPEC 7)."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.contract.lambda_api import PYTHON, ROLE, zipped
from tests.system.conftest import Server
from tests.waiting import until

pytestmark = pytest.mark.system

NAME = "limited"
CODE = """
import os, time
def handler(event, context):
    while event and context.get_remaining_time_in_millis() > 29_000:
        time.sleep(0.01)
    return [context.function_version, os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"]]
"""
"""An event that is true keeps it for one second."""
THROTTLED = b'{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}'


def refusal(server: Server, qualifier: str) -> tuple[int, str, bytes]:
    """Of an invocation: (status, x-amzn-ErrorType, body)."""
    url = f"{server.url}/2015-03-31/functions/{NAME}/invocations?Qualifier={qualifier}"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, b"null", method="POST"), timeout=30)
    with caught.value as error:
        return error.code, error.headers["x-amzn-ErrorType"], error.read()


def deploy(client: Any, code: str) -> str:
    """A new version's number."""
    if NAME not in [one["FunctionName"] for one in client.list_functions()["Functions"]]:
        client.create_function(
            FunctionName=NAME,
            Runtime=PYTHON,
            Role=ROLE,
            Handler="index.handler",
            Timeout=30,
            Code={"ZipFile": zipped({"index.py": code})},
        )
    else:
        client.update_function_code(FunctionName=NAME, ZipFile=zipped({"index.py": code}))
    for waiter in ("function_active_v2", "function_updated_v2"):
        client.get_waiter(waiter).wait(
            FunctionName=NAME, WaiterConfig={"Delay": 0.05, "MaxAttempts": 200}
        )
    return str(client.publish_version(FunctionName=NAME)["Version"])


def test_reserved_and_provisioned(shared: Server) -> None:
    client = shared.client()
    assert [deploy(client, CODE), deploy(client, CODE + "\n")] == ["1", "2"]
    name = {"FunctionName": NAME}

    client.put_function_concurrency(**name, ReservedConcurrentExecutions=0)
    for qualifier in ("$LATEST", "1"):
        assert refusal(shared, qualifier) == (429, "TooManyRequestsException", THROTTLED)

    # One for both versions together.
    client.put_function_concurrency(**name, ReservedConcurrentExecutions=1)
    answers: list[Any] = []
    kept = threading.Thread(
        target=lambda: answers.append(shared.invoke(NAME, True, Qualifier="1")["Payload"])
    )
    kept.start()
    until(lambda: "busy" in [one["state"] for one in shared.environments(NAME)])
    assert refusal(shared, "2") == (429, "TooManyRequestsException", THROTTLED)
    kept.join(30)
    assert answers == [["1", "on-demand"]]
    assert shared.invoke(NAME, None, Qualifier="2")["Payload"] == ["2", "on-demand"]
    client.delete_function_concurrency(**name)

    v2 = {**name, "Qualifier": "2"}
    put = client.put_provisioned_concurrency_config(**v2, ProvisionedConcurrentExecutions=1)
    assert put["Status"] == "IN_PROGRESS"
    assert settled(client, **v2) == ("READY", None, 1)
    # Those that are provisioned are taken first.
    assert shared.invoke(NAME, None, Qualifier="2")["Payload"] == ["2", "provisioned-concurrency"]

    broken = {**name, "Qualifier": deploy(client, "raise ValueError('as asked')\n")}
    client.put_provisioned_concurrency_config(**broken, ProvisionedConcurrentExecutions=1)
    assert settled(client, **broken) == ("FAILED", "FUNCTION_ERROR_INIT_FAILURE", 0)
    for where in (v2, broken):
        client.delete_provisioned_concurrency_config(**where)
    client.delete_function(**name)
    until(lambda: not shared.environments(NAME))


def settled(client: Any, **where: str) -> tuple[str, str | None, int]:
    """(Status, StatusReason, allocated) once it is no longer in progress."""
    found: dict[str, Any] = {}

    def done() -> bool:
        found.update(client.get_provisioned_concurrency_config(**where))
        return bool(found["Status"] != "IN_PROGRESS")

    until(done, 20)
    allocated: int = found["AllocatedProvisionedConcurrentExecutions"]
    return found["Status"], found.get("StatusReason"), allocated
