"""Function URLs with real handlers: powertools, Node.js streams; curl, the AWS CLI, a browser's preflight."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Server
from tests.system.powertools import layer

pytestmark = pytest.mark.system

AWS = Path(sys.executable).with_name("aws")
ORDERS = """
from aws_lambda_powertools.event_handler import (
    LambdaFunctionUrlResolver, Response, content_types,
)
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.shared.cookies import Cookie

app = LambdaFunctionUrlResolver()

@app.get("/orders/<number>")
def get_order(number):
    event = app.current_event
    if number == "0":
        raise NotFoundError("no such order")
    return {"number": number, "tag": event.query_string_parameters["tag"], "cookies": event.cookies,
            "agent": event.request_context.http.user_agent, "raw": event.raw_path}

@app.post("/orders")
def post_order():
    return Response(201, content_types.APPLICATION_JSON, app.current_event.json_body,
                    headers={"X-Order": "7"}, cookies=[Cookie("a", "1"), Cookie("b", "2")])

@app.post("/upload")
def upload():
    return Response(200, "image/png", app.current_event.decoded_body.encode()[::-1])

def handler(event, context):
    return app.resolve(event, context)
"""
STREAM = """
export const handler = awslambda.streamifyResponse(async (event, stream) => {
  stream = awslambda.HttpResponseStream.from(stream, {
    statusCode: 201, headers: {"content-type": "text/plain", "x-a": "b"}, cookies: ["c=1", "d=2"],
  });
  stream.write("first\\n");
  await new Promise((resolve) => setTimeout(resolve, 1000));
  if (event.rawPath === "/fail") throw new Error("midway");
  stream.end("last\\n");
});
"""
WHO = """
def handler(event, context):
    return {"arn": context.invoked_function_arn, "id": context.aws_request_id,
            "same": context.aws_request_id == event["requestContext"]["requestId"]}
"""


def curl(url: str, *more: str) -> tuple[int, list[tuple[str, str]], str]:
    """(status, headers, body), as curl gets them, which finds *.localhost by itself."""
    ran = subprocess.run(
        ["curl", "-sS", "-i", "--max-time", "30", *more, url],
        capture_output=True,
        check=True,
        timeout=40,
    )
    head, _, body = ran.stdout.decode("latin-1").partition("\r\n\r\n")
    line, *lines = head.split("\r\n")
    pairs = [(name.lower(), value) for name, _, value in (one.partition(": ") for one in lines)]
    return int(line.split(" ")[1]), pairs, body


def url_of(server: Server, name: str) -> str:
    (row,) = [row for row in server.get("/_lambox/functions") if row["name"] == name]
    (url,) = row["urls"]
    assert isinstance(url, str)
    return url


def test_powertools_resolver(shared: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = layer(tmp_path_factory.mktemp("layer"))
    for folder in (made, *made.parents[:2]):
        folder.chmod(0o755)
    toml = f'layers = ["{made}"]\n[url]\nauth_type = "NONE"\n'
    shared.functions.add(
        "orders", ORDERS, toml + '[url.cors]\nallow_origins = ["https://app.example"]\n'
    )
    url = url_of(shared, "orders")
    status, _, body = curl(url + "orders/a%20b?tag=x&tag=y", "-b", "s=1; t=2", "-A", "me")
    assert status == 200
    assert json.loads(body) == {
        "number": "a%20b",
        "tag": "x,y",
        "cookies": ["s=1", "t=2"],
        "agent": "me",
        "raw": "/orders/a%20b",
    }
    status, headers, body = curl(url + "orders", "--json", '{"sum":1}')
    assert (status, json.loads(body)) == (201, {"sum": 1})
    assert ("x-order", "7") in headers
    assert [value.split(";")[0] for name, value in headers if name == "set-cookie"] == [
        "a=1",
        "b=2",
    ]
    status, headers, body = curl(
        url + "upload", "--data-binary", "abc", "-H", "content-type: image/png"
    )
    assert (status, body, dict(headers)["content-type"]) == (200, "cba", "image/png")
    assert curl(url + "orders/0?tag=x")[0] == 404
    assert curl(url + "nowhere")[0] == 404
    status, headers, body = curl(
        url + "orders",
        *("-X", "OPTIONS", "-H", "Origin: https://app.example"),
        *("-H", "Access-Control-Request-Method: GET", "-H", "Sec-Fetch-Site: cross-site"),
    )
    assert (status, body) == (200, "")
    assert ("access-control-allow-origin", "https://app.example") in headers
    assert (
        curl(url, "-H", "Origin: https://evil.example", "-H", "Sec-Fetch-Site: cross-site")[0]
        == 403
    )


def test_node_streams(shared: Server) -> None:
    toml = '[url]\nauth_type = "NONE"\ninvoke_mode = "RESPONSE_STREAM"\n'
    shared.functions.add("streams", STREAM, toml, file="index.mjs")
    host = url_of(shared, "streams").removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection("127.0.0.1", int(host.rpartition(":")[2]), timeout=30)
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["x-a"]) == (201, "b")
    assert answer.headers.get_all("set-cookie") == ["c=1", "d=2"]
    assert answer.readline() == b"first\n"
    began = time.monotonic()
    assert answer.read() == b"last\n"
    assert time.monotonic() - began > 0.2
    connection.request("GET", "/fail", headers={"Host": host})
    answer = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    connection.close()
    # Collected, where the URL does not stream.
    shared.functions.add("streams", STREAM, '[url]\nauth_type = "NONE"\n', file="index.mjs")
    status, headers, body = curl(f"http://{host}/")
    assert (status, body, dict(headers)["content-length"]) == (201, "first\nlast\n", "11")
    assert curl(f"http://{host}/fail")[0] == 502


def test_the_aws_cli_makes_a_url(shared: Server, tmp_path: Path) -> None:
    shared.functions.add("who", WHO)
    environ = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }

    def aws(*words: str) -> Any:
        command = [str(AWS), "--endpoint-url", shared.url, "lambda", *words]
        ran = subprocess.run(command, env=environ, capture_output=True, check=True, timeout=60)
        return json.loads(ran.stdout)

    made = aws("create-function-url-config", "--function-name", "who", "--auth-type", "NONE")
    url = made["FunctionUrl"]
    assert made["FunctionArn"] == "arn:aws:lambda:us-east-1:123456789012:function:who"
    status, _, body = curl(url)
    assert (status, json.loads(body)["Message"][:9]) == (403, "Forbidden")
    shared.client().add_permission(
        FunctionName="who",
        StatementId="public",
        Action="lambda:InvokeFunctionUrl",
        Principal="*",
        FunctionUrlAuthType="NONE",
    )
    status, headers, body = curl(url + "any/path")
    told = json.loads(body)
    assert (status, told["arn"], told["same"]) == (200, made["FunctionArn"], True)
    assert dict(headers)["x-amzn-requestid"] == told["id"]
    shared.wait_log(f"REPORT RequestId: {told['id']}")
    by_path = f"{shared.url}/{url.removeprefix('http://').partition('.')[0]}/x"
    status, headers, body = curl(by_path)
    assert (status, json.loads(body)["same"]) == (200, True)
    assert dict(headers)["content-security-policy"].startswith("sandbox")
