"""The Lambda API with real environments behind it: what Terraform does, and the AWS CLI."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Server

pytestmark = pytest.mark.system

ARN = "arn:aws:lambda:us-east-1:123456789012:function:"
ROLE = "arn:aws:iam::123456789012:role/lambda"
CODE = """
import os
WORD = {word!r}
def handler(event, context):
    return {{"word": WORD, "stage": os.environ.get("STAGE"), "version": context.function_version,
            "arn": context.invoked_function_arn, "memory": context.memory_limit_in_mb}}
"""
AWS = Path(sys.executable).with_name("aws")


def package(word: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("index.py", CODE.format(word=word))
    return written.getvalue()


def wait(client: Any, name: str) -> None:
    for waiter in ("function_active_v2", "function_updated_v2"):
        client.get_waiter(waiter).wait(
            FunctionName=name, WaiterConfig={"Delay": 0.05, "MaxAttempts": 200}
        )


def test_what_terraform_does(shared: Server) -> None:
    """Create, wait, read, change, publish, shift an alias by weight, destroy."""
    client, name = shared.client(), "terraformed"
    created = client.create_function(
        FunctionName=name,
        Runtime="python3.11",
        Handler="index.handler",
        Role=ROLE,
        Code={"ZipFile": package("one")},
        Environment={"Variables": {"STAGE": "blue"}},
        Publish=True,
        Tags={"team": "a"},
    )
    assert (created["State"], created["Version"]) == ("Pending", "1")
    wait(client, name)
    read = client.get_function(FunctionName=name)
    assert read["Configuration"]["State"] == "Active"
    assert read["Tags"] == {"team": "a"}
    first = shared.invoke(name)
    assert first["Payload"] == {
        "word": "one",
        "stage": "blue",
        "version": "$LATEST",
        "arn": ARN + name,
        "memory": "128",
    }
    client.update_function_configuration(
        FunctionName=name, Environment={"Variables": {"STAGE": "green"}}, MemorySize=192
    )
    wait(client, name)
    client.update_function_code(FunctionName=name, ZipFile=package("two"))
    wait(client, name)
    assert client.publish_version(FunctionName=name)["Version"] == "2"
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    live = shared.invoke(name, Qualifier="live")
    assert live["ExecutedVersion"] == "1"
    assert live["Payload"] == {**first["Payload"], "version": "1", "arn": f"{ARN}{name}:live"}
    weight, calls = 0.3, 300
    client.update_alias(
        FunctionName=name,
        Name="live",
        RoutingConfig={"AdditionalVersionWeights": {"2": weight}},
    )
    seen = Counter(
        client.invoke(FunctionName=name, Qualifier="live")["ExecutedVersion"] for _ in range(calls)
    )
    assert set(seen) == {"1", "2"}
    # Five standard deviations: 1 run in 1,700,000.
    assert abs(seen["2"] - weight * calls) < 5 * math.sqrt(calls * weight * (1 - weight)), seen
    client.update_alias(FunctionName=name, Name="live", FunctionVersion="2", RoutingConfig={})
    shifted = shared.invoke(name, Qualifier="live")
    assert shifted["ExecutedVersion"] == "2"
    assert (shifted["Payload"]["word"], shifted["Payload"]["stage"]) == ("two", "green")
    assert shifted["Payload"]["memory"] == "192"
    client.delete_alias(FunctionName=name, Name="live")
    client.delete_function(FunctionName=name)
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.get_function(FunctionName=name)
    with pytest.raises(client.exceptions.ResourceNotFoundException):
        client.invoke(FunctionName=name)


def test_a_handler_that_is_not_there_is_told_when_it_is_invoked(shared: Server) -> None:
    """As on AWS: CreateFunction does not look into the package."""
    client = shared.client()
    client.create_function(
        FunctionName="nowhere",
        Runtime="python3.11",
        Handler="nowhere.handler",
        Role=ROLE,
        Code={"ZipFile": package("x")},
    )
    wait(client, "nowhere")
    answer = shared.invoke("nowhere")
    assert answer["FunctionError"] == "Unhandled"
    assert answer["Payload"]["errorType"] == "Runtime.ImportModuleError"
    client.delete_function(FunctionName="nowhere")


def test_the_aws_cli(shared: Server, tmp_path: Path) -> None:
    (tmp_path / "code.zip").write_bytes(package("cli"))

    def aws(*arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, AWS, "--endpoint-url", shared.url, "lambda", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "AWS_ACCESS_KEY_ID": "any",
                "AWS_SECRET_ACCESS_KEY": "any",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_CONFIG_FILE": str(tmp_path / "none"),
            },
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    named = ("--function-name", "by-cli")
    created = aws(
        *("create-function", *named, "--runtime", "python3.11", "--handler", "index.handler"),
        *("--role", ROLE, "--zip-file", "fileb://code.zip", "--publish"),
    )
    assert created["FunctionArn"] == ARN + "by-cli"
    aws("invoke", *named, "--qualifier", "1", "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["word"] == "cli"
    aws("delete-function", *named)
