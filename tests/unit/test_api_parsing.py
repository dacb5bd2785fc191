"""runtimeapi.control.parsing and constraints against what AWS was recorded to answer.

Requests are written by botocore's own serializer. The messages are those of LocalStack's AWS-validated snapshots
(tests/aws/services/lambda_/test_lambda_api.snapshot.json), their placeholders filled in.
"""

from __future__ import annotations

import base64
import json
import re
import tracemalloc
from typing import Any

import pytest
from botocore.serialize import create_serializer

from runtimeapi.control import model
from runtimeapi.control.constraints import compiled
from runtimeapi.control.parsing import LARGE, MOST_VALUES, PIECE, Input, parse
from sandbox.errors import CallerError

PLACE = "arn:aws:lambda:us-east-1:111111111111"
GET_NAME = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?"
    r"(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?"
)
CREATE_NAME = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?"
    r"(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?"
)
URL_QUALIFIER = r"((?!^\d+$)^[0-9a-zA-Z-_]+$)"
LAYER_VERSION = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:layer:"
    r"[a-zA-Z0-9-_]+:[0-9]+)|(arn:[a-zA-Z0-9-]+:lambda:::awslayer:[a-zA-Z0-9-_]+)"
)
TAGGABLE = (
    r"arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:(function:"
    r"[a-zA-Z0-9-_]+(:(\$LATEST|[a-zA-Z0-9-_]+))?|layer:([a-zA-Z0-9-_]+)|code-signing-config:csc-[a-z0-9]"
    r"{17}|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|"
    r"capacity-provider:[a-zA-Z0-9-_]+)"
)
DESTINATION = (
    r"$|kafka://([^.]([a-zA-Z0-9\-_.]{0,248}))|arn:(aws[a-zA-Z0-9-]*):([a-zA-Z0-9\-])+:((eusc-)?[a-z]{2}"
    r"((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1})?:(\d{12})?:(.*)"
)
PUBLISHABLE = (
    "nodejs20.x, python3.14, provided.al2023, python3.12, python3.13, nodejs24.x, nodejs22.x, java25, "
    "python3.10, python3.11, java21, ruby3.3, ruby3.4, ruby3.2, python3.8, python3.9, java17, nodejs16.x, "
    "dotnet10, dotnet8, java11, dotnet6, nodejs18.x, provided.al2, java8.al2"
)
LISTABLE = (
    "ruby3.5, ruby2.6, dotnetcore1.0, python3.7, nodejs8.10, nasa, ruby2.7, python2.7-greengrass, "
    "dotnetcore2.0, python3.8, java21, dotnet6, dotnetcore2.1, python3.9, java11, nodejs6.10, provided, "
    "dotnetcore3.1, dotnet8, java25, java17, nodejs, nodejs4.3, java8.al2, go1.x, dotnet10, nodejs20.x, "
    "go1.9, byol, nodejs10.x, provided.al2023, nodejs22.x, python3.10, java8, nodejs12.x, python3.11, "
    "nodejs24.x, nodejs8.x, python3.12, nodejs14.x, nodejs8.9, nodejs26.x, python3.13, python3.14, nodejs16.x, "
    "python3.15, provided.al2, nodejs4.3-edge, nodejs18.x, ruby3.2, python3.4, ruby3.3, ruby3.4, ruby2.5, "
    "python3.6, python2.7"
)
FUNCTION = {"Role": "arn:aws:iam::111111111111:role/r", "Code": {"ZipFile": b"zip"}}


def read(operation: str, **given: Any) -> Input:
    """As a server reads what boto3 sends for this."""
    described = next(one for one in model.load().operations if one.name == operation)
    sent = create_serializer("rest-json", include_validation=False).serialize_to_request(
        given, described
    )
    return parsed(
        sent["method"],
        sent["url_path"],
        sent["query_string"],
        sent["headers"],
        sent["body"] or b"",
    )


