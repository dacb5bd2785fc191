"""Requests with code: proven, slow, too large, many at a time; over real HTTP, signed by boto3."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore import UNSIGNED
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from runtimeapi.control.face import LARGE_AT_ONCE, MAX_BODY, MAX_CODE_BODY
from runtimeapi.guard import Guard, TokenAuth
from runtimeapi.sigv4 import MISMATCH, SigV4
from tests.contract.fakes import REGION
from tests.contract.lambda_api import HANDLER, PYTHON, ROLE, Api, client_of, serving, zipped

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEYS = {"AKIDEXAMPLE": SECRET}
CREATE = "/2015-03-31/functions"
LARGE = 7 * 1024 * 1024
"""Bytes: more than Invoke takes."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    guard = Guard(auth=SigV4(KEYS.get, region=REGION))
    with serving(tmp_path_factory.mktemp("bodies"), guard=guard) as api:
        api.client.close()
        api.client = signed_client(api)
        yield api


def signed_client(api: Api, secret: str = SECRET) -> Any:
    return client_of(api.url, key="AKIDEXAMPLE", secret=secret)


def package(size: int = LARGE) -> bytes:
    return zipped({"index.py": HANDLER, "data": os.urandom(size)})


def asked(name: str, code: bytes) -> dict[str, Any]:
    return {
        "FunctionName": name,
        "Runtime": PYTHON,
        "Handler": "index.handler",
        "Role": ROLE,
        "Code": {"ZipFile": code},
    }


def head(
    api: Api, path: str, size: int, *, body_hash: str | None = None, secret: str = SECRET
) -> bytes:
    """Of a signed request for a body of this size."""
    request = AWSRequest("POST", api.url + path, data=b"")
    if body_hash is not None:
        request.headers["x-amz-content-sha256"] = body_hash
    SigV4Auth(Credentials("AKIDEXAMPLE", secret), "lambda", REGION).add_auth(request)
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(api.url).netloc}",
        f"Content-Length: {size}",
    ]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def connected(api: Api) -> socket.socket:
    found = urlsplit(api.url)
    return socket.create_connection((found.hostname, found.port), timeout=10)


def answer(sock: socket.socket) -> tuple[int, bytes]:
    """Status, and what came of the rest."""
    data = b""
    while b"\r\n\r\n" not in data or not data.endswith(b"}"):
        more = sock.recv(65536)
        if not more:
            break
        data += more
    return int(data.split(b" ", 2)[1]), data


def test_boto3_creates_with_large_code(api: Api) -> None:
    code = package()
    created = api.create("large", Code={"ZipFile": code})
    assert created["CodeSize"] == len(code)
    published = api.client.get_function(FunctionName="large")["Configuration"]
    assert published["CodeSha256"] == created["CodeSha256"]
    # Nothing of it is left where it waited.
    assert not [one for one in (api.state / "code").rglob("*") if one.name.startswith("tmp")]


def test_a_wrong_key_creates_nothing(api: Api) -> None:
    wrong = signed_client(api, "d" * 40)
    with pytest.raises(wrong.exceptions.ClientError) as caught:
        wrong.create_function(**asked("stranger", package()))
    wrong.close()
    assert caught.value.response["Error"]["Code"] == "InvalidSignatureException"
    assert "stranger" not in str(api.client.list_functions())


def test_a_head_that_proves_nothing_is_refused_before_the_body(api: Api) -> None:
    """Where the client tells the body's hash (as S3's do) the signature is checked first."""
    with connected(api) as sock:
        sock.sendall(head(api, CREATE, 60_000_000, body_hash="0" * 64, secret="d" * 40))
        status, data = answer(sock)
    assert status == 403
    assert MISMATCH.encode() in data


def test_a_body_that_is_not_the_one_that_was_signed(api: Api) -> None:
    signed, sent = b'{"a": 1}' + b" " * 400_000, b'{"a": 2}' + b" " * 400_000
    with connected(api) as sock:
        told = hashlib.sha256(signed).hexdigest()
        sock.sendall(head(api, CREATE, len(sent), body_hash=told) + sent)
        assert answer(sock)[0] == 403
    with connected(api) as sock:
        told = hashlib.sha256(sent).hexdigest()
        sock.sendall(head(api, CREATE, len(sent), body_hash=told) + sent)
        status, data = answer(sock)
    assert (status, b"ValidationException" in data) == (400, True)


def test_one_byte_too_many(api: Api) -> None:
    with connected(api) as sock:
        sock.sendall(head(api, CREATE, MAX_CODE_BODY + 1, body_hash="0" * 64))
        status, data = answer(sock)
    assert status == 413
    assert b"x-amzn-errortype: requestentitytoolargeexception" in data.lower()
    assert data.endswith(
        b'{"message":"Request must be smaller than 70167211 bytes for the CreateFunction operation"}'
    )


def test_slow_senders_are_in_nobodys_way(api: Api) -> None:
    """More of them than there may be large bodies in memory."""
    slow = [connected(api) for _ in range(5)]
    try:
        for sock in slow:
            sock.sendall(head(api, CREATE, 60_000_000) + b"x" * 700_000)
        assert api.create("meanwhile", Code={"ZipFile": package()})["FunctionName"] == "meanwhile"
    finally:
        for sock in slow:
            sock.close()


def test_two_are_in_memory_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    store = api.behind.control.code
    put, both = store.put, threading.Barrier(LARGE_AT_ONCE)
    inside: list[int] = []
    seen: list[int] = []

    def counted(*given: Any, **more: Any) -> Any:
        inside.append(1)
        seen.append(len(inside))
        both.wait(20)  # until as many as may are here
        seen.append(len(inside))
        inside.pop()
        return put(*given, **more)

    monkeypatch.setattr(store, "put", counted)
    code = package(2 * MAX_BODY)

    def create(number: int) -> None:
        client = signed_client(api)
        client.create_function(**asked(f"one-of-many-{number}", code))
        client.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(4)))
    assert max(seen) == LARGE_AT_ONCE


def test_a_token_is_enough_for_large_code(tmp_path: Path) -> None:
    with serving(tmp_path, guard=Guard(auth=TokenAuth(lambda: [b"token"]))) as api:
        client = boto3.client(
            "lambda",
            endpoint_url=api.url,
            region_name=REGION,
            config=Config(signature_version=UNSIGNED, retries={"max_attempts": 0}),
        )
        client.meta.events.register("before-send.lambda.*", _with_token)
        created = client.create_function(**asked("large", package()))
        assert created["State"] == "Pending"
        client.close()


def _with_token(request: Any, **_: Any) -> None:
    request.headers["Authorization"] = "Bearer token"
