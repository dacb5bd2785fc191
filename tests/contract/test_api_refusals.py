"""What the Lambda API refuses, in AWS's words (SPEC 10.3, 10.4); a refused call changes nothing on disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.lambda_api import PYTHON, Api, asked, serving, zipped

ARN = "arn:aws:lambda:us-east-1:123456789012:function:"


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server with one function, that nothing is to change."""
    with serving(tmp_path_factory.mktemp("still")) as api:
        api.create("still")
        yield api


ONE = "1 validation error detected: Value "
FAILED = " failed to satisfy constraint: Member must "
INVALID = "InvalidParameterValueException"
CREATE_REFUSALS: list[tuple[dict[str, object], int, str, str]] = [
    (
        {"Role": "admin"},
        400,
        "ValidationException",
        ONE + "'admin' at 'role'" + FAILED + "satisfy regular expression pattern: "
        r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
    ),
    (
        {"Architectures": ["x86_64", "arm64"]},
        400,
        "ValidationException",
        ONE
        + "'[x86_64, arm64]' at 'architectures'"
        + FAILED
        + "have length less than or equal to 1",
    ),
    (
        {"Architectures": ["X86_64"]},
        400,
        "ValidationException",
        ONE + "'[X86_64]' at 'architectures'" + FAILED + "satisfy constraint: "
        "[Member must satisfy enum value set: [x86_64, arm64], Member must not be null]",
    ),
    (
        {"MemorySize": 10_241},
        400,
        "ValidationException",
        ONE + "'10241' at 'memorySize'" + FAILED + "have value less than or equal to 10240",
    ),
    (
        {"Timeout": 901},
        400,
        "ValidationException",
        ONE + "'901' at 'timeout'" + FAILED + "have value less than or equal to 900",
    ),
    (
        {"EphemeralStorage": {"Size": 511}, "Timeout": 0},
        400,
        "ValidationException",
        "2 validation errors detected: Value '0' at 'timeout'"
        + FAILED
        + "have value greater than or equal "
        "to 1; Value '511' at 'ephemeralStorage.size'"
        + FAILED
        + "have value greater than or equal to 512",
    ),
    (
        {"Runtime": "PYTHON3.9"},
        400,
        INVALID,
        "Value PYTHON3.9 at 'runtime'"
        + FAILED
        + "satisfy enum value set: [nodejs20.x, python3.14, "
        "provided.al2023, python3.12, python3.13, nodejs24.x, nodejs22.x, java25, python3.10, python3.11, "
        "java21, ruby3.3, ruby3.4, ruby3.2, python3.8, python3.9, java17, nodejs16.x, dotnet10, dotnet8, "
        "java11, dotnet6, nodejs18.x, provided.al2, java8.al2] or be a valid ARN",
    ),
    (
        {"Runtime": "nodejs14.x"},
        400,
        INVALID,
        "The runtime parameter of nodejs14.x is no longer supported for creating or updating AWS Lambda "
        "functions. We recommend you use a supported runtime while creating or updating functions.",
    ),
    (
        {"Handler": None},
        400,
        INVALID,
        "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
    ),
    (
        {"Code": {"ZipFile": b"no zip"}},
        400,
        INVALID,
        "Could not unzip uploaded file. Please check your file, then try to upload again.",
    ),
    ({"Code": {}}, 400, INVALID, "Please provide a source for function code."),
    (
        {"Environment": {"Variables": {"AWS_REGION": "x", "OK": "y", "LAMBDA_TASK_ROOT": "z"}}},
        400,
        INVALID,
        "Lambda was unable to configure your environment variables because the environment variables you have "
        "provided contains reserved keys that are currently not supported for modification. "
        "Reserved keys used in this request: AWS_REGION, LAMBDA_TASK_ROOT",
    ),
    (
        {"Environment": {"Variables": {"SMALL": "ok", "LARGE": "x" * 4096}}},
        400,
        INVALID,
        "Lambda was unable to configure your environment variables because the environment variables you have "
        'provided exceeded the 4KB limit. String measured: {"SMALL":"ok","LARGE":"'
        + "x" * 4096
        + '"}',
    ),
    (
        {"SnapStart": {"ApplyOn": "PublishedVersions"}},
        400,
        INVALID,
        f"{PYTHON} is not supported for SnapStart enabled functions.",
    ),
    (
        {"LoggingConfig": {"LogFormat": "Text", "SystemLogLevel": "INFO"}},
        400,
        INVALID,
        'LogLevel is not supported when LogFormat is set to "Text". Remove LogLevel from your request or change '
        'the LogFormat to "JSON" and try again.',
    ),
    (
        {"Layers": [f"arn:aws:lambda:us-east-1:123456789012:layer:none:{n}" for n in range(6)]},
        400,
        INVALID,
        "Cannot reference more than 5 layers.",
    ),
    (
        {"Layers": ["arn:aws:lambda:us-east-1:123456789012:layer:none:1"]},
        400,
        INVALID,
        "Layer version arn:aws:lambda:us-east-1:123456789012:layer:none:1 does not exist.",
    ),
    (
        {"Tags": {f"k{n}": "v" for n in range(51)}},
        400,
        INVALID,
        "Number of tags exceeds resource tag limit.",
    ),
    ({"FunctionName": "still"}, 409, "ResourceConflictException", "Function already exist: still"),
    (
        {"FunctionName": "x" * 65},
        400,
        INVALID,
        ONE + f"'{'x' * 65}' at 'functionName'" + FAILED + "have length less than or equal to 64",
    ),
    (
        {"FunctionName": ARN + "x" * 100},
        400,
        "ValidationException",
        ONE
        + f"'{ARN}{'x' * 100}' at 'functionName'"
        + FAILED
        + "have length less than or equal to 140",
    ),
    (
        {"FunctionName": ARN.replace("us-east-1", "eu-west-1") + "f"},
        404,
        "ResourceNotFoundException",
        "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')",
    ),
]


