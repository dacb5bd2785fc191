"""`auth = "sigv4"`: AWS's own client is let in, and whatever differs from what it signed is not."""

from __future__ import annotations

import datetime
import hashlib
import re
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from math import inf
from typing import Any

import boto3
import pytest
import trio
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from runtimeapi.guard import Guard
from runtimeapi.server import CallerLimits, ServedApp
from runtimeapi.sigv4 import INVALID_TOKEN, MISMATCH, SigV4
from tests.contract.fakes import LANES, REGION, Callers, function
from tests.contract.wire import Answer, connect

KEYS = {"AKIDEXAMPLE": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "AKIDOTHER": "b" * 40}
INVOKE = "/2015-03-31/functions/hello/invocations"
QUALIFIED = "/2015-03-31/functions/hello/invocations?Qualifier=%24LATEST"
BY_ARN = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Ahello/invocations"


@pytest.fixture(params=sorted(LANES))
async def callers(request: pytest.FixtureRequest) -> AsyncIterator[Callers]:
    guard = Guard(auth=SigV4(KEYS.get, region=REGION))
    with trio.fail_after(30):
        async with LANES[request.param][0](guard=guard) as served:
            yield served


def boto(callers: Callers, key_id: str = "AKIDEXAMPLE", **changes: Any) -> Any:
    return boto3.client(
        "lambda",
        endpoint_url=callers.url,
        **{
            "region_name": REGION,
            "aws_access_key_id": key_id,
            "aws_secret_access_key": KEYS.get(key_id, "c" * 40),
            "config": Config(retries={"max_attempts": 0}, read_timeout=20),
            **changes,
        },
    )


async def call(operation: Callable[..., Any], **arguments: Any) -> Any:
    return await trio.to_thread.run_sync(partial(operation, **arguments), abandon_on_cancel=True)


async def refusal(client: Any) -> tuple[str, str, int]:
    with pytest.raises(ClientError) as caught:
        await call(client.invoke, FunctionName="hello", Payload=b"{}")
    response = caught.value.response
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    return response["Error"]["Code"], response["Error"]["Message"], status


@pytest.mark.trio
async def test_boto3_is_let_in(callers: Callers) -> None:
    for key_id in KEYS:
        client = boto(callers, key_id)
        answer = await call(
            client.invoke,
            FunctionName="hello",
            Payload=b'{"a": 1}',
            LogType="Tail",
            ClientContext="e30=",
        )
        assert await call(answer["Payload"].read) == b'{"a": 1}'
        arn = "arn:aws:lambda:us-east-1:000000000000:function:hello:$LATEST"
        answer = await call(client.invoke, FunctionName=arn, Qualifier="$LATEST")
        assert await call(answer["Payload"].read) == b"{}"
        for named in ({"FunctionName": "hello:1"}, {"FunctionName": "hello", "Qualifier": "blue"}):
            answer = await call(client.invoke, **named)
            assert answer["StatusCode"] == 200
        large = b'"' + b"x" * 5_000_000 + b'"'
        answer = await call(client.invoke, FunctionName="hello", Payload=large)
        assert await call(answer["Payload"].read) == large
        dry = await call(client.invoke, FunctionName="hello", InvocationType="DryRun")
        assert dry["StatusCode"] == 204
        client.close()


@pytest.mark.trio
async def test_boto3_is_told_as_by_aws(callers: Callers) -> None:
    wrong = boto(callers, aws_secret_access_key="d" * 40)
    assert await refusal(wrong) == ("InvalidSignatureException", MISMATCH, 403)
    unknown = boto(callers, "AKIDNOBODY")
    assert await refusal(unknown) == ("UnrecognizedClientException", INVALID_TOKEN, 403)
    session = boto(callers, aws_session_token="token")
    assert await refusal(session) == ("UnrecognizedClientException", INVALID_TOKEN, 403)
    code, message, status = await refusal(boto(callers, region_name="eu-west-1"))
    assert (code, status) == ("InvalidSignatureException", 403)
    assert message == "Credential should be scoped to a valid region, not 'eu-west-1'. "
    assert callers.invoker.invoked == []


