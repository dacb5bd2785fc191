"""Messages arrive at real SQS, SNS, EventBridge and S3 (moto's server) and at HTTP endpoints, or it is said why not."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import lambox.awsclient
import lambox.post
from lambox.awsclient import AwsClients, Endpoints, NoEndpoint, Refused, Unreachable
from lambox.dispatch import Dispatch
from sandbox.destinations import Message, render
from sandbox.eventconfig import parse_target
from sandbox.queued import Accepted, Drop, Ended, Response, Role
from sandbox.telling import Undelivered
from tests.aws import Aws
from tests.fakes import make_function, make_invocation

KEY = "0123456789abcdef0123456789abcdef"
TRACE = "Root=1-67891233-abcdef012345678912345678;Parent=53995c3f42cd8ad8;Sampled=0"


def message(target: str, role: Role = "destination", payload: bytes = b'{"a":1}') -> Message:
    drop = Drop(role, parse_target(target))
    error = Response(200, '{"errorMessage":"nö"}'.encode(), "$LATEST")
    accepted = Accepted(
        make_invocation(make_function(), payload, request_id="id", trace_id=TRACE),
        0.0,
        0.0,
        attempts=1,
        response=error,
        ended=Ended("RetriesExhausted", 0.0, 0.0, 60.0, (drop,)),
    )
    return render(KEY, accepted, drop)


def dispatch(url: str | None, **environ: str) -> Dispatch:
    return Dispatch(AwsClients(Endpoints(url, environ=environ)))


# --- AWS's services


async def test_sqs_gets_records_and_dead_letters(aws: Aws) -> None:
    queue, send = aws.queue(), dispatch(aws.url)
    await send(message(queue.arn))
    await send(message(queue.arn, "dead letter", '{"odd":"\uffff\ufffe"}'.encode()))
    record, dead = queue.messages()
    assert json.loads(record["Body"])["requestContext"]["condition"] == "RetriesExhausted"
    assert record["Attributes"]["AWSTraceHeader"] == TRACE
    assert json.loads(dead["Body"]) == {"odd": "\uffff\ufffe"}
    assert dead["MessageAttributes"] == {
        "RequestID": {"StringValue": "id", "DataType": "String"},
        "ErrorCode": {"StringValue": "200", "DataType": "Number"},
        "ErrorMessage": {"StringValue": "nö", "DataType": "String"},
    }


async def test_sns_and_eventbridge_pass_it_on(aws: Aws) -> None:
    queue, send = aws.queue(), dispatch(aws.url)
    topic = aws.client("sns").create_topic(Name=aws.name())["TopicArn"]
    aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue.arn)
    await send(message(topic, "dead letter"))
    (body,) = queue.bodies()
    assert json.loads(body["Message"]) == {"a": 1}
    assert body["MessageAttributes"]["ErrorCode"] == {"Type": "Number", "Value": "200"}

    events, name = aws.client("events"), aws.name("bus")
    bus = events.create_event_bus(Name=name)["EventBusArn"]
    events.put_rule(Name=name, EventBusName=name, EventPattern='{"source":["lambda"]}')
    events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "1", "Arn": queue.arn}])
    await send(message(bus))
    (event,) = queue.bodies()
    assert event["detail-type"] == "Lambda Function Invocation Result - Failure"
    assert event["resources"] == [
        bus,
        "arn:aws:lambda:us-east-1:123456789012:function:f:$LATEST",
    ]
    assert event["detail"]["requestPayload"] == {"a": 1}


async def test_s3_gets_an_object(aws: Aws) -> None:
    bucket = aws.name("bucket")
    aws.client("s3").create_bucket(Bucket=bucket)
    sent = message(f"arn:aws:s3:::{bucket}")
    await dispatch(aws.url)(sent)
    kept = aws.client("s3").get_object(Bucket=bucket, Key=sent.s3_key)
    assert kept["Body"].read() == sent.body


async def test_what_a_service_refuses_is_told_in_its_words(aws: Aws) -> None:
    missing = "arn:aws:sqs:us-east-1:123456789012:not-there"
    with pytest.raises(Undelivered, match=r"sqs at http://.*NonExistentQueue.*does not exist"):
        await dispatch(aws.url)(message(missing))
    clients = AwsClients(Endpoints(aws.url, environ={}))
    with pytest.raises(Refused, match="ParamValidationError"):
        await clients.call("sqs", "send_message", {"Queue": "x"}, region="us-east-1")
    url = clients.queue_url(account="123456789012", name="not-there")
    with pytest.raises(Refused) as caught:
        await clients.call("sqs", "receive_message", {"QueueUrl": url}, region="us-east-1")
    assert "NonExistentQueue" in caught.value.code


async def test_what_is_too_large_is_told_apart(aws: Aws) -> None:
    """In the words of the services, since the codes are those of any bad parameter."""
    large, send = b'"' + b"x" * 1_100_000 + b'"', dispatch(aws.url)
    topic = aws.client("sns").create_topic(Name=aws.name())["TopicArn"]
    async with endpoint(b"HTTP/1.1 413 Content Too Large\r\n\r\n") as one:
        for target in (aws.queue().arn, topic, one.url):
            with pytest.raises(Undelivered) as caught:
                await send(message(target, payload=large))
            assert caught.value.too_large, caught.value
    with pytest.raises(Undelivered) as caught:
        await send(message("arn:aws:sqs:us-east-1:123456789012:not-there"))
    assert not caught.value.too_large


async def test_without_an_endpoint_nothing_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the look for where it could go."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: pytest.fail("a name was looked up"))
    for target in (
        "arn:aws:sqs:us-east-1:123456789012:q",
        "arn:aws:sns:us-east-1:123456789012:t",
        "arn:aws:events:us-east-1:123456789012:event-bus/b",
        "arn:aws:s3:::b",
    ):
        with pytest.raises(Undelivered, match=r"no endpoint is set. Hint: endpoint_\w+ or aws_end"):
            await dispatch(None, AWS_ACCESS_KEY_ID="id", AWS_SECRET_ACCESS_KEY="x")(message(target))


def test_each_service_has_its_own_endpoint_before_the_common_one() -> None:
    endpoints = Endpoints("http://all/", {"sqs": "http://queues:9324"}, {})
    assert endpoints.address("sqs") == "http://queues:9324"
    assert endpoints.address("sns") == "http://all"
    clients = AwsClients(endpoints)
    assert (
        clients.queue_url(account="000000000000", name="q") == "http://queues:9324/000000000000/q"
    )


@pytest.mark.parametrize(
    "address", ["https://sqs.us-east-1.amazonaws.com", "https://sqs.cn-north-1.amazonaws.com.cn"]
)
def test_hosts_of_awss_see_real_credentials_or_nobody(address: str) -> None:
    with pytest.raises(NoEndpoint, match="it is AWS's, and there are no credentials"):
        Endpoints(address, environ={"AWS_ACCESS_KEY_ID": "only"}).credentials(address)
    environ = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": "t"}
    found = Endpoints(address, environ=environ).credentials(address)
    assert found == {
        "aws_access_key_id": "id",
        "aws_secret_access_key": "x",
        "aws_session_token": "t",
    }
    assert Endpoints("http://emulator", environ={}).credentials("http://emulator") == {
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
    }


async def test_a_users_aws_configuration_does_not_count(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    queue = aws.queue()
    config = tmp_path / "config"
    config.write_text("[broken\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "missing")
    await dispatch(aws.url)(message(queue.arn))
    assert len(queue.messages()) == 1


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """A port whose connections are taken by the kernel and answered by nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


