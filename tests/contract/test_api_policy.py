"""Permissions, tags and what is kept of a function without effect (SPEC 10.5)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sandbox.registry.records import MappingRecord
from tests.contract.lambda_api import Api, serving
from tests.contract.versioned import add_alias, add_version, put_record

ARN = "arn:aws:lambda:us-east-1:123456789012:function"
IPV, RNF = "InvalidParameterValueException", "ResourceNotFoundException"
STALE = (
    "The Revision Id provided does not match the latest Revision Id. Call the {} API to retrieve the "
    "latest Revision Id"
)
INVOKE = {"FunctionName": "one", "Action": "lambda:InvokeFunction"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serving(tmp_path) as api:
        api.create("one")
        yield api


def statements(api: Api, **where: str) -> list[dict[str, Any]]:
    policy = json.loads(api.client.get_policy(**{"FunctionName": "one", **where})["Policy"])
    assert (policy["Version"], policy["Id"]) == ("2012-10-17", "default")
    found: list[dict[str, Any]] = policy["Statement"]
    return found


STATEMENTS: list[tuple[dict[str, Any], object, object]] = [
    (
        {"Principal": "s3.amazonaws.com", "SourceArn": "arn:aws:s3:::bucket"},
        {"Service": "s3.amazonaws.com"},
        {"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::bucket"}},
    ),
    (
        {"Principal": "*", "SourceAccount": "111111111111"},
        "*",
        {"StringEquals": {"AWS:SourceAccount": "111111111111"}},
    ),
    ({"Principal": "111111111111"}, {"AWS": "arn:aws:iam::111111111111:root"}, None),
    (
        {"Principal": "arn:aws:iam::111111111111:user/me"},
        {"AWS": "arn:aws:iam::111111111111:user/me"},
        None,
    ),
    (
        {"Principal": "alexa-appkit.amazon.com", "EventSourceToken": "amzn1.ask.skill.x-1"},
        {"Service": "alexa-appkit.amazon.com"},
        {"StringEquals": {"lambda:EventSourceToken": "amzn1.ask.skill.x-1"}},
    ),
    (
        {
            "Principal": "*",
            "Action": "lambda:InvokeFunctionUrl",
            "SourceArn": "arn:aws:s3:::bucket",
            "SourceAccount": "111111111111",
            "FunctionUrlAuthType": "NONE",
            "PrincipalOrgID": "o-1234567890",
            "InvokedViaFunctionUrl": True,
        },
        "*",
        {
            "StringEquals": {
                "AWS:SourceAccount": "111111111111",
                "lambda:FunctionUrlAuthType": "NONE",
                "aws:PrincipalOrgID": "o-1234567890",
            },
            "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::bucket"},
            "Bool": {"lambda:InvokedViaFunctionUrl": "true"},
        },
    ),
]


def test_statements_as_aws_writes_them(api: Api) -> None:
    for given, principal, condition in STATEMENTS:
        added = api.client.add_permission(**{**INVOKE, "StatementId": "sid", **given})
        assert added["ResponseMetadata"]["HTTPStatusCode"] == 201
        expected = {
            "Sid": "sid",
            "Effect": "Allow",
            "Principal": principal,
            "Action": given.get("Action", "lambda:InvokeFunction"),
            "Resource": f"{ARN}:one",
        }
        if condition is not None:
            expected["Condition"] = condition
        assert added["Statement"] == json.dumps(expected, separators=(",", ":"))
        assert statements(api) == [expected]
        api.client.remove_permission(FunctionName="one", StatementId="sid")


def test_each_qualifier_has_its_own_policy(api: Api) -> None:
    add_version(api, "one")
    add_alias(api, "one", "live", "1")
    for qualifier in ("1", "live"):
        api.client.add_permission(
            **INVOKE, StatementId="s3", Principal="s3.amazonaws.com", Qualifier=qualifier
        )
        (one,) = statements(api, Qualifier=qualifier)
        assert one["Resource"] == f"{ARN}:one:{qualifier}"
        assert statements(api, FunctionName=f"one:{qualifier}") == [one]
    assert api.refusal("get_policy", FunctionName="one")[1] == RNF
    removed = api.client.remove_permission(FunctionName="one", StatementId="s3", Qualifier="live")
    assert removed["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert api.refusal("get_policy", FunctionName="one", Qualifier="live") == (
        404,
        RNF,
        "The resource you requested does not exist.",
    )
    assert len(statements(api, Qualifier="1")) == 1


def test_revisions_of_a_policy(api: Api) -> None:
    def revision() -> str:
        found: str = api.client.get_function(FunctionName="one")["Configuration"]["RevisionId"]
        return found

    before = revision()
    s3 = {**INVOKE, "Principal": "s3.amazonaws.com"}
    assert api.refusal("add_permission", **s3, StatementId="a", RevisionId=str(uuid.uuid4())) == (
        412,
        "PreconditionFailedException",
        STALE.format("GetPolicy"),
    )
    api.client.add_permission(**s3, StatementId="a", RevisionId=before)
    assert revision() != before
    assert api.client.get_policy(FunctionName="one")["RevisionId"] == revision()
    where = {"FunctionName": "one", "StatementId": "a"}
    assert api.refusal("remove_permission", **where, RevisionId=before) == (
        412,
        "PreconditionFailedException",
        STALE.format("GetFunction/GetAlias"),
    )
    api.client.remove_permission(**where, RevisionId=revision())
    assert api.refusal("get_policy", FunctionName="one")[1] == RNF


def test_refused_permissions(api: Api) -> None:
    for operation, given, expected in REFUSED_PERMISSIONS:
        asked = {"FunctionName": "one"}
        if operation != "get_policy":
            asked["StatementId"] = "s3"
        if operation == "add_permission":
            asked |= {"Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com"}
        assert api.refusal(operation, **{**asked, **given}) == expected
    assert api.refusal("get_policy", FunctionName="one")[1] == RNF


REFUSED_PERMISSIONS: list[tuple[str, dict[str, str], tuple[int, str, str]]] = [
    (
        "add_permission",
        {"StatementId": "example.com"},
        (
            400,
            "ValidationException",
            "1 validation error detected: Value 'example.com' at 'statementId' failed to satisfy "
            "constraint: Member must satisfy regular expression pattern: ([a-zA-Z0-9-_]+)",
        ),
    ),
    (
        "add_permission",
        {"FunctionName": "one:other", "Qualifier": "42"},
        (
            400,
            IPV,
            "The derived qualifier from the function name does not match the specified qualifier.",
        ),
    ),
    (
        "add_permission",
        {"FunctionName": "one:$LATEST", "Qualifier": "$LATEST"},
        (400, IPV, "We currently do not support adding policies for $LATEST."),
    ),
    (
        "add_permission",
        {"Principal": "invalid.nonaws.com"},
        (
            400,
            IPV,
            "The provided principal was invalid. Please check the principal and try again.",
        ),
    ),
    (
        "add_permission",
        {"FunctionName": "none"},
        (404, RNF, f"Function not found: {ARN}:none"),
    ),
    (
        "add_permission",
        {"Qualifier": "noalias"},
        (404, RNF, f"Cannot find alias arn: {ARN}:one:noalias"),
    ),
    ("add_permission", {"Qualifier": "42"}, (404, RNF, f"Function not found: {ARN}:one:42")),
    (
        "add_permission",
        {"Qualifier": "valid-with-$-but-doesnotexist"},
        (404, RNF, f"Function not found: {ARN}:one:valid-with-$-but-doesnotexist"),
    ),
    (
        "get_policy",
        {"FunctionName": "none"},
        (404, RNF, "The resource you requested does not exist."),
    ),
    (
        "get_policy",
        {"Qualifier": "77"},
        (404, RNF, "The resource you requested does not exist."),
    ),
    (
        "remove_permission",
        {"FunctionName": "none"},
        (404, RNF, f"No policy found for: {ARN}:none"),
    ),
    (
        "remove_permission",
        {"Qualifier": "noalias"},
        (404, RNF, f"Cannot find alias arn: {ARN}:one:noalias"),
    ),
    (
        "remove_permission",
        {},
        (404, RNF, "No policy is associated with the given resource."),
    ),
]


def test_a_policy_has_its_limits(api: Api) -> None:
    permission = {**INVOKE, "Principal": "s3.amazonaws.com"}
    api.client.add_permission(**permission, StatementId="s0")
    assert api.refusal("add_permission", **permission, StatementId="s0") == (
        409,
        "ResourceConflictException",
        "The statement id (s0) provided already exists. Please provide a new statement id, or remove the "
        "existing statement.",
    )
    assert api.refusal("remove_permission", FunctionName="one", StatementId="other") == (
        404,
        RNF,
        "Statement other is not found in resource policy.",
    )
    long = "arn:aws:s3:::" + "b" * 9900
    api.client.add_permission(**permission, StatementId="s1", SourceArn=long)
    status, code, message = api.refusal(
        "add_permission", **permission, StatementId="s2", SourceArn=long + "b" * 80
    )
    assert (status, code) == (400, "PolicyLengthExceededException")
    size = int(message.removeprefix("The final policy size (").partition(")")[0])
    assert size > 20480
    assert message == f"The final policy size ({size}) is bigger than the limit (20480)."
    assert [one["Sid"] for one in statements(api)] == ["s0", "s1"]


def test_whole_policies(api: Api) -> None:
    where = {"ResourceArn": f"{ARN}:one"}
    assert api.refusal("get_resource_policy", **where)[1] == RNF
    api.client.add_permission(**INVOKE, StatementId="a", Principal="*")
    statement = {"Effect": "Deny", "Principal": "*", "Action": "*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    put = api.client.put_resource_policy(**where, Policy=policy)
    assert json.loads(put["Policy"])["Statement"] == [statement]
    assert api.client.get_resource_policy(**where)["RevisionId"] == put["RevisionId"]
    assert api.client.get_policy(FunctionName="one")["Policy"] == put["Policy"]
    for bad in ("{", "[]", "{}", '{"Statement": [{}]}', '{"Statement": ["a"]}'):
        assert api.refusal("put_resource_policy", **where, Policy=bad)[:2] == (400, IPV)
    stale = api.refusal("delete_resource_policy", **where, RevisionId=str(uuid.uuid4()))
    assert stale[:2] == (412, "PreconditionFailedException")
    api.client.delete_resource_policy(**where, RevisionId=put["RevisionId"])
    assert api.refusal("delete_resource_policy", **where)[1] == RNF
    runtime = "arn:aws:lambda:us-east-1:123456789012:runtime/a"
    assert api.refusal("get_resource_policy", ResourceArn=runtime)[1] == RNF


def test_a_folders_function_has_policies_and_tags(tmp_path: Path) -> None:
    folder = tmp_path / "functions" / "folder"
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text("def handler(event, context): return event\n")
    with serving(tmp_path) as api:
        permission = {"FunctionName": "folder", "Action": "lambda:InvokeFunction"}
        api.client.add_permission(**permission, StatementId="a", Principal="*")
        first = api.client.get_policy(FunctionName="folder")["RevisionId"]
        again = {**permission, "Principal": "*"}
        api.client.add_permission(**again, StatementId="b", RevisionId=first)
        refused = api.refusal("add_permission", **again, StatementId="c", RevisionId=first)
        assert refused[1] == "PreconditionFailedException"
        api.client.tag_resource(Resource=f"{ARN}:folder", Tags={"a": "b"})
    with serving(tmp_path) as api:
        assert api.client.list_tags(Resource=f"{ARN}:folder")["Tags"] == {"a": "b"}
        assert len(statements(api, FunctionName="folder")) == 2


def test_tags(api: Api) -> None:
    where = {"Resource": f"{ARN}:one"}
    lambda_ = api.client
    assert lambda_.list_tags(**where)["Tags"] == {}
    done = lambda_.tag_resource(**where, Tags={"a": "1", "b": "2", "c": ""})
    assert done["ResponseMetadata"]["HTTPStatusCode"] == 204
    lambda_.tag_resource(**where, Tags={"b": "3", "d": "4"})
    assert lambda_.list_tags(**where)["Tags"] == {"a": "1", "b": "3", "c": "", "d": "4"}
    assert lambda_.get_function(FunctionName="one")["Tags"]["b"] == "3"
    gone = lambda_.untag_resource(**where, TagKeys=["a", "c", "none"])
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert lambda_.list_tags(**where)["Tags"] == {"b": "3", "d": "4"}
    lambda_.untag_resource(**where, TagKeys=["b", "d"])
    assert "Tags" not in lambda_.get_function(FunctionName="one")
    assert api.refusal("tag_resource", **where, Tags={}) == (
        400,
        IPV,
        "An error occurred and the request cannot be processed.",
    )
    assert api.refusal("untag_resource", **where, TagKeys=[]) == (
        400,
        "ValidationException",
        "1 validation error detected: Value null at 'tagKeys' failed to satisfy constraint: Member must not "
        "be null",
    )


def test_fifty_tags(api: Api) -> None:
    where = {"Resource": f"{ARN}:one"}
    many = {f"key_{n}": f"value_{n}" for n in range(51)}
    too_many = (400, IPV, "Number of tags exceeds resource tag limit.")
    assert api.refusal("tag_resource", **where, Tags=many) == too_many
    del many["key_50"]
    api.client.tag_resource(**where, Tags=many)
    assert api.refusal("tag_resource", **where, Tags={"one": "more"}) == too_many
    api.client.tag_resource(**where, Tags={"key_1": "new"})
    assert len(api.client.list_tags(**where)["Tags"]) == 50


def test_resources_that_have_no_tags(api: Api) -> None:
    place = "arn:aws:lambda:us-east-1:123456789012"
    qualified = (
        400,
        IPV,
        "Tags on function aliases and versions are not supported. Please specify a function ARN.",
    )
    mapping = f"{place}:event-source-mapping:12345678-1234-1234-1234-123456789012"
    signing = f"{place}:code-signing-config:csc-12345678901234567"
    provider = f"{place}:capacity-provider:mine"
    for arn, expected in (
        (f"{ARN}:none", (404, RNF, f"Function not found: {ARN}:none")),
        (f"{ARN}:one:alias", qualified),
        (f"{ARN}:none:$LATEST", qualified),
        (mapping, (404, RNF, f"Event source mapping not found: {mapping}")),
        (signing, (404, RNF, f"The Lambda code signing configuration {signing} can not be found.")),
        (provider, (404, RNF, f"Capacity provider not found: {provider}")),
    ):
        for operation, more in (
            ("tag_resource", {"Tags": {"a": "b"}}),
            ("untag_resource", {"TagKeys": ["a"]}),
            ("list_tags", {}),
        ):
            assert api.refusal(operation, Resource=arn, **more) == expected
    elsewhere = api.refusal("list_tags", Resource=mapping.replace("us-east-1", "eu-west-1"))
    assert elsewhere[:2] == (404, RNF)
    foreign = api.refusal("list_tags", Resource=f"{ARN}:one".replace("123456789012", "1" * 12))
    assert foreign[:2] == (403, "AccessDeniedException")
    for wrong in ("arn:aws:something", f"{place}:foobar:one", f"{mapping}:alias"):
        status, code, message = api.refusal("list_tags", Resource=wrong)
        assert (status, code) == (400, "ValidationException")
        assert message.startswith(f"1 validation error detected: Value '{wrong}' at 'resource'")


def test_tags_of_an_event_source_mapping(api: Api) -> None:
    name = str(uuid.uuid4())
    put_record(api, MappingRecord(name=name, function="one", qualifier=None, document={}))
    where = {"Resource": f"arn:aws:lambda:us-east-1:123456789012:event-source-mapping:{name}"}
    api.client.tag_resource(**where, Tags={"a": "b"})
    assert api.client.list_tags(**where)["Tags"] == {"a": "b"}
    api.client.untag_resource(**where, TagKeys=["a"])
    assert api.client.list_tags(**where)["Tags"] == {}


def test_recursion_and_runtime_management(api: Api) -> None:
    lambda_, name = api.client, {"FunctionName": "one"}
    assert lambda_.get_function_recursion_config(**name)["RecursiveLoop"] == "Terminate"
    put = lambda_.put_function_recursion_config(**name, RecursiveLoop="Allow")
    assert put["RecursiveLoop"] == "Allow"
    assert lambda_.get_function_recursion_config(**name)["RecursiveLoop"] == "Allow"
    assert api.refusal("put_function_recursion_config", **name, RecursiveLoop="InvalidValue") == (
        400,
        "ValidationException",
        "1 validation error detected: Value 'InvalidValue' at 'recursiveLoop' failed to satisfy constraint: "
        "Member must satisfy enum value set: [Terminate, Allow]",
    )
    add_version(api, "one")
    auto = lambda_.get_runtime_management_config(**name)
    assert (auto["UpdateRuntimeOn"], auto["FunctionArn"]) == ("Auto", f"{ARN}:one")
    runtime = (
        "arn:aws:lambda:us-east-1::runtime:8eeff65f6809a3ce81507fe733fe09b835899b99481ba22fd75b5a"
    )
    manual = {**name, "Qualifier": "1", "UpdateRuntimeOn": "Manual"}
    lambda_.put_runtime_management_config(**manual, RuntimeVersionArn=runtime)
    kept = lambda_.get_runtime_management_config(**name, Qualifier="1")
    assert (kept["RuntimeVersionArn"], kept["FunctionArn"]) == (runtime, f"{ARN}:one:1")
    assert lambda_.get_runtime_management_config(**name)["UpdateRuntimeOn"] == "Auto"
    assert api.refusal("put_runtime_management_config", **manual)[1] == IPV
    for operation in (
        partial(api.refusal, "get_runtime_management_config"),
        partial(api.refusal, "get_function_recursion_config"),
    ):
        assert operation(FunctionName="none") == (404, RNF, f"Function not found: {ARN}:none")


def test_a_folders_own_answer_to_loops(tmp_path: Path) -> None:
    with serving(tmp_path) as api:
        folder = api.folder("folder")
        (folder / "function.toml").write_text(
            'runtime = "python3.11"\nhandler = "index.handler"\nrecursive_loop = "Allow"\n'
        )
        name = {"FunctionName": "folder"}
        assert api.client.get_function_recursion_config(**name)["RecursiveLoop"] == "Allow"
        api.client.put_function_recursion_config(**name, RecursiveLoop="Terminate")
        assert api.client.get_function_recursion_config(**name)["RecursiveLoop"] == "Terminate"