# -- requests signed by botocore, then changed


def signed(
    callers: Callers,
    *,
    path: str = INVOKE,
    body: bytes = b'{"a":1}',
    headers: Mapping[str, str] | None = None,
    at: datetime.datetime | None = None,
    monkeypatch: pytest.MonkeyPatch | None = None,
    service: str = "lambda",
    key_id: str = "AKIDEXAMPLE",
    method: str = "POST",
) -> dict[str, str]:
    """The headers of a request as botocore signs it."""
    if at is not None:
        assert monkeypatch is not None
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: at)
    host = f"127.0.0.1:{callers.address[1]}"
    request = AWSRequest(
        method=method,
        url=f"http://{host}{path}",
        data=body,
        headers={"Host": host, "X-Amz-Log-Type": "None", **(headers or {})},
    )
    SigV4Auth(Credentials(key_id, KEYS[key_id]), service, REGION).add_auth(request)
    return dict(request.headers.items())


async def send(
    callers: Callers,
    headers: Mapping[str, str],
    *,
    path: str = INVOKE,
    body: bytes = b'{"a":1}',
    method: str = "POST",
    more: str = "",
) -> Answer:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    lines.append(f"Content-Length: {len(body)}")
    async with await connect(callers.address) as wire:
        await wire.send("\r\n".join([*lines, more + "\r\n"]).encode() + body)
        return await wire.answer(method)


def told(answer: Answer) -> tuple[int, str, str]:
    body = answer.json
    assert "Type" not in body
    return answer.status, answer.headers["x-amzn-errortype"], body["message"]


@pytest.mark.trio
@pytest.mark.parametrize("path", [INVOKE, QUALIFIED, BY_ARN, "/invoke/hello"])
async def test_what_botocore_signs_is_verified(callers: Callers, path: str) -> None:
    odd = {
        "X-Amz-Client-Context": "e30=",
        "X-Other": "  a   b  ",
        "Content-Type": "application/json",
    }
    for headers in ({}, odd):
        found = await send(callers, signed(callers, path=path, headers=headers), path=path)
        assert (found.status, found.body) == (200, b'{"a":1}')


