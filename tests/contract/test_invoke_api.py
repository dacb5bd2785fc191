"""The Invoke API and the friendly face on the wire: SPEC 3, statuses, headers, bodies."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
import trio

from sandbox.errors import PlatformFault, TooManyRequests
from sandbox.invocation import MAX_PAYLOAD, Invocation, Outcome
from tests.contract.fakes import LANES, REQUEST_ID, Callers
from tests.contract.wire import Answer, ask, chunked, connect, head

INVOKE = "/2015-03-31/functions/{}/invocations"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:hello"
TRACE = "Root=1-65f0f0f0-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1;Lineage=a:0"


@pytest.fixture(params=sorted(LANES))
async def callers(request: pytest.FixtureRequest) -> AsyncIterator[Callers]:
    with trio.fail_after(20):
        async with LANES[request.param][0]() as served:
            yield served


async def invoke(
    callers: Callers,
    body: bytes = b"{}",
    headers: dict[str, str] | None = None,
    name: str = "hello",
) -> Answer:
    return await ask(callers.address, "POST", INVOKE.format(name), body, headers)


def context(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


@pytest.mark.trio
async def test_healthz(callers: Callers) -> None:
    answer = await ask(callers.address, "GET", "/healthz")
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert answer.json["version"]


@pytest.mark.trio
async def test_request_response(callers: Callers) -> None:
    # The bytes are passed on as they came, spaces and all, though they were checked to be JSON.
    answer = await invoke(callers, b'{ "a" :1.0 }', {"X-Amzn-Trace-Id": TRACE})
    assert (answer.status, answer.body) == (200, b'{ "a" :1.0 }')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-amz-executed-version"] == "$LATEST"
    assert answer.headers["x-amzn-trace-id"] == TRACE
    assert "x-amz-function-error" not in answer.headers
    assert "x-amz-log-result" not in answer.headers
    (invocation,) = callers.invoker.invoked
    assert answer.headers["x-amzn-requestid"] == invocation.request_id
    assert (invocation.kind, invocation.invoked_arn) == ("RequestResponse", ARN)
    assert (invocation.trace_id, invocation.sink) == (TRACE, None)
    assert callers.functions.refreshed == 1


@pytest.mark.trio
async def test_curls_form_type_does_not_reach_the_runtime(callers: Callers) -> None:
    await invoke(callers, b"{}", {"Content-Type": "application/x-www-form-urlencoded"})
    assert callers.invoker.invoked[0].content_type == "application/json"


@pytest.mark.trio
async def test_empty_body_is_an_empty_object(callers: Callers) -> None:
    assert (await invoke(callers, b"")).body == b"{}"


@pytest.mark.trio
async def test_function_error_is_a_200(callers: Callers) -> None:
    async def fail(invocation: Invocation) -> Outcome:
        return Outcome("error", b'{"errorType":"X"}', error_type="X", log_tail=b"log")

    callers.invoker.behaviour = fail
    answer = await invoke(callers, headers={"X-Amz-Log-Type": "Tail"})
    assert (answer.status, answer.body) == (200, b'{"errorType":"X"}')
    assert answer.headers["x-amz-function-error"] == "Unhandled"
    assert base64.b64decode(answer.headers["x-amz-log-result"]) == b"log"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("name", "query", "invoked_arn"),
    [
        ("hello", "", ARN),
        ("hello", "?Qualifier=%24LATEST", f"{ARN}:$LATEST"),
        ("hello:$LATEST", "", f"{ARN}:$LATEST"),
        ("hello%3A%24LATEST", "?Qualifier=$LATEST", f"{ARN}:$LATEST"),
        ("000000000000:function:hello", "", ARN),
        ("function:hello", "?Qualifier=", ARN),
        (quote(ARN, safe=""), "", ARN),
        (quote(f"{ARN}:$LATEST", safe=""), "", f"{ARN}:$LATEST"),
        (ARN, "", ARN),
    ],
)
async def test_ways_to_name_a_function(
    callers: Callers, name: str, query: str, invoked_arn: str
) -> None:
    answer = await ask(callers.address, "POST", INVOKE.format(name) + query, b"{}")
    assert answer.status == 200, answer.body
    assert callers.invoker.invoked[0].invoked_arn == invoked_arn


@pytest.mark.trio
@pytest.mark.parametrize(
    ("name", "query", "status", "code", "message"),
    [
        (
            "nope",
            "",
            404,
            "ResourceNotFoundException",
            f"Function not found: {ARN[:-5]}nope:$LATEST",
        ),
        ("hello:7", "", 404, "ResourceNotFoundException", f"Function not found: {ARN}:7"),
        (
            "hello",
            "?Qualifier=live",
            404,
            "ResourceNotFoundException",
            f"Function not found: {ARN}:live",
        ),
        (
            ARN.replace("us-east-1", "eu-west-1"),
            "",
            404,
            "ResourceNotFoundException",
            "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')",
        ),
        (ARN.replace("0" * 12, "1" * 12), "", 403, "AccessDeniedException", None),
        (
            "hello:1",
            "?Qualifier=2",
            400,
            "InvalidParameterValueException",
            "The derived qualifier from the function name does not match the specified qualifier.",
        ),
        ("broken", "", 409, "ResourceConflictException", "broken/function.toml:1: memory: mend it"),
    ],
)
async def test_functions_that_are_not_to_be_had(
    callers: Callers, name: str, query: str, status: int, code: str, message: str | None
) -> None:
    answer = await ask(callers.address, "POST", INVOKE.format(name) + query, b"{}")
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (status, code)
    capital = code in {"ResourceNotFoundException", "AccessDeniedException"}
    assert answer.json["Message" if capital else "message"] == message
    assert answer.headers["x-amzn-requestid"]
    assert callers.invoker.invoked == []


@pytest.mark.trio
async def test_violations_are_reported_together(callers: Callers) -> None:
    headers = {"X-Amz-Invocation-Type": "Maybe", "X-Amz-Log-Type": "All"}
    answer = await invoke(callers, headers=headers, name="he%20llo")
    assert answer.headers["x-amzn-errortype"] == "ValidationException"
    message = answer.json["message"]
    assert message.startswith("3 validation errors detected: Value 'he llo' at 'functionName' ")
    assert message.endswith(
        "; Value 'Maybe' at 'invocationType' failed to satisfy constraint: Member must satisfy "
        "enum value set: [Event, RequestResponse, DryRun]; Value 'All' at 'logType' failed to "
        "satisfy constraint: Member must satisfy enum value set: [None, Tail]"
    )
    assert "Type" not in answer.json


@pytest.mark.trio
async def test_event_is_accepted(callers: Callers) -> None:
    headers = {"X-Amz-Invocation-Type": "Event", "X-Amz-Client-Context": context({"a": 1})}
    answer = await invoke(callers, b"[1]", headers)
    assert (answer.status, answer.body) == (202, b"")
    (invocation,) = callers.invoker.accepted
    assert (invocation.kind, invocation.payload) == ("Event", b"[1]")
    assert invocation.client_context is None  # SPEC 3.1: synchronous invocations only
    assert answer.headers["x-amzn-requestid"] == invocation.request_id
    assert "x-amz-executed-version" not in answer.headers
    assert callers.invoker.invoked == []


@pytest.mark.trio
async def test_event_that_cannot_be_accepted(callers: Callers) -> None:
    callers.invoker.refusal = TooManyRequests("ConcurrentInvocationLimitExceeded")
    answer = await invoke(callers, headers={"X-Amz-Invocation-Type": "Event"})
    assert answer.status == 429


@pytest.mark.trio
async def test_dry_run(callers: Callers) -> None:
    headers = {"X-Amz-Invocation-Type": "DryRun"}
    answer = await invoke(callers, headers=headers)
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers
    assert (await invoke(callers, headers=headers, name="nope")).status == 404
    assert (callers.invoker.invoked, callers.invoker.accepted) == ([], [])


@pytest.mark.trio
async def test_invoke_async(callers: Callers) -> None:
    for path in (
        "/2014-11-13/functions/hello/invoke-async",
        "/2014-11-13/functions/hello/invoke-async/",
    ):
        answer = await ask(callers.address, "POST", path, b'{"x":1}')
        assert (answer.status, answer.json) == (202, {"Status": 202})
    assert [one.payload for one in callers.invoker.accepted] == [b'{"x":1}'] * 2
    answer = await ask(callers.address, "POST", path, b"1" * (256 * 1024 + 1))
    assert answer.status == 413


@pytest.mark.trio
async def test_client_context_is_decoded(callers: Callers) -> None:
    await invoke(callers, headers={"X-Amz-Client-Context": context({"custom": {"a": "ä"}})})
    sent = callers.invoker.invoked[0].client_context
    assert sent is not None
    assert json.loads(sent) == {"custom": {"a": "ä"}}


@pytest.mark.trio
@pytest.mark.parametrize(
    "headers",
    [
        {"X-Amz-Client-Context": "not base64!"},
        {"X-Amz-Client-Context": base64.b64encode(b"not json").decode()},
        {"X-Amz-Client-Context": context([1])},
        {"X-Amz-Client-Context": context({"a": "x" * 3000})},
        {"x-amzn-RequestId": "7"},
    ],
)
async def test_bad_headers(callers: Callers, headers: dict[str, str]) -> None:
    answer = await invoke(callers, headers=headers)
    assert answer.status == 400
    assert answer.headers["x-amzn-errortype"] == "InvalidRequestContentException"
    assert answer.json["Type"] == "User"


@pytest.mark.trio
async def test_request_id_of_the_caller(callers: Callers) -> None:
    answer = await invoke(callers, headers={"x-amzn-RequestId": REQUEST_ID})
    assert answer.headers["x-amzn-requestid"] == REQUEST_ID
    assert callers.invoker.invoked[0].request_id == REQUEST_ID


@pytest.mark.trio
@pytest.mark.parametrize(
    ("payload", "diagnosis"),
    [
        (b"\x99", "Invalid UTF-8 start byte 0x99"),
        (b"\n x", "Unexpected character ('x' (code 120)): expected a valid value"),
        (b"{", "Unexpected"),
        (b"NaN", ""),
        (b"[" * 100_000, ""),
    ],
)
async def test_payload_that_is_not_json(callers: Callers, payload: bytes, diagnosis: str) -> None:
    answer = await invoke(callers, payload)
    assert answer.status == 400
    assert answer.headers["x-amzn-errortype"] == "InvalidRequestContentException"
    assert answer.json["message"].startswith(
        f"Could not parse request body into json: Could not parse payload into json: {diagnosis}"
    )
    assert callers.invoker.invoked == []


@pytest.mark.trio
async def test_largest_payload(callers: Callers) -> None:
    payload = b'"' + b"x" * (MAX_PAYLOAD - 2) + b'"'
    answer = await invoke(callers, payload)
    assert (answer.status, answer.body) == (200, payload)


@pytest.mark.trio
@pytest.mark.parametrize(("kind", "limit"), [("RequestResponse", 6_291_556), ("Event", 1_048_576)])
async def test_payload_too_large(callers: Callers, kind: str, limit: int) -> None:
    message = f"Request must be smaller than {limit} bytes for the InvokeFunction operation"
    path, headers = INVOKE.format("hello"), {"X-Amz-Invocation-Type": kind}
    async with await connect(callers.address) as wire:
        # by Content-Length: refused without a byte of the body
        await wire.send(head("POST", path, {**headers, "Content-Length": str(limit + 1)}))
        answer = await wire.answer()
        assert (answer.status, answer.json) == (413, {"Type": "User", "message": message})
        await wire.send(b"1" * (limit + 1))  # the rest is dropped, the connection lives on
        # chunked: refused when it goes over
        await wire.send(head("POST", path, {**headers, "Transfer-Encoding": "chunked"}))
        await wire.send(chunked(b"1" * limit, b"2"))
        assert (await wire.answer()).json["message"] == message
        assert (await wire.ask("GET", "/healthz")).status == 200


@pytest.mark.trio
async def test_truncated_payload(callers: Callers) -> None:
    async with await connect(callers.address) as wire:
        await wire.send(head("POST", INVOKE.format("hello"), {"Content-Length": "10"}) + b"{")
        await wire.stream.send_eof()
        assert (await wire.answer()).status == 400
    assert callers.invoker.invoked == []


@pytest.mark.trio
async def test_throttled(callers: Callers) -> None:
    async def throttle(invocation: Invocation) -> Outcome:
        raise TooManyRequests("ReservedFunctionConcurrentInvocationLimitExceeded")

    callers.invoker.behaviour = throttle
    answer = await invoke(callers)
    assert answer.status == 429
    assert answer.headers["x-amzn-errortype"] == "TooManyRequestsException"
    assert answer.body == (
        b'{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User",'
        b'"message":"Rate Exceeded."}'
    )


@pytest.mark.trio
@pytest.mark.parametrize("fault", [PlatformFault("/secret/path"), KeyError("/secret/path")])
async def test_platform_fault(
    callers: Callers, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_down(invocation: Invocation) -> Outcome:
        raise fault

    callers.invoker.behaviour = break_down
    answer = await invoke(callers)
    assert answer.status == 500
    assert answer.headers["x-amzn-errortype"] == "ServiceException"
    assert set(answer.json) == {"Type", "Message"}
    assert b"secret" not in answer.body
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "UnknownOperationException"),
        ("GET", "/favicon.ico", 404, "UnknownOperationException"),
        ("GET", "/2015-03-31/functions/hello", 501, "NotImplementedException"),
        ("GET", "/2015-03-31/functions/", 501, "NotImplementedException"),
        ("GET", INVOKE.format("hello"), 405, "MethodNotAllowedException"),
        ("DELETE", "/healthz", 405, "MethodNotAllowedException"),
    ],
)
async def test_other_paths(
    callers: Callers, method: str, path: str, status: int, code: str
) -> None:
    answer = await ask(callers.address, method, path)
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["message"]


@pytest.mark.trio
async def test_a_caller_that_goes_away_cancels_its_wait(callers: Callers) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def hang(invocation: Invocation) -> Outcome:
        started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.set()
            raise

    callers.invoker.behaviour = hang
    async with await connect(callers.address) as wire:
        await wire.send(head("POST", INVOKE.format("hello"), {"Content-Length": "2"}) + b"{}")
        await started.wait()
    await cancelled.wait()


@pytest.mark.trio
async def test_expect_100_continue_as_curl_sends_it(callers: Callers) -> None:
    headers = {"Content-Length": "2", "Expect": "100-continue"}
    async with await connect(callers.address) as wire:
        await wire.send(head("POST", INVOKE.format("hello"), headers))
        wire.expect()
        assert (await wire.event()).status_code == 100
        await wire.send(b"{}")
        assert (await wire.event()).status_code == 200


@pytest.mark.trio
@pytest.mark.parametrize("heard", [0, 1], ids=["before the first chunk", "midway"])
async def test_a_streaming_caller_that_leaves_does_not_stop_the_function(
    callers: Callers, heard: int
) -> None:
    started, left, finished = trio.Event(), trio.Event(), trio.Event()

    async def produce(invocation: Invocation) -> Outcome:
        assert invocation.sink is not None
        for _ in range(heard):
            await invocation.sink.send(b"first")
        started.set()
        await left.wait()
        for _ in range(100):  # far more than the kernel holds: only dropping lets this end
            await invocation.sink.send(b"x" * 1024 * 1024)
        finished.set()
        return Outcome("success", b"", streamed=True)

    callers.invoker.behaviour = produce
    path = "/2021-11-15/functions/hello/response-streaming-invocations"
    async with await connect(callers.address) as wire:
        await wire.send(head("POST", path, {"Content-Length": "0"}))
        wire.expect()
        for _ in range(heard):
            assert (await wire.event()).status_code == 200
            assert b"first" in bytes((await wire.event()).data)
        await started.wait()
    left.set()
    await finished.wait()


# -- the friendly face


@pytest.mark.trio
async def test_friendly_success(callers: Callers) -> None:
    answer = await ask(callers.address, "POST", "/invoke/hello", b'{"n":1}')
    assert (answer.status, answer.body) == (200, b'{"n":1}')
    assert answer.headers["x-lambox-cold"] == "false"
    assert answer.headers["x-lambox-duration-ms"] == "1.50"
    assert answer.headers["x-lambox-request-id"] == callers.invoker.invoked[0].request_id


@pytest.mark.trio
async def test_friendly_empty_body(callers: Callers) -> None:
    assert (await ask(callers.address, "POST", "/invoke/hello")).body == b"{}"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("status", "http_status"), [("error", 500), ("timeout", 504), ("failure", 500)]
)
async def test_friendly_function_errors(callers: Callers, status: str, http_status: int) -> None:
    async def fail(invocation: Invocation) -> Outcome:
        body = b'{"errorType":"T"}'
        return Outcome(status, body, error_type="T", cold=True)  # type: ignore[arg-type]

    callers.invoker.behaviour = fail
    answer = await ask(callers.address, "POST", "/invoke/hello")
    assert (answer.status, answer.body) == (http_status, b'{"errorType":"T"}')
    assert answer.headers["x-lambox-cold"] == "true"
    assert answer.headers["x-lambox-function-error"] == "T"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("name", "body", "status", "error_type"),
    [
        ("nope", b"{}", 404, "ResourceNotFoundException"),
        ("broken", b"{}", 409, "ResourceConflictException"),
        ("hello", b"{", 400, "InvalidRequestContentException"),
        ("hello", b"1" * (MAX_PAYLOAD + 1), 413, "RequestTooLargeException"),
        ("%21", b"{}", 400, "ValidationException"),
    ],
)
async def test_friendly_errors(
    callers: Callers, name: str, body: bytes, status: int, error_type: str
) -> None:
    answer = await ask(callers.address, "POST", f"/invoke/{name}", body)
    assert (answer.status, answer.json["errorType"]) == (status, error_type)
    assert answer.json["errorMessage"]
    assert answer.headers["x-lambox-request-id"] == answer.json["requestId"]


@pytest.mark.trio
async def test_friendly_get_is_refused(callers: Callers) -> None:
    answer = await ask(callers.address, "GET", "/invoke/hello")
    assert (answer.status, answer.json["errorType"]) == (405, "MethodNotAllowedException")


# -- lambox's own console


@pytest.mark.trio
async def test_console_lists(callers: Callers) -> None:
    functions = (await ask(callers.address, "GET", "/_lambox/functions")).json
    assert [(one["name"], one["state"]) for one in functions] == [
        ("hello", "ready"),
        ("dotted.name", "ready"),
        ("broken", "broken"),
    ]
    assert functions[2]["problem"] == "broken/function.toml:1: memory: mend it"
    environments = (await ask(callers.address, "GET", "/_lambox/environments")).json
    assert environments == [{"id": "1", "function": "hello", "state": "ready"}]


@pytest.mark.trio
async def test_console_counts_what_the_supervisor_holds(callers: Callers) -> None:
    held = (await ask(callers.address, "GET", "/_lambox/supervisor")).json
    assert held["pid"] == os.getpid()
    assert held["threads"] >= 1
    assert sum(held["tasks"].values()) > 3
    assert all(isinstance(name, str) for name in held["tasks"])


@pytest.mark.trio
async def test_console_logs(callers: Callers) -> None:
    text = "START RequestId: 1\nhello\nEND RequestId: 1\n"
    for path in ("/_lambox/logs", "/_lambox/logs/hello", "/_lambox/logs/hello?follow=0"):
        answer = await ask(callers.address, "GET", path)
        assert (answer.status, answer.body.decode()) == (200, text)
    assert (await ask(callers.address, "GET", "/_lambox/logs/broken")).body == b""
    assert (await ask(callers.address, "GET", "/_lambox/logs/nope")).status == 404


@pytest.mark.trio
async def test_console_logs_followed(callers: Callers) -> None:
    async with await connect(callers.address) as wire:
        await wire.send(head("GET", "/_lambox/logs/hello?follow=1", {}))
        wire.expect("GET")
        assert (await wire.event()).status_code == 200
        kept = b"START RequestId: 1\nhello\nEND RequestId: 1\n"
        assert bytes((await wire.event()).data) == kept
        await callers.logs.put.send("new line\n")
        assert bytes((await wire.event()).data) == b"new line\n"
