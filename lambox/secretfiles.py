"""Owns the files that hold what only lambox and its callers know: access keys, tokens, the private key.

    BadSecretFile       which file, what is wrong with it, and the mend; never what it holds

Secrets are in files only: an argv is everybody's to read, and an environment is handed down to children.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger("lambox.auth")

LOOK_S = 1.0
"""A changed file counts after this long."""
SHORTEST = 16
"""Characters of a token or secret: less can be guessed over the network."""
MOST_BYTES = 1024 * 1024
T = TypeVar("T")


class BadSecretFile(Exception):
    """A message for people."""


def read_secret(path: Path) -> str:
    """Raises BadSecretFile, also if others than its owner (us or root) can read it."""
    try:
        # Not blocking: the other end of a FIFO may never come.
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadSecretFile(f"{path}: is no regular file")
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise BadSecretFile(
                    f"{path}: has mode {mode:04o}, so others may read it. Hint: chmod 600 {path}"
                )
            if found.st_uid not in (0, os.geteuid()):
                raise BadSecretFile(
                    f"{path}: belongs to uid {found.st_uid}. Hint: chown {os.geteuid()} {path}"
                )
            return file.read(MOST_BYTES).decode()
    except OSError as exc:
        raise BadSecretFile(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise BadSecretFile(f"{path}: is not UTF-8 text") from exc


def read_keys(path: Path) -> dict[str, str]:
    """Access key id -> secret access key."""
    try:
        table = tomllib.loads(read_secret(path))
    except tomllib.TOMLDecodeError as exc:
        # Its message quotes what it found, which may be a secret.
        raise BadSecretFile(
            f'{path}: is not valid TOML. Hint: lines like AKIDEXAMPLE = "SECRET"'
        ) from exc
    if not table:
        raise BadSecretFile(f'{path}: holds no key. Hint: a line like AKIDEXAMPLE = "SECRET"')
    for name, secret in table.items():
        if not isinstance(secret, str) or len(secret) < SHORTEST:
            raise BadSecretFile(
                f"{path}: {name}: the secret must be text of {SHORTEST} characters or more"
            )
        if not name or "/" in name or "," in name or not name.isascii() or not name.isprintable():
            raise BadSecretFile(f"{path}: an access key id must be ASCII without / and ,")
    return table


def read_tokens(path: Path) -> tuple[bytes, ...]:
    lines = [line.strip() for line in read_secret(path).splitlines()]
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise BadSecretFile(f"{path}: holds no token. Hint: openssl rand -hex 32 > {path}")
    for token in tokens:
        if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
            raise BadSecretFile(
                f"{path}: a token must be {SHORTEST} or more ASCII characters without spaces"
            )
    return tuple(token.encode() for token in tokens)


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Connections made from now on have it. Raises BadSecretFile."""
    read_secret(key)
    try:
        certificate.read_bytes()
        # With no password at all OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as exc:
        if not isinstance(exc, ssl.SSLError):
            raise BadSecretFile(f"{certificate}: cannot be read: {exc.strerror}") from exc
        reason = exc.reason or "no PEM"
        raise BadSecretFile(
            f"{certificate}, {key}: no certificate with its private key: {reason}. "
            "Hint: PEM files, the server's own certificate first"
        ) from exc


class Watched(Generic[T]):
    """What files hold, read again when one of them changes. What is wrong then is logged, and the old stays."""

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        """Raises BadSecretFile."""
        self._read = read
        self._paths = paths
        self._marks = self._look()
        self.value = read()

    def refresh(self) -> None:
        """Blocks."""
        marks = self._look()
        if marks == self._marks:
            return
        self._marks = marks
        try:
            self.value = self._read()
        except BadSecretFile as exc:
            log.error("%s; what was there before still counts", exc)
        else:
            log.info("%s: read again", ", ".join(map(str, self._paths)))

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_mark(path) for path in self._paths]


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # The mode too: a chmod is what mends a file that was refused.
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode
