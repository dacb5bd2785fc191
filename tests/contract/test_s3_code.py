"""Packages from S3 (moto's) for functions and layers; errors in AWS's words (SPEC 10.4)."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from lambox import s3code
from tests.aws import Aws
from tests.contract.lambda_api import ROLE, Api, serving, zipped

FUNCTION = {"FunctionName": "f", "Runtime": "python3.11", "Handler": "index.handler", "Role": ROLE}
FAILED = "Error occurred while GetObject. S3 Error Code: {}. S3 Error Message: {}"


@pytest.fixture
def api(tmp_path: Path, aws: Aws) -> Iterator[Api]:
    with serving(tmp_path, endpoint_s3=aws.url) as api:
        yield api


@pytest.fixture
def bucket(aws: Aws) -> str:
    name = aws.name("bucket")
    aws.client("s3").create_bucket(Bucket=name)
    return name


def digest(package: bytes) -> str:
    return b64encode(sha256(package).digest()).decode()


def test_functions_and_layers_from_s3(api: Api, aws: Aws, bucket: str) -> None:
    s3 = aws.client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    old, new = zipped({"index.py": "old"}), zipped({"index.py": "new"})
    version = s3.put_object(Bucket=bucket, Key="a folder/code.zip", Body=old)["VersionId"]
    s3.put_object(Bucket=bucket, Key="a folder/code.zip", Body=new)
    place = {"S3Bucket": bucket, "S3Key": "a folder/code.zip"}
    created = api.create("f", Code={**place, "S3ObjectVersion": version})
    assert created["CodeSha256"] == digest(old)
    updated = api.client.update_function_code(FunctionName="f", **place)
    assert updated["CodeSha256"] == digest(new)
    api.wait("f")
    layer = api.client.publish_layer_version(LayerName="l", Content=place)
    assert layer["Content"]["CodeSha256"] == digest(new)
    assert "CompatibleRuntimes" not in layer


def test_what_s3_refuses(api: Api, aws: Aws, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LS test_lambda_code_location_s3_errors."""

    def refused(name: str, key: str = "code.zip", **more: str) -> tuple[int, str, str]:
        code = {"S3Bucket": name, "S3Key": key, **more}
        return api.refusal("create_function", **FUNCTION, Code=code)

    invalid = (400, "InvalidParameterValueException")
    none = aws.name("none")
    assert refused(none) == (
        *invalid,
        FAILED.format("NoSuchBucket", "The specified bucket does not exist"),
    )
    assert refused(bucket) == (
        *invalid,
        FAILED.format("NoSuchKey", "The specified key does not exist."),
    )
    assert refused(bucket, S3ObjectVersion="none")[:2] == invalid
    aws.client("s3").put_object(Bucket=bucket, Key="no.zip", Body=b"no zip")
    assert refused(bucket, "no.zip")[2].startswith("Could not unzip uploaded file.")
    aws.client("s3").put_object(Bucket=bucket, Key="large.zip", Body=b"x" * 1000)
    monkeypatch.setattr(s3code, "MAX_UNZIPPED", 1000)
    assert refused(bucket, "large.zip") == (
        *invalid,
        "Unzipped size must be smaller than 1000 bytes",
    )
    assert api.client.list_functions()["Functions"] == []
    assert not list((api.state / "code").glob("*/*"))


def test_an_s3_that_is_not_there_is_a_fault_of_ours(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with serving(tmp_path, endpoint_s3=address) as api:
            code = {"S3Bucket": "bucket", "S3Key": "code.zip"}
            status, kind, message = api.refusal("create_function", **FUNCTION, Code=code)
    assert (status, kind) == (500, "ServiceException")
    assert address not in message