def parsed(
    method: str,
    path: str,
    query: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Input:
    path, _, own = path.partition("?")
    told = {
        key: value if isinstance(value, list) else [value] for key, value in (query or {}).items()
    }
    told |= {pair.partition("=")[0]: [pair.partition("=")[2]] for pair in own.split("&") if pair}
    match = model.load().match(method, path, told)
    assert match is not None
    low = {key.lower(): value for key, value in (headers or {}).items()}
    return parse(match.operation, match.labels, told, low, body)


def refusal(operation: str, **given: Any) -> str:
    with pytest.raises(CallerError) as caught:
        read(operation, **given)
    assert (caught.value.status, caught.value.code) == (400, "ValidationException")
    return caught.value.message


def one(value: str, field: str, constraint: str) -> str:
    return f"1 validation error detected: Value {value} at '{field}' failed to satisfy constraint: {constraint}"


def pattern(text: str) -> str:
    return f"Member must satisfy regular expression pattern: {text}"


def enum(text: str) -> str:
    return f"Member must satisfy enum value set: [{text}]"


NULL = "Member must not be null"
LONG, SHORT = (
    "Member must have length less than or equal to {}",
    "Member must have length greater than or equal to {}",
)

RECORDED: list[tuple[str, dict[str, Any], str]] = [
    *(
        (
            operation,
            {"FunctionName": "f", "Qualifier": qualifier, **more},
            one(f"'{qualifier}'", "qualifier", pattern(URL_QUALIFIER)),
        )
        for operation, more in (
            ("CreateFunctionUrlConfig", {"AuthType": "NONE"}),
            ("GetFunctionUrlConfig", {}),
            ("DeleteFunctionUrlConfig", {}),
            ("UpdateFunctionUrlConfig", {"AuthType": "NONE"}),
        )
        for qualifier in ("$LATEST", "1", "2")
    ),
    (
        "AddLayerVersionPermission",
        {
            "LayerName": "l",
            "VersionNumber": 1,
            "StatementId": "s",
            "Principal": "*",
            "Action": "*",
        },
        one("'*'", "action", pattern("lambda:GetLayerVersion")),
    ),
    (
        "PutProvisionedConcurrencyConfig",
        {"FunctionName": "f", "Qualifier": "1", "ProvisionedConcurrentExecutions": 0},
        one(
            "'0'",
            "provisionedConcurrentExecutions",
            "Member must have value greater than or equal to 1",
        ),
    ),
    (
        "CreateAlias",
        {"FunctionName": "f", "Name": "2024", "FunctionVersion": "1"},
        one("'2024'", "name", pattern("(?!^[0-9]+$)([a-zA-Z0-9-_]+)")),
    ),
    (
        "PutFunctionRecursionConfig",
        {"FunctionName": "f", "RecursiveLoop": "InvalidValue"},
        one("'InvalidValue'", "recursiveLoop", enum("Terminate, Allow")),
    ),
    (
        "CreateFunctionUrlConfig",
        {"FunctionName": "f", "AuthType": "NONE", "InvokeMode": "UNKNOWN"},
        one("'UNKNOWN'", "invokeMode", enum("RESPONSE_STREAM, BUFFERED")),
    ),
    *(
        (
            "CreateFunction",
            {"FunctionName": "f", **FUNCTION, "VpcConfig": {member: ["bad_one"]}},
            one(
                "'[bad_one]'",
                f"vpcConfig.{field}",
                f"Member must satisfy constraint: [{LONG.format(1024)}, {SHORT.format(0)}, {pattern(text)}]",
            ),
        )
        for member, field, text in (
            ("SecurityGroupIds", "securityGroupIds", "sg-[0-9a-zA-Z]*"),
            ("SubnetIds", "subnetIds", "subnet-[0-9a-z]*"),
        )
    ),
    (
        "CreateFunction",
        {"FunctionName": "f", **FUNCTION, "Architectures": ["X86_64"]},
        one(
            "'[X86_64]'",
            "architectures",
            f"Member must satisfy constraint: [{enum('x86_64, arm64')}, {NULL}]",
        ),
    ),
    (
        "CreateFunction",
        {"FunctionName": "f", **FUNCTION, "Architectures": ["x86_64", "arm64"]},
        one("'[x86_64, arm64]'", "architectures", LONG.format(1)),
    ),
    (
        "UpdateFunctionConfiguration",
        {"FunctionName": "f", "Layers": [f"{PLACE}:layer:one"]},
        one(
            f"'[{PLACE}:layer:one]'",
            "layers",
            f"Member must satisfy constraint: [{LONG.format(2048)}, {SHORT.format(1)}, "
            f"{pattern(LAYER_VERSION)}, {NULL}]",
        ),
    ),
    (
        "ListLayers",
        {"CompatibleArchitecture": "archdoesnotexist"},
        one("'archdoesnotexist'", "compatibleArchitecture", enum("x86_64, arm64")),
    ),
    (
        "ListLayers",
        {"CompatibleRuntime": "runtimedoesnotexist"},
        one("'runtimedoesnotexist'", "compatibleRuntime", enum(LISTABLE)),
    ),
    *(
        (
            "PublishLayerVersion",
            {
                "LayerName": "l",
                "Content": {"ZipFile": b"zip"},
                "CompatibleArchitectures": architectures,
                "CompatibleRuntimes": runtimes,
            },
            f"2 validation errors detected: Value '[{', '.join(runtimes)}]' at 'compatibleRuntimes' failed to "
            f"satisfy constraint: {enum(PUBLISHABLE)}; Value '[{', '.join(architectures)}]' at "
            "'compatibleArchitectures' failed to satisfy constraint: Member must satisfy constraint: "
            f"[{enum('x86_64, arm64')}, {NULL}]",
        )
        for runtimes, architectures in (
            (["invalidruntime"], ["invalidarch"]),
            (["invalidruntime", "invalidruntime2", "nodejs20.x"], ["invalidarch", "x86_64"]),
        )
    ),
    (
        "PutFunctionEventInvokeConfig",
        {
            "FunctionName": "f",
            "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:_-/!lambda:us-east-1"}},
        },
        one(
            "'arn:aws:_-/!lambda:us-east-1'",
            "destinationConfig.onFailure.destination",
            pattern(DESTINATION),
        ),
    ),
    *(
        ("ListTags", {"Resource": arn}, one(f"'{arn}'", "resource", pattern(TAGGABLE)))
        for arn in (
            "arn:aws:something",
            f"{PLACE}:foobar:one",
            f"{PLACE}:capacity-provider:one:alias",
            f"{PLACE}:event-source-mapping:12345678-1234-1234-1234-123456789012:alias",
        )
    ),
    (
        "UntagResource",
        {"Resource": f"{PLACE}:function:f", "TagKeys": []},
        one("null", "tagKeys", NULL),
    ),
    (
        "GetLayerVersionByArn",
        {"Arn": f"{PLACE}:layer:one"},
        one(f"'{PLACE}:layer:one'", "arn", pattern(LAYER_VERSION)),
    ),
    (
        "AddPermission",
        {
            "FunctionName": "f",
            "StatementId": "s3",
            "Action": "lambda:InvokeFunction",
            "Principal": "s3.amazonaws.com",
            "Qualifier": "invalid-qualifier-with-?-char",
        },
        one(
            "'invalid-qualifier-with-?-char'",
            "qualifier",
            pattern(r"\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+"),
        ),
    ),
    (
        "ListFunctions",
        {"FunctionVersion": "invalid"},
        one("'invalid'", "functionVersion", enum("ALL")),
    ),
    (
        "CreateEventSourceMapping",
        {"FunctionName": "f", "StartingPosition": "invalid"},
        one("'invalid'", "startingPosition", enum("LATEST, AT_TIMESTAMP, TRIM_HORIZON")),
    ),
    (
        "CreateFunction",
        {"FunctionName": "f", **FUNCTION, "SnapStart": {"ApplyOn": "invalidOption"}},
        one("'invalidOption'", "snapStart.applyOn", enum("PublishedVersions, None")),
    ),
    *(
        (
            operation,
            {"FunctionName": "f", **more, "Role": "r1"},
            one(
                "'r1'",
                "role",
                pattern(r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"),
            ),
        )
        for operation, more in (
            ("CreateFunction", {"Code": FUNCTION["Code"]}),
            ("UpdateFunctionConfiguration", {}),
        )
    ),
    (
        "CreateAlias",
        {
            "FunctionName": "f",
            "Name": "a",
            "FunctionVersion": "1",
            "RoutingConfig": {"AdditionalVersionWeights": {"$LATEST": 0.5}},
        },
        one(
            "'{$LATEST=0.5}'",
            "routingConfig.additionalVersionWeights",
            f"Map keys must satisfy constraint: [{LONG.format(1024)}, {SHORT.format(1)}, {pattern('[0-9]+')}]",
        ),
    ),
    *(
        (
            "CreateAlias",
            {
                "FunctionName": "f",
                "Name": "a",
                "FunctionVersion": "1",
                "RoutingConfig": {"AdditionalVersionWeights": {"2": weight}},
            },
            one(
                f"'{{2={shown}}}'",
                "routingConfig.additionalVersionWeights",
                "Map value must satisfy constraint: [Member must have value less than or equal to 1.0, "
                f"Member must have value greater than or equal to 0.0, {NULL}]",
            ),
        )
        for weight, shown in ((-1, "-1.0"), (2.0, "2.0"))
    ),
]


