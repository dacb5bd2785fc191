"""SQS, SNS, EventBridge and S3 as the tests need them: moto's server, a process of its own, one for all tests."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config

REGION = "us-east-1"
ACCOUNT = "123456789012"
"""moto's own, and lambox's default."""
PROGRAM = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever started it is gone
"""


@dataclass(frozen=True)
class Aws:
    """The services at `url`. Names are a test's own: `name` makes one."""

    url: str

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}),
        )

    def name(self, kind: str = "one") -> str:
        return f"{kind}-{uuid.uuid4().hex[:8]}"

    def queue(self, name: str | None = None, **attributes: str) -> Queue:
        name = name or self.name("queue")
        url = self.client("sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return Queue(self.client("sqs"), url, f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")


@dataclass(frozen=True)
class Queue:
    """A queue of SQS's, looked into by a test."""

    sqs: Any
    url: str
    arn: str

    def messages(self, most: int = 10) -> list[dict[str, Any]]:
        """What lies there, taken out of it."""
        found: list[dict[str, Any]] = self.sqs.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=most,
            MessageAttributeNames=["All"],
            AttributeNames=["All"],
        ).get("Messages", [])
        for message in found:
            self.sqs.delete_message(QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"])
        return found

    def bodies(self) -> list[Any]:
        return [json.loads(message["Body"]) for message in self.messages()]


@pytest.fixture(scope="session")
def aws() -> Iterator[Aws]:
    """moto's server. Importing it takes half a second: tests that need it are few."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            assert port, "moto's server did not start: python -m moto.server says why"
            yield Aws(f"http://127.0.0.1:{port}")
        finally:
            server.kill()
