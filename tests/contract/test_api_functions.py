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
from tests.contract.lambda_api import PYTHON, ROLE, Api, asked, client_of, serving, zipped

ARN = "arn:aws:lambda:us-east-1:123456789012:function:"
INVALID = "InvalidParameterValueException"
LACKING = "java21"
"""A runtime that AWS has and lambox never."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
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