@pytest.mark.parametrize(("operation", "given", "message"), RECORDED)
def test_what_aws_was_recorded_to_say(operation: str, given: dict[str, Any], message: str) -> None:
    assert refusal(operation, **given) == message


NAMES = [
    "*",
    "my-function!",
    "invalid-account:function:my-function",
    "arn:aws:lambda:invalid-region:111111111111:function:my-function",
    "arn:aws:ec2:us-east-1:111111111111:instance:i-1234567890abcdef0",
    f"{PLACE}:function:my-function:1:2",
    "function:my-function:$LATEST:extra",
    "arn:aws:lambda::111111111111:function:my-function",
    "arn:aws:lambda:us-east-1::function:my-function",
    f"{PLACE}:function:my-function:$LATES",
    "arn:aws:lambda:us-east-1:123400000000@function:myfn",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_function_has(name: str) -> None:
    expected = one(f"'{name}'", "functionName", pattern(GET_NAME))
    for operation in ("GetFunction", "DeleteFunction"):
        assert refusal(operation, FunctionName=name) == expected
    created = one(f"'{name}'", "functionName", pattern(CREATE_NAME))
    assert refusal("CreateFunction", FunctionName=name, **FUNCTION) == created


def test_names_that_are_too_long() -> None:
    """Recorded in no order: AWS's own changes from call to call."""
    arn = f"{PLACE}:function:" + "a" * 99
    assert refusal("CreateFunction", FunctionName=arn, **FUNCTION) == one(
        f"'{arn}'", "functionName", LONG.format(140)
    )
    nowhere = "arn:aws:lambda:invalid-region:111111111111:function:" + "a" * 170
    counted, _, told = refusal("CreateFunction", FunctionName=nowhere, **FUNCTION).partition(": ")
    assert counted == "2 validation errors detected"
    assert sorted(told.split("; ")) == [
        f"Value '{nowhere}' at 'functionName' failed to satisfy constraint: {LONG.format(140)}",
        f"Value '{nowhere}' at 'functionName' failed to satisfy constraint: {pattern(CREATE_NAME)}",
    ]
    assert refusal("GetFunction", FunctionName="f", Qualifier="a" * 129) == one(
        f"'{'a' * 129}'", "qualifier", LONG.format(128)
    )
    for name in (
        f"{PLACE}:function:my-function",
        "function:my-function:$LATEST",
        f"{PLACE}:function",
        "a" * 65,
    ):
        assert read("GetFunction", FunctionName=name) == {"FunctionName": name}


def test_every_pattern_of_the_model_is_known() -> None:
    def walk(shape: Any, seen: frozenset[str] = frozenset()) -> None:
        if shape is None or shape.name in seen:
            return
        if "pattern" in shape.metadata:
            compiled(shape.metadata["pattern"])
        inside = {
            "structure": lambda: shape.members.values(),
            "list": lambda: [shape.member],
            "map": lambda: [shape.key, shape.value],
        }.get(shape.type_name, list)
        for inner in inside():
            walk(inner, seen | {shape.name})

    for operation in model.load().operations:
        walk(operation.input_shape)


def test_tags_may_have_letters_of_all_alphabets() -> None:
    where = {"Resource": f"{PLACE}:function:f"}
    tags = {"größe": "日本 語", "a.b:/=+-@_1": "٣"}
    assert read("TagResource", **where, Tags=tags)["Tags"] == tags
    for bad in ({"a*": "b"}, {"a": "tab\t"}, {"a": "\U0001f600"}):
        assert "at 'tags' failed to satisfy constraint: Map" in refusal(
            "TagResource", **where, Tags=bad
        )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "Could not parse request body into json: "),
        (b"[]", "Could not parse request body into json: it is no JSON object"),
        (b'"x"', "Could not parse request body into json: it is no JSON object"),
        (b"\xff\xfe{", "Could not parse request body into json: "),
        (b"[" * 100_000, "Could not parse request body into json: "),
        (b'{"Timeout": NaN}', "Could not parse request body into json: NaN is not JSON"),
        (b'{"Timeout": "3"}', "STRING_VALUE can not be converted to an Integer"),
        (b'{"Timeout": true}', "TRUE_VALUE can not be converted to an Integer"),
        (b'{"Timeout": 1e999}', "NUMBER_VALUE can not be converted to an Integer"),
        (b'{"Timeout": 3000000000}', "Numeric value (3000000000) out of range of int"),
        (b'{"Layers": "x"}', "STRING_VALUE can not be converted to a List: Layers"),
        (b'{"Handler": {}}', "START_OF_OBJECT can not be converted to a String: Handler"),
        (b'{"Environment": []}', "START_OF_ARRAY can not be converted to an Object: Environment"),
        (b'{"Environment": {"Variables": {"a": []}}}', "START_OF_ARRAY can not be converted"),
    ],
)
def test_bodies_that_say_nothing(body: bytes, message: str) -> None:
    with pytest.raises(CallerError) as caught:
        parsed("PUT", "/2015-03-31/functions/f/configuration", body=body)
    assert caught.value.code == "SerializationException"
    assert caught.value.message.startswith(message)


def test_values_as_java_reads_them() -> None:
    body = {
        "Timeout": 3.0,
        "Description": 7,
        "Handler": "\ud800.x",
        "Layers": None,
        "Unknown": {"a": 1},
    }
    found = parsed("PUT", "/2015-03-31/functions/f/configuration", body=json.dumps(body).encode())
    assert found == {"FunctionName": "f", "Timeout": 3, "Description": "7", "Handler": "?.x"}
    empty = parsed("PUT", "/2015-03-31/functions/f/configuration", body=b" \n")
    assert empty == {"FunctionName": "f"}


def test_members_of_path_query_and_header() -> None:
    arn = "arn%3Aaws%3Alambda%3Aus-east-1%3A111111111111%3Afunction%3Af"
    named = parsed("GET", f"/2015-03-31/functions/{arn}/aliases/", {"MaxItems": "7", "Marker": ""})
    assert named == {"FunctionName": f"{PLACE}:function:f", "MaxItems": 7}
    for wrong in ("1_0", "٧", "", " 7", "1e3", "99999999999999999999"):
        if wrong == "":
            assert "MaxItems" not in parsed("GET", "/2015-03-31/functions", {"MaxItems": wrong})
            continue
        with pytest.raises(CallerError) as caught:
            parsed("GET", "/2015-03-31/functions", {"MaxItems": wrong})
        assert caught.value.code == "SerializationException"
    with pytest.raises(CallerError, match=re.escape("less than or equal to 10000")):
        parsed("GET", "/2015-03-31/functions", {"MaxItems": "99999"})
    keys = parsed("DELETE", f"/2017-03-31/tags/{arn}", {"tagKeys": ["a", "b"], "other": ["c"]})
    assert keys == {"Resource": f"{PLACE}:function:f", "TagKeys": ["a", "b"]}