async def test_an_endpoint_that_hangs_costs_its_own_calls_alone(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lambox.awsclient, "AT_ONCE", 1)
    monkeypatch.setattr(lambox.awsclient, "ANSWER_S", 1.0)
    async with silent() as url:
        clients = AwsClients(Endpoints(aws.url, {"sqs": url}, {}))
        ask: dict[str, Any] = {"QueueName": "q"}
        with pytest.raises(Unreachable, match=r"sqs at http://127.*: no answer within 0.2 s"):
            await clients.call("sqs", "get_queue_url", ask, region="us-east-1", within_s=0.2)
        # Its thread is still there; what is asked next waits for that one, and others do not.
        with pytest.raises(Unreachable, match="no answer within"):
            await clients.call("sqs", "get_queue_url", ask, region="us-east-1", within_s=0.2)
        await clients.call("sns", "list_topics", {}, region="us-east-1")


async def test_a_call_can_be_cancelled() -> None:
    async with silent() as url:
        clients = AwsClients(Endpoints(url, environ={}))
        with trio.move_on_after(0.2) as scope:
            await clients.call("sqs", "list_queues", {}, region="us-east-1")
        assert scope.cancelled_caught


async def test_nobody_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(Undelivered, match="Could not connect to the endpoint"):
        await dispatch(f"http://127.0.0.1:{port}")(message("arn:aws:sqs:us-east-1:123456789012:q"))


