"""runtimeapi.guard: which names are this server's, what browsers may not do, tokens."""

from __future__ import annotations

import pytest

from runtimeapi.guard import Guard, Names, TokenAuth
from runtimeapi.sigv4 import RequestHead, canonical_path, canonical_query, grouped
from sandbox.errors import InvalidRequest

OURS = [
    "localhost",
    "LOCALHOST:9000",
    "localhost.",
    "abc.lambda-url.us-east-1.localhost:9000",
    "127.0.0.1",
    "127.0.0.1:9000",
    "127.1.2.3:1",
    "[::1]",
    "[::1]:9000",
]
NOT_OURS = [
    "evil.example",
    "evil.example:9000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "notlocalhost",
    "192.168.1.5",
    "192.168.1.5:9000",
    "[fe80::1]:9000",
    "0x7f.1",
    "2130706433",
    "",
    ":9000",
    "a b",
    "localhost@evil.example",
    "evil.example#localhost",
    "[::1].evil.example",
    "[::1]evil.example:9000",
    "localhost:evil.example",
    "localhost:9000:9000",
    "::1",
]


@pytest.mark.parametrize("host", OURS)
def test_loopbacks_own_names(host: str) -> None:
    assert Names().has(host)
    assert Names(loopback=False).has(host)


@pytest.mark.parametrize("host", NOT_OURS)
def test_other_names(host: str) -> None:
    assert not Names().has(host)


def test_addresses_are_ours_where_others_can_reach_us() -> None:
    names = Names(loopback=False)
    assert names.has("192.168.1.5:9000")
    assert names.has("[fe80::1]:9000")
    assert not names.has("evil.example")


def test_allowed_names() -> None:
    names = Names(("host.docker.internal", ".example.com"))
    assert names.has("Host.Docker.Internal:9000")
    assert names.has("a.b.example.com")
    assert names.has("example.com")
    assert not names.has("evilexample.com")
    assert not names.has("a.host.docker.internal")
    assert Names(("*",)).has("evil.example")


def head(path: bytes = b"/invoke/hello", *, secure: bool = False, **headers: str) -> RequestHead:
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestHead(b"POST", path, b"", grouped(fields), secure)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:9000"},
        {},  # HTTP/1.0; browsers do not speak it
        {"host": "localhost:9000", "origin": "http://localhost:9000"},
        {"host": "localhost:9000", "origin": "HTTP://LOCALHOST:9000"},
        {"host": "localhost:9000", "origin": "https://localhost:9000"},
        {"host": "localhost:9000", "sec_fetch_site": "none"},
        {"host": "localhost:9000", "sec_fetch_site": "same-origin"},
    ],
)
def test_what_no_foreign_page_sends_passes(headers: dict[str, str]) -> None:
    assert Guard().admit(head(**headers)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "localhost:9000", "origin": "http://evil.example"},
        {"host": "localhost:9000", "origin": "null"},
        {"host": "localhost:9000", "origin": ""},
        {"host": "localhost:9000", "origin": "http://localhost"},
        {"host": "localhost:9000", "origin": "http://localhost:3000"},
        {"host": "localhost:9000", "origin": "http://localhost:90001"},
        {"host": "localhost:9000", "origin": "http://localhost:9000.evil.example"},
        {"host": "localhost:9000", "sec_fetch_site": "cross-site"},
        {"host": "localhost:9000", "sec_fetch_site": "same-site"},
        {"origin": "http://evil.example"},
    ],
)
def test_what_a_foreign_page_sends_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Guard().admit(head(**headers))
    assert (caught.value.status, caught.value.code) == (403, "AccessDeniedException")
    assert Guard().admit(head(b"/healthz", **headers)) is None


def test_a_refused_name_is_told_with_the_mend() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Guard().admit(head(host="box.lan:9000"))
    assert caught.value.message == (
        "'box.lan:9000' is not a name of this server. "
        'Hint: if it should be, allowed_hosts = ["box.lan"]'
    )


TOKENS = (b"0123456789abcdef0", b"fedcba98765432100")


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_token_is_let_in(token: bytes, scheme: str) -> None:
    guard = Guard(auth=TokenAuth(lambda: TOKENS))
    assert guard.admit(head(host="localhost", authorization=f"{scheme} {token.decode()}")) is None


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "MissingAuthenticationTokenException"),
        ("", "UnrecognizedClientException"),
        ("Bearer", "UnrecognizedClientException"),
        ("Bearer ", "UnrecognizedClientException"),
        ("Bearer 0123456789abcdef", "UnrecognizedClientException"),
        ("Bearer 0123456789abcdef00", "UnrecognizedClientException"),
        ("Basic 0123456789abcdef0", "UnrecognizedClientException"),
        ("0123456789abcdef0", "UnrecognizedClientException"),
    ],
)
def test_anything_else_is_not(authorization: str | None, code: str) -> None:
    guard = Guard(auth=TokenAuth(lambda: TOKENS))
    headers = {} if authorization is None else {"authorization": authorization}
    with pytest.raises(InvalidRequest) as caught:
        guard.admit(head(host="localhost", **headers))
    assert (caught.value.status, caught.value.code) == (403, code)


def test_tokens_may_change() -> None:
    tokens = [b"0123456789abcdef0"]
    guard = Guard(auth=TokenAuth(lambda: tokens))
    old = head(host="localhost", authorization="Bearer 0123456789abcdef0")
    guard.admit(old)
    tokens[:] = [b"fedcba98765432100"]
    with pytest.raises(InvalidRequest):
        guard.admit(old)


@pytest.mark.parametrize(
    ("sent", "canonical"),
    [
        (b"/", b"/"),
        (b"", b"/"),
        (b"/a/./b/../c//d/", b"/a/c/d/"),
        (b"/../../x", b"/x"),
        (b"/arn%3Aaws", b"/arn%253Aaws"),
        (b"/a~b-_.!", b"/a~b-_.%21"),
        (b"/\xc3\xa4", b"/%C3%A4"),
    ],
)
def test_canonical_paths(sent: bytes, canonical: bytes) -> None:
    assert canonical_path(sent) == canonical


@pytest.mark.parametrize(
    ("sent", "canonical"),
    [
        (b"", b""),
        (b"b=2&a=1", b"a=1&b=2"),
        (b"a=2&a=1", b"a=1&a=2"),
        (b"a", b"a="),
        (b"a=b=c", b"a=b%3Dc"),
        (b"Qualifier=$LATEST", b"Qualifier=%24LATEST"),
        (b"a=%7e%2F", b"a=~%2F"),
        (b"a-=1&a=1", b"a=1&a-=1"),
    ],
)
def test_canonical_queries(sent: bytes, canonical: bytes) -> None:
    assert canonical_query(sent) == canonical
