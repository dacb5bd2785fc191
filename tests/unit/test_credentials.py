"""lambox.credentials: which credentials go where."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lambox import config, credentials
from lambox.config import Config
from runtimeapi.sigv4 import RequestHead, SigV4, grouped

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "0123456789abcdef"
AWS = {"AWS_ACCESS_KEY_ID": "AKIDAWS", "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    keys, token = tmp_path / "keys", tmp_path / "token"
    keys.write_text(f'AKIDONE = "{SECRET}"\nAKIDTWO = "{SECRET}2"\n')
    token.write_text(f"{TOKEN}\nanother-token-0000\n")
    keys.chmod(0o600)
    token.chmod(0o600)
    return keys, token


def settings(**flags: str) -> Config:
    return config.load(flags, environ={})


def test_a_token_out_of_a_file_goes_to_the_configured_server_alone(
    files: tuple[Path, Path],
) -> None:
    ours = settings(auth="token", auth_token_file=str(files[1]))
    assert credentials.find(ours, own_server=True, environ={}) == credentials.Token(TOKEN)
    assert credentials.find(ours, own_server=False, environ={}) is None
    said = {"LAMBOX_AUTH_TOKEN": "said-so-0000000000"}
    for own in (True, False):
        found = credentials.find(ours, own_server=own, environ=said)
        assert found == credentials.Token("said-so-0000000000")


def test_keys_are_the_settings_first_and_else_awss(files: tuple[Path, Path]) -> None:
    ours = settings(auth="sigv4", auth_keys_file=str(files[0]))
    one = credentials.Key("AKIDONE", SECRET, "us-east-1")
    assert credentials.find(ours, own_server=True, environ=AWS) == one
    assert credentials.find(ours, own_server=False, environ={}) == one
    elsewhere = credentials.find(settings(region="eu-west-1"), own_server=False, environ=AWS)
    assert elsewhere == credentials.Key("AKIDAWS", SECRET, "eu-west-1")
    session = {**AWS, "AWS_SESSION_TOKEN": "x"}
    assert credentials.find(settings(), own_server=False, environ=session) is None
    assert credentials.find(settings(), own_server=True, environ={}) is None


@pytest.mark.parametrize(
    "target", ["/_lambox/logs/a%20b?follow=1", "/invoke/hello", "/a//b/?b=1&a"]
)
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_what_is_signed_is_verified(target: str, body: bytes) -> None:
    key = credentials.Key("AKIDONE", SECRET, "us-east-1")
    sent = {"Host": "localhost:9000", "X-Amz-Log-Type": "Tail"}
    sent |= key.headers("POST", target, sent, body)
    path, _, query = target.encode().partition(b"?")
    fields = grouped((name.encode(), value.encode()) for name, value in sent.items())
    head = RequestHead(b"POST", path, query, fields)
    claim = SigV4({"AKIDONE": SECRET}.get, region="us-east-1").claim(head)
    claim.check(hashlib.sha256(body).hexdigest())


def test_secrets_are_not_shown() -> None:
    for one in (credentials.Token(TOKEN), credentials.Key("AKID", SECRET, "us-east-1")):
        assert TOKEN not in repr(one)
        assert SECRET not in repr(one)
