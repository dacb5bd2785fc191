"""lambox.secretfiles: what is in them, who may read them, and that they may change."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

import pytest

from lambox.secretfiles import (
    BadSecretFile,
    Watched,
    load_certificate,
    read_keys,
    read_secret,
    read_tokens,
)

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys(tmp_path: Path) -> None:
    path = secret(tmp_path / "keys", f'AKID = "{SECRET}" # of CI\n"a.b@c" = "{SECRET}2"\n')
    assert read_keys(path) == {"AKID": SECRET, "a.b@c": SECRET + "2"}


def test_tokens(tmp_path: Path) -> None:
    path = secret(tmp_path / "token", "# of CI\n0123456789abcdef\n\n  fedcba9876543210  \n")
    assert read_tokens(path) == (b"0123456789abcdef", b"fedcba9876543210")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AKID", "is not valid TOML"),
        (f'AKID = "{SECRET}', "is not valid TOML"),
        ("", "holds no key"),
        ('AKID = "short"', "AKID: the secret must be text of 16 characters or more"),
        ("AKID = 17", "AKID: the secret must be text"),
        ('[keys]\nAKID = "x"', "keys: the secret must be text"),
        (f'"a/b" = "{SECRET}"', "without / and ,"),
        (f'"" = "{SECRET}"', "without / and ,"),
    ],
)
def test_bad_keys_are_told_without_the_secret(tmp_path: Path, text: str, message: str) -> None:
    path = secret(tmp_path / "keys", text)
    with pytest.raises(BadSecretFile) as caught:
        read_keys(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert SECRET not in str(caught.value)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token. Hint: openssl rand -hex 32"),
        ("# only\n", "holds no token"),
        ("short", "16 or more ASCII characters"),
        ("0123456789abc def0", "without spaces"),
        ("0123456789abcdefä", "ASCII"),
    ],
)
def test_bad_tokens_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = secret(tmp_path / "token", text)
    with pytest.raises(BadSecretFile, match=message):
        read_tokens(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = secret(tmp_path / "keys", f'AKID = "{SECRET}"', mode)
    with pytest.raises(BadSecretFile, match=f"has mode {mode:04o}.*Hint: chmod 600 {path}"):
        read_keys(path)


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSecretFile, match="cannot be read: No such file"):
        read_secret(tmp_path / "none")
    with pytest.raises(BadSecretFile, match="cannot be read: Is a directory"):
        read_secret(tmp_path)
    binary = secret(tmp_path / "binary", "")
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadSecretFile, match="is not UTF-8"):
        read_secret(binary)


def test_a_fifo_does_not_hold_anything_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(BadSecretFile, match="is no regular file"):
        read_secret(tmp_path / "fifo")


@pytest.mark.skipif(os.geteuid() != 0, reason="host: only root can give a file away")
def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    path = secret(tmp_path / "keys", f'AKID = "{SECRET}"')
    os.chown(path, 1234, 1234)
    with pytest.raises(BadSecretFile, match="belongs to uid 1234"):
        read_keys(path)


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = secret(tmp_path / "token", "0123456789abcdef")
    watched = Watched(lambda: read_tokens(path), path)
    assert watched.value == (b"0123456789abcdef",)
    secret(path, "fedcba9876543210\n")
    watched.refresh()
    assert watched.value == (b"fedcba9876543210",)
    with caplog.at_level(logging.ERROR):
        secret(path, "bad")
        watched.refresh()
        watched.refresh()
    assert [
        record.message.count("what was there before still counts") for record in caplog.records
    ] == [1]
    assert watched.value == (b"fedcba9876543210",)
    path.unlink()
    watched.refresh()
    assert watched.value == (b"fedcba9876543210",)
    secret(path, "0011223344556677", 0o644)
    watched.refresh()
    assert watched.value == (b"fedcba9876543210",)
    path.chmod(0o600)
    watched.refresh()
    assert watched.value == (b"0011223344556677",)


def test_bad_certificates_are_told(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, cert = secret(tmp_path / "key", "no key"), tmp_path / "cert"
    with pytest.raises(BadSecretFile, match=f"{cert}: cannot be read: No such file"):
        load_certificate(context, cert, key)
    cert.write_text("no certificate")
    with pytest.raises(BadSecretFile, match=r"no certificate with its private key: .*Hint: PEM"):
        load_certificate(context, cert, key)
    key.chmod(0o644)
    with pytest.raises(BadSecretFile, match="has mode 0644"):
        load_certificate(context, cert, key)
