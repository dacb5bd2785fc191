"""Functions through the Lambda API, as boto3 sees them (SPEC 10)."""

from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rootfs.runtimes import Runtimes
from runtimeapi.control import code, face
from runtimeapi.guard import Guard
from runtimeapi.sigv4 import SigV4
from tests.contract import lambda_api
from tests.contract.lambda_api import PYTHON, ROLE, Api, client_of, serving, zipped

ARN = "arn:aws:lambda:us-east-1:123456789012:function:"
LACKING = "java21"
"""A runtime that AWS has and lambox never."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        yield api


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with one function, that nothing is to change."""
    with serving(tmp_path_factory.mktemp("still")) as api:
        api.create("still")
        yield api


def test_a_functions_life(api: Api) -> None:
    created = api.create("hello", Environment={"Variables": {"STAGE": "test"}})
    assert created["State"] == "Pending"
    assert created["StateReasonCode"] == "Creating"
    assert "LastUpdateStatus" not in created
    found = api.client.get_function(FunctionName="hello")["Configuration"]
    assert (found["State"], found["LastUpdateStatus"]) == ("Active", "Successful")
    assert found["RevisionId"] != created["RevisionId"]
    assert [one["FunctionName"] for one in api.client.list_functions()["Functions"]] == ["hello"]
    gone = api.client.delete_function(FunctionName="hello")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert api.refusal("get_function", FunctionName="hello") == (
        404,
        "ResourceNotFoundException",
        "Function not found: arn:aws:lambda:us-east-1:123456789012:function:hello",
    )


def test_what_aws_fills_in(api: Api) -> None:
    """As recorded: LS test_lambda_code_location_zipfile."""
    created = api.create("plain")
    for member in ("ResponseMetadata", "CodeSha256", "CodeSize", "RevisionId", "LastModified"):
        assert created.pop(member)
    assert created.pop("RuntimeVersionConfig")["RuntimeVersionArn"].startswith(
        "arn:aws:lambda:us-east-1::runtime:"
    )
    assert created == {
        "Architectures": ["x86_64"],
        "Description": "",
        "EphemeralStorage": {"Size": 512},
        "FunctionArn": ARN + "plain",
        "FunctionName": "plain",
        "Handler": "index.handler",
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/plain"},
        "MemorySize": 128,
        "PackageType": "Zip",
        "Role": ROLE,
        "Runtime": PYTHON,
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "State": "Pending",
        "StateReason": "The function is being created.",
        "StateReasonCode": "Creating",
        "Timeout": 3,
        "TracingConfig": {"Mode": "PassThrough"},
        "Version": "$LATEST",
    }


def test_functions_are_there_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        before = api.create()["CodeSha256"]
    with serving(tmp_path) as api:
        found = api.client.get_function(FunctionName="hello")["Configuration"]
        assert (found["CodeSha256"], found["State"]) == (before, "Active")
        assert api.client.invoke(FunctionName="hello", Payload=b"[1]")["Payload"].read() == b"[1]"


