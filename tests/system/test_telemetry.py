"""Logs and telemetry of real functions on a real server: JSON logs, and subscribers inside environments."""

from __future__ import annotations

import base64
import io
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Server
from tests.unit.test_events import check
from tests.waiting import until

pytestmark = pytest.mark.system

SUBSCRIBER = """
import http.client, http.server, json, os, socket, sys, threading

API = os.environ["AWS_LAMBDA_RUNTIME_API"]
events = []

def ask(method, path, body=None, **headers):
    connection = http.client.HTTPConnection(API)
    connection.request(method, path, body and json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()

def register(name, *events):
    status, headers, _ = ask("POST", "/2020-01-01/extension/register", {"events": events},
                             **{"Lambda-Extension-Name": name})
    assert status == 200, status
    return headers["Lambda-Extension-Identifier"]

def subscribe(identifier, destination, path="/2022-07-01/telemetry", **more):
    return ask("PUT", path, {
        "schemaVersion": "2022-12-13", "types": ["platform", "function", "extension"],
        "buffering": {"timeoutMs": 25, "maxItems": 1000, "maxBytes": 262144},
        "destination": destination, **more,
    }, **{"Lambda-Extension-Identifier": identifier})

def wait_for_events(identifier):
    while True:
        ask("GET", "/2020-01-01/extension/event/next", **{"Lambda-Extension-Identifier": identifier})

class Sink(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        events.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass

def listen_http():
    server = http.server.ThreadingHTTPServer(("sandbox.localdomain", 0), Sink)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{server.server_port}/in"}
"""

INTERNAL = (
    SUBSCRIBER
    + """
identifier = register("inner")
destination = listen_http()
refused = subscribe(identifier, {"protocol": "TCP", "port": 9001})
first = subscribe(identifier, destination)
other = subscribe(identifier, destination, path="/2020-08-15/logs", schemaVersion="2021-03-18")
threading.Thread(target=wait_for_events, args=(identifier,), daemon=True).start()
print("imported")

def handler(event, context):
    print("hello", event)
    if event == "late":
        return subscribe(identifier, destination, schemaVersion="2022-07-01")[0], [], []
    return [one[0] for one in (refused, first, other)], events, socket.gethostbyname("sandbox")
"""
)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [
        one["type"] if one["type"].startswith("platform") else str(one["record"]) for one in events
    ]


@pytest.mark.parametrize("network", ["none", "host"])
def test_a_subscriber_in_the_handlers_process_gets_everything(shared: Server, network: str) -> None:
    name = f"on-{network}"
    shared.functions.add(name, INTERNAL, f'network = "{network}"')
    first = shared.invoke(name, 1)
    assert "FunctionError" not in first, first["Payload"]
    statuses, events, address = first["Payload"]
    assert statuses == [400, 200, 400]
    assert address == "127.0.0.1"

    def before_second() -> list[str]:
        nonlocal events
        events = shared.invoke(name, 2)["Payload"][1]
        return kinds(events)

    until(lambda: "platform.report" in before_second())
    found = kinds(events)
    for one in events:
        if one["type"].startswith("platform"):
            check(one)
    # What came before the subscription, and itself.
    assert found[0] == "platform.initStart"
    assert "platform.telemetrySubscription" in found[:3]
    order = ["platform.initRuntimeDone", "platform.initReport", "platform.start", "hello 1"]
    order += ["platform.runtimeDone", "platform.report"]
    assert [one for one in found if one in order][: len(order)] == order
    assert "imported" in found
    report = next(one["record"] for one in events if one["type"] == "platform.report")
    assert report["requestId"] == first["ResponseMetadata"]["RequestId"]
    assert report["metrics"]["initDurationMs"] > 0
    done = next(one["record"] for one in events if one["type"] == "platform.runtimeDone")
    assert [span["name"] for span in done["spans"]] == [
        "responseLatency",
        "responseDuration",
        "runtimeOverhead",
    ]
    assert shared.invoke(name, "late")["Payload"][0] == 403
    shared.wait_log(
        "TELEMETRY\tName: inner\tState: Subscribed\tTypes: [Platform, Function, Extension]"
    )


