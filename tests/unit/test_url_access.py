"""runtimeapi.urls.names, cors, access: which requests are a function URL's, and who may make them."""

from __future__ import annotations

from typing import Any

import pytest

from runtimeapi.sigv4 import RequestHead, grouped
from runtimeapi.urls.access import admit, check_page, is_public
from runtimeapi.urls.cors import preflight_headers, response_headers
from runtimeapi.urls.directory import FunctionUrl, config_of, cors_members, new_id
from runtimeapi.urls.names import Called, address, called, is_url_host
from sandbox.errors import InvalidRequest
from sandbox.functionurl import ALPHABET, Cors, UrlConfig, derived_id

ID = "0123456789abcdefghijklmnopqrstuv"
HOST = f"{ID}.lambda-url.us-east-1.localhost:9000"
HERE = "https://app.example"


@pytest.mark.parametrize(
    ("host", "path", "found"),
    [
        (HOST, b"/a", Called(ID, b"/a", False)),
        (HOST.upper(), b"/", Called(ID, b"/", False)),
        (HOST, b"/invoke/hello", Called(ID, b"/invoke/hello", False)),
        (f"{ID}.lambda-url.us-east-1.example.com", b"/", Called(ID, b"/", False)),
        (f"{ID}.lambda-url.eu-west-1.localhost", b"/", Called("", b"/", False)),
        (f"{ID}.lambda-url.us-east-12.localhost", b"/", Called("", b"/", False)),
        ("a.lambda-url.us-east-1.localhost.", b"/", Called("a", b"/", False)),
        ("localhost:9000", f"/{ID}/a%2Fb".encode(), Called(ID, b"/a%2Fb", True)),
        ("localhost:9000", f"/{ID}".encode(), Called(ID, b"/", True)),
        ("", f"/{ID}//".encode(), Called(ID, b"//", True)),
        ("localhost:9000", f"/{ID}x/".encode(), None),
        ("localhost:9000", f"/{ID[:-1]}/".encode(), None),
        ("localhost:9000", f"/{ID.upper()}/".encode(), None),
        ("localhost:9000", f"//{ID}/".encode(), None),
        ("localhost:9000", f"/%30{ID[1:]}/".encode(), None),
        ("localhost:9000", f"/x/{ID}/".encode(), None),
        ("localhost:9000", f"http://localhost:9000/{ID}/".encode(), None),
        ("localhost:9000", b"/2015-03-31/functions", None),
        ("localhost:9000", b"/healthz", None),
        ("lambda-url.localhost", b"/", None),
        ("a.b.lambda-url.us-east-1.localhost", b"/", None),
    ],
)
def test_which_requests_are_a_function_urls(host: str, path: bytes, found: Called | None) -> None:
    assert called(host, path, "us-east-1") == found
    if found is None or found.by_path:
        assert not is_url_host(host)
    else:
        assert is_url_host(host)


@pytest.mark.parametrize(
    ("host", "secure", "url"),
    [
        ("127.0.0.1:9000", False, f"http://{HOST}/"),
        ("localhost:9000", False, f"http://{HOST}/"),
        ("[::1]:9000", False, f"http://{HOST}/"),
        ("localhost", False, f"http://{ID}.lambda-url.us-east-1.localhost/"),
        (f"{'z' * 32}.lambda-url.us-east-1.localhost:9000", False, f"http://{HOST}/"),
        ("localhost:9000", True, f"https://localhost:9000/{ID}/"),
        ("192.168.1.5:9000", False, f"http://192.168.1.5:9000/{ID}/"),
        ("[fd00::1]:9000", False, f"http://[fd00::1]:9000/{ID}/"),
        ("lambox.example.com", True, f"https://lambox.example.com/{ID}/"),
    ],
)
def test_the_address_is_one_that_leads_here(host: str, secure: bool, url: str) -> None:
    assert address(ID, host=host, secure=secure, region="us-east-1") == url
    inner = url.partition("://")[2]
    name, _, path = inner.partition("/")
    found = called(name, b"/" + path.encode(), "us-east-1")
    assert found is not None
    assert (found.id, found.path) == (ID, b"/")