def test_null_in_lists_and_maps() -> None:
    def told(body: dict[str, Any]) -> str:
        with pytest.raises(CallerError) as caught:
            parsed("PUT", "/2015-03-31/functions/f/configuration", body=json.dumps(body).encode())
        return caught.value.message

    assert "'[null]' at 'layers'" in told({"Layers": [None]})
    assert "'[null]' at 'fileSystemConfigs'" in told({"FileSystemConfigs": [None]})
    assert "'{A=null}' at 'environment.variables'" in told(
        {"Environment": {"Variables": {"A": None}}}
    )


@pytest.mark.parametrize("unit", [b"[],", b"{},", b"1,", b'"":1,'])
def test_very_many_values_are_no_request(unit: bytes) -> None:
    """60 MB of them were 1.5 GB, and nobody else's turn for 7 s."""
    body = b'{"Layers": [' + unit * (MOST_VALUES + 1) + b"1]}"
    tracemalloc.start()
    try:
        with pytest.raises(CallerError, match="too many values") as caught:
            parsed("PUT", "/2015-03-31/functions/f/configuration", body=body)
        assert tracemalloc.get_traced_memory()[1] < len(body)
    finally:
        tracemalloc.stop()
    assert caught.value.code == "SerializationException"


def test_large_code_is_read_as_small_is() -> None:
    code = bytes(range(256)) * 8192  # 2 MiB: several pieces
    assert len(code) % 3
    assert read("UpdateFunctionCode", FunctionName="f", ZipFile=code)["ZipFile"] == code
    told = base64.b64encode(code).decode()
    for text in (
        told[: PIECE - 2] + "==" + told[PIECE:],  # padded in the middle
        told[:-1],
        told[:PIECE] + "*" + told[PIECE + 1 :],
        told + "\u00e4",
    ):
        body = json.dumps({"ZipFile": text}).encode()
        assert len(body) > LARGE
        with pytest.raises(CallerError, match="ZipFile is no valid base64"):
            parsed("PUT", "/2015-03-31/functions/f/code", body=body)
    for body in (
        b"[" + b" " * LARGE + b"]",
        b'{"ZipFile": NaN' + b" " * LARGE + b"}",
        b" " * LARGE + b"{",
    ):
        with pytest.raises(CallerError, match="Could not parse request body into json"):
            parsed("PUT", "/2015-03-31/functions/f/code", body=body)
    spaced = b'{"Description": "\\ud800\xc3\xa4"}' + b" " * LARGE
    found = parsed("PUT", "/2015-03-31/functions/f/configuration", body=spaced)
    assert found["Description"] == "?\u00e4"
