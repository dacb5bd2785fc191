"""Function URL configurations, as boto3 and recordings of AWS see them (SPEC 9.1, 10.5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from sandbox.functionurl import derived_id
from sandbox.registry.records import AliasRecord, VersionRecord
from tests.contract.fakes import REGION
from tests.contract.lambda_api import Api, serving
from tests.contract.wire import Answer, connect

ACCOUNT = "123456789012"
ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"
PATTERN = r"((?!^\d+$)^[0-9a-zA-Z-_]+$)"
NO_FUNCTION = (404, "ResourceNotFoundException", "Function does not exist")
NO_URL = (404, "ResourceNotFoundException", "The resource you requested does not exist.")
URL = re.compile(rf"http://([a-z0-9]{{32}})\.lambda-url\.{REGION}\.localhost:\d+/")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        yield api


def edit(api: Api, name: str, **changes: Any) -> None:
    """What other operations do."""

    async def put() -> None:
        async with api.behind.control.registry.edit() as edit:
            record = edit.function(name)
            assert record is not None
            edit.put(replace(record, **changes))

    trio.from_thread.run(put, trio_token=api.token)


def with_alias(api: Api, alias: str = "live", name: str = "hello") -> None:
    record = api.behind.control.registry.function(name)
    assert record is not None
    latest = record.latest
    assert isinstance(latest, VersionRecord)
    made = AliasRecord(name=alias, version="$LATEST", description="", weights={}, revision_id="1")
    edit(api, name, aliases={alias: made})


def allow(api: Api, name: str = "hello", **where: str) -> None:
    api.client.add_permission(
        FunctionName=name,
        StatementId="urlPermission",
        Action="lambda:InvokeFunctionUrl",
        Principal="*",
        FunctionUrlAuthType="NONE",
        **where,
    )


def get(url: str) -> Answer:
    host, _, rest = url.removeprefix("http://").partition("/")

    async def ask() -> Answer:
        async with await connect(("127.0.0.1", int(host.rpartition(":")[2]))) as wire:
            await wire.send(f"GET /{rest} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return await wire.answer("GET")

    return trio.run(ask)


def shown(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        key: "date" if key.endswith("Time") else value
        for key, value in answer.items()
        if key != "ResponseMetadata"
    }


def test_the_life_of_a_configuration(api: Api) -> None:
    """test_url_config_lifecycle, test_lambda_update_function_url_config."""
    api.create()
    client = api.client
    created = client.create_function_url_config(FunctionName="hello", AuthType="NONE")
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    url = created["FunctionUrl"]
    assert URL.fullmatch(url)
    assert shown(created) == {
        "FunctionUrl": url,
        "FunctionArn": f"{ARN}:hello",
        "AuthType": "NONE",
        "CreationTime": "date",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", created["CreationTime"])
    found = client.get_function_url_config(FunctionName=f"{ARN}:hello")
    whole = {**shown(created), "InvokeMode": "BUFFERED", "LastModifiedTime": "date"}
    assert shown(found) == whole
    assert api.refusal("create_function_url_config", FunctionName="hello", AuthType="NONE") == (
        409,
        "ResourceConflictException",
        f"Failed to create function url config for [functionArn = {ARN}:hello]. "
        "Error message:  FunctionUrlConfig exists for this Lambda function",
    )
    cors = {"AllowOrigins": ["https://a.example"], "AllowCredentials": True, "MaxAge": 5}
    changed = client.update_function_url_config(
        FunctionName="hello", AuthType="AWS_IAM", InvokeMode="RESPONSE_STREAM", Cors=cors
    )
    whole |= {"AuthType": "AWS_IAM", "InvokeMode": "RESPONSE_STREAM", "Cors": cors}
    assert shown(changed) == whole
    assert shown(client.update_function_url_config(FunctionName="hello")) == whole
    listed = client.list_function_url_configs(FunctionName="hello")
    assert [shown(one) for one in listed["FunctionUrlConfigs"]] == [whole]
    gone = client.delete_function_url_config(FunctionName="hello")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert api.refusal("get_function_url_config", FunctionName="hello") == NO_URL
    again = client.create_function_url_config(
        FunctionName="hello", AuthType="NONE", InvokeMode="BUFFERED"
    )
    assert again["InvokeMode"] == "BUFFERED"
    assert again["FunctionUrl"] != url


def test_one_per_function_and_one_per_alias(api: Api) -> None:
    """test_url_config_list_paging, test_url_config_deletion_without_qualifier."""
    api.create()
    with_alias(api)
    client = api.client
    assert client.list_function_url_configs(FunctionName="hello")["FunctionUrlConfigs"] == []
    plain = client.create_function_url_config(FunctionName="hello", AuthType="NONE")
    alias = client.create_function_url_config(
        FunctionName="hello", AuthType="NONE", Qualifier="live"
    )
    assert alias["FunctionArn"] == f"{ARN}:hello:live"
    assert alias["FunctionUrl"] != plain["FunctionUrl"]
    listed = client.list_function_url_configs(FunctionName="hello")["FunctionUrlConfigs"]
    assert [one["FunctionArn"] for one in listed] == [f"{ARN}:hello", f"{ARN}:hello:live"]
    first = client.list_function_url_configs(FunctionName="hello", MaxItems=1)
    assert first["FunctionUrlConfigs"] == listed[:1]
    second = client.list_function_url_configs(
        FunctionName="hello", MaxItems=1, Marker=first["NextMarker"]
    )
    assert second["FunctionUrlConfigs"] == listed[1:]
    assert "NextMarker" not in second
    client.delete_function_url_config(FunctionName="hello")
    assert api.refusal("get_function_url_config", FunctionName="hello") == NO_URL
    assert client.get_function_url_config(FunctionName="hello:live")["AuthType"] == "NONE"
    allow(api, Qualifier="live")
    assert get(alias["FunctionUrl"]).status == 200
    assert api.invoker.invoked[0].invoked_arn == f"{ARN}:hello:live"
    edit(api, "hello", aliases={})
    assert get(alias["FunctionUrl"]).status == 403
    assert api.refusal("get_function_url_config", FunctionName="hello:live") == NO_URL


@pytest.mark.parametrize(
    ("operation", "more", "no_function"),
    [
        ("create_function_url_config", {"AuthType": "NONE"}, NO_FUNCTION),
        ("get_function_url_config", {}, NO_URL),
        ("update_function_url_config", {"AuthType": "NONE"}, NO_FUNCTION),
        ("delete_function_url_config", {}, NO_URL),
    ],
)
def test_refusals(
    api: Api, operation: str, more: dict[str, str], no_function: tuple[int, str, str]
) -> None:
    """test_url_config_exceptions."""
    api.create()
    for name in ("doesnotexist", f"{ARN}:doesnotexist"):
        assert api.refusal(operation, FunctionName=name, **more) == no_function
    for qualifier in ("1", "2", "$LATEST"):
        assert api.refusal(operation, FunctionName="doesnotexist", Qualifier=qualifier, **more) == (
            400,
            "ValidationException",
            f"1 validation error detected: Value '{qualifier}' at 'qualifier' failed to satisfy "
            f"constraint: Member must satisfy regular expression pattern: {PATTERN}",
        )
    assert api.refusal(operation, FunctionName="hello", Qualifier="none", **more) == no_function
    assert api.refusal(operation, FunctionName=f"{ARN}:hello:a", Qualifier="b", **more) == (
        400,
        "InvalidParameterValueException",
        "The derived qualifier from the function name does not match the specified qualifier.",
    )
    if operation != "create_function_url_config":
        assert api.refusal(operation, FunctionName="hello", **more) == NO_URL


def test_bad_configurations_change_nothing(api: Api) -> None:
    api.create()
    create = "create_function_url_config"
    told = "1 validation error detected: Value 'UNKNOWN' at 'invokeMode' failed to satisfy constraint: "
    assert api.refusal(create, FunctionName="hello", AuthType="NONE", InvokeMode="UNKNOWN") == (
        400,
        "ValidationException",
        told + "Member must satisfy enum value set: [RESPONSE_STREAM, BUFFERED]",
    )
    for cors in ({"MaxAge": 86401}, {"AllowMethods": ["OPTIONS"]}, {"AllowOrigins": ["a"] * 101}):
        found = api.refusal(create, FunctionName="hello", AuthType="NONE", Cors=cors)
        assert found[:2] == (400, "ValidationException")
    found = api.refusal(
        create, FunctionName="hello", AuthType="NONE", Cors={"AllowHeaders": ["a\rb"]}
    )
    assert found[:2] == (400, "InvalidParameterValueException")
    assert api.refusal("list_function_url_configs", FunctionName="no") == NO_FUNCTION
    assert api.client.list_function_url_configs(FunctionName="hello")["FunctionUrlConfigs"] == []


def test_a_url_is_closed_until_a_policy_opens_it_and_there_after_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        api.create()
        url = api.client.create_function_url_config(FunctionName="hello", AuthType="NONE")[
            "FunctionUrl"
        ]
        found = get(url)
        assert (found.status, found.headers["x-amzn-errortype"]) == (403, "AccessDeniedException")
        assert found.json["Message"].startswith("Forbidden. For troubleshooting Function URL")
        assert api.invoker.invoked == []
        allow(api)
        assert get(url + "a?b=c").json["rawPath"] == "/a"
    with serving(tmp_path) as api:
        found = api.client.get_function_url_config(FunctionName="hello")
        id_ = URL.fullmatch(url)[1]  # type: ignore[index]
        assert URL.fullmatch(found["FunctionUrl"])[1] == id_  # type: ignore[index]
        assert get(found["FunctionUrl"]).status == 200
        api.client.delete_function(FunctionName="hello")
        assert get(found["FunctionUrl"]).body == b'{"Message":null}'


def test_a_folder_says_what_its_url_is(tmp_path: Path) -> None:
    folder = tmp_path / "functions" / "site"
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text("def handler(event):\n    return event\n")
    (folder / "function.toml").write_text(
        '[url]\nauth_type = "NONE"\ninvoke_mode = "RESPONSE_STREAM"\n'
        '[url.cors]\nallow_origins = ["https://a.example"]\nmax_age = 5\n'
    )
    with serving(tmp_path) as api:
        found = api.client.get_function_url_config(FunctionName="site")
        url = found["FunctionUrl"]
        assert derived_id("site", REGION, ACCOUNT) in url
        assert shown(found) == {
            "FunctionUrl": url,
            "FunctionArn": f"{ARN}:site",
            "AuthType": "NONE",
            "InvokeMode": "RESPONSE_STREAM",
            "Cors": {"AllowOrigins": ["https://a.example"], "MaxAge": 5},
            "CreationTime": "date",
            "LastModifiedTime": "date",
        }
        assert get(url).status == 200  # open as written
        for operation in ("update_function_url_config", "delete_function_url_config"):
            status, code, message = api.refusal(operation, FunctionName="site")
            assert (status, code) == (409, "ResourceConflictException")
            assert message.endswith("Hint: change [url] there")
        assert api.refusal("create_function_url_config", FunctionName="site", AuthType="NONE")[
            0
        ] == (409)
        listed = get(f"{api.url}/_lambox/functions").json
        assert [one["urls"] for one in listed] == [[url]]
        # Without [url] it is gone with the next request, and the API may have one.
        (folder / "function.toml").write_text("")
        assert get(url).body == b'{"Message":null}'
        made = api.client.create_function_url_config(FunctionName="site", AuthType="NONE")
        allow(api, "site")
        assert get(made["FunctionUrl"]).status == 200
        listed = api.client.list_function_url_configs(FunctionName="site")["FunctionUrlConfigs"]
        assert [one["FunctionUrl"] for one in listed] == [made["FunctionUrl"]]
        # What the folder says counts.
        (folder / "function.toml").write_text('[url]\nauth_type = "NONE"\n')
        assert get(made["FunctionUrl"]).status == 403
        assert get(url).status == 200


def test_the_address_is_told_as_the_server_was_reached(api: Api) -> None:
    api.create()
    api.client.create_function_url_config(FunctionName="hello", AuthType="NONE")
    port = api.url.rpartition(":")[2]
    path = "/2021-10-31/functions/hello/url"

    async def ask(host: str) -> str:
        async with await connect(("127.0.0.1", int(port))) as wire:
            await wire.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            url = (await wire.answer("GET")).json["FunctionUrl"]
            assert isinstance(url, str)
            return url

    assert URL.fullmatch(trio.run(ask, f"localhost:{port}"))
    assert URL.fullmatch(trio.run(ask, f"[::1]:{port}"))