@pytest.mark.trio
async def test_a_payload_whose_hash_is_told_is_verified(callers: Callers) -> None:
    body = b'{"a":1}'
    headers = signed(callers, headers={"X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest()})
    assert (await send(callers, headers)).status == 200
    assert told(await send(callers, headers, body=b'{"a":2}'))[1:] == (
        "InvalidSignatureException",
        MISMATCH,
    )
    for streaming in ("UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "x"):
        headers = signed(callers, headers={"X-Amz-Content-SHA256": streaming})
        assert told(await send(callers, headers))[1] == "InvalidSignatureException"


Change = Callable[[dict[str, str]], Any]


def authorization(pattern: str, instead: str) -> Change:
    def change(headers: dict[str, str]) -> None:
        changed = re.sub(pattern, instead, headers["Authorization"])
        assert changed != headers["Authorization"]
        headers["Authorization"] = changed

    return change


def put(**headers: str) -> Change:
    return lambda found: found.update({k.replace("_", "-"): v for k, v in headers.items()})


def flip(headers: dict[str, str]) -> None:
    last = headers["Authorization"][-1]
    headers["Authorization"] = headers["Authorization"][:-1] + ("0" if last != "0" else "1")


MISSED = ("InvalidSignatureException", re.escape(MISMATCH))
LACKS = "Authorization header requires '{}' parameter. .*Authorization=[A-Za-z0-9+/]{{43}}="
CHANGES: dict[str, tuple[Change, str, str]] = {
    "signature": (flip, *MISSED),
    "a header's value": (put(X_Amz_Log_Type="Tail"), *MISSED),
    "host": (put(Host="localhost:9000"), *MISSED),
    "a header less": (lambda headers: headers.pop("X-Amz-Log-Type"), *MISSED),
    "an unsigned x-amz header": (
        put(X_Amz_Invocation_Type="Event"),
        "InvalidSignatureException",
        "'x-amz-invocation-type' must be a 'SignedHeader' in the AWS Authorization.",
    ),
    "host not signed": (
        authorization("host;", ""),
        "InvalidSignatureException",
        "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
    ),
    "a session": (
        lambda headers: (
            put(X_Amz_Security_Token="x")(headers),
            authorization("x-amz-log-type", "x-amz-log-type;x-amz-security-token")(headers),
        ),
        "UnrecognizedClientException",
        re.escape(INVALID_TOKEN),
    ),
    "key": (authorization("AKIDEXAMPLE", "AKIDOTHER"), *MISSED),
    "unknown key": (
        authorization("AKIDEXAMPLE", "NOBODY"),
        "UnrecognizedClientException",
        re.escape(INVALID_TOKEN),
    ),
    "region": (
        authorization("us-east-1", "eu-west-1"),
        "InvalidSignatureException",
        "Credential should be scoped to a valid region, not 'eu-west-1'. ",
    ),
    "service": (
        authorization("/lambda/", "/s3/"),
        "InvalidSignatureException",
        "Credential should be scoped to correct service: 'lambda'. ",
    ),
    "terminator": (
        authorization("aws4_request", "aws5_request"),
        "InvalidSignatureException",
        "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'. ",
    ),
    "scope's date": (
        authorization(r"/\d{8}/", "/20150830/"),
        "InvalidSignatureException",
        "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
        r"'20150830' != '\d{8}', from '\d{8}T\d{6}Z'. ",
    ),
    "scope of four": (
        authorization("/lambda/", "/"),
        "IncompleteSignatureException",
        "Credential must have exactly 5 slash-delimited elements.*",
    ),
    "no date": (
        lambda headers: headers.pop("X-Amz-Date"),
        "IncompleteSignatureException",
        "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. .*",
    ),
    "a date that is none": (
        put(X_Amz_Date="20151399T000000Z"),
        "IncompleteSignatureException",
        "Date must be in ISO-8601 'basic format'. Got '20151399T000000Z'. .*",
    ),
    "a date in words": (
        put(X_Amz_Date="yesterday"),
        "IncompleteSignatureException",
        "Date must be in ISO-8601 'basic format'. Got 'yesterday'. .*",
    ),
    "no credential": (
        authorization("Credential=[^,]*, ", ""),
        "IncompleteSignatureException",
        LACKS.format("Credential"),
    ),
    "no signed headers": (
        authorization("SignedHeaders=[^,]*, ", ""),
        "IncompleteSignatureException",
        LACKS.format("SignedHeaders"),
    ),
    "signed headers twice": (
        authorization("SignedHeaders=host", "SignedHeaders=host;host"),
        "IncompleteSignatureException",
        "SignedHeaders must be .*",
    ),
    "no signature": (
        authorization(", Signature=.*", ""),
        "IncompleteSignatureException",
        LACKS.format("Signature"),
    ),
    "another algorithm": (
        authorization("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        "IncompleteSignatureException",
        LACKS.format("Credential"),
    ),
    "a bearer": (
        lambda headers: headers.update(Authorization="Bearer abc"),
        "IncompleteSignatureException",
        ".*missing equal-sign.*",
    ),
    "nothing": (
        lambda headers: headers.pop("Authorization"),
        "MissingAuthenticationTokenException",
        "Missing Authentication Token",
    ),
}


@pytest.mark.trio
@pytest.mark.parametrize("name", CHANGES)
async def test_a_changed_request_is_refused(callers: Callers, name: str) -> None:
    change, code, message = CHANGES[name]
    headers = signed(callers)
    change(headers)
    status, found_code, found_message = told(await send(callers, headers))
    assert (status, found_code) == (403, code)
    assert re.fullmatch(message, found_message)
    assert callers.invoker.invoked == []


@pytest.mark.trio
async def test_another_body_path_query_or_method_is_refused(callers: Callers) -> None:
    headers = signed(callers)
    for changes in (
        {"body": b'{"a":2}'},
        {"body": b""},
        {"body": b'"' + b"x" * 200_000 + b'"'},
        {"path": "/2015-03-31/functions/other/invocations"},
        {"path": "/invoke/hello"},
        {"path": QUALIFIED},
        {"method": "PUT"},
    ):
        found: dict[str, Any] = changes
        answer = await send(callers, headers, **found)
        assert answer.headers[
            "x-amzn-errortype" if "invoke/" not in str(changes) else "content-type"
        ]
        body = answer.json
        code = answer.headers.get("x-amzn-errortype") or body["errorType"]
        assert (answer.status, code) == (403, "InvalidSignatureException"), changes
    assert callers.invoker.invoked == []


@pytest.mark.trio
@pytest.mark.parametrize(
    "path",
    [
        "http://x/invoke/other#/../../../.." + INVOKE,
        "x/.." + INVOKE,
        "http:/.." + INVOKE,
    ],
)
async def test_a_target_that_is_no_path_is_refused(callers: Callers, path: str) -> None:
    """The same canonical path, but another one for whoever takes it for a URL."""
    callers.functions.found["other"] = function("other")
    answer = await send(callers, signed(callers), path=path)
    assert answer.status == 403
    assert MISMATCH in answer.body.decode()
    assert callers.invoker.invoked == []


@pytest.mark.trio
async def test_two_headers_of_a_kind_are_refused(callers: Callers) -> None:
    headers = signed(callers)
    for name in ("Authorization", "X-Amz-Date", "X-Amz-Log-Type"):
        answer = await send(callers, headers, more=f"{name}: {headers[name]}\r\n")
        assert answer.status == 403, name
    assert callers.invoker.invoked == []


@pytest.mark.trio
@pytest.mark.parametrize(
    ("minutes", "message"),
    [
        (-4.9, None),
        (4.9, None),
        (-5.2, r"Signature expired: (\w+) is now earlier than (\w+) \((\w+) - 5 min.\)"),
        (5.2, r"Signature not yet current: (\w+) is still later than (\w+) \((\w+) \+ 5 min.\)"),
    ],
)
async def test_the_clock_may_differ_by_five_minutes(
    callers: Callers, minutes: float, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    answer = await send(callers, signed(callers, at=at, monkeypatch=monkeypatch))
    if message is None:
        assert answer.status == 200
        return
    status, code, said = told(answer)
    assert (status, code) == (403, "InvalidSignatureException")
    match = re.fullmatch(message, said)
    assert match is not None
    assert match[1] == at.strftime("%Y%m%dT%H%M%SZ")


@pytest.mark.trio
async def test_a_date_header_will_do(callers: Callers) -> None:
    headers = signed(callers, headers={"Date": "now"})
    assert "X-Amz-Date" not in headers
    assert (await send(callers, headers)).status == 200
    headers["Date"] = "Tue, 01 Jan 0999 00:00:00 GMT"
    assert told(await send(callers, headers))[:2] == (403, "IncompleteSignatureException")


# -- presigned


def presigned(callers: Callers, *, expires_s: int = 60, path: str = INVOKE) -> str:
    """For an empty body: botocore moves one into the query."""
    host = f"127.0.0.1:{callers.address[1]}"
    request = AWSRequest(method="POST", url=f"http://{host}{path}", headers={"Host": host})
    credentials = Credentials("AKIDEXAMPLE", KEYS["AKIDEXAMPLE"])
    SigV4QueryAuth(credentials, "lambda", REGION, expires=expires_s).add_auth(request)
    assert request.url is not None
    return str(request.url).removeprefix(f"http://{host}")


@pytest.mark.trio
async def test_presigned_urls(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    host = {"Host": f"127.0.0.1:{callers.address[1]}"}
    for path in (INVOKE, QUALIFIED):
        answer = await send(callers, host, path=presigned(callers, path=path), body=b"")
        assert (answer.status, answer.body) == (200, b"{}")
    url = presigned(callers)
    other = urllib.parse.quote("/eu-west-1/", safe="")
    for changed, code in [
        (url.replace("hello", "other"), "InvalidSignatureException"),
        (url + "&a=b", "InvalidSignatureException"),
        (url.replace("X-Amz-Expires=60", "X-Amz-Expires=61"), "InvalidSignatureException"),
        (url.replace("X-Amz-Expires=60", "X-Amz-Expires=604801"), "IncompleteSignatureException"),
        (re.sub(r"X-Amz-Expires=60&?", "", url), "IncompleteSignatureException"),
        (url + "&X-Amz-Expires=60", "IncompleteSignatureException"),
        (url.replace("%2Fus-east-1%2F", other), "InvalidSignatureException"),
    ]:
        assert changed != url
        status, found, _ = told(await send(callers, host, path=changed, body=b""))
        assert (status, found) == (403, code), changed
    answer = await send(callers, host, path=url, body=b'{"a":2}')
    assert told(answer)[1:] == ("InvalidSignatureException", MISMATCH)
    at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=70)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: at)
    assert (
        "Signature expired: "
        in told(await send(callers, host, path=presigned(callers), body=b""))[2]
    )
    url = presigned(callers, expires_s=120)
    assert (await send(callers, host, path=url, body=b"")).status == 200


@pytest.mark.trio
async def test_who_is_refused_learns_nothing_but_that(callers: Callers) -> None:
    host = {"Host": f"127.0.0.1:{callers.address[1]}"}
    answers = [
        await send(callers, host, path=path, method=method)
        for path in (INVOKE, INVOKE.replace("hello", "nope"), "/nowhere", "/2015-03-31/functions")
        for method in ("POST", "GET", "OPTIONS")
    ]
    assert {(one.status, one.body) for one in answers} == {
        (403, b'{"message":"Missing Authentication Token"}')
    }
    for path in ("/_lambox/functions", "/_lambox/environments", "/_lambox/logs", "/_lambox/x"):
        answer = await send(callers, host, path=path, method="GET", body=b"")
        assert (answer.status, answer.json["errorType"]) == (
            403,
            "MissingAuthenticationTokenException",
        )
    assert (await send(callers, host, path="/healthz", method="GET", body=b"")).status == 200
    headers = signed(callers, path="/_lambox/functions", method="GET", body=b"")
    assert (
        await send(callers, headers, path="/_lambox/functions", method="GET", body=b"")
    ).status == 200


@pytest.mark.trio
async def test_the_fast_lane_verifies_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what it refuses goes to the app, which refuses it with all of it looked at again."""
    handed_over: list[bytes] = []
    original = ServedApp.serve_connection

    async def serve(self: ServedApp, *args: Any, **how: Any) -> None:
        handed_over.append(b"".join(how["already_read"]))
        await original(self, *args, **how)

    monkeypatch.setattr(ServedApp, "serve_connection", serve)
    large = b'"' + b"x" * 3_000_000 + b'"'
    with trio.fail_after(30):
        guard = Guard(auth=SigV4(KEYS.get, region=REGION))
        # One place for large bodies, which each of them gives back.
        limits = CallerLimits(large_bodies=1, patience_s=inf)
        async with LANES["fast"][0](guard=guard, limits=limits) as served:
            for body in (b"{}", large):
                answer = await send(served, signed(served, body=body), body=body)
                assert (answer.status, answer.body) == (200, body)
            assert handed_over == []
            for body in (b"[]", large + b" "):
                answer = await send(served, signed(served, body=b"{}"), body=body)
                assert told(answer)[:2] == (403, "InvalidSignatureException")
                assert handed_over.pop().endswith(b"\r\n\r\n" + body)
            answer = await send(served, signed(served, body=large), body=large)
            assert (answer.status, handed_over) == (200, [])
            assert len(served.invoker.invoked) == 3