def test_what_is_kept_and_shown_though_it_means_nothing_here(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    created = api.client.create_function(
        **asked("full", Runtime="python3.13"),
        VpcConfig={"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        TracingConfig={"Mode": "Active"},
        SnapStart={"ApplyOn": "PublishedVersions"},
        KMSKeyArn="arn:aws:kms:us-east-1:123456789012:key/abc",
        LoggingConfig={"LogFormat": "JSON", "SystemLogLevel": "WARN"},
        DeadLetterConfig={"TargetArn": ""},
    )
    assert created["VpcConfig"] == {
        "SubnetIds": ["subnet-1"],
        "SecurityGroupIds": ["sg-1"],
        "VpcId": "",
        "Ipv6AllowedForDualStack": False,
    }
    assert created["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}
    assert created["TracingConfig"] == {"Mode": "Active"}
    assert created["KMSKeyArn"] == "arn:aws:kms:us-east-1:123456789012:key/abc"
    assert created["LoggingConfig"] == {
        "LogFormat": "JSON",
        "ApplicationLogLevel": "INFO",
        "SystemLogLevel": "WARN",
        "LogGroup": "/aws/lambda/full",
    }
    assert "DeadLetterConfig" not in created
    for what in ("VpcConfig", "TracingConfig", "SnapStart", "KMSKeyArn"):
        assert f"function full: {what}" in caplog.text


def test_code_comes_back_from_an_address_that_expires(api: Api) -> None:
    package = zipped({"index.py": "# mine"})
    api.create("mine", Code={"ZipFile": package})
    found = api.client.get_function(FunctionName="mine")["Code"]
    assert found["RepositoryType"] == "S3"
    with urllib.request.urlopen(found["Location"]) as answer:
        assert answer.read() == package
    for wrong in (
        found["Location"].replace("token=", "token=0"),
        found["Location"].replace("expires=", "expires=9"),
        found["Location"].partition("?")[0],
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(wrong)
        assert refused.value.code == 403
        refused.value.close()


def test_the_address_stands_for_credentials(tmp_path: Path) -> None:
    """Of the one package alone; all else is refused without them."""
    guard = Guard(auth=SigV4({"AKIDEXAMPLE": "secret"}.get, region="us-east-1"))
    with serving(tmp_path, guard=guard) as api:
        api.client.close()
        api.client = client_of(api.url, key="AKIDEXAMPLE", secret="secret")
        api.create("mine", Code={"ZipFile": zipped({"index.py": "# mine"})})
        place = api.client.get_function(FunctionName="mine")["Code"]["Location"]
        with urllib.request.urlopen(place) as answer:
            assert answer.read() == zipped({"index.py": "# mine"})
        other = "0" * 64
        for wrong in (re.sub("[0-9a-f]{64}.zip", f"{other}.zip", place), api.url + "/_lambox/ps"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(wrong)
            assert refused.value.code == 403
            refused.value.close()


def test_lists_are_given_in_pages_and_with_all_versions(api: Api) -> None:
    for name in ("c", "a", "b"):
        api.create(name, Publish=name == "a")
    names: list[str] = []
    for page in api.client.get_paginator("list_functions").paginate(
        PaginationConfig={"PageSize": 2}
    ):
        assert len(page["Functions"]) <= 2
        names += [one["FunctionName"] for one in page["Functions"]]
    assert names == ["a", "b", "c"]
    every = api.client.list_functions(FunctionVersion="ALL")["Functions"]
    assert [one["FunctionArn"].removeprefix(ARN) for one in every] == [
        "a:$LATEST",
        "a:1",
        "b:$LATEST",
        "c:$LATEST",
    ]
    assert all("State" not in one and "RuntimeVersionConfig" not in one for one in every)
    assert api.refusal("list_functions", FunctionVersion="some") == (
        400,
        "ValidationException",
        "1 validation error detected: Value 'some' at 'functionVersion' failed to satisfy constraint: "
        "Member must satisfy enum value set: [ALL]",
    )
    assert api.refusal("list_functions", Marker="elsewhere")[1] == "InvalidParameterValueException"


def test_a_runtime_that_this_host_has_not_got(tmp_path: Path) -> None:
    """It is taken, as on AWS; its state says what is missing, and an update mends it."""
    with serving(tmp_path) as api:
        api.client.create_function(**asked("lacking", Runtime=LACKING))
        found = _settled(api, "lacking")
        assert (found["State"], found["StateReasonCode"]) == ("Failed", "InvalidRuntime")
        assert found["LastUpdateStatus"] == "Failed"
        assert f"runtime {LACKING} is not on this host" in found["StateReason"]
        assert "Hint: " in found["StateReason"]
        assert api.refusal("invoke", FunctionName="lacking")[:2] == (502, "InvalidRuntimeException")
        api.client.update_function_configuration(FunctionName="lacking", Runtime=PYTHON)
        assert _settled(api, "lacking")["State"] == "Active"
        assert api.client.invoke(FunctionName="lacking", Payload=b"1")["Payload"].read() == b"1"
        api.client.update_function_configuration(FunctionName="lacking", Runtime=LACKING)
        found = _settled(api, "lacking")
        assert (found["State"], found["LastUpdateStatus"]) == ("Active", "Failed")
        assert found["LastUpdateStatusReasonCode"] == "InvalidRuntime"
    with serving(tmp_path) as api:
        assert _settled(api, "lacking")["LastUpdateStatus"] == "Failed"
        assert api.refusal("invoke", FunctionName="lacking")[:2] == (502, "InvalidRuntimeException")


def test_a_runtime_that_was_installed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start tries what had failed once more."""
    found = lambda_api._runtimes()
    fewer = {name: one for name, one in found.found.items() if name != PYTHON}
    with monkeypatch.context() as patch:
        patch.setattr(lambda_api, "_runtimes", lambda: Runtimes(fewer, found.default))
        with serving(tmp_path) as api:
            api.client.create_function(**asked("early", Publish=True))
            assert _settled(api, "early")["State"] == "Failed"
    with serving(tmp_path) as api:
        api.wait("early")
        for qualifier in ("$LATEST", "1"):
            shown = api.client.get_function_configuration(FunctionName="early", Qualifier=qualifier)
            assert (shown["State"], shown["LastUpdateStatus"]) == ("Active", "Successful")
            assert "StateReason" not in shown
            assert api.behind.functions.resolve("early", qualifier).version == qualifier


def _settled(api: Api, name: str) -> Any:
    while True:
        found = api.client.get_function_configuration(FunctionName=name)
        if "Pending" not in found["State"] and found["LastUpdateStatus"] != "InProgress":
            return found


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


ONE = "1 validation error detected: Value "
FAILED = " failed to satisfy constraint: Member must "
INVALID = "InvalidParameterValueException"
CREATE_REFUSALS: list[tuple[dict[str, object], int, str, str]] = [
    (
        {"Role": "admin"},
        400,
        "ValidationException",
        ONE + "'admin' at 'role'" + FAILED + "satisfy regular expression pattern: "
        r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
    ),
    (
        {"Architectures": ["x86_64", "arm64"]},
        400,
        "ValidationException",
        ONE
        + "'[x86_64, arm64]' at 'architectures'"
        + FAILED
        + "have length less than or equal to 1",
    ),
    (
        {"Architectures": ["X86_64"]},
        400,
        "ValidationException",
        ONE + "'[X86_64]' at 'architectures'" + FAILED + "satisfy constraint: "
        "[Member must satisfy enum value set: [x86_64, arm64], Member must not be null]",
    ),
    (
        {"MemorySize": 10_241},
        400,
        "ValidationException",
        ONE + "'10241' at 'memorySize'" + FAILED + "have value less than or equal to 10240",
    ),
    (
        {"Timeout": 901},
        400,
        "ValidationException",
        ONE + "'901' at 'timeout'" + FAILED + "have value less than or equal to 900",
    ),
    (
        {"EphemeralStorage": {"Size": 511}, "Timeout": 0},
        400,
        "ValidationException",
        "2 validation errors detected: Value '0' at 'timeout'"
        + FAILED
        + "have value greater than or equal "
        "to 1; Value '511' at 'ephemeralStorage.size'"
        + FAILED
        + "have value greater than or equal to 512",
    ),
    (
        {"Runtime": "PYTHON3.9"},
        400,
        INVALID,
        "Value PYTHON3.9 at 'runtime'"
        + FAILED
        + "satisfy enum value set: [nodejs20.x, python3.14, "
        "provided.al2023, python3.12, python3.13, nodejs24.x, nodejs22.x, java25, python3.10, python3.11, "
        "java21, ruby3.3, ruby3.4, ruby3.2, python3.8, python3.9, java17, nodejs16.x, dotnet10, dotnet8, "
        "java11, dotnet6, nodejs18.x, provided.al2, java8.al2] or be a valid ARN",
    ),
    (
        {"Runtime": "nodejs14.x"},
        400,
        INVALID,
        "The runtime parameter of nodejs14.x is no longer supported for creating or updating AWS Lambda "
        "functions. We recommend you use a supported runtime while creating or updating functions.",
    ),
    (
        {"Handler": None},
        400,
        INVALID,
        "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
    ),
    (
        {"Code": {"ZipFile": b"no zip"}},
        400,
        INVALID,
        "Could not unzip uploaded file. Please check your file, then try to upload again.",
    ),
    ({"Code": {}}, 400, INVALID, "Please provide a source for function code."),
    (
        {"Environment": {"Variables": {"AWS_REGION": "x", "OK": "y", "LAMBDA_TASK_ROOT": "z"}}},
        400,
        INVALID,
        "Lambda was unable to configure your environment variables because the environment variables you have "
        "provided contains reserved keys that are currently not supported for modification. "
        "Reserved keys used in this request: AWS_REGION, LAMBDA_TASK_ROOT",
    ),
    (
        {"Environment": {"Variables": {"SMALL": "ok", "LARGE": "x" * 4096}}},
        400,
        INVALID,
        "Lambda was unable to configure your environment variables because the environment variables you have "
        'provided exceeded the 4KB limit. String measured: {"SMALL":"ok","LARGE":"'
        + "x" * 4096
        + '"}',
    ),
    (
        {"SnapStart": {"ApplyOn": "PublishedVersions"}},
        400,
        INVALID,
        f"{PYTHON} is not supported for SnapStart enabled functions.",
    ),
    (
        {"LoggingConfig": {"LogFormat": "Text", "SystemLogLevel": "INFO"}},
        400,
        INVALID,
        'LogLevel is not supported when LogFormat is set to "Text". Remove LogLevel from your request or change '
        'the LogFormat to "JSON" and try again.',
    ),
    (
        {"Layers": [f"arn:aws:lambda:us-east-1:123456789012:layer:none:{n}" for n in range(6)]},
        400,
        INVALID,
        "Cannot reference more than 5 layers.",
    ),
    (
        {"Layers": ["arn:aws:lambda:us-east-1:123456789012:layer:none:1"]},
        400,
        INVALID,
        "Layer version arn:aws:lambda:us-east-1:123456789012:layer:none:1 does not exist.",
    ),
    (
        {"Tags": {f"k{n}": "v" for n in range(51)}},
        400,
        INVALID,
        "Number of tags exceeds resource tag limit.",
    ),
    ({"FunctionName": "still"}, 409, "ResourceConflictException", "Function already exist: still"),
    (
        {"FunctionName": "x" * 65},
        400,
        INVALID,
        ONE + f"'{'x' * 65}' at 'functionName'" + FAILED + "have length less than or equal to 64",
    ),
    (
        {"FunctionName": ARN.replace("us-east-1", "eu-west-1") + "f"},
        404,
        "ResourceNotFoundException",
        "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')",
    ),
]


@pytest.mark.parametrize(
    ("changes", "status", "code", "message"),
    CREATE_REFUSALS,
    ids=[f"{next(iter(row[0]))}-{n}" for n, row in enumerate(CREATE_REFUSALS)],
)
def test_bad_input_is_told_in_awss_words_and_changes_nothing(
    still: Api, changes: dict[str, object], status: int, code: str, message: str
) -> None:
    before = still.kept()
    given = {key: value for key, value in asked("bad", **changes).items() if value is not None}
    assert still.refusal("create_function", **given) == (status, code, message)
    assert still.kept() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PackageType": "Image", "Code": {"ImageUri": "me/it"}}, "send the program as a zip"),
        ({"TenancyConfig": {"TenantIsolationMode": "PER_TENANT"}}, "no tenant isolation"),
        (
            {"DurableConfig": {"RetentionPeriodInDays": 1, "ExecutionTimeout": 1}},
            "no durable functions",
        ),
        (
            {
                "CapacityProviderConfig": {
                    "LambdaManagedInstancesCapacityProviderConfig": {
                        "CapacityProviderArn": "arn:aws:lambda:us-east-1:123456789012:capacity-provider:x"
                    }
                }
            },
            "no Lambda Managed Instances",
        ),
        (
            {
                "FileSystemConfigs": [
                    {
                        "Arn": "arn:aws:elasticfilesystem:us-east-1:123456789012:access-point/"
                        "fsap-01234567890123456",
                        "LocalMountPath": "/mnt/a",
                    }
                ]
            },
            "mounts no EFS",
        ),
        ({"Architectures": ["arm64"]}, "this host is x86_64"),
    ],
)
def test_what_lambox_has_not_got_is_refused_with_the_mend(
    still: Api, changes: dict[str, object], words: str
) -> None:
    status, code, message = still.refusal("create_function", **asked("bad", **changes))
    assert (status, code) == (400, INVALID)
    assert words in message
    assert "Hint: " in message or "Architectures out" in message


def test_larger_unzipped_than_may_be(tmp_path: Path) -> None:
    """SPEC 10.6's words, with a bound that a test can reach."""
    with serving(tmp_path) as api:
        api.behind.control.code.limit = 1000
        bomb = zipped({"index.py": "#" * 1001})
        assert len(bomb) < 1000
        assert api.refusal("create_function", **asked("bomb", Code={"ZipFile": bomb})) == (
            400,
            INVALID,
            "Unzipped size must be smaller than 1000 bytes",
        )
        assert not list((tmp_path / "state" / "code").glob("*/*"))


def test_larger_zipped_than_may_be(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's words (SPEC 10.6), with bounds that cost a test less than theirs."""
    assert (code.MAX_ZIPPED, face.MAX_CODE_BODY) == (52_428_800, 70_167_211)
    monkeypatch.setattr(code, "MAX_ZIPPED", 1000)
    given = asked("large", Code={"ZipFile": bytes(1001)})
    refusals = []
    refusals.append(api.refusal("create_function", **given))
    monkeypatch.setattr(face, "MAX_CODE_BODY", 1400)
    refusals.append(api.refusal("create_function", **given))
    assert refusals == [
        (
            413,
            "RequestEntityTooLargeException",
            "Zipped size must be smaller than 1000 bytes",
        ),
        (
            413,
            "RequestEntityTooLargeException",
            "Request must be smaller than 1400 bytes for the CreateFunction operation",
        ),
    ]


def test_an_operation_that_lambox_has_not_got(still: Api) -> None:
    assert still.refusal("create_capacity_provider") == (
        501,
        "NotImplementedException",
        "CreateCapacityProvider is not supported by lambox.",
    )


NAME_PATTERN = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?"
    r"(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?"
)


@pytest.mark.parametrize(
    ("operation", "given", "answer"),
    [
        *(
            (
                operation,
                {"FunctionName": name},
                (
                    400,
                    "ValidationException",
                    ONE
                    + f"'{name}' at 'functionName'"
                    + FAILED
                    + "satisfy regular expression pattern: "
                    + NAME_PATTERN,
                ),
            )
            for operation in ("get_function", "delete_function")
            for name in ("*", "my-function!", ARN + "f:1:2", ARN + "f:$LATES")
        ),
        (
            "get_function",
            {"FunctionName": "still", "Qualifier": "q" * 129},
            (
                400,
                "ValidationException",
                ONE
                + f"'{'q' * 129}' at 'qualifier'"
                + FAILED
                + "have length less than or equal to 128",
            ),
        ),
        *(
            (
                operation,
                {"FunctionName": ARN + "none:1", "Qualifier": "2"},
                (
                    400,
                    INVALID,
                    "The derived qualifier from the function name does not match the specified qualifier.",
                ),
            )
            for operation in ("get_function", "get_function_configuration", "delete_function")
        ),
        (
            "delete_function",
            {"FunctionName": "still", "Qualifier": "$LATEST"},
            (400, INVALID, "$LATEST version cannot be deleted without deleting the function."),
        ),
        (
            "delete_function",
            {"FunctionName": "none", "Qualifier": "alias"},
            (400, INVALID, "Deletion of aliases is not currently supported."),
        ),
        (
            "delete_function",
            {"FunctionName": "none", "Qualifier": "1"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}none"),
        ),
        *(
            (
                operation,
                {"FunctionName": "still", "Qualifier": qualifier},
                (404, "ResourceNotFoundException", f"Function not found: {ARN}still:{qualifier}"),
            )
            for operation in ("get_function", "get_function_configuration")
            for qualifier in ("1", "live")
        ),
        (
            "get_function",
            {"FunctionName": "x" * 65},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}{'x' * 65}"),
        ),
        (
            "get_function",
            {"FunctionName": "arn:aws:lambda:us-east-1:999999999999:function:still"},
            (403, "AccessDeniedException", None),
        ),
        (
            "update_function_code",
            {"FunctionName": "none", "ZipFile": b"x"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}none"),
        ),
        (
            "update_function_code",
            {"FunctionName": "still", "ImageUri": "me/it"},
            (
                400,
                INVALID,
                "Please don't provide ImageUri when updating a function with packageType Zip.",
            ),
        ),
        (
            "update_function_code",
            {"FunctionName": "still", "ZipFile": zipped(), "RevisionId": "old"},
            (
                412,
                "PreconditionFailedException",
                "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias "
                "API to retrieve the latest Revision Id",
            ),
        ),
        (
            "update_function_configuration",
            {"FunctionName": "still", "Runtime": "nonesuch"},
            None,
        ),
        (
            "publish_version",
            {"FunctionName": "none"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}none:$LATEST"),
        ),
    ],
)
def test_names_and_qualifiers(
    still: Api, operation: str, given: dict[str, object], answer: tuple[int, str, str | None] | None
) -> None:
    before = still.kept()
    refused = still.refusal(operation, **given)
    assert answer is None or refused == answer
    assert refused[0] >= 400
    assert still.kept() == before
