"""Reserved and provisioned concurrency and the account through the Lambda API (SPEC 7, 10.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from sandbox.errors import InvalidRuntime
from sandbox.provisioning import Provisioned
from tests.contract.lambda_api import Api, serving
from tests.contract.versioned import add_alias, add_version

ARN = "arn:aws:lambda:us-east-1:123456789012:function"
IPV, RNF = "InvalidParameterValueException", "ResourceNotFoundException"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path, account_concurrency="200") as api:
        yield api


def test_reserved_concurrency(api: Api) -> None:
    lambda_ = api.client
    api.create("one")
    assert "ReservedConcurrentExecutions" not in lambda_.get_function_concurrency(
        FunctionName="one"
    )
    for wanted in (0, 7, 180):
        put = lambda_.put_function_concurrency(
            FunctionName="one", ReservedConcurrentExecutions=wanted
        )
        assert put["ReservedConcurrentExecutions"] == wanted
        got = lambda_.get_function_concurrency(FunctionName=f"{ARN}:one")
        assert got["ReservedConcurrentExecutions"] == wanted
    assert api.behind.functions.get("one").reserved_concurrency == 180
    limit = lambda_.get_account_settings()["AccountLimit"]
    assert (limit["ConcurrentExecutions"], limit["UnreservedConcurrentExecutions"]) == (200, 20)
    gone = lambda_.delete_function_concurrency(FunctionName="one")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert "ReservedConcurrentExecutions" not in lambda_.get_function_concurrency(
        FunctionName="one"
    )
    assert api.behind.functions.get("one").reserved_concurrency is None


def test_refused_reservations(api: Api) -> None:
    api.create("one")
    for wanted in (1, -1):
        refused = api.refusal(
            "put_function_concurrency", FunctionName="none", ReservedConcurrentExecutions=wanted
        )
        if wanted < 0:
            assert refused[1] == "ValidationException"
        else:
            assert refused == (404, RNF, f"Function not found: {ARN}:none:$LATEST")
    refused = api.refusal("get_function_concurrency", FunctionName="none")
    assert refused == (404, RNF, f"Function not found: {ARN}:none")
    for name in ("one:$LATEST", f"{ARN}:one:1"):
        assert api.refusal(
            "put_function_concurrency", FunctionName=name, ReservedConcurrentExecutions=1
        ) == (
            400,
            IPV,
            "This operation is permitted on Lambda functions only. Aliases and versions do not support this "
            "operation. Please specify either a function name or an unqualified function ARN.",
        )
    for wanted in (181, 201):
        assert api.refusal(
            "put_function_concurrency", FunctionName="one", ReservedConcurrentExecutions=wanted
        ) == (
            400,
            IPV,
            "Specified ReservedConcurrentExecutions for function decreases account's "
            "UnreservedConcurrentExecution below its minimum value of [20].",
        )
    api.create("two")
    api.client.put_function_concurrency(FunctionName="two", ReservedConcurrentExecutions=100)
    # The function's own reservation is not counted against its next one.
    api.client.put_function_concurrency(FunctionName="one", ReservedConcurrentExecutions=60)
    api.client.put_function_concurrency(FunctionName="one", ReservedConcurrentExecutions=80)
    assert (
        api.refusal(
            "put_function_concurrency", FunctionName="one", ReservedConcurrentExecutions=81
        )[1]
        == IPV
    )
    missing = api.refusal("put_function_concurrency", FunctionName="one")
    assert missing == (
        400,
        "ValidationException",
        "1 validation error detected: Value null at 'reservedConcurrentExecutions' failed to satisfy "
        "constraint: Member must not be null",
    )


def test_a_folders_function_can_be_reserved_for(tmp_path: Path) -> None:
    folder = tmp_path / "functions" / "folder"
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text("def handler(event, context): return event\n")
    (folder / "function.toml").write_text("reserved_concurrency = 3\n")
    with serving(tmp_path) as api:
        name = {"FunctionName": "folder"}
        got = api.client.get_function_concurrency(**name)
        assert got["ReservedConcurrentExecutions"] == 3
        limit = api.client.get_account_settings()["AccountLimit"]
        assert limit["UnreservedConcurrentExecutions"] == 997
        api.client.put_function_concurrency(**name, ReservedConcurrentExecutions=5)
        assert api.behind.functions.get("folder").reserved_concurrency == 5
        api.client.delete_function_concurrency(**name)
        assert api.behind.functions.get("folder").reserved_concurrency == 3


def test_provisioned_concurrency(tmp_path: Path) -> None:
    engine: dict[tuple[str, str], Callable[[], Provisioned]] = {
        ("one", "1"): lambda: Provisioned(0)
    }
    with serving(tmp_path, provisioned=lambda name, version: engine[name, version]()) as api:
        lambda_ = api.client
        api.create("one")
        add_version(api, "one")
        where = {"FunctionName": "one", "Qualifier": "1"}
        put = lambda_.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=2)
        assert put["ResponseMetadata"]["HTTPStatusCode"] == 202
        assert (put["Status"], put["RequestedProvisionedConcurrentExecutions"]) == (
            "IN_PROGRESS",
            2,
        )
        assert put["AllocatedProvisionedConcurrentExecutions"] == 0
        assert api.behind.functions.resolve("one", "1").provisioned_concurrency == 2
        assert lambda_.get_provisioned_concurrency_config(**where)["Status"] == "IN_PROGRESS"
        engine["one", "1"] = lambda: Provisioned(2, 2, 1, "READY")
        got = lambda_.get_provisioned_concurrency_config(**where)
        assert (got["Status"], got["AllocatedProvisionedConcurrentExecutions"]) == ("READY", 2)
        engine["one", "1"] = lambda: Provisioned(2, 0, 0, "FAILED", "FUNCTION_ERROR_INIT_FAILURE")
        listed = lambda_.list_provisioned_concurrency_configs(FunctionName="one")
        (one,) = listed["ProvisionedConcurrencyConfigs"]
        assert (one["FunctionArn"], one["Status"]) == (f"{ARN}:one:1", "FAILED")
        assert one["StatusReason"] == "FUNCTION_ERROR_INIT_FAILURE"
        engine["one", "1"] = cannot_run
        failed = lambda_.get_provisioned_concurrency_config(**where)
        assert (failed["Status"], failed["StatusReason"]) == (
            "FAILED",
            "INTERNAL_ERROR: no such runtime",
        )
        engine["one", "1"] = lambda: Provisioned(2, 2, 2, "READY")
        # The engine still speaks of the last request.
        lambda_.put_provisioned_concurrency_config(**where, ProvisionedConcurrentExecutions=3)
        assert lambda_.get_provisioned_concurrency_config(**where)["Status"] == "IN_PROGRESS"
        unreserved = lambda_.get_account_settings()["AccountLimit"]
        assert unreserved["UnreservedConcurrentExecutions"] == 997
        for _ in range(2):
            gone = lambda_.delete_provisioned_concurrency_config(**where)
            assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
        assert api.behind.functions.resolve("one", "1").provisioned_concurrency == 0
        assert api.refusal("get_provisioned_concurrency_config", **where) == (
            404,
            "ProvisionedConcurrencyConfigNotFoundException",
            "No Provisioned Concurrency Config found for this function",
        )


def cannot_run() -> Provisioned:
    raise InvalidRuntime("no such runtime")


def test_provisioned_by_version_or_by_alias(api: Api) -> None:
    api.create("one")
    add_version(api, "one")
    add_version(api, "one", "2")
    add_alias(api, "one", "live", "1")
    add_alias(api, "one", "split", "1", v2=0.5)
    add_alias(api, "one", "newest", "$LATEST")
    put = "put_provisioned_concurrency_config"

    def asked(qualifier: str, count: int = 1) -> dict[str, object]:
        return {
            "FunctionName": "one",
            "Qualifier": qualifier,
            "ProvisionedConcurrentExecutions": count,
        }

    api.client.put_provisioned_concurrency_config(**asked("1"))
    assert api.refusal(put, **asked("live")) == (
        409,
        "ResourceConflictException",
        "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version",
    )
    api.client.delete_provisioned_concurrency_config(FunctionName="one", Qualifier="1")
    api.client.put_provisioned_concurrency_config(**asked("live"))
    assert api.behind.functions.resolve("one", "live").provisioned_concurrency == 1
    assert api.refusal(put, **asked("1")) == (
        409,
        "ResourceConflictException",
        "Version is pointed by a Provisioned Concurrency alias",
    )
    assert api.refusal(put, **asked("split")) == (
        400,
        IPV,
        "Alias with weights can not be used with Provisioned Concurrency",
    )
    for qualifier in ("$LATEST", "newest"):
        assert api.refusal(put, **asked(qualifier)) == (
            400,
            IPV,
            "Provisioned Concurrency Configs cannot be applied to unpublished function versions.",
        )
    # The account's share, what is left of it, and the function's own reservation.
    assert api.refusal(put, **asked("2", 200)) == (
        400,
        IPV,
        "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency [199].",
    )
    assert api.refusal(put, **asked("2", 190)) == (
        400,
        IPV,
        "Specified ConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
        "below its minimum value of [20].",
    )
    api.client.put_function_concurrency(FunctionName="one", ReservedConcurrentExecutions=3)
    assert api.refusal(put, **asked("2", 3)) == (
        400,
        IPV,
        "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution "
        "for function",
    )
    api.client.put_provisioned_concurrency_config(**asked("2", 2))
    assert api.refusal(
        "put_function_concurrency", FunctionName="one", ReservedConcurrentExecutions=2
    ) == (
        400,
        IPV,
        " ReservedConcurrentExecutions  2 should not be lower than function's total provisioned "
        "concurrency [3].",
    )
    pages = api.client.get_paginator("list_provisioned_concurrency_configs")
    found = [
        one["FunctionArn"].rpartition(":")[2]
        for page in pages.paginate(FunctionName="one", PaginationConfig={"PageSize": 1})
        for one in page["ProvisionedConcurrencyConfigs"]
    ]
    assert found == ["2", "live"]


def test_provisioned_where_there_is_nothing(api: Api) -> None:
    api.create("one")
    empty = api.client.list_provisioned_concurrency_configs(FunctionName="one")
    assert empty["ProvisionedConcurrencyConfigs"] == []
    refused = api.refusal("list_provisioned_concurrency_configs", FunctionName="none")
    assert refused == (404, RNF, f"Function not found: {ARN}:none")
    for operation, more in (
        ("get_provisioned_concurrency_config", {}),
        ("delete_provisioned_concurrency_config", {}),
        ("put_provisioned_concurrency_config", {"ProvisionedConcurrentExecutions": 1}),
    ):
        for name, qualifier, message in (
            ("none", "noalias", f"Cannot find alias arn: {ARN}:none:noalias"),
            ("none", "1", f"Function not found: {ARN}:none:1"),
            ("one", "noalias", f"Cannot find alias arn: {ARN}:one:noalias"),
            ("one", "10", f"Function not found: {ARN}:one:10"),
        ):
            refused = api.refusal(operation, FunctionName=name, Qualifier=qualifier, **more)
            assert refused == (404, RNF, message)
        if not more:
            assert api.refusal(operation, FunctionName="one", Qualifier="$LATEST") == (
                400,
                IPV,
                "The function resource provided must be an alias or a published version.",
            )


def test_account_settings_tell_what_there_is(api: Api) -> None:
    before = api.client.get_account_settings()["AccountUsage"]
    assert before == {"TotalCodeSize": 0, "FunctionCount": 0}
    size = api.create("one")["CodeSize"]
    add_version(api, "one")
    after = api.client.get_account_settings()
    assert after["AccountUsage"] == {"TotalCodeSize": 2 * size, "FunctionCount": 1}
    assert after["AccountLimit"]["CodeSizeUnzipped"] == 262144000
    assert after["AccountLimit"]["CodeSizeZipped"] == 52428800


def test_what_the_account_refuses_has_no_type(api: Api) -> None:
    """As AWS was recorded; its other refusals have one."""
    api.create("one")
    put = api.client.put_function_concurrency
    with pytest.raises(ClientError) as refused:
        put(FunctionName="one", ReservedConcurrentExecutions=181)
    assert "Type" not in refused.value.response
    with pytest.raises(ClientError) as refused:
        put(FunctionName="one:1", ReservedConcurrentExecutions=1)
    assert refused.value.response["Type"] == "User"
