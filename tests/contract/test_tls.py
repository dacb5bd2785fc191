"""`tls_cert`: boto3, the AWS CLI and lambox's own verbs over HTTPS; what speaks no TLS is cut."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import trio
from botocore.config import Config
from botocore.exceptions import ClientError, SSLError

from lambox.callers import CallersFace
from lambox.client import Server, Unreachable
from lambox.config import load
from lambox.secretfiles import BadSecretFile, load_certificate
from runtimeapi.guard import Guard
from runtimeapi.room import SMALL
from runtimeapi.server import CallerLimits, tls_context
from runtimeapi.sigv4 import SigV4
from tests.contract.fakes import LANES, REGION, Callers
from tests.contract.wire import Wire, chunked, connect, head

INVOKE = "/2015-03-31/functions/hello/invocations"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def make_certificate(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """(certificate, key), made by openssl(1), signed by itself."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = f"-subj /CN={name} -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    subprocess.run(
        ["openssl", *kind.split(), *names.split(), "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=30,
    )
    key.chmod(0o600)
    return certificate, key


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def context(pem: tuple[Path, Path]) -> ssl.SSLContext:
    context = tls_context()
    load_certificate(context, *pem)
    return context


@pytest.fixture
async def callers(context: ssl.SSLContext) -> AsyncIterator[Callers]:
    guard = Guard(auth=SigV4({"AKIDEXAMPLE": SECRET}.get, region=REGION))
    limits = CallerLimits(header_timeout_s=0.5)
    with trio.fail_after(60):
        async with LANES["fast"][0](guard=guard, limits=limits, secure=lambda: context) as served:
            yield served


def url(callers: Callers) -> str:
    return f"https://localhost:{callers.address[1]}"


def boto(callers: Callers, verify: Any) -> Any:
    return boto3.client(
        "lambda",
        endpoint_url=url(callers),
        region_name=REGION,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key=SECRET,
        verify=verify,
        config=Config(retries={"max_attempts": 0}, read_timeout=20),
    )


async def call(operation: Callable[..., Any], *args: Any, **arguments: Any) -> Any:
    return await trio.to_thread.run_sync(
        partial(operation, *args, **arguments), abandon_on_cancel=True
    )


@pytest.mark.trio
async def test_boto3(callers: Callers, pem: tuple[Path, Path]) -> None:
    client = boto(callers, str(pem[0]))
    for payload in (b'{"a":1}', b'"' + b"x" * 6_000_000 + b'"'):
        answer = await call(client.invoke, FunctionName="hello", Payload=payload)
        assert await call(answer["Payload"].read) == payload
    with pytest.raises(ClientError, match="Function not found"):
        await call(client.invoke, FunctionName="nope")
    with pytest.raises(SSLError):
        await call(boto(callers, True).invoke, FunctionName="hello")
    client.close()


@pytest.mark.trio
async def test_the_aws_cli(callers: Callers, pem: tuple[Path, Path], tmp_path: Path) -> None:
    command = (
        f"--endpoint-url {url(callers)} --region {REGION} lambda invoke --function-name hello "
        f"--payload '{{\"a\":1}}' {tmp_path / 'out'}"
    )

    def aws(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("aws"), *shlex.split(command), *more],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_CA_BUNDLE": str(pem[0]),
                "AWS_MAX_ATTEMPTS": "1",
                "HOME": str(tmp_path),
            },
        )

    done = await call(aws)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["StatusCode"] == 200
    assert (tmp_path / "out").read_text() == '{"a":1}'


async def secured(callers: Callers, pem: tuple[Path, Path]) -> Wire:
    trusting = ssl.create_default_context(cafile=str(pem[0]))
    stream = await trio.open_tcp_stream(*callers.address)
    tls = trio.SSLStream(stream, trusting, server_hostname="localhost", https_compatible=True)
    await tls.do_handshake()
    return Wire(tls)  # type: ignore[arg-type]


@pytest.mark.trio
async def test_many_requests_on_one_connection(
    context: ssl.SSLContext, pem: tuple[Path, Path]
) -> None:
    with trio.fail_after(30):
        async with LANES["fast"][0](secure=lambda: context) as served:
            wire = await secured(served, pem)
            async with wire:
                for body in (b"1", b'"' + b"y" * 1_000_000 + b'"', b"{}"):
                    assert (await wire.ask("POST", INVOKE, body)).body == body
                await wire.send(head("POST", INVOKE, {"Transfer-Encoding": "chunked"}))
                await wire.send(chunked(b"[1,", b"2]"))
                assert (await wire.answer()).body == b"[1,2]"
                assert (await wire.ask("GET", "/healthz")).status == 200