def test_ids_are_32_letters_and_digits() -> None:
    found = {new_id() for _ in range(50)} | {derived_id(f"f{n}", "r", "a") for n in range(50)}
    assert len(found) == 100
    assert all(len(one) == 32 and set(one) <= set(ALPHABET) for one in found)
    # Stable: bookmarks and settings of front ends hold it.
    assert derived_id("hello", "us-east-1", "123456789012") == "jdai3srvhy83rsd7movshs7gaqrrogph"
    assert derived_id("hello", "eu-west-1", "123456789012") != "jdai3srvhy83rsd7movshs7gaqrrogph"


# -- CORS


def test_an_allowed_origin_is_echoed_and_others_get_nothing() -> None:
    cors = Cors(allow_origins=(HERE,), expose_headers=("Date", "X-A"))
    assert response_headers(cors, HERE) == [
        ("access-control-allow-origin", HERE),
        ("vary", "Origin"),
        ("access-control-expose-headers", "Date,X-A"),
    ]
    for other in (None, "https://app.example.evil", "null", "https://app.example:8443"):
        assert response_headers(cors, other) == [("vary", "Origin")]


def test_a_wildcard_is_any_origin_but_never_with_credentials() -> None:
    open_ = dict(response_headers(Cors(allow_origins=("*",)), "null"))
    assert open_["access-control-allow-origin"] == "null"
    both = Cors(allow_origins=("*",), allow_credentials=True)
    assert dict(response_headers(both, HERE))["access-control-allow-origin"] == "*"
    named = Cors(allow_origins=(HERE,), allow_credentials=True)
    assert dict(response_headers(named, HERE))["access-control-allow-origin"] == HERE


def test_a_preflight_is_told_what_is_configured() -> None:
    cors = Cors((HERE,), ("GET", "PUT"), ("x-a",), max_age=60, allow_credentials=True)
    assert dict(preflight_headers(cors, HERE, "PUT", "x-a")) == {
        "access-control-allow-origin": HERE,
        "access-control-allow-credentials": "true",
        "access-control-allow-methods": "GET,PUT",
        "access-control-allow-headers": "x-a",
        "access-control-max-age": "60",
        "vary": "Origin,Access-Control-Request-Method,Access-Control-Request-Headers",
    }
    wild = dict(preflight_headers(Cors((HERE,), ("*",), ("*",)), HERE, "PUT", "x-b, authorization"))
    assert wild["access-control-allow-methods"] == "PUT"
    assert wild["access-control-max-age"] == "0"
    assert wild["access-control-allow-headers"] == "x-b, authorization"
    assert [name for name, _ in preflight_headers(cors, "https://evil", "PUT", None)] == ["vary"]


def test_configurations_survive_the_registry() -> None:
    cors = Cors((HERE,), ("*",), ("a", "b"), ("c",), True, 5)
    document = {"AuthType": "NONE", "InvokeMode": "RESPONSE_STREAM", "Cors": cors_members(cors)}
    assert config_of(document) == UrlConfig("NONE", "RESPONSE_STREAM", cors)
    assert config_of({"AuthType": "AWS_IAM", "Cors": None}) == UrlConfig("AWS_IAM")
    assert cors_members(Cors()) == {}


# -- pages in browsers


