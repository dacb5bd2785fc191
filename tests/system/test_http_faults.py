"""What a runtime gets from Runtime APIs that it has no business with, or not any more. The slower ones that
misbehave are in `tests/faults/test_http.py`."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Server

pytestmark = pytest.mark.system

RAW = """
import json, os, socket, time
API = "/2018-06-01/runtime/"

def connect():
    host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
    return socket.create_connection((host, int(port)))

def request(method, path, length=None, headers=""):
    size = "" if length is None else f"Content-Length: {length}\\r\\n"
    return f"{method} {API}{path} HTTP/1.1\\r\\nHost: 127.0.0.1:9001\\r\\n{size}{headers}\\r\\n".encode()

def ask(method, path, body=None):
    with connect() as sock:
        sock.sendall(request(method, path, None if body is None else len(body)) + (body or b""))
        return int(sock.recv(65536).split()[1])
"""


def hostile(server: Server, name: str, handler: str, toml: str = "") -> None:
    server.functions.add(name, "", toml)
    (server.functions.folder / name / "handler.py").write_text(RAW + handler)


def test_the_second_answer_is_refused(shared: Server) -> None:
    hostile(
        shared,
        "twice",
        """
def handler(event, context):
    if event == "again":
        return "fifth"
    path = f"invocation/{context.aws_request_id}/response"
    statuses = [ask("POST", path, body) for body in (b'"first"', b'"second"', b'"third"')]
    statuses.append(ask("POST", path.replace("response", "error"), b"{}"))
    print(f"statuses of twice: {statuses}", flush=True)
    return "fourth"
""",
    )
    assert shared.invoke("twice", "go")["Payload"] == "first"
    shared.wait_log("statuses of twice: [202, 403, 403, 403]")
    # awslambdaric ends when its own answer is refused: the next environment serves.
    assert shared.invoke("twice", "again")["Payload"] == "fifth"


def test_an_answer_for_somebody_else_is_refused(shared: Server) -> None:
    hostile(
        shared,
        "forger",
        """
def handler(event, context):
    return [
        ask("POST", f"invocation/{event}/{what}", body)
        for what in ("response", "error")
        for body in (b'"forged"', b'{"errorType":"Forged"}')
    ]
""",
    )
    shared.functions.add(
        "victim",
        """
        import time
        def handler(event, context):
            print("victim began " + context.aws_request_id, flush=True)
            time.sleep(2)
            return "its own"
        """,
    )
    found: list[Any] = []
    request_id = str(uuid.uuid4())

    def invoke() -> None:
        client = shared.client()
        client.meta.events.register(
            "before-sign.lambda",
            lambda request, **_: request.headers.add_header("x-amzn-RequestId", request_id),
        )
        found.append(json.load(client.invoke(FunctionName="victim", Payload=b"1")["Payload"]))

    thread = threading.Thread(target=invoke)
    thread.start()
    shared.wait_log(f"victim began {request_id}")
    assert shared.invoke("forger", request_id)["Payload"] == [400] * 4
    thread.join(30)
    assert found == ["its own"]


def test_the_runtime_api_of_another_environment_says_nothing(shared: Server) -> None:
    """On the host's network, where every environment's port can be reached by all."""
    online = 'network = "host"\nfreeze = false\n'
    hostile(
        shared,
        "there",
        "def handler(event, context):\n    return os.environ['AWS_LAMBDA_RUNTIME_API']\n",
        online,
    )
    hostile(
        shared,
        "stranger",
        """
def handler(event, context):
    host, port = event["address"].split(":")
    answers = []
    for path in ("invocation/next", "invocation/x/response", "../ping"):
        with socket.create_connection((host, int(port))) as sock:
            try:
                sock.sendall(request("GET", path))
                answers.append(sock.recv(100).decode())
            except ConnectionError:
                answers.append("")
    return answers
""",
        online,
    )
    address = shared.invoke("there")["Payload"]
    assert shared.invoke("stranger", {"address": address})["Payload"] == ["", "", ""]
    assert shared.invoke("there")["Payload"] == address


def test_a_browser_on_the_host_gets_nothing_of_a_runtime_api(
    shared: Server, tmp_path: Path
) -> None:
    """Whoever sends it: nothing in an environment is a browser."""
    hostile(
        shared,
        "named",
        """
def handler(event, context):
    host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
    statuses = []
    for lines in event:
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(f"GET {API}invocation/next HTTP/1.1\\r\\n{lines}\\r\\n".encode())
            statuses.append(int(sock.recv(100).split()[1]))
    return statuses
""",
        'network = "host"\nfreeze = false\n',
    )
    lines = [
        "Host: evil.example:9001\r\n",
        "Host: 127.0.0.1:9001\r\nOrigin: http://evil.example\r\n",
        "Host: 127.0.0.1:9001\r\nSec-Fetch-Site: cross-site\r\n",
    ]
    assert shared.invoke("named", lines)["Payload"] == [403, 403, 403]