def test_what_waits_is_delivered_before_an_environment_is_frozen(shared: Server) -> None:
    patient = INTERNAL.replace('"timeoutMs": 25', '"timeoutMs": 30000')
    shared.functions.add("patient", patient)
    assert kinds(shared.invoke("patient", 1)["Payload"][1]) == []
    until(lambda: shared.environments("patient")[0]["state"] == "frozen")
    assert "platform.report" in kinds(shared.invoke("patient", 2)["Payload"][1])


EXTERNAL = (
    "#!/var/lang/bin/python3 -uSB\n"
    + SUBSCRIBER
    + """
identifier = register("agent", "INVOKE", "SHUTDOWN")
listener = socket.create_server(("127.0.0.1", 0))
status = subscribe(identifier, {"protocol": "TCP", "port": listener.getsockname()[1]})[0]
print("subscribed", status)

def read():
    for line in listener.accept()[0].makefile():
        one = json.loads(line)
        kind = one["type"] if one["type"].startswith("platform") else one["type"] + " " + one["record"]
        if kind.startswith(("platform", "function")):
            print("got", kind)

threading.Thread(target=read, daemon=True).start()
while True:
    _, _, body = ask("GET", "/2020-01-01/extension/event/next",
                     **{"Lambda-Extension-Identifier": identifier})
    if json.loads(body)["eventType"] == "SHUTDOWN":
        print("shut down")
        sys.exit()
"""
)


def test_an_external_extension_reads_telemetry_over_tcp_and_prints_to_the_log(
    shared: Server,
) -> None:
    agent = shared.functions.folder / "_layer" / "extensions" / "agent"
    agent.parent.mkdir(parents=True)
    agent.write_text(EXTERNAL)
    agent.chmod(0o755)
    shared.functions.add(
        "agentful",
        "def handler(event, context):\n    print('worked')\n",
        'layers = ["../_layer"]\nidle_timeout = 0.5\n',
    )
    answer = shared.invoke("agentful")
    assert "FunctionError" not in answer, answer["Payload"]
    request_id = answer["ResponseMetadata"]["RequestId"]
    shared.wait_log(
        "[agentful] subscribed 200",
        "[agentful] EXTENSION\tName: agent\tState: Ready\tEvents: [INVOKE, SHUTDOWN]",
        "[agentful] got platform.initStart",
        "[agentful] got platform.extension",
        "[agentful] got function worked",
        "[agentful] got platform.runtimeDone",
        "[agentful] got platform.report",
        "[agentful] shut down",
        f"[agentful] END RequestId: {request_id}",
    )


HOSTILE = (
    SUBSCRIBER
    + """
identifier = register("hostile")
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
subscribe(identifier, {"protocol": "HTTP", "URI": f"http://sandbox.localdomain:{port}"})
threading.Thread(target=wait_for_events, args=(identifier,), daemon=True).start()

def handler(event, context):
    if event:
        os.write(1, (b"x" * 100 + bytes([10])) * 10_000)
"""
)


@pytest.mark.slow
def test_one_who_never_reads_holds_up_nobody(shared: Server) -> None:
    shared.functions.add("hostile", HOSTILE)
    for number in range(5):
        answer = shared.invoke("hostile", number % 2)
        assert "FunctionError" not in answer, answer["Payload"]
    began = time.monotonic()
    for _ in range(10):
        shared.invoke("hostile", 0)
    assert time.monotonic() - began < 2
    # And it is frozen all the same, a moment later.
    until(lambda: shared.environments("hostile")[0]["state"] == "frozen")


JSON_HANDLER = """
import logging, os
log = logging.getLogger()

def handler(event, context):
    print("printed")
    log.debug("not this")
    log.warning("careful", extra={"size": 3})
    return [os.environ["AWS_LAMBDA_LOG_FORMAT"], os.environ["AWS_LAMBDA_LOG_LEVEL"], context.log_group_name]
"""