def head(method: str = "GET", host: str = HOST, **headers: str) -> RequestHead:
    pairs = [(b"host", host.encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return RequestHead(method.encode(), b"/", b"", grouped(pairs))


def may(url: FunctionUrl, request: RequestHead) -> bool:
    try:
        check_page(url, request)
    except InvalidRequest as exc:
        return exc.status != 403
    return True


OWN = head(origin=f"http://{HOST}", sec_fetch_site="same-origin")
CURL = head()
LINK = head(sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document")
FRAME = head(sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="iframe")
PICTURE = head(sec_fetch_site="cross-site", sec_fetch_mode="no-cors", sec_fetch_dest="image")
APP = head("POST", origin=HERE, sec_fetch_site="cross-site")
EVIL = head("POST", origin="https://evil.example", sec_fetch_site="cross-site")
FORM = head(
    "POST",
    origin="https://evil.example",
    sec_fetch_site="cross-site",
    sec_fetch_mode="navigate",
    sec_fetch_dest="document",
)
NEIGHBOUR = head("POST", origin=f"http://{'z' * 32}.lambda-url.us-east-1.localhost:9000")
CORS = Cors(allow_origins=(HERE,))


@pytest.mark.parametrize(
    ("cors", "from_folder", "allowed"),
    [
        (None, True, {"OWN", "CURL", "LINK"}),
        (CORS, True, {"OWN", "CURL", "LINK", "APP"}),
        (CORS, False, {"OWN", "CURL", "LINK", "APP"}),
        (
            Cors(allow_origins=("*",)),
            True,
            {"OWN", "CURL", "LINK", "FRAME", "PICTURE", "APP", "EVIL", "FORM", "NEIGHBOUR"},
        ),
        (
            None,
            False,
            {"OWN", "CURL", "LINK", "FRAME", "PICTURE", "APP", "EVIL", "FORM", "NEIGHBOUR"},
        ),
    ],
    ids=["folder", "folder-cors", "api-cors", "wildcard", "api"],
)
def test_pages_of_other_origins(cors: Cors | None, from_folder: bool, allowed: set[str]) -> None:
    url = FunctionUrl(ID, "f", None, UrlConfig("NONE", cors=cors), from_folder)
    names = ("OWN", "CURL", "LINK", "FRAME", "PICTURE", "APP", "EVIL", "FORM", "NEIGHBOUR")
    assert {name for name in names if may(url, globals()[name])} == allowed


# -- policies


def statement(**changes: Any) -> dict[str, Any]:
    return {
        "Sid": "urlPermission",
        "Effect": "Allow",
        "Principal": "*",
        "Action": "lambda:InvokeFunctionUrl",
        "Condition": {"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}},
        **changes,
    }


@pytest.mark.parametrize(
    ("statements", "public"),
    [
        ([], False),
        ([statement()], True),
        ([statement(Principal={"AWS": "*"}, Condition=None)], True),
        ([statement(Action=["s3:*", "lambda:*"])], True),
        ([statement(Action="lambda:InvokeFunction")], False),
        ([statement(Principal={"Service": "s3.amazonaws.com"})], False),
        ([statement(Principal={"AWS": "arn:aws:iam::123456789012:root"})], False),
        ([statement(Condition={"StringEquals": {"lambda:FunctionUrlAuthType": "AWS_IAM"}})], False),
        ([statement(Condition={"StringEquals": {"aws:SourceAccount": "1"}})], False),
        ([statement(Condition={"IpAddress": {"aws:SourceIp": "0.0.0.0/0"}})], False),
        ([statement(Condition="?")], False),
        ([statement(), statement(Effect="Deny", Principal={"AWS": "x"}, Condition={})], False),
        ([statement(), statement(Effect="Deny", Action="lambda:GetFunction")], True),
    ],
)
def test_a_url_of_the_api_is_public_when_its_policy_says_so(
    statements: list[dict[str, Any]], public: bool
) -> None:
    policy = {"Version": "2012-10-17", "Statement": statements}
    assert is_public(policy) is public
    url = FunctionUrl(ID, "f", None, UrlConfig("NONE"), policy=policy)
    if public:
        assert admit(url, CURL, None) is None
    else:
        with pytest.raises(InvalidRequest, match="Forbidden"):
            admit(url, CURL, None)


def test_without_keys_nobody_calls_aws_iam() -> None:
    for from_folder in (True, False):
        url = FunctionUrl(ID, "f", None, UrlConfig("AWS_IAM"), from_folder)
        with pytest.raises(InvalidRequest, match="Forbidden"):
            admit(url, head(authorization="AWS4-HMAC-SHA256 Credential=..."), None)
