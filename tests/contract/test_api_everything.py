"""Every operation there is, called once and answered as botocore's model says; and odd requests."""

from __future__ import annotations

import http.client
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore import xform_name

from runtimeapi.control import model
from runtimeapi.control.absent import NOTHING_THERE
from runtimeapi.control.face import MAX_BODY
from runtimeapi.control.operations import OPERATIONS
from tests.aws import Aws, Queue
from tests.contract.lambda_api import HANDLER, Api, serving, zipped

PLACE = "arn:aws:lambda:us-east-1:123456789012"
ARN = f"{PLACE}:function:one"
SIGNING = f"{PLACE}:code-signing-config:csc-12345678901234567"
DURABLE = f"{ARN}:1/durable-execution/a/b"


@pytest.fixture
def api(tmp_path: Path, aws: Aws) -> Iterator[Api]:
    with serving(tmp_path, aws_endpoint=aws.url) as api:
        yield api


class Caller:
    """Calls operations and keeps which were answered: boto3's hook in `lambda_api.py` has validated them."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.answered: set[str] = set()

    def __call__(self, operation: str, **given: Any) -> Any:
        answer = getattr(self._api.client, xform_name(operation))(**given)
        self.answered.add(operation)
        return answer


def test_every_operation_answers_as_the_model_says(api: Api, aws: Aws) -> None:
    call, one, v1 = Caller(api), {"FunctionName": "one"}, {"FunctionName": "one", "Qualifier": "1"}
    _functions(call, api, one)
    _what_hangs_on_them(call, one, v1)
    _layers(call)
    _urls(call, one)
    _events(call, api, aws.queue(), one)
    _what_there_is_none_of(call, one, v1)
    call("DeleteAlias", **one, Name="live")
    call("DeleteFunction", **one)
    expected = OPERATIONS.keys() - NOTHING_THERE.keys()
    assert call.answered - OPERATIONS.keys() == set()
    assert expected - call.answered == set(), "Hint: call it here"


def _functions(call: Caller, api: Api, one: dict[str, str]) -> None:
    created = {
        "Runtime": "python3.11",
        "Handler": "index.handler",
        "Role": "arn:aws:iam::123456789012:role/r",
        "Code": {"ZipFile": zipped()},
    }
    call(
        "CreateFunction", **one, **created, Environment={"Variables": {"KEY": "b"}}, Tags={"a": "b"}
    )
    api.wait("one")
    call("PublishVersion", **one)
    call("UpdateFunctionCode", **one, ZipFile=zipped({"index.py": HANDLER + "\n"}))
    api.wait("one")
    call("UpdateFunctionConfiguration", **one, Timeout=7)
    api.wait("one")
    call("PublishVersion", **one)
    call("CreateAlias", **one, Name="live", FunctionVersion="1")
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    call("UpdateAlias", **one, Name="live", RoutingConfig=weights)
    call("GetAlias", **one, Name="live")
    for operation in (
        "GetFunction",
        "GetFunctionConfiguration",
        "ListVersionsByFunction",
        "ListAliases",
    ):
        call(operation, **one)
    call("ListFunctions", FunctionVersion="ALL")


def _what_hangs_on_them(call: Caller, one: dict[str, str], v1: dict[str, str]) -> None:
    call("PutFunctionConcurrency", **one, ReservedConcurrentExecutions=3)
    call("GetFunctionConcurrency", **one)
    call("PutProvisionedConcurrencyConfig", **v1, ProvisionedConcurrentExecutions=1)
    call("GetProvisionedConcurrencyConfig", **v1)
    call("ListProvisionedConcurrencyConfigs", **one)
    call("DeleteProvisionedConcurrencyConfig", **v1)
    call("DeleteFunctionConcurrency", **one)
    call("GetAccountSettings")
    statement = {"StatementId": "s", "Action": "lambda:InvokeFunction", "Principal": "*"}
    call("AddPermission", **one, **statement)
    call("GetPolicy", **one)
    call("RemovePermission", **one, StatementId="s")
    policy = json.dumps({"Statement": {"Effect": "Allow", "Principal": "*", "Action": "*"}})
    call("PutResourcePolicy", ResourceArn=ARN, Policy=policy)
    call("GetResourcePolicy", ResourceArn=ARN)
    call("DeleteResourcePolicy", ResourceArn=ARN)
    call("TagResource", Resource=ARN, Tags={"c": "d"})
    call("ListTags", Resource=ARN)
    call("UntagResource", Resource=ARN, TagKeys=["c"])
    call("PutFunctionRecursionConfig", **one, RecursiveLoop="Allow")
    call("GetFunctionRecursionConfig", **one)
    call("PutRuntimeManagementConfig", **one, UpdateRuntimeOn="FunctionUpdate")
    call("GetRuntimeManagementConfig", **one)


def _layers(call: Caller) -> None:
    if "PublishLayerVersion" not in OPERATIONS:
        return
    name = {"LayerName": "layer"}
    first = {**name, "VersionNumber": 1}
    call("PublishLayerVersion", **name, Content={"ZipFile": zipped({"python/a.py": "A = 1\n"})})
    call("ListLayers")
    call("ListLayerVersions", **name)
    call("GetLayerVersion", **first)
    call("GetLayerVersionByArn", Arn=f"{PLACE}:layer:layer:1")
    permission = {"StatementId": "s", "Action": "lambda:GetLayerVersion", "Principal": "*"}
    call("AddLayerVersionPermission", **first, **permission)
    call("GetLayerVersionPolicy", **first)
    call("RemoveLayerVersionPermission", **first, StatementId="s")
    call("DeleteLayerVersion", **first)


def _urls(call: Caller, one: dict[str, str]) -> None:
    if "CreateFunctionUrlConfig" not in OPERATIONS:
        return
    call("CreateFunctionUrlConfig", **one, AuthType="NONE", Cors={"AllowOrigins": ["*"]})
    call("UpdateFunctionUrlConfig", **one, InvokeMode="RESPONSE_STREAM")
    call("GetFunctionUrlConfig", **one)
    call("ListFunctionUrlConfigs", **one)
    call("DeleteFunctionUrlConfig", **one)


def _events(call: Caller, api: Api, queue: Queue, one: dict[str, str]) -> None:
    call("PutFunctionEventInvokeConfig", **one, MaximumRetryAttempts=1)
    call("UpdateFunctionEventInvokeConfig", **one, MaximumEventAgeInSeconds=60)
    call("GetFunctionEventInvokeConfig", **one)
    call("ListFunctionEventInvokeConfigs", **one)
    call("DeleteFunctionEventInvokeConfig", **one)
    made = call("CreateEventSourceMapping", **one, EventSourceArn=queue.arn, Enabled=False)
    where = {"UUID": made["UUID"]}
    while call("GetEventSourceMapping", **where)["State"] != "Disabled":
        pass
    call("ListEventSourceMappings", **one)
    call("UpdateEventSourceMapping", **where, BatchSize=5)
    while call("GetEventSourceMapping", **where)["State"] != "Disabled":
        pass
    call("DeleteEventSourceMapping", **where)


def _what_there_is_none_of(call: Caller, one: dict[str, str], v1: dict[str, str]) -> None:
    assert call("ListCodeSigningConfigs")["CodeSigningConfigs"] == []
    assert "CodeSigningConfigArn" not in call("GetFunctionCodeSigningConfig", **one)
    call("DeleteFunctionCodeSigningConfig", **one)
    assert call("ListCapacityProviders")["CapacityProviders"] == []
    assert call("GetFunctionScalingConfig", **v1)["FunctionArn"] == f"{ARN}:1"
    assert call("ListDurableExecutionsByFunction", **one)["DurableExecutions"] == []


# -- what is not there


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving(tmp_path_factory.mktemp("quiet")) as api:
        api.create("one")
        yield api


NONE = {
    "GetCodeSigningConfig": {"CodeSigningConfigArn": SIGNING},
    "UpdateCodeSigningConfig": {"CodeSigningConfigArn": SIGNING},
    "DeleteCodeSigningConfig": {"CodeSigningConfigArn": SIGNING},
    "ListFunctionsByCodeSigningConfig": {"CodeSigningConfigArn": SIGNING},
    "PutFunctionCodeSigningConfig": {"CodeSigningConfigArn": SIGNING, "FunctionName": "none"},
    "GetCapacityProvider": {"CapacityProviderName": "mine"},
    "UpdateCapacityProvider": {"CapacityProviderName": "mine"},
    "DeleteCapacityProvider": {"CapacityProviderName": f"{PLACE}:capacity-provider:mine"},
    "ListFunctionVersionsByCapacityProvider": {"CapacityProviderName": "mine"},
    "GetDurableExecution": {"DurableExecutionArn": DURABLE},
    "GetDurableExecutionHistory": {"DurableExecutionArn": DURABLE},
    "GetDurableExecutionState": {"DurableExecutionArn": DURABLE, "CheckpointToken": "dG9rZW4="},
    "StopDurableExecution": {"DurableExecutionArn": DURABLE},
}


def test_what_there_is_none_of_is_not_found(quiet: Api) -> None:
    assert NONE.keys() == NOTHING_THERE.keys()
    for operation, given in NONE.items():
        status, code, message = quiet.refusal(xform_name(operation), **given)
        assert status == 404
        if operation == "PutFunctionCodeSigningConfig":
            assert (code, message) == (
                "CodeSigningConfigNotFoundException",
                "The code signing configuration cannot be found. Check that the provided configuration is "
                f"not deleted: {SIGNING}.",
            )
            continue
        assert code == "ResourceNotFoundException"
        if "CodeSigning" in operation:
            assert message == f"The Lambda code signing configuration {SIGNING} can not be found."
        elif "Capacity" in operation:
            assert message == f"Capacity provider not found: {PLACE}:capacity-provider:mine"
        else:
            assert message == f"Durable execution not found: {DURABLE}"
    unknown = (404, "ResourceNotFoundException", f"Function not found: {PLACE}:function:none")
    for operation in (
        "get_function_code_signing_config",
        "delete_function_code_signing_config",
        "list_durable_executions_by_function",
    ):
        assert quiet.refusal(operation, FunctionName="none") == unknown
    scaling = quiet.refusal("get_function_scaling_config", FunctionName="one", Qualifier="9")
    assert scaling[2] == f"Function not found: {ARN}:9"


def asked(
    api: Api, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """As no SDK would: (status, headers by lower-case name, body)."""
    found = urlsplit(api.url)
    assert found.hostname is not None
    connection = http.client.HTTPConnection(found.hostname, found.port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, told, answer.read()
    finally:
        connection.close()


def test_what_is_not_supported_says_so_in_awss_shape(quiet: Api) -> None:
    known = model.load().operations
    for operation in known:
        if operation.name in OPERATIONS or operation.name in model.INVOCATIONS:
            continue
        path = operation.http["requestUri"]
        path = re.sub(r"\{\w+\}", "1", path)
        status, headers, body = asked(quiet, operation.http["method"], path, b"{}")
        assert (status, headers["x-amzn-errortype"]) == (501, "NotImplementedException")
        assert headers["content-type"] == "application/json"
        message = f"{operation.name} is not supported by lambox."
        assert json.loads(body) == {"Type": "User", "message": message}


FUNCTION = "/2015-03-31/functions/one"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PATCH", FUNCTION, 405, "MethodNotAllowedException"),
        ("POST", FUNCTION, 405, "MethodNotAllowedException"),
        ("HEAD", FUNCTION, 405, "MethodNotAllowedException"),
        ("OPTIONS", FUNCTION, 405, "MethodNotAllowedException"),
        ("TRACE", FUNCTION, 405, "MethodNotAllowedException"),
        ("GET", "/2015-03-31/nothing/of/the/kind", 501, "NotImplementedException"),
        ("GET", "/2015-03-31/", 501, "NotImplementedException"),
        ("GET", "/2099-12-31/functions", 501, "NotImplementedException"),
        ("GET", "/2015-03-31/functions//aliases", 501, "NotImplementedException"),
        ("GET", "/2015-03-31/functions/one%2Faliases", 400, "ValidationException"),
        ("GET", "/2015-03-31/functions/%FF%00", 400, "ValidationException"),
        ("GET", "/2015-03-31/functions/..%2f..%2fetc", 400, "ValidationException"),
        ("GET", "/2015-03-31/functions?MaxItems=many", 400, "SerializationException"),
        ("GET", "/2015-03-31/functions?Marker=%FF", 400, "InvalidParameterValueException"),
        ("GET", "/nothing", 404, "UnknownOperationException"),
    ],
)
def test_odd_requests(quiet: Api, method: str, path: str, status: int, code: str) -> None:
    found, headers, body = asked(quiet, method, path)
    assert (found, headers["x-amzn-errortype"]) == (status, code)
    assert uuid.UUID(headers["x-amzn-requestid"])
    assert headers["content-type"] == "application/json"
    if method == "HEAD":
        assert body == b""
    else:
        assert json.loads(body)["message"]


def test_the_same_function_by_any_address(quiet: Api) -> None:
    for path in (
        FUNCTION,
        FUNCTION + "/",
        FUNCTION + "?Qualifier=",
        "/2015-03-31/functions/" + ARN,
        "/2015-03-31/functions/" + ARN.replace(":", "%3A"),
        "/2015-03-31/functions/123456789012%3aone",
        "/2015-03-31/functions/%6f%6e%65",
    ):
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "x;;"}):
            status, _, body = asked(quiet, "GET", path, **headers)
            assert status == 200
            assert json.loads(body)["Configuration"]["FunctionName"] == "one"


@pytest.mark.parametrize("content_type", ["application/json", "text/html", "application/xml", "?"])
def test_bodies_are_json_whatever_they_are_called(quiet: Api, content_type: str) -> None:
    path = "/2017-10-31/functions/one/concurrency"
    body = b'{"ReservedConcurrentExecutions": 1}'
    status, _, got = asked(quiet, "PUT", path, body, **{"Content-Type": content_type})
    assert (status, json.loads(got)) == (200, {"ReservedConcurrentExecutions": 1})
    for bad in (b"<a/>", b"{", b"[]", b"\xff", b"a=b"):
        status, headers, _ = asked(quiet, "PUT", path, bad, **{"Content-Type": content_type})
        assert (status, headers["x-amzn-errortype"]) == (400, "SerializationException")


def test_bodies_over_the_limit(quiet: Api) -> None:
    path = "/2017-10-31/functions/one/concurrency"
    status, headers, body = asked(quiet, "PUT", path, b" " * (MAX_BODY + 1))
    assert (status, headers["x-amzn-errortype"]) == (413, "RequestEntityTooLargeException")
    assert json.loads(body) == {
        "message": "Request must be smaller than 1048576 bytes for the PutFunctionConcurrency operation"
    }
    assert asked(quiet, "PUT", path, b" " * MAX_BODY)[0] == 400