@pytest.mark.trio
async def test_old_versions_and_other_protocols_are_refused(
    callers: Callers, pem: tuple[Path, Path], context: ssl.SSLContext
) -> None:
    # No client here would speak an older one either.
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    trusting = ssl.create_default_context(cafile=str(pem[0]))
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    stream = await trio.open_tcp_stream(*callers.address)
    tls = trio.SSLStream(stream, trusting, server_hostname="localhost", https_compatible=True)
    await tls.do_handshake()
    assert tls.selected_alpn_protocol() == "http/1.1"
    await trio.aclose_forcefully(tls)


@pytest.mark.trio
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", head("GET", "/healthz", {}), b"\x00" * 999])
async def test_who_speaks_no_tls_is_cut(
    callers: Callers, pem: tuple[Path, Path], sent: bytes
) -> None:
    """Silence ends with `header_timeout_s`; meanwhile others are served."""
    async with await connect(callers.address) as wire:
        if sent:
            await wire.send(sent)
        async with await secured(callers, pem) as good:
            assert (await good.ask("GET", "/healthz")).status == 200
        received = b""
        try:
            while data := await wire.stream.receive_some():
                received += data
        except trio.BrokenResourceError:
            pass
        assert b"HTTP" not in received


@pytest.mark.trio
async def test_a_renewed_certificate_counts_for_new_connections(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path)
    flags = {"tls_cert": str(pem[0]), "tls_key": str(pem[1]), "state": str(tmp_path / "state")}
    face = CallersFace(load(flags, environ={}))
    with trio.fail_after(30):
        async with (
            LANES["fast"][0](secure=face.secure) as served,
            await secured(served, pem) as before,
        ):
            old = pem[0].read_text()
            make_certificate(tmp_path)
            assert pem[0].read_text() != old
            face.refresh()
            async with await secured(served, pem) as after:
                assert (await after.ask("GET", "/healthz")).status == 200
            assert (await before.ask("GET", "/healthz")).status == 200


@pytest.mark.trio
async def test_half_a_renewal_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate is new, its key is not there yet: what was there before still counts, as the log says."""
    pem = make_certificate(tmp_path)
    flags = {"tls_cert": str(pem[0]), "tls_key": str(pem[1]), "state": str(tmp_path / "state")}
    face = CallersFace(load(flags, environ={}))
    old = tmp_path / "old.pem"
    old.write_bytes(pem[0].read_bytes())
    with trio.fail_after(30):
        async with LANES["fast"][0](secure=face.secure) as served:
            key = pem[1].read_bytes()
            make_certificate(tmp_path)
            pem[1].write_bytes(key)
            face.refresh()
            assert "what was there before still counts" in caplog.text
            async with await secured(served, (old, pem[1])) as wire:
                assert (await wire.ask("GET", "/healthz")).status == 200


def test_a_certificate_of_another_key_is_told(tmp_path: Path, pem: tuple[Path, Path]) -> None:
    certificate, _ = make_certificate(tmp_path)
    with pytest.raises(
        BadSecretFile, match="no certificate with its private key: KEY_VALUES_MISMATCH"
    ):
        load_certificate(tls_context(), certificate, pem[1])


def test_an_encrypted_key_is_told_and_no_password_asked_for(
    tmp_path: Path, pem: tuple[Path, Path]
) -> None:
    key = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", pem[1], "-aes128", "-passout", "pass:secret", "-out", key],
        check=True,
        capture_output=True,
        timeout=30,
    )
    key.chmod(0o600)
    with pytest.raises(BadSecretFile, match="no certificate with its private key"):
        load_certificate(tls_context(), pem[0], key)


@pytest.mark.trio
async def test_lamboxs_own_client(context: ssl.SSLContext, pem: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(pem[0]))
    with trio.fail_after(30):
        async with LANES["fast"][0](secure=lambda: context) as served:
            server = Server(url(served), trust=trusting)
            assert await call(server.is_lambox)
            assert (await call(server.invoke, "hello", b"[7]")).payload == b"[7]"
            lines = await call(lambda: list(server.logs("hello", follow=False)))
            assert lines == served.logs.kept
            with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
                await call(Server(url(served)).functions)


@pytest.mark.trio
async def test_large_bodies_have_places_here_too(
    context: ssl.SSLContext, pem: tuple[Path, Path]
) -> None:
    large = b'"' + b"x" * (2 * SMALL) + b'"'
    limits = CallerLimits(large_bodies=1, patience_s=0.3)
    with trio.fail_after(30):
        async with (
            LANES["fast"][0](limits=limits, secure=lambda: context) as served,
            await secured(served, pem) as slow,
            await secured(served, pem) as good,
        ):
            await slow.send(head("POST", INVOKE, {"Content-Length": str(len(large))}))
            await slow.send(large[:-1])
            assert (await good.ask("POST", INVOKE, b"1")).status == 200
            assert (await good.ask("POST", INVOKE, large)).body == large
            assert (await slow.answer()).status == 408