@pytest.mark.parametrize(
    ("changes", "status", "code", "message"),
    CREATE_REFUSALS,
    ids=[f"{next(iter(row[0]))}-{n}" for n, row in enumerate(CREATE_REFUSALS)],
)
def test_bad_input_is_told_in_awss_words_and_changes_nothing(
    still: Api, changes: dict[str, object], status: int, code: str, message: str
) -> None:
    before = still.kept()
    given = {key: value for key, value in asked("bad", **changes).items() if value is not None}
    assert still.refusal("create_function", **given) == (status, code, message)
    assert still.kept() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PackageType": "Image", "Code": {"ImageUri": "me/it"}}, "send the program as a zip"),
        ({"TenancyConfig": {"TenantIsolationMode": "PER_TENANT"}}, "no tenant isolation"),
        (
            {"DurableConfig": {"RetentionPeriodInDays": 1, "ExecutionTimeout": 1}},
            "no durable functions",
        ),
        (
            {
                "CapacityProviderConfig": {
                    "LambdaManagedInstancesCapacityProviderConfig": {
                        "CapacityProviderArn": "arn:aws:lambda:us-east-1:123456789012:capacity-provider:x"
                    }
                }
            },
            "no Lambda Managed Instances",
        ),
        (
            {
                "FileSystemConfigs": [
                    {
                        "Arn": "arn:aws:elasticfilesystem:us-east-1:123456789012:access-point/"
                        "fsap-01234567890123456",
                        "LocalMountPath": "/mnt/a",
                    }
                ]
            },
            "mounts no EFS",
        ),
        ({"Architectures": ["arm64"]}, "this host is x86_64"),
    ],
)
def test_what_lambox_has_not_got_is_refused_with_the_mend(
    still: Api, changes: dict[str, object], words: str
) -> None:
    status, code, message = still.refusal("create_function", **asked("bad", **changes))
    assert (status, code) == (400, INVALID)
    assert words in message
    assert "Hint: " in message or "Architectures out" in message


def test_an_operation_that_lambox_has_not_got(still: Api) -> None:
    assert still.refusal("create_capacity_provider") == (
        501,
        "NotImplementedException",
        "CreateCapacityProvider is not supported by lambox.",
    )


NAME_PATTERN = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?"
    r"(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?"
)


@pytest.mark.parametrize(
    ("operation", "given", "answer"),
    [
        *(
            (
                operation,
                {"FunctionName": name},
                (
                    400,
                    "ValidationException",
                    ONE
                    + f"'{name}' at 'functionName'"
                    + FAILED
                    + "satisfy regular expression pattern: "
                    + NAME_PATTERN,
                ),
            )
            for operation in ("get_function", "delete_function")
            for name in ("*", "my-function!", ARN + "f:1:2", ARN + "f:$LATES")
        ),
        (
            "get_function",
            {"FunctionName": "still", "Qualifier": "q" * 129},
            (
                400,
                "ValidationException",
                ONE
                + f"'{'q' * 129}' at 'qualifier'"
                + FAILED
                + "have length less than or equal to 128",
            ),
        ),
        *(
            (
                operation,
                {"FunctionName": ARN + "none:1", "Qualifier": "2"},
                (
                    400,
                    INVALID,
                    "The derived qualifier from the function name does not match the specified qualifier.",
                ),
            )
            for operation in ("get_function", "get_function_configuration", "delete_function")
        ),
        (
            "delete_function",
            {"FunctionName": "still", "Qualifier": "$LATEST"},
            (400, INVALID, "$LATEST version cannot be deleted without deleting the function."),
        ),
        (
            "delete_function",
            {"FunctionName": "none", "Qualifier": "alias"},
            (400, INVALID, "Deletion of aliases is not currently supported."),
        ),
        (
            "delete_function",
            {"FunctionName": "none", "Qualifier": "1"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}none"),
        ),
        *(
            (
                operation,
                {"FunctionName": "still", "Qualifier": qualifier},
                (404, "ResourceNotFoundException", f"Function not found: {ARN}still:{qualifier}"),
            )
            for operation in ("get_function", "get_function_configuration")
            for qualifier in ("1", "live")
        ),
        (
            "get_function",
            {"FunctionName": "x" * 65},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}{'x' * 65}"),
        ),
        (
            "get_function",
            {"FunctionName": "arn:aws:lambda:us-east-1:999999999999:function:still"},
            (403, "AccessDeniedException", None),
        ),
        (
            "update_function_code",
            {"FunctionName": "none", "ZipFile": b"x"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}none"),
        ),
        (
            "update_function_code",
            {"FunctionName": "still", "ImageUri": "me/it"},
            (
                400,
                INVALID,
                "Please don't provide ImageUri when updating a function with packageType Zip.",
            ),
        ),
        (
            "update_function_code",
            {"FunctionName": "still", "ZipFile": zipped(), "RevisionId": "old"},
            (
                412,
                "PreconditionFailedException",
                "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias "
                "API to retrieve the latest Revision Id",
            ),
        ),
        (
            "update_function_configuration",
            {"FunctionName": "still", "Runtime": "nonesuch"},
            None,
        ),
        (
            "publish_version",
            {"FunctionName": "none"},
            (404, "ResourceNotFoundException", f"Function not found: {ARN}none:$LATEST"),
        ),
    ],
)
def test_names_and_qualifiers(
    still: Api, operation: str, given: dict[str, object], answer: tuple[int, str, str | None] | None
) -> None:
    before = still.kept()
    refused = still.refusal(operation, **given)
    assert answer is None or refused == answer
    assert refused[0] >= 400
    assert still.kept() == before
