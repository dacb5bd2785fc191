"""What a caller with boto3 gets from a real server with real sandboxes."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from tests.system.conftest import Server
from tests.waiting import until

pytestmark = pytest.mark.system

ECHO = "def handler(event, context):\n    return event\n"


def tail(answer: dict[str, Any]) -> str:
    return base64.b64decode(answer["LogResult"]).decode()


def test_cold_and_warm(shared: Server) -> None:
    shared.functions.add(
        "counter",
        """
        calls = 0
        def handler(event, context):
            global calls
            calls += 1
            print("call", calls)
            return {"calls": calls, "id": context.aws_request_id, "arn": context.invoked_function_arn,
                    "ms": context.get_remaining_time_in_millis(), "name": context.function_name}
        """,
        "timeout = 7",
    )
    cold = shared.invoke("counter", {}, LogType="Tail")
    warm = shared.invoke("counter", {}, LogType="Tail")
    assert (cold["Payload"]["calls"], warm["Payload"]["calls"]) == (1, 2)
    assert cold["StatusCode"] == 200
    assert cold["ExecutedVersion"] == "$LATEST"
    assert "FunctionError" not in cold
    assert cold["Payload"]["id"] == cold["ResponseMetadata"]["RequestId"]
    assert cold["Payload"]["arn"] == "arn:aws:lambda:us-east-1:123456789012:function:counter"
    assert 6000 < cold["Payload"]["ms"] <= 7000
    lines = tail(cold).splitlines()
    request_id = cold["Payload"]["id"]
    assert lines[0] == f"START RequestId: {request_id} Version: $LATEST"
    assert lines[1] == "call 1"
    assert lines[2] == f"END RequestId: {request_id}"
    assert lines[3].startswith(f"REPORT RequestId: {request_id}\tDuration: ")
    assert "\tInit Duration: " in lines[3]
    assert "\tInit Duration: " not in tail(warm)
    assert "call 2" in tail(warm)


def test_report_tells_the_true_peak_memory(shared: Server) -> None:
    shared.functions.add(
        "eats",
        "def handler(event, context):\n    return len(bytearray(event * 1024 * 1024))\n",
        "memory_size = 512",
    )

    def peak(megabytes: int) -> int:
        text = tail(shared.invoke("eats", megabytes, LogType="Tail"))
        return int(text.split("Max Memory Used: ")[1].split(" MB")[0])

    small = peak(1)
    assert 1 < small < 80  # what a fork shares with its zygote is not the function's
    assert small + 150 < peak(200) < 330


def test_timeout_is_answered_at_the_deadline_and_the_whole_tree_is_gone(shared: Server) -> None:
    shared.functions.add(
        "clings",
        """
        import os, signal, time
        def handler(event, context):
            for _ in range(3):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                            signal.signal(number, signal.SIG_IGN)
                        if event == "stopped":
                            os.kill(os.getpid(), signal.SIGSTOP)
                        while event == "busy":
                            pass
                        time.sleep(1000)
                    os._exit(0)
            time.sleep(1000)
        """,
        "timeout = 1",
    )
    for how in ("asleep", "stopped", "busy"):
        began = time.monotonic()
        answer = shared.invoke("clings", how, LogType="Tail")
        took = time.monotonic() - began
        request_id = answer["ResponseMetadata"]["RequestId"]
        assert answer["FunctionError"] == "Unhandled"
        assert answer["StatusCode"] == 200
        assert answer["Payload"] == {
            "errorType": "Sandbox.Timedout",
            "errorMessage": f"RequestId: {request_id} Error: Task timed out after 1.00 seconds",
        }
        assert tail(answer).rstrip().endswith("Status: timeout")
        assert took < 5, "the cold start and one second"
    until(lambda: shared.environments("clings") == [])


def test_the_caller_has_its_timeout_within_100_ms_of_the_deadline(shared: Server) -> None:
    shared.functions.add(
        "sleeps",
        "import time\ndef handler(event, context):\n    time.sleep(event)\n",
        "timeout = 1",
    )
    late = []
    for _ in range(3):
        shared.invoke("sleeps", 0)
        began = time.monotonic()
        assert shared.invoke("sleeps", 60)["FunctionError"] == "Unhandled"
        late.append(time.monotonic() - began - 1.0)
    # The best of three: the machine is shared, and boto3's own milliseconds are in it.
    assert 0 <= min(late) < 0.1


@pytest.mark.parametrize(
    ("code", "error_type", "message"),
    [
        ("os._exit(0)", "Runtime.ExitError", "Runtime exited without providing a reason"),
        ("os._exit(3)", "Runtime.ExitError", "Runtime exited with error: exit status 3"),
        ("os._exit(139)", "Runtime.ExitError", "Runtime exited with error: exit status 139"),
        (
            "os.kill(os.getpid(), 11)",
            "Runtime.ExitError",
            "Runtime exited with error: signal: segmentation fault",
        ),
        ("os.abort()", "Runtime.ExitError", "Runtime exited with error: signal: aborted"),
        (
            "os.kill(os.getpid(), 9)",
            "Runtime.ExitError",
            "Runtime exited with error: signal: killed",
        ),
    ],
)
def test_exits(shared: Server, code: str, error_type: str, message: str) -> None:
    name = "exits-" + "".join(c for c in code if c.isalnum())
    shared.functions.add(name, f"import os\ndef handler(event, context):\n    {code}\n")
    answer = shared.invoke(name, {}, LogType="Tail")
    request_id = answer["ResponseMetadata"]["RequestId"]
    assert answer["Payload"] == {
        "errorType": error_type,
        "errorMessage": f"RequestId: {request_id} Error: {message}",
    }
    assert tail(answer).rstrip().endswith("Status: error\tError Type: Runtime.ExitError")


def test_out_of_memory_is_told_as_such_and_the_next_call_works(shared: Server) -> None:
    shared.functions.add(
        "hog",
        "def handler(event, context):\n    return len(bytearray(event << 20))\n",
        "timeout = 60",
    )
    answer = shared.invoke("hog", 400, LogType="Tail")
    assert answer["Payload"]["errorType"] == "Runtime.ExitError"
    assert answer["Payload"]["errorMessage"].endswith("signal: killed")
    assert "Status: error\tError Type: Runtime.OutOfMemory" in tail(answer)
    assert "Memory Size: 128 MB\tMax Memory Used: 128 MB" in tail(answer)
    assert shared.invoke("hog", 1)["Payload"] == 1 << 20


def test_a_handler_exception_is_awslambdarics(shared: Server) -> None:
    shared.functions.add(
        "raises", "def handler(event, context):\n    raise ValueError('no ' + event)\n"
    )
    answer = shared.invoke("raises", "way", LogType="Tail")
    assert answer["FunctionError"] == "Unhandled"
    assert list(answer["Payload"]) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert answer["Payload"]["errorMessage"] == "no way"
    assert answer["Payload"]["errorType"] == "ValueError"
    assert "[ERROR] ValueError: no way" in tail(answer)


def test_init_errors(shared: Server) -> None:
    shared.functions.add("imports", "import no_such_module\n")
    shared.functions.add("empty", "x = 1\n")
    shared.functions.add("leaves", "import os\nos._exit(4)\n")
    imports = shared.invoke("imports")
    assert imports["Payload"]["errorType"] == "Runtime.ImportModuleError"
    assert imports["Payload"]["requestId"] == ""
    assert shared.invoke("empty")["Payload"]["errorType"] == "Runtime.HandlerNotFound"
    leaves = shared.invoke("leaves")
    assert leaves["Payload"]["errorMessage"].endswith("Runtime exited with error: exit status 4")
    shared.wait_log(
        "Phase: init\tStatus: error\tError Type: Runtime.ExitError", "Phase: invoke\tStatus: error"
    )


def test_an_init_that_is_too_slow_is_tried_again_with_the_functions_timeout(start: Any) -> None:
    server = start(LAMBOX_INIT_TIMEOUT_S="1")
    server.functions.add("slow", "import time\ntime.sleep(1.5)\n" + ECHO, "timeout = 10")
    server.functions.add("never", "import time\ntime.sleep(60)\n" + ECHO, "timeout = 2")
    assert server.invoke("slow", 5)["Payload"] == 5
    assert server.invoke("never", 5)["Payload"]["errorType"] == "Sandbox.Timedout"
    server.wait_log("Phase: init\tStatus: timeout", "Phase: invoke\tStatus: timeout")


def test_parallel_invocations_scale_out(shared: Server) -> None:
    shared.functions.add(
        "waits",
        "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n",
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: shared.invoke("waits", 1), range(8)))
    assert [answer["Payload"] for answer in answers] == [1] * 8
    assert len(shared.environments("waits")) == 8


def test_a_thousand_tagged_invocations_over_16_threads_and_4_functions(shared: Server) -> None:
    for number in range(4):
        shared.functions.add(
            f"tag{number}", f"def handler(event, context):\n    return [{number}, event]\n"
        )
    client = shared.client()

    def call(tag: int) -> tuple[int, Any]:
        answer = client.invoke(FunctionName=f"tag{tag % 4}", Payload=json.dumps(tag).encode())
        return tag, json.load(answer["Payload"])

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, range(1000)))
    assert answers == [(tag, [tag % 4, tag]) for tag in range(1000)]


def test_reserved_concurrency_and_errors_of_the_api(shared: Server) -> None:
    shared.functions.add("none", ECHO, "reserved_concurrency = 0")
    shared.functions.add("echo", ECHO, "memory_size = 1769")
    client = shared.client()
    with pytest.raises(client.exceptions.TooManyRequestsException) as throttled:
        shared.invoke("none")
    assert throttled.value.response["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"
    with pytest.raises(client.exceptions.ResourceNotFoundException) as missing:
        shared.invoke("nobody")
    assert missing.value.response["Error"]["Message"] == (
        "Function not found: arn:aws:lambda:us-east-1:123456789012:function:nobody:$LATEST"
    )
    with pytest.raises(client.exceptions.RequestTooLargeException) as large:
        shared.invoke("echo", "x" * 6291556)
    assert large.value.response["ResponseMetadata"]["HTTPStatusCode"] == 413
    with pytest.raises(botocore.exceptions.ClientError, match="Could not parse request body"):
        client.invoke(FunctionName="echo", Payload=b"{nonsense")
    assert shared.invoke("echo", "x" * 6_000_000)["Payload"] == "x" * 6_000_000
    assert client.invoke(FunctionName="echo", InvocationType="DryRun")["StatusCode"] == 204


def test_a_response_that_is_too_large(shared: Server) -> None:
    shared.functions.add("large", "def handler(event, context):\n    return 'x' * event\n")
    answer = shared.invoke("large", 6291556)
    assert answer["Payload"] == {
        "errorMessage": "Response payload size exceeded maximum allowed payload size (6291556 bytes).",
        "errorType": "Function.ResponseSizeTooLarge",
    }
    # awslambdaric itself gives up after a 413; whatever it does, the next caller is served.
    assert shared.invoke("large", 1)["Payload"] == "x"


def test_events_are_accepted_and_run(shared: Server) -> None:
    shared.functions.add("event", "def handler(event, context):\n    print('ran', event)\n")
    for number in range(5):
        answer = shared.client().invoke(
            FunctionName="event", InvocationType="Event", Payload=str(number).encode()
        )
        assert answer["StatusCode"] == 202
    until(lambda: all(f"ran {n}" in shared.log.read_text() for n in range(5)))


STREAM = """
    #!/bin/bash
    # Streams two chunks, the second one only when told to.
    while true; do
        exec 3<>/dev/tcp/127.0.0.1/9001
        printf 'GET /2018-06-01/runtime/invocation/next HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3
        while IFS=$'\\r' read -r line _ <&3 && [ -n "$line" ]; do
            case $line in
                [Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d:*) id=${line#*: } ;;
            esac
        done
        exec 3>&-
        exec 3<>/dev/tcp/127.0.0.1/9001
        printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\\r\\nHost: x\\r\\n' "$id" >&3
        printf 'Transfer-Encoding: chunked\\r\\n' >&3
        printf 'Lambda-Runtime-Function-Response-Mode: streaming\\r\\n\\r\\n5\\r\\nfirst\\r\\n' >&3
        sleep 1.5
        printf '6\\r\\nsecond\\r\\n0\\r\\n\\r\\n' >&3
        read -r -t 1 _ <&3
        exec 3>&-
    done
"""


def test_streaming_chunks_arrive_as_they_are_written(shared: Server) -> None:
    shared.functions.add(
        "stream", textwrap.dedent(STREAM).lstrip(), 'runtime = "provided.al2023"', file="bootstrap"
    )
    answer = shared.client().invoke_with_response_stream(FunctionName="stream", LogType="Tail")
    arrived: list[tuple[float, bytes]] = []
    complete: dict[str, Any] = {}
    for event in answer["EventStream"]:
        if "PayloadChunk" in event:
            arrived.append((time.monotonic(), event["PayloadChunk"]["Payload"]))
        else:
            complete = event["InvokeComplete"]
    assert b"".join(chunk for _, chunk in arrived) == b"firstsecond"
    assert arrived[-1][0] - arrived[0][0] > 1.0
    assert "ErrorCode" not in complete
    assert "REPORT" in base64.b64decode(complete["LogResult"]).decode()


def test_the_aws_cli(shared: Server, tmp_path: Path) -> None:
    aws = Path(sys.executable).with_name("aws")
    assert aws.exists(), "awscli belongs to the locked development dependencies"
    shared.functions.add("cli", ECHO)
    done = subprocess.run(
        [
            aws,
            "lambda",
            "invoke",
            "--endpoint-url",
            shared.url,
            "--region",
            "us-east-1",
            "--function-name",
            "cli",
            "--payload",
            '{"a": 1}',
            str(tmp_path / "out.json"),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
    )
    assert json.loads(done.stdout) == {"StatusCode": 200, "ExecutedVersion": "$LATEST"}
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}


def test_a_caller_that_leaves_does_not_end_its_invocation(shared: Server) -> None:
    shared.functions.add(
        "goes-on",
        """
        import time
        def handler(event, context):
            print('it began', flush=True)
            time.sleep(1)
            print('it went on to its end')
        """,
    )
    host, port = shared.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(
            b"POST /2015-03-31/functions/goes-on/invocations HTTP/1.1\r\n"
            b"Host: localhost\r\nContent-Length: 2\r\n\r\n{}"
        )
        until(lambda: "it began" in shared.log.read_text())
    until(lambda: "it went on to its end" in shared.log.read_text())
    assert shared.log.read_text().count("it began") == 1