@pytest.mark.parametrize("level", ["INFO", "WARN"])
def test_a_json_log_with_awss_client(shared: Server, level: str) -> None:
    name = f"json-{level.lower()}"
    shared.functions.add(
        name,
        JSON_HANDLER,
        f"""
        log_format = "JSON"
        application_log_level = "{level}"
        log_group = "/my/group"
        """,
    )
    answer = shared.invoke(name, LogType="Tail")
    assert answer["Payload"] == ["JSON", level, "/my/group"]
    lines = base64.b64decode(answer["LogResult"]).decode().splitlines()
    plain = [line for line in lines if not line.startswith("{")]
    assert plain == (["printed"] if level == "INFO" else [])
    parsed = [json.loads(line) for line in lines if line.startswith("{")]
    request_id = answer["ResponseMetadata"]["RequestId"]
    start, *logged, report = parsed
    check(start)
    check(report)
    assert (start["type"], report["type"]) == ("platform.start", "platform.report")
    assert start["record"]["requestId"] == report["record"]["requestId"] == request_id
    assert [(one["level"], one["message"], one["requestId"]) for one in logged] == [
        ("WARNING" if logged[0]["level"] == "WARNING" else "WARN", "careful", request_id)
    ]
    assert logged[0]["size"] == 3
    shared.wait_log('"type":"platform.initStart"')


def test_an_uncaught_error_is_one_json_object(shared: Server) -> None:
    shared.functions.add(
        "json-broken", "def handler(event, context):\n    1 / 0\n", 'log_format = "JSON"'
    )
    answer = shared.invoke("json-broken", LogType="Tail")
    assert answer["FunctionError"] == "Unhandled"
    lines = base64.b64decode(answer["LogResult"]).decode().splitlines()
    errors = [json.loads(line) for line in lines if "ZeroDivisionError" in line]
    assert len(errors) == 1
    assert errors[0]["errorType"] == "ZeroDivisionError"


def test_levels_with_text_are_refused_when_the_file_is_read(shared: Server) -> None:
    path: Path = shared.functions.add(
        "wrong-level", "def handler(event, context): pass", 'system_log_level = "INFO"'
    )
    rows = {row["name"]: row for row in shared.get("/_lambox/functions")}
    problem = rows["wrong-level"]["problem"]
    assert f"{path.parent}/function.toml:1: system_log_level" in problem
    assert 'LogLevel is not supported when LogFormat is set to "Text".' in problem


def zipped(code: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("handler.py", code)
    return packed.getvalue()


def test_a_logging_config_is_set_and_changed_by_the_lambda_api(shared: Server) -> None:
    client = shared.client()
    created = client.create_function(
        FunctionName="configured",
        Runtime=f"python3.{sys.version_info.minor}",
        Role="arn:aws:iam::123456789012:role/r",
        Handler="handler.handler",
        Code={
            "ZipFile": zipped("def handler(event, context):\n    return context.log_group_name\n")
        },
        LoggingConfig={"LogFormat": "JSON", "SystemLogLevel": "WARN", "LogGroup": "/mine"},
    )
    assert created["LoggingConfig"] == {
        "LogFormat": "JSON",
        "ApplicationLogLevel": "INFO",
        "SystemLogLevel": "WARN",
        "LogGroup": "/mine",
    }
    client.get_waiter("function_active_v2").wait(FunctionName="configured")
    answer = shared.invoke("configured", LogType="Tail")
    assert answer["Payload"] == "/mine"
    assert base64.b64decode(answer["LogResult"]) == b""  # nothing of level WARN happened
    with pytest.raises(client.exceptions.InvalidParameterValueException) as refused:
        client.update_function_configuration(
            FunctionName="configured",
            LoggingConfig={"LogFormat": "Text", "SystemLogLevel": "WARN"},
        )
    assert refused.value.response["message"].startswith(
        'LogLevel is not supported when LogFormat is set to "Text". '
    )
    client.update_function_configuration(
        FunctionName="configured", LoggingConfig={"LogFormat": "Text"}
    )
    client.get_waiter("function_updated_v2").wait(FunctionName="configured")
    answer = shared.invoke("configured", LogType="Tail")
    assert base64.b64decode(answer["LogResult"]).startswith(b"START RequestId: ")
