"""Owns the callers' face of a node as it is configured: its guard, its limits, its TLS context, kept up to date."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from lambox.config import Config
from lambox.httpsettings import is_loopback
from lambox.secretfiles import LOOK_S, Watched, load_certificate, read_keys, read_tokens
from runtimeapi.guard import Auth, Guard, Names, TokenAuth
from runtimeapi.server import CallerLimits, tls_context
from runtimeapi.sigv4 import SigV4


class CallersFace:
    """Raises BadSecretFile when it is made."""

    def __init__(self, config: Config) -> None:
        self._watched: list[Watched[Any]] = []
        self.url_keys = self._keys(config)
        """Of function URLs with AuthType AWS_IAM, and of `auth = "sigv4"`; None: no keys are configured."""
        auth = self._auth(config)
        names = Names(config.allowed_hosts, loopback=is_loopback(config.host))
        if auth is not None and not names.loopback:
            # A page under another name has no credentials: its name tells nothing more.
            names = Names(("*",), loopback=False)
        self.guard = Guard(names, auth)
        self.secure = self._tls(config)
        self.limits = CallerLimits(
            max_connections=config.max_connections,
            max_header_bytes=config.max_header_bytes,
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            keep_alive_s=config.keep_alive_s,
        )

    async def watch(self) -> None:
        """Keeps keys, tokens and the certificate up to date, until cancelled."""
        while self._watched:
            await trio.sleep(LOOK_S)
            try:
                await trio.to_thread.run_sync(self.refresh)
            except RuntimeError as exc:  # there is no thread to be had: there may be one next time
                if "start new thread" not in str(exc):
                    raise

    def refresh(self) -> None:
        """Looks at the files now. Blocks."""
        for one in self._watched:
            one.refresh()

    def _keys(self, config: Config) -> SigV4 | None:
        if config.auth_keys_file is None:
            return None
        keys = Watched(partial(read_keys, config.auth_keys_file), config.auth_keys_file)
        self._watched.append(keys)
        return SigV4(lambda key_id: keys.value.get(key_id), region=config.region)

    def _auth(self, config: Config) -> Auth | None:
        if config.auth == "sigv4":
            assert self.url_keys is not None
            return self.url_keys
        if config.auth == "token":
            assert config.auth_token_file is not None
            tokens = Watched(partial(read_tokens, config.auth_token_file), config.auth_token_file)
            self._watched.append(tokens)
            return TokenAuth(lambda: tokens.value)
        return None

    def _tls(self, config: Config) -> Callable[[], ssl.SSLContext] | None:
        certificate, key = config.tls_cert, config.tls_key
        if certificate is None or key is None:
            return None

        def load() -> ssl.SSLContext:
            # A fresh one each time: OpenSSL keeps the half of what it has taken before the other was refused.
            context = tls_context()
            load_certificate(context, certificate, key)
            return context

        watched = Watched(load, certificate, key)
        self._watched.append(watched)
        return lambda: watched.value