@pytest.mark.parametrize("body", [b"[]", b"5", b'{"Messages":[5]}', b"null", b"<html>"])
async def test_an_answer_of_another_form_is_told(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    async with endpoint(head + length + body) as there:
        clients = AwsClients(Endpoints(there.url, environ={}))
        url = clients.queue_url(account="123456789012", name="work")
        with contextlib.suppress(Unreachable):
            await clients.call("sqs", "receive_message", {"QueueUrl": url}, region="us-east-1")


def test_a_server_does_not_import_botocore_before_it_needs_it() -> None:
    code = "import sys, lambox.node; print([name for name in sys.modules if 'botocore' in name])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"


# --- HTTP


class Endpoint:
    """An HTTP endpoint that answers with given bytes; what came is kept."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def serve(self, stream: trio.abc.Stream) -> None:
        came = b""
        while b"\r\n\r\n" not in came:
            came += await stream.receive_some()
        head, _, body = came.partition(b"\r\n\r\n")
        self.heads.append(head.decode())
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        while len(body) < length:
            body += await stream.receive_some()
        self.bodies.append(body)
        if self.answer is None:
            await trio.sleep_forever()
        else:
            await stream.send_all(self.answer)
            await stream.aclose()


@asynccontextmanager
async def endpoint(
    answer: bytes | None = b"HTTP/1.1 204 No Content\r\n\r\n",
) -> AsyncIterator[Endpoint]:
    found = Endpoint(answer)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, found.serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        found.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/in?x=1"
        yield found
        nursery.cancel_scope.cancel()


async def test_an_endpoint_gets_a_post() -> None:
    large = b'"' + b"x" * 2_000_000 + b'"'
    async with endpoint() as one:
        await dispatch(None)(message(one.url))
        await dispatch(None)(message(one.url, "dead letter", large))
    first, second = one.heads
    assert first.startswith("POST /in?x=1 HTTP/1.1")
    assert "Content-Type: application/json" in first
    assert f"X-Amzn-Trace-Id: {TRACE}" in first
    assert json.loads(one.bodies[0])["requestPayload"] == {"a": 1}
    assert one.bodies[1] == large
    assert "Lambox-Request-Id: id\r\nLambox-Error-Code: 200\r\nLambox-Error-Message: n%C3%B6" in (
        second
    )


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
            "answered with status 302",
        ),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "answered with status 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "what it answers is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "what it answers is no HTTP"),
        (b"", "what it answers is no HTTP"),
    ],
)
async def test_what_is_no_2xx_is_not_taken(answer: bytes, why: str) -> None:
    async with endpoint(answer) as one:
        with pytest.raises(Undelivered, match=why):
            await dispatch(None)(message(one.url))
    assert len(one.bodies) == 1


async def test_a_100_is_no_answer_yet() -> None:
    async with endpoint(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n") as one:
        await dispatch(None)(message(one.url))


async def test_an_endpoint_that_says_nothing_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lambox.post, "TOTAL_S", 0.2)
    async with endpoint(None) as one:
        began = time.monotonic()
        with pytest.raises(Undelivered, match=r"no answer within 0.2 s"):
            await dispatch(None)(message(one.url))
        assert time.monotonic() - began < 2


async def test_one_slow_host_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambox.dispatch.POSTS_AT_ONCE", 1)
    send = dispatch(None)
    async with endpoint(None) as slow, endpoint() as quick, trio.open_nursery() as nursery:
        nursery.start_soon(send, message(slow.url))
        nursery.start_soon(send, message(slow.url))
        with trio.fail_after(5):
            await send(message(quick.url))
        assert len(slow.bodies) <= 1
        nursery.cancel_scope.cancel()


async def test_nobody_at_an_address_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(Undelivered, match=r"(?i)connect"):
        await dispatch(None)(message(f"http://127.0.0.1:{port}/"))


async def test_https_is_checked(tmp_path: Path) -> None:
    certificate = _certificate(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate)
    one = Endpoint(b"HTTP/1.1 200 OK\r\n\r\n")

    async def serve(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # who does not trust it goes
            await one.serve(stream)

    async with trio.open_nursery() as nursery:
        run = partial(
            trio.serve_ssl_over_tcp, serve, 0, server, host="127.0.0.1", https_compatible=True
        )
        listeners = await nursery.start(run)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        with pytest.raises(Undelivered, match=r"(?i)certificate"):
            await dispatch(None)(message(f"https://127.0.0.1:{port}/"))
        trusting = ssl.create_default_context(cafile=str(certificate))
        await lambox.post.post(f"https://127.0.0.1:{port}/", b"{}", {}, secure=trusting)
        nursery.cancel_scope.cancel()
    assert one.bodies == [b"{}"]


def _certificate(folder: Path) -> Path:
    path = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", folder / "key", "-out", folder / "cert", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    path.write_text((folder / "cert").read_text() + (folder / "key").read_text())
    return path
