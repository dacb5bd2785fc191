"""`lambox serve` with auth and TLS as it is started, and lambox's own verbs against it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest
from botocore.exceptions import ClientError

from tests.contract.test_tls import make_certificate
from tests.system.conftest import LAMBOX, Functions, Server, Start
from tests.waiting import until

pytestmark = pytest.mark.system
ECHO = "def handler(event, context):\n    print('it ran')\n    return event\n"
SECRETS = {"AKIDONE": "a" * 40, "AKIDTWO": "b" * 40}
TOKEN = "0123456789abcdef0123456789abcdef"


def secret(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def keys(*names: str) -> str:
    return "".join(f'{name} = "{SECRETS[name]}"\n' for name in names)


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    plain = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    return subprocess.run(
        [str(LAMBOX), *args], capture_output=True, text=True, timeout=60, env=plain | env
    )


def client(server: Server, name: str, verify: Any) -> Any:
    return boto3.client(
        "lambda",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=name,
        aws_secret_access_key=SECRETS[name],
        verify=verify,
        config=botocore.config.Config(retries={"max_attempts": 0}, read_timeout=60),
    )


def is_let_in(caller: Any) -> bool:
    try:
        answer = caller.invoke(FunctionName="echo", Payload=b'"hi"')
    except ClientError as exc:
        code = exc.response["Error"]["Code"]
    else:
        return bool(answer["Payload"].read() == b'"hi"')
    assert code == "UnrecognizedClientException"
    return False


def test_signatures_over_tls(start: Start, functions: Functions, tmp_path: Path) -> None:
    functions.add("echo", ECHO)
    certificate, key = make_certificate(tmp_path)
    keys_file = secret(tmp_path / "keys.toml", keys("AKIDONE"))
    settings = {
        "LAMBOX_AUTH": "sigv4",
        "LAMBOX_AUTH_KEYS_FILE": str(keys_file),
        "LAMBOX_TLS_CERT": str(certificate),
        "LAMBOX_TLS_KEY": str(key),
    }
    server = start(**settings)
    assert server.url.startswith("https://127.0.0.1:")
    one, two = (client(server, name, str(certificate)) for name in SECRETS)
    assert is_let_in(one)
    assert not is_let_in(two)

    # A key is added, then the old one taken away; nothing is started anew.
    keys_file.write_text(keys("AKIDONE", "AKIDTWO"))
    until(lambda: is_let_in(two))
    assert is_let_in(one)
    keys_file.write_text(keys("AKIDTWO"))
    until(lambda: not is_let_in(one))
    keys_file.write_text("AKIDTWO = ")
    server.wait_log("is not valid TOML", "what was there before still counts")
    assert is_let_in(two)
    keys_file.write_text(keys("AKIDTWO"))

    # lambox's verbs, with the server's settings: its key, and exactly its certificate.
    port = {"LAMBOX_PORT": server.url.rsplit(":", 1)[1]}
    invoked = run("invoke", "echo", "--payload", "[1]", **settings, **port)
    assert (invoked.returncode, invoked.stdout) == (0, "[1]\n"), invoked.stderr
    assert "it ran" in invoked.stderr
    assert "it ran" in run("logs", "echo", **settings, **port).stdout

    # From elsewhere: AWS's variables and a CA file; without them the mend is told.
    away = {"LAMBOX_ENDPOINT": server.url, "LAMBOX_CA_FILE": str(certificate)}
    signed = {"AWS_ACCESS_KEY_ID": "AKIDTWO", "AWS_SECRET_ACCESS_KEY": SECRETS["AKIDTWO"]}
    assert run("invoke", "echo", "--payload", "[2]", **away, **signed).stdout == "[2]\n"
    refused = run("ps", **away)
    assert refused.returncode == 3
    assert "MissingAuthenticationTokenException: Missing Authentication Token" in refused.stderr
    assert "Hint: LAMBOX_AUTH_TOKEN" in refused.stderr

    # Nothing of this is to be seen from outside, nor in the log.
    for secret_text in SECRETS.values():
        assert secret_text not in server.log.read_text()
        process = Path(f"/proc/{server.process.pid}")
        assert secret_text not in (process / "cmdline").read_text()
        assert secret_text not in (process / "environ").read_text()

    # Plain HTTP has no answer there.
    host, number = server.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(number))) as plain:
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        plain.settimeout(10)
        assert b"HTTP" not in plain.recv(100)


def ask(server: Server, path: str, token: str | None, host: str | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if host is not None:
        headers["Host"] = host
    data = None if path.startswith("/_lambox") else b"[3]"
    request = urllib.request.Request(server.url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, json.load(exc)


def test_tokens(start: Start, functions: Functions, tmp_path: Path) -> None:
    functions.add("echo", ECHO)
    token_file = secret(tmp_path / "token", TOKEN + "\n")
    settings = {"LAMBOX_AUTH": "token", "LAMBOX_AUTH_TOKEN_FILE": str(token_file)}
    server = start(**settings)
    assert ask(server, "/invoke/echo", TOKEN) == (200, [3])
    for token, code in [(None, "MissingAuthenticationToken"), ("x" * 32, "UnrecognizedClient")]:
        for path in ("/invoke/echo", "/_lambox/functions", "/_lambox/logs"):
            status, body = ask(server, path, token)
            assert (status, body["errorType"]) == (403, f"{code}Exception")
    assert ask(server, "/invoke/echo", TOKEN, "evil.example")[1]["errorType"] == (
        "AccessDeniedException"
    )
    # The file's token is for the configured server, not for whichever is named.
    refused = run("ps", **settings, LAMBOX_ENDPOINT=server.url)
    assert "MissingAuthenticationTokenException" in refused.stderr
    port = server.url.rsplit(":", 1)[1]
    assert run("ps", **settings, LAMBOX_PORT=port).returncode == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"LAMBOX_HOST": "0.0.0.0"}, "host = 0.0.0.0: others can reach this address"),
        (
            {"LAMBOX_AUTH": "token", "LAMBOX_AUTH_TOKEN_FILE": "/etc/passwd"},
            "/etc/passwd: has mode 0644, so others may read it. Hint: chmod 600 /etc/passwd",
        ),
    ],
)
def test_what_would_not_protect_is_no_start(
    functions: Functions, settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    state = {"LAMBOX_STATE": str(tmp_path / "state")}
    done = run("serve", "--functions", str(functions.folder), "--port", "0", **settings, **state)
    assert done.returncode == 2
    assert message in done.stderr


def test_everybody_may_call_where_that_is_said(
    start: Start, functions: Functions, tmp_path: Path
) -> None:
    functions.add("echo", ECHO)
    server = start(LAMBOX_HOST="0.0.0.0", LAMBOX_AUTH="none", LAMBOX_ALLOWED_HOSTS="box.lan")
    server.wait_log("WARNING: auth is none: whoever reaches 0.0.0.0 can run functions")
    server.wait_log("WARNING: there is no tls_cert")
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    for host, status in [("10.1.2.3:9000", 200), ("box.lan", 200), ("evil.example", 403)]:
        assert ask(server, "/invoke/echo", None, host)[0] == status
