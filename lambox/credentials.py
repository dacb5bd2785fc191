"""Owns how lambox's own verbs show a server who they are, and how they know that it is the right one.

LAMBOX_AUTH_TOKEN                            sent to whichever server is asked
`auth` and its file in the settings          the token goes to the configured server alone; a signature
                                             gives nothing away and goes to any
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY     sign what none of these covers

LAMBOX_CA_FILE                               certificates (PEM) that vouch for an https server
`tls_cert` in the settings                   the configured server must have exactly this one
"""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lambox.config import Config
from lambox.secretfiles import read_keys, read_tokens
from runtimeapi import sigv4


class Credentials(Protocol):
    def headers(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, str]:
        """Those to be added; `headers` has Host."""


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    token: str

    def headers(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    key_id: str
    secret: str
    region: str

    def headers(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, str]:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        told = {name.lower(): value for name, value in headers.items()} | {"x-amz-date": stamp}
        path, _, query = target.partition("?")
        names = ";".join(sorted(told))
        canonical = "\n".join(
            (
                method,
                sigv4.canonical_path(path.encode()).decode(),
                sigv4.canonical_query(query.encode()).decode(),
                *(f"{name}:{' '.join(told[name].split())}" for name in sorted(told)),
                "",
                names,
                hashlib.sha256(body).hexdigest(),
            )
        )
        scope = f"{stamp[:8]}/{self.region}/lambda/{sigv4.TERMINATOR}"
        algorithm = sigv4.ALGORITHM.decode()
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join((algorithm, stamp, scope, hashed))
        key = sigv4.derive(self.secret, stamp[:8], self.region, "lambda")
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        return {
            "X-Amz-Date": stamp,
            "Authorization": f"{algorithm} Credential={self.key_id}/{scope}, "
            f"SignedHeaders={names}, Signature={signature}",
        }


def find(
    config: Config, *, own_server: bool, environ: Mapping[str, str] = os.environ
) -> Credentials | None:
    """`own_server`: the one these settings are of. Raises BadSecretFile."""
    if token := environ.get("LAMBOX_AUTH_TOKEN"):
        return Token(token)
    if config.auth_token_file is not None and own_server:
        return Token(read_tokens(config.auth_token_file)[0].decode())
    if config.auth_keys_file is not None:
        key_id, secret = next(iter(read_keys(config.auth_keys_file).items()))
        return Key(key_id, secret, config.region)
    key_id, secret = (
        environ.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    )
    if key_id and secret and not environ.get("AWS_SESSION_TOKEN"):
        return Key(key_id, secret, config.region)
    return None


def trust(
    config: Config, *, own_server: bool, environ: Mapping[str, str] = os.environ
) -> ssl.SSLContext:
    """Raises OSError (ssl.SSLError): no such file, or no certificates in it."""
    context = ssl.create_default_context()
    if authorities := environ.get("LAMBOX_CA_FILE"):
        context.load_verify_locations(authorities)
    elif config.tls_cert is not None and own_server:
        # Under whatever name it is asked for: the address to listen on need not be in the certificate.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=_first_certificate(config.tls_cert))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
    return context


def _first_certificate(path: Path) -> str:
    end = "-----END CERTIFICATE-----\n"
    return path.read_text().partition(end)[0] + end
