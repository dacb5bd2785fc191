"""Function URLs over real sockets: requests as bytes in, events as invoked, responses as bytes out (SPEC 9).

The engine is a fake; `tests/system/test_function_urls.py` has real handlers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from lambox.callers import CallersFace
from lambox.config import load
from runtimeapi.sigv4 import SigV4
from runtimeapi.urls.directory import UrlDirectory
from runtimeapi.urls.prelude import CONTENT_TYPE, DELIMITER, MAX_PRELUDE
from sandbox.errors import FunctionFailed, TooManyRequests
from sandbox.function import BrokenFunction, FunctionVersion
from sandbox.functionurl import Cors, InvokeMode, UrlConfig, derived_id
from sandbox.invocation import MAX_PAYLOAD, Invocation, Outcome
from tests.contract.fakes import ACCOUNT, LANES, REGION, Callers, FakeFunctions, callers, function
from tests.contract.test_tls import make_certificate, secured
from tests.contract.wire import Answer, connect

HERE = "https://app.example"
CORS = Cors((HERE,), ("GET", "POST"), ("content-type",), ("x-a",), max_age=60)
KEYS = {"AKIALAMBOX": "secret"}


def config(
    mode: InvokeMode = "BUFFERED", cors: Cors | None = None, *, iam: bool = False
) -> UrlConfig:
    return UrlConfig("AWS_IAM" if iam else "NONE", mode, cors)


URLS = {
    "plain": config(),
    "stream": config("RESPONSE_STREAM"),
    "shared": config(cors=CORS),
    "signed": config(iam=True, cors=CORS),
}
serve = partial(callers, more=[function(name, url=url) for name, url in URLS.items()])


def host(name: str, port: int = 0) -> str:
    return f"{derived_id(name, REGION, ACCOUNT)}.lambda-url.{REGION}.localhost:{port}"


def raw(
    method: str, target: str, host: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(
    served: Callers,
    name: str,
    method: str = "GET",
    target: str = "/",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
) -> Answer:
    async with await connect(served.address) as wire:
        await wire.send(raw(method, target, host(name, served.address[1]), headers, body))
        return await wire.answer(method)


def returning(result: Any, content_type: str = "application/json") -> Any:
    payload = result if isinstance(result, bytes) else json.dumps(result).encode()

    async def behave(invocation: Invocation) -> Outcome:
        return Outcome("success", payload, content_type)

    return behave


def raising(error: Exception) -> Any:
    async def behave(invocation: Invocation) -> Outcome:
        raise error

    return behave


def failing(status: Any = "error") -> Any:
    async def behave(invocation: Invocation) -> Outcome:
        return Outcome(status, b'{"errorType":"E","errorMessage":"secret"}', error_type="E")

    return behave


def streaming(*pieces: bytes, content_type: str | None = CONTENT_TYPE, **ending: Any) -> Any:
    async def behave(invocation: Invocation) -> Outcome:
        if invocation.sink is None:
            return Outcome("success", b"".join(pieces), content_type or "")
        invocation.sink.opened(content_type)
        for piece in pieces:
            await invocation.sink.send(piece)
        values: dict[str, Any] = {"status": "success", "payload": b"", "streamed": True, **ending}
        return Outcome(**values)

    return behave


PRELUDE = b'{"statusCode":201,"headers":{"x-a":"b"},"cookies":["c=1","d=2"]}' + DELIMITER


# -- requests


def test_ids_that_are_none_do_not_have_all_functions_looked_through_each_time() -> None:
    class Counting(FakeFunctions):
        looks = 0

        def all(self) -> list[FunctionVersion | BrokenFunction]:
            self.looks += 1
            return super().all()

    functions = Counting(*[function(f"f{number}", url=config()) for number in range(3)])
    directory = UrlDirectory(functions, None, region=REGION, account=ACCOUNT)
    assert all(directory.find(f"{number:032}") is None for number in range(100))
    assert functions.looks == 1
    functions.found["new"] = function("new", url=config())
    found = directory.find(derived_id("new", REGION, ACCOUNT))
    assert found is not None
    assert (found.function, functions.looks) == ("new", 2)


async def test_a_request_becomes_an_event_and_the_result_a_response() -> None:
    async with serve(fast=True) as served:
        served.invoker.behaviour = returning(
            {"statusCode": 201, "headers": {"X-A": "b"}, "cookies": ["a=1", "b=2"], "body": "hi"}
        )
        found = await ask(
            served,
            "plain",
            "POST",
            "/pa2%Fth/1?q=query&q=%2Fbar",
            [("Content-Type", "text/plain"), ("Cookie", "x=1")],
            "gr\u00fc\u00dfe".encode(),
        )
        assert (found.status, found.body) == (201, b"hi")
        assert [pair for pair in found.pairs if pair[0] == "set-cookie"] == [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]
        (invocation,) = served.invoker.invoked
        event = json.loads(invocation.payload)
        assert (event["rawPath"], event["cookies"]) == ("/pa2%Fth/1", ["x=1"])
        assert event["queryStringParameters"] == {"q": "query,/bar"}
        assert (event["body"], event["isBase64Encoded"]) == ("gr\u00fc\u00dfe", False)
        context = event["requestContext"]
        assert context["requestId"] == invocation.request_id == found.headers["x-amzn-requestid"]
        assert context["http"]["sourceIp"] == "127.0.0.1"
        assert event["headers"]["x-forwarded-port"] == str(served.address[1])
        assert invocation.invoked_arn == function("plain").arn(REGION, ACCOUNT)
        assert invocation.trace_id == found.headers["x-amzn-trace-id"]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE"]
)
async def test_every_method_and_its_body_gets_to_the_function(method: str) -> None:
    async with serve(fast=True) as served:
        served.invoker.behaviour = returning("ok")
        found = await ask(served, "plain", method, "/x", [("Content-Type", "text/plain")], b"1")
        event = json.loads(served.invoker.invoked[0].payload)
        assert (event["requestContext"]["http"]["method"], event["body"]) == (method, "1")
        assert (found.status, found.headers["content-length"]) == (200, "2")
        assert found.body == (b"" if method == "HEAD" else b"ok")


async def test_odd_but_legal_requests() -> None:
    async with serve(fast=True) as served, await connect(served.address) as wire:
        served.invoker.behaviour = returning({"statusCode": 204})
        name = host("plain")
        start = f"POST /%ff?%ff&&a HTTP/1.1\r\nHost: {name}\r\nX-A: 1\r\nx-a: 2\r\nX-U: ".encode()
        start += "\u00e9".encode() + b"\r\nX-L: \xe9\r\nTransfer-Encoding: chunked\r\n\r\n"
        await wire.send(start + b"1\r\n\xff\r\n0\r\n\r\n")
        found = await wire.answer()
        assert (found.status, found.body, "content-length" in found.headers) == (204, b"", False)
        await wire.send(raw("GET", "/a/../b//c?", name))
        assert (await wire.answer("GET")).status == 204
    first, second = (json.loads(one.payload) for one in served.invoker.invoked)
    assert (first["rawPath"], first["rawQueryString"]) == ("/%ff", "%ff&&a")
    assert first["queryStringParameters"] == {"\ufffd": "", "a": ""}
    assert (first["headers"]["x-a"], first["headers"]["x-u"]) == ("1,2", "\u00e9")
    assert first["headers"]["x-l"] == "\u00e9"
    assert (first["body"], first["isBase64Encoded"]) == ("/w==", True)
    assert (second["rawPath"], "queryStringParameters" in second) == ("/a/../b//c", False)


async def test_a_body_may_be_as_large_as_its_event() -> None:
    async with serve(fast=True) as served:
        served.invoker.behaviour = returning("ok")
        kind = [("Content-Type", "application/octet-stream")]
        fits = b"\0" * (MAX_PAYLOAD * 3 // 4 - 3000)
        assert (await ask(served, "plain", "POST", "/", kind, fits)).status == 200
        event = json.loads(served.invoker.invoked[0].payload)
        assert base64.b64decode(event["body"]) == fits
        found = await ask(served, "plain", "POST", "/", kind, b"\0" * (MAX_PAYLOAD - 3000))
        assert (found.status, found.headers["x-amzn-errortype"]) == (
            413,
            "RequestTooLargeException",
        )
        assert len(served.invoker.invoked) == 1


# -- whose requests they are


@pytest.mark.parametrize("lane", LANES)
async def test_paths_of_a_url_never_reach_the_rest_of_the_server(lane: str) -> None:
    async with serve(fast=lane == "fast") as served:
        served.invoker.behaviour = returning("mine")
        for method, target in (
            ("POST", "/2015-03-31/functions/hello/invocations"),
            ("POST", "/invoke/hello"),
            ("GET", "/healthz"),
            ("GET", "/_lambox/functions"),
            ("GET", "/2015-03-31/functions"),
            ("GET", f"/{derived_id('shared', REGION, ACCOUNT)}/"),
        ):
            found = await ask(served, "plain", method, target, [("Content-Type", "a/b")], b"{}")
            assert (found.status, found.body) == (200, b"mine"), target
        assert {one.function.name for one in served.invoker.invoked} == {"plain"}


async def test_a_url_by_path_serves_pages_that_are_no_part_of_this_origin() -> None:
    async with serve(fast=True) as served, await connect(served.address) as wire:
        served.invoker.behaviour = returning({"statusCode": 200, "body": "<script>"})
        id_ = derived_id("plain", REGION, ACCOUNT)
        for target, path in ((f"/{id_}/a?b=c", "/a"), (f"/{id_}", "/"), (f"/{id_}/", "/")):
            await wire.send(raw("GET", target, "localhost:9000"))
            found = await wire.answer("GET")
            assert (found.status, found.body) == (200, b"<script>")
            assert found.headers["content-security-policy"].startswith("sandbox ")
            assert "allow-same-origin" not in found.headers["content-security-policy"]
            assert json.loads(served.invoker.invoked[-1].payload)["rawPath"] == path
        assert "content-security-policy" not in (await ask(served, "plain")).headers


async def test_who_asks_for_nothing_that_is_here_is_refused() -> None:
    unknown = f"{'a' * 32}.lambda-url.{REGION}.localhost"
    elsewhere = host("plain").replace(REGION, "eu-west-1")
    async with serve(fast=True) as served, await connect(served.address) as wire:
        for name in (unknown, elsewhere, f"x.lambda-url.{REGION}.localhost"):
            await wire.send(raw("GET", "/healthz", name))
            found = await wire.answer("GET")
            assert (found.status, found.body) == (403, b'{"Message":null}')
            assert found.headers["x-amzn-errortype"] == "AccessDeniedException"
            assert found.headers["content-type"] == "application/json"
        await wire.send(raw("POST", "/", unknown, body=b"x" * 300_000))  # left unread
        assert (await wire.answer()).status == 403
        # DNS rebinding: a name of somebody else's that leads here.
        evil = host("plain").replace("localhost", "evil.example")
        for target, name in (
            ("/", evil),
            (f"/{derived_id('plain', REGION, ACCOUNT)}/", "evil.example"),
        ):
            await wire.send(raw("GET", target, name))
            found = await wire.answer("GET")
            assert (found.status, b"is not a name of this server" in found.body) == (403, True)
        await wire.send(raw("GET", "http://localhost:9000/invoke/hello", host("plain")))
        assert (await wire.answer("GET")).status == 400
        assert served.invoker.invoked == []


# -- responses


@pytest.mark.parametrize(
    ("behaviour", "status", "body", "error"),
    [
        (failing(), 502, b"Internal Server Error", None),
        (failing("timeout"), 502, b"Internal Server Error", None),
        (returning({"statusCode": "no"}), 502, b"Internal Server Error", None),
        (returning({"statusCode": 200, "headers": {"a": "b\r\nc: d"}}), 502, b"Internal", None),
        (returning(b"nonsense"), 502, b"Internal Server Error", None),
        (
            raising(TooManyRequests("ReservedFunctionConcurrentInvocationLimitExceeded")),
            429,
            b'{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded"',
            "TooManyRequestsException",
        ),
        (raising(FunctionFailed("mend it")), 409, b"", "ResourceConflictException"),
        (raising(RuntimeError("bug")), 500, b'{"Type":"Server"', "ServiceException"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "stream"])
async def test_what_is_no_response(
    behaviour: Any, status: int, body: bytes, error: str | None, name: str
) -> None:
    if name == "stream" and error is None and behaviour.__qualname__.startswith("returning"):
        status, body = 200, b""  # behind RESPONSE_STREAM nothing is made of a result
    async with serve(fast=True) as served:
        served.invoker.behaviour = behaviour
        found = await ask(served, name)
        assert found.status == status
        assert found.body.startswith(body)
        assert b"secret" not in found.body
        assert found.headers.get("x-amzn-errortype") == error
        assert "x-amzn-requestid" in found.headers


async def test_a_connection_goes_on_after_whatever_a_handler_returns() -> None:
    async with serve(fast=True) as served, await connect(served.address) as wire:
        for result in (
            {"statusCode": 200, "headers": {"Connection": "close", "Content-Length": "99"}},
            {"statusCode": 304, "body": "dropped"},
            {"statusCode": 200, "headers": {"Transfer-Encoding": "gzip"}, "body": "x"},
            {"statusCode": 200, "headers": {"X": "\u20ac"}, "body": "\U0001f600"},
        ):
            served.invoker.behaviour = returning(result)
            await wire.send(raw("GET", "/", host("plain")))
            found = await wire.answer("GET")
            assert found.status == result["statusCode"]
            dropped = result["statusCode"] == 304
            assert found.body == (b"" if dropped else str(result.get("body", "")).encode())


# -- streams


async def test_a_stream_is_sent_as_it_comes_however_its_prelude_was_cut() -> None:
    body = b"first"
    async with serve(fast=True) as served:
        for size in (1, 7, 1000):
            whole = PRELUDE + body
            pieces = [whole[n : n + size] for n in range(0, len(whole), size)]
            served.invoker.behaviour = streaming(*pieces)
            found = await ask(served, "stream")
            assert (found.status, found.body, found.headers["x-a"]) == (201, body, "b")
            assert found.headers["content-type"] == "application/octet-stream"
            assert found.headers["transfer-encoding"] == "chunked"
            assert len([pair for pair in found.pairs if pair[0] == "set-cookie"]) == 2


async def test_the_first_bytes_are_there_before_the_last_are_made() -> None:
    go_on = trio.Event()

    async def behave(invocation: Invocation) -> Outcome:
        assert invocation.sink is not None
        invocation.sink.opened(CONTENT_TYPE)
        await invocation.sink.send(PRELUDE + b"first")
        await go_on.wait()
        await invocation.sink.send(b"last")
        return Outcome("success", b"", streamed=True)

    async with serve(fast=True) as served, await connect(served.address) as wire:
        served.invoker.behaviour = behave
        await wire.send(raw("GET", "/", host("stream")))
        wire.expect("GET")
        assert (await wire.event()).status_code == 201
        assert bytes((await wire.event()).data) == b"first"
        go_on.set()
        assert bytes((await wire.event()).data) == b"last"
        assert isinstance(await wire.event(), h11.EndOfMessage)


async def test_streams_without_a_prelude_and_results_are_sent_as_they_are() -> None:
    described = {"statusCode": 418, "body": "tea"}
    async with serve(fast=True) as served:
        served.invoker.behaviour = streaming(b"a", b"b", content_type="text/csv")
        found = await ask(served, "stream")
        assert (found.status, found.body, found.headers["content-type"]) == (200, b"ab", "text/csv")
        served.invoker.behaviour = streaming(b"a", content_type=None)
        found = await ask(served, "stream")
        assert found.headers["content-type"] == "application/octet-stream"
        served.invoker.behaviour = returning(described)
        found = await ask(served, "stream")
        assert (found.status, json.loads(found.body)) == (200, described)
        # And the other way round: a function that streams behind BUFFERED.
        served.invoker.behaviour = streaming(PRELUDE[:5], PRELUDE[5:], b"body")
        found = await ask(served, "plain")
        assert (found.status, found.body, found.headers["content-length"]) == (201, b"body", "4")
        assert "transfer-encoding" not in found.headers


@pytest.mark.parametrize(
    "behaviour",
    [
        streaming(b'{"statusCode":20', status="error", stream_error=("E", "")),
        streaming(b'{"statusCode":200}'),
        streaming(b"no" + DELIMITER + b"body"),
        streaming(b'{"headers":{"a":"b\\r\\nc: d"}}' + DELIMITER),
        streaming(b" " * (MAX_PRELUDE + 9) + DELIMITER, b"x" * 1000),
        streaming(content_type=CONTENT_TYPE),
        failing(),
    ],
    ids=["broken-off", "no-delimiter", "no-json", "injection", "too-long", "empty", "error"],
)
async def test_before_its_first_byte_a_stream_can_become_a_502(behaviour: Any) -> None:
    async with serve(fast=True) as served:
        served.invoker.behaviour = behaviour
        found = await ask(served, "stream")
        assert (found.status, found.body) == (502, b"Internal Server Error")


async def test_after_its_first_byte_a_stream_that_fails_is_cut_off() -> None:
    async with serve(fast=True) as served, await connect(served.address) as wire:
        served.invoker.behaviour = streaming(
            PRELUDE + b"part", status="error", stream_error=("E", "x")
        )
        await wire.send(raw("GET", "/", host("stream")))
        wire.expect("GET")
        assert (await wire.event()).status_code == 201
        assert bytes((await wire.event()).data) == b"part"
        with pytest.raises(h11.RemoteProtocolError, match="incomplete chunked read"):
            await wire.event()


async def test_a_caller_that_goes_away_does_not_stop_the_function() -> None:
    gone, done = trio.Event(), trio.Event()

    async def behave(invocation: Invocation) -> Outcome:
        assert invocation.sink is not None
        invocation.sink.opened(CONTENT_TYPE)
        await invocation.sink.send(PRELUDE + b"first")
        await gone.wait()
        for _ in range(100):
            await invocation.sink.send(b"x" * 100_000)
        done.set()
        return Outcome("success", b"", streamed=True)

    async with serve(fast=True) as served:
        served.invoker.behaviour = behave
        async with await connect(served.address) as wire:
            await wire.send(raw("GET", "/", host("stream")))
            wire.expect("GET")
            assert (await wire.event()).status_code == 201
        gone.set()
        with trio.fail_after(5):
            await done.wait()


# -- CORS and pages


async def test_a_preflight_is_answered_without_the_function() -> None:
    asked = [("Origin", HERE), ("Access-Control-Request-Method", "POST")]
    asked.append(("Access-Control-Request-Headers", "content-type"))
    async with serve(fast=True) as served:
        for name in ("shared", "signed"):
            found = await ask(served, name, "OPTIONS", "/x", asked)
            assert (found.status, found.body) == (200, b"")
            assert found.headers["access-control-allow-origin"] == HERE
            assert found.headers["access-control-allow-methods"] == "GET,POST"
            assert found.headers["access-control-allow-headers"] == "content-type"
            assert found.headers["access-control-max-age"] == "60"
        evil = [("Origin", "https://evil.example"), asked[1]]
        found = await ask(served, "shared", "OPTIONS", "/x", evil)
        assert not any(name.startswith("access-control-") for name in found.headers)
        assert served.invoker.invoked == []
        served.invoker.behaviour = returning("asked")
        assert (await ask(served, "shared", "OPTIONS", "/x")).body == b"asked"


async def test_all_responses_have_the_configured_headers_and_not_the_functions() -> None:
    theirs = {"Access-Control-Allow-Origin": "*", "access-control-max-age": "9", "vary": "Accept"}
    async with serve(fast=True) as served:
        served.invoker.behaviour = returning({"statusCode": 200, "headers": theirs})
        found = await ask(served, "shared", headers=[("Origin", HERE)])
        values = [value for name, value in found.pairs if name == "access-control-allow-origin"]
        assert values == [HERE]
        assert found.headers["access-control-expose-headers"] == "x-a"
        assert "access-control-max-age" not in found.headers
        assert ("vary", "Accept") in found.pairs
        assert ("vary", "Origin") in found.pairs
        served.invoker.behaviour = failing()
        found = await ask(served, "shared", headers=[("Origin", HERE)])
        assert (found.status, found.headers["access-control-allow-origin"]) == (502, HERE)
        found = await ask(served, "signed", headers=[("Origin", HERE)])
        assert (found.status, found.headers["access-control-allow-origin"]) == (403, HERE)
        count = len(served.invoker.invoked)
        found = await ask(served, "shared", "POST", headers=[("Origin", "https://evil.example")])
        assert (found.status, len(served.invoker.invoked)) == (403, count)
        # Without Cors the function answers for itself.
        served.invoker.behaviour = returning({"statusCode": 200, "headers": theirs})
        assert (await ask(served, "plain")).headers["access-control-allow-origin"] == "*"


# -- AWS_IAM


def signed(url: str, body: bytes = b"", *, secret: str = "secret", **headers: str) -> list[Any]:
    made = AWSRequest("POST", url, data=body, headers=headers)
    SigV4Auth(Credentials("AKIALAMBOX", secret), "lambda", REGION).add_auth(made)
    return list(made.headers.items())


@asynccontextmanager
async def with_keys() -> AsyncIterator[Callers]:
    async with serve(fast=True, url_keys=SigV4(KEYS.get, region=REGION)) as served:
        served.invoker.behaviour = returning("ok")
        yield served


async def test_a_signed_request_is_admitted_and_tells_who_signed() -> None:
    async with with_keys() as served:
        target = "/a%20b//c?q=1&p=%2F"
        url = f"http://{host('signed', served.address[1])}{target}"
        found = await ask(served, "signed", "POST", target, signed(url, b"body"), b"body")
        assert (found.status, found.body) == (200, b"ok")
        context = json.loads(served.invoker.invoked[0].payload)["requestContext"]
        assert context["accountId"] == ACCOUNT
        assert context["authorizer"]["iam"] == {
            "accessKey": "AKIALAMBOX",
            "accountId": ACCOUNT,
            "callerId": ACCOUNT,
            "cognitoIdentity": None,
            "principalOrgId": None,
            "userArn": f"arn:aws:iam::{ACCOUNT}:root",
            "userId": ACCOUNT,
        }


async def test_who_did_not_sign_this_very_request_is_refused() -> None:
    async with with_keys() as served:
        url = f"http://{host('signed', served.address[1])}/a"
        good = signed(url, b"body")
        for headers, target, body, code in (
            ([], "/a", b"body", "AccessDeniedException"),
            (good, "/b", b"body", "InvalidSignatureException"),
            (good, "/a", b"BODY", "InvalidSignatureException"),
            (good, "/a?x", b"body", "InvalidSignatureException"),
            (signed(url, b"body", secret="no"), "/a", b"body", "InvalidSignatureException"),
            ([("Authorization", "Bearer x")], "/a", b"body", "IncompleteSignatureException"),
        ):
            found = await ask(served, "signed", "POST", target, headers, body)
            assert (found.status, found.headers["x-amzn-errortype"]) == (403, code)
        assert served.invoker.invoked == []


async def test_without_keys_a_signature_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(fast=True) as served:
        url = f"http://{host('signed', served.address[1])}/"
        found = await ask(served, "signed", "POST", "/", signed(url))
        assert found.status == 403
        assert found.json["Message"].startswith("Forbidden. For troubleshooting Function URL")
        assert served.invoker.invoked == []
        await ask(served, "signed", "POST", "/", signed(url))
    (told,) = [one.message for one in caplog.records if "AWS_IAM" in one.message]
    assert "the function URL of signed" in told
    assert "auth_keys_file" in told


@pytest.mark.parametrize("auth", ["none", "sigv4"])
async def test_keys_of_the_configuration_are_those_of_aws_iam(tmp_path: Path, auth: str) -> None:
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text('AKIALAMBOX = "0123456789abcdef"\n')
    flags = {"auth": auth, "auth_keys_file": str(keys), "state": str(tmp_path / "state")}
    face = CallersFace(load(flags, environ={}))
    async with serve(fast=True, guard=face.guard, url_keys=face.url_keys) as served:
        served.invoker.behaviour = returning("ok")
        url = f"http://{host('signed', served.address[1])}/"
        headers = signed(url, secret="0123456789abcdef")
        assert (await ask(served, "signed", "POST", "/", headers)).status == 200
        assert (await ask(served, "signed", "POST", "/")).status == 403
        async with await connect(served.address) as wire:
            found = await wire.ask("POST", "/invoke/plain", b"{}")
            assert found.status == (200 if auth == "none" else 403)


async def test_a_url_over_tls_says_so(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path)
    flags = {"tls_cert": str(pem[0]), "tls_key": str(pem[1]), "state": str(tmp_path / "state")}
    face = CallersFace(load(flags, environ={}))
    async with serve(fast=True, secure=face.secure) as served, await secured(served, pem) as wire:
        served.invoker.behaviour = returning("ok")
        assert (await wire.ask("GET", f"/{derived_id('plain', REGION, ACCOUNT)}/a")).status == 200
        event = json.loads(served.invoker.invoked[0].payload)
        assert (event["rawPath"], event["headers"]["x-forwarded-proto"]) == ("/a", "https")


async def test_a_url_of_type_none_asks_for_nothing_where_the_api_does() -> None:
    from runtimeapi.guard import Guard, Names, TokenAuth

    guard = Guard(Names(), TokenAuth(lambda: [b"token"]))
    async with serve(fast=True, guard=guard) as served:
        served.invoker.behaviour = returning("ok")
        assert (await ask(served, "plain")).status == 200
        async with await connect(served.address) as wire:
            assert (await wire.ask("POST", "/invoke/plain", b"{}")).status == 403
