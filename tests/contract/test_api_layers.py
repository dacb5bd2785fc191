"""Layers through the Lambda API, as boto3 sees them (SPEC 10.6); messages as recorded from AWS (LS TestLambdaLayer)."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import urllib.request
import zipfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtimeapi.control import code, references
from tests.contract.lambda_api import HANDLER, Api, serving, zipped

ARN = "arn:aws:lambda:us-east-1:123456789012:layer:"
GONE = (404, "ResourceNotFoundException", "The resource you requested does not exist.")
LESS = (400, "InvalidParameterValueException", "Layer Version Cannot be less than 1")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        yield api


def publish(api: Api, name: str = "one", *, file: str = "one.txt", **more: Any) -> Any:
    package = zipped({file: f"{name} {file}"})
    return api.client.publish_layer_version(LayerName=name, Content={"ZipFile": package}, **more)


def shown(answer: Any) -> Any:
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


def test_a_layers_life(api: Api) -> None:
    package = zipped({"one.txt": "1"})
    given = {
        "Description": "text",
        "LicenseInfo": "MIT",
        "CompatibleRuntimes": ["python3.11"],
        "CompatibleArchitectures": ["x86_64"],
    }
    first = shown(
        api.client.publish_layer_version(LayerName="one", Content={"ZipFile": package}, **given)
    )
    content = first["Content"]
    assert content["CodeSize"] == len(package)
    assert content["CodeSha256"] == b64encode(hashlib.sha256(package).digest()).decode()
    assert urllib.request.urlopen(content["Location"], timeout=5).read() == package
    listed = {
        "LayerVersionArn": ARN + "one:1",
        "Version": 1,
        "CreatedDate": first["CreatedDate"],
        **given,
    }
    assert first == {**listed, "LayerArn": ARN + "one", "Content": content}

    def without_place(answer: Any) -> Any:
        del answer["Content"]["Location"]
        return shown(answer)

    without_place(first)
    for name in ("one", ARN + "one"):
        got = api.client.get_layer_version(LayerName=name, VersionNumber=1)
        assert without_place(got) == first
    assert without_place(api.client.get_layer_version_by_arn(Arn=ARN + "one:1")) == first
    assert publish(api)["Version"] == 2
    versions = api.client.list_layer_versions(LayerName="one")["LayerVersions"]
    assert [one["Version"] for one in versions] == [2, 1]
    assert versions[1] == listed
    for _ in range(2):
        gone = api.client.delete_layer_version(LayerName="one", VersionNumber=2)
        assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    api.client.delete_layer_version(LayerName=ARN + "one", VersionNumber=1)
    assert api.client.list_layer_versions(LayerName="one")["LayerVersions"] == []
    assert api.client.list_layers()["Layers"] == []
    assert publish(api)["Version"] == 3  # numbers are not given again


def test_what_is_not_there(api: Api) -> None:
    publish(api)
    for name, number, why in [
        ("none", 1, GONE),
        ("one", 2, GONE),
        ("one", 0, LESS),
        ("one", -1, LESS),
    ]:
        assert api.refusal("get_layer_version", LayerName=name, VersionNumber=number) == why
    assert api.refusal("get_layer_version_by_arn", Arn=ARN + "one:2") == GONE
    elsewhere = (ARN + "one:1").replace("us-east-1", "eu-west-1")
    assert api.refusal("get_layer_version_by_arn", Arn=elsewhere) == GONE
    assert (
        api.refusal("get_layer_version_by_arn", Arn="arn:aws:lambda:::awslayer:AmazonLinux1803")
        == GONE
    )
    status, kind, message = api.refusal("get_layer_version_by_arn", Arn=ARN + "one")
    assert (status, kind) == (400, "ValidationException")
    assert (
        f"Value '{ARN}one' at 'arn' failed to satisfy constraint: Member must satisfy regular"
        in message
    )
    assert api.client.list_layer_versions(LayerName="none")["LayerVersions"] == []
    for name, number in (("none", 1), ("one", 2)):
        api.client.delete_layer_version(LayerName=name, VersionNumber=number)
    assert api.refusal("delete_layer_version", LayerName="one", VersionNumber=-1) == LESS


def test_packages_that_are_none_publish_nothing(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(content: Any, name: str = "bad") -> tuple[int, str, str]:
        return api.refusal("publish_layer_version", LayerName=name, Content=content)

    invalid = "InvalidParameterValueException"
    assert refused({"ZipFile": b"no zip"}) == (400, invalid, code.NOT_A_ZIP)
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    for nothing in (b"", empty.getvalue()):
        assert refused({"ZipFile": nothing}) == (
            400,
            invalid,
            "Uploaded file must be a non-empty zip",
        )
    assert refused({}) == (400, invalid, "Please provide a source for function code.")
    assert refused({"ZipFile": zipped(), "S3Bucket": "mine", "S3Key": "k"})[2].startswith(
        "Please do not provide other FunctionCode parameters"
    )
    status, kind, message = refused({"S3Bucket": "mine", "S3Key": "layer.zip"})
    assert (status, kind) == (400, invalid)
    assert "no endpoint is set. Hint: endpoint_s3 or aws_endpoint" in message
    foreign = ARN.replace("123456789012", "999999999999") + "one"
    assert refused({"ZipFile": zipped()}, foreign)[:2] == (400, invalid)
    monkeypatch.setattr(code, "MAX_ZIPPED", 100)
    assert refused({"ZipFile": zipped({"a": "x" * 500})}) == (
        413,
        "RequestEntityTooLargeException",
        "Zipped size must be smaller than 100 bytes",
    )
    assert api.client.list_layers()["Layers"] == []


@pytest.mark.parametrize("by", ["create_function", "publish_layer_version"])
def test_the_unzipped_size_is_bounded(api: Api, by: str) -> None:
    """LS test_oversized_unzipped_lambda."""
    api.behind.control.code.limit = 1000
    large = zipped({"index.py": HANDLER, "large": "x" * 1000})
    answer = (
        400,
        "InvalidParameterValueException",
        "Unzipped size must be smaller than 1000 bytes",
    )
    if by == "create_function":
        given = {"FunctionName": "f", "Runtime": "python3.11", "Handler": "index.handler"}
        role = "arn:aws:iam::123456789012:role/r"
        assert api.refusal(by, **given, Role=role, Code={"ZipFile": large}) == answer
    else:
        assert api.refusal(by, LayerName="l", Content={"ZipFile": large}) == answer
    assert not list((api.state / "code").glob("*/*"))


def test_lists_are_filtered_and_come_in_pages(api: Api) -> None:
    python = {"CompatibleRuntimes": ["python3.11"], "CompatibleArchitectures": ["x86_64"]}
    node = {"CompatibleRuntimes": ["nodejs22.x"], "CompatibleArchitectures": ["arm64"]}
    publish(api, "a", **python)
    publish(api, "a", **node)
    publish(api, "b", **node)
    publish(api, "c")

    def newest(**filters: str) -> dict[str, int]:
        layers = api.client.list_layers(**filters)["Layers"]
        return {one["LayerName"]: one["LatestMatchingVersion"]["Version"] for one in layers}

    assert newest() == {"a": 2, "b": 1, "c": 1}
    assert newest(CompatibleRuntime="python3.11") == {"a": 1}
    assert newest(CompatibleArchitecture="arm64") == {"a": 2, "b": 1}
    assert newest(CompatibleRuntime="python3.11", CompatibleArchitecture="arm64") == {}
    versions = api.client.list_layer_versions(LayerName="a", CompatibleRuntime="nodejs22.x")
    assert [one["Version"] for one in versions["LayerVersions"]] == [2]
    pages = list(
        api.client.get_paginator("list_layers").paginate(
            MaxItems=None, PaginationConfig={"PageSize": 2}
        )
    )
    assert [[one["LayerName"] for one in page["Layers"]] for page in pages] == [["a", "b"], ["c"]]
    pages = api.client.get_paginator("list_layer_versions").paginate(
        LayerName="a", PaginationConfig={"PageSize": 1}
    )
    assert [one["Version"] for page in pages for one in page["LayerVersions"]] == [2, 1]


def test_what_a_function_may_refer_to(api: Api) -> None:
    """LS test_layer_function_exceptions, test_layer_function_quota_exception."""
    arns = [publish(api, "one")["LayerVersionArn"] for _ in range(3)]
    api.create("f")

    def why(*layers: str) -> str:
        status, kind, message = api.refusal(
            "update_function_configuration", FunctionName="f", Layers=list(layers)
        )
        assert (status, kind) == (400, "InvalidParameterValueException"), message
        return message

    two = (
        "Two different versions of the same layer are not allowed to be referenced in the same function. "
        "{} and {} are versions of the same layer."
    )
    assert why(*arns[:2]) == two.format(*arns[:2])
    assert why(*arns) == two.format(*arns[:2])
    assert why(arns[0], arns[0]) == two.format(arns[0], arns[0])
    assert why(ARN + "none:1") == f"Layer version {ARN}none:1 does not exist."
    assert why(ARN + "one:9") == f"Layer version {ARN}one:9 does not exist."
    assert why((ARN + "one:1").replace("us-east-1", "eu-west-1")) == (
        "Layers are not in the same region as the function. "
        "Layers are expected to be in region us-east-1."
    )
    six = [publish(api, f"l{number}")["LayerVersionArn"] for number in range(6)]
    assert why(*six) == "Cannot reference more than 5 layers."
    status, kind, message = api.refusal(
        "update_function_configuration", FunctionName="f", Layers=[ARN + "one"]
    )
    assert (status, kind) == (400, "ValidationException")
    assert message.startswith(
        f"1 validation error detected: Value '[{ARN}one]' at 'layers' failed to satisfy constraint: Member must "
        "satisfy constraint: [Member must have length less than or equal to 2048, Member must have length greater "
        "than or equal to 1, Member must satisfy regular expression pattern: "
    )
    assert "Layers" not in api.client.get_function_configuration(FunctionName="f")


def opt(api: Api, name: str) -> dict[str, str]:
    """What the engine would bind at /opt."""
    (place,) = api.behind.functions.get(name).layers
    return {path.name: path.read_text() for path in place.iterdir()}


def test_a_function_keeps_its_layers_when_they_are_deleted(api: Api, tmp_path: Path) -> None:
    both = [
        publish(api, "a", file="a")["LayerVersionArn"],
        publish(api, "b", file="b")["LayerVersionArn"],
    ]
    created = api.create("f", Layers=both)
    assert [one["Arn"] for one in created["Layers"]] == both
    assert created["Layers"][0].keys() == {"Arn", "CodeSize"}
    assert opt(api, "f") == {"a": "a a", "b": "b b"}
    for name in ("a", "b"):
        api.client.delete_layer_version(LayerName=name, VersionNumber=1)
    assert [
        one["Arn"] for one in api.client.get_function_configuration(FunctionName="f")["Layers"]
    ] == both
    api.client.update_function_configuration(FunctionName="f", Description="still")
    api.wait("f")
    assert opt(api, "f") == {"a": "a a", "b": "b b"}
    status, _, message = api.refusal("update_function_configuration", FunctionName="f", Layers=both)
    assert (status, message) == (400, f"Layer version {both[0]} does not exist.")


def test_later_layers_overwrite_earlier_ones(api: Api) -> None:
    arns = [
        api.client.publish_layer_version(LayerName=name, Content={"ZipFile": zipped(files)})[
            "LayerVersionArn"
        ]
        for name, files in [
            ("a", {"same": "a", "only-a": "a"}),
            ("b", {"same": "b", "only-b": "b"}),
        ]
    ]
    api.create("ab", Layers=arns)
    assert opt(api, "ab") == {"same": "b", "only-a": "a", "only-b": "b"}
    api.client.update_function_configuration(FunctionName="ab", Layers=arns[::-1])
    api.wait("ab")
    assert opt(api, "ab") == {"same": "a", "only-a": "a", "only-b": "b"}
    api.client.update_function_configuration(FunctionName="ab", Layers=[])
    api.wait("ab")
    assert api.behind.functions.get("ab").layers == ()


def test_code_and_layers_together_are_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAX_UNZIPPED", 1000)
    arns = [
        api.client.publish_layer_version(
            LayerName=name, Content={"ZipFile": zipped({name: "x" * 500})}
        )["LayerVersionArn"]
        for name in ("a", "b")
    ]
    api.create("f", Layers=arns[:1])
    change = {"FunctionName": "f"}
    kind = "InvalidParameterValueException"
    assert api.refusal("update_function_configuration", **change, Layers=arns) == (
        400,
        kind,
        "Layers consume more than the available size of 1000 bytes",
    )
    large = zipped({"index.py": "x" * 600})
    for dry in (True, False):
        assert api.refusal("update_function_code", **change, ZipFile=large, DryRun=dry) == (
            400,
            kind,
            "Function code combined with layers exceeds the maximum allowed size of 1000 bytes. "
            "The actual size is 1100 bytes.",
        )


def test_permissions_of_a_layer_version(api: Api) -> None:
    """LS test_layer_policy_lifecycle, test_layer_policy_exceptions."""
    publish(api, "one")
    version = {"LayerName": "one", "VersionNumber": 1}
    allow = {**version, "Action": "lambda:GetLayerVersion", "Principal": "*"}
    none = (404, "ResourceNotFoundException", "No policy is associated with the given resource.")
    assert api.refusal("get_layer_version_policy", **version) == none
    assert api.refusal("remove_layer_version_permission", **version, StatementId="s1") == none
    added = api.client.add_layer_version_permission(**allow, StatementId="s1")
    statement = {
        "Sid": "s1",
        "Effect": "Allow",
        "Principal": "*",
        "Action": "lambda:GetLayerVersion",
        "Resource": ARN + "one:1",
    }
    assert json.loads(added["Statement"]) == statement
    got = api.client.get_layer_version_policy(**version)
    assert json.loads(got["Policy"]) == {
        "Version": "2012-10-17",
        "Id": "default",
        "Statement": [statement],
    }
    assert got["RevisionId"] == added["RevisionId"]
    assert api.refusal("add_layer_version_permission", **allow, StatementId="s1") == (
        409,
        "ResourceConflictException",
        "The statement id (s1) provided already exists. Please provide a new statement id, or remove the "
        "existing statement.",
    )
    stale = (
        412,
        "PreconditionFailedException",
        "The Revision Id provided does not match the latest Revision Id. Call the GetLayerPolicy API to retrieve "
        "the latest Revision Id",
    )
    for operation, more in [
        ("add_layer_version_permission", {**allow, "StatementId": "s2"}),
        ("remove_layer_version_permission", {**version, "StatementId": "s1"}),
    ]:
        assert api.refusal(operation, **more, RevisionId="wrong") == stale
    for name, number in [("none", 1), ("one", 2)]:
        for operation, more in [
            ("add_layer_version_permission", {**allow, "StatementId": "s2"}),
            ("get_layer_version_policy", {}),
            ("remove_layer_version_permission", {"StatementId": "s1"}),
        ]:
            given = {**more, "LayerName": name, "VersionNumber": number}
            assert api.refusal(operation, **given) == (
                404,
                "ResourceNotFoundException",
                f"Layer version {ARN}{name}:{number} does not exist.",
            )
    api.client.add_layer_version_permission(
        **{**allow, "Principal": "210987654321"},
        StatementId="s2",
        OrganizationId="o-a1b2c3d4e5",
        RevisionId=got["RevisionId"],
    )
    got = api.client.get_layer_version_policy(**version)
    second = json.loads(got["Policy"])["Statement"][1]
    assert second["Principal"] == {"AWS": "arn:aws:iam::210987654321:root"}
    assert second["Condition"] == {"StringEquals": {"aws:PrincipalOrgID": "o-a1b2c3d4e5"}}
    assert api.refusal("remove_layer_version_permission", **version, StatementId="s3") == (
        404,
        "ResourceNotFoundException",
        "Statement s3 is not found in resource policy.",
    )
    api.client.remove_layer_version_permission(
        **version, StatementId="s2", RevisionId=got["RevisionId"]
    )
    assert json.loads(api.client.get_layer_version_policy(**version)["Policy"])["Statement"] == [
        statement
    ]
    assert api.refusal("add_layer_version_permission", **{**allow, "Action": "*"}, StatementId="s")[
        2
    ] == (
        "1 validation error detected: Value '*' at 'action' failed to satisfy constraint: Member must satisfy "
        "regular expression pattern: lambda:GetLayerVersion"
    )


def test_layers_outlive_the_server(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        arns = [publish(api, name, file=name)["LayerVersionArn"] for name in ("a", "b")]
        api.create("f", Layers=arns)
        api.client.delete_layer_version(LayerName="b", VersionNumber=1)
    with serving(tmp_path) as api:
        assert opt(api, "f") == {"a": "a a", "b": "b b"}
        assert [one["LayerName"] for one in api.client.list_layers()["Layers"]] == ["a"]
        assert publish(api, "b")["Version"] == 2


def test_of_a_backup_without_unpacked_trees_they_are_unpacked_anew(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create("f", Layers=[publish(api, "a", file="a")["LayerVersionArn"]])
    shutil.rmtree(tmp_path / "state/code/trees")
    with serving(tmp_path) as api:
        assert opt(api, "f") == {"a": "a a"}
        assert (api.behind.functions.get("f").code / "index.py").read_text() == HANDLER
