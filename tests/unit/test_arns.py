"""How callers name functions (SPEC 10.3), and what they are told when they cannot be meant."""

from __future__ import annotations

import pytest

from runtimeapi.arns import (
    NAME_PATTERN,
    QUALIFIER_PATTERN,
    FunctionRef,
    parse_function_name,
    violation,
)
from sandbox.errors import CallerError

REGION = "eu-central-1"
ACCOUNT = "123456789012"
ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:my-fn"


def parse(raw: str, qualifier: str | None = None, *others: str) -> FunctionRef:
    return parse_function_name(
        raw, qualifier, region=REGION, account=ACCOUNT, other_violations=others
    )


def refusal(raw: str, qualifier: str | None = None, *others: str) -> CallerError:
    with pytest.raises(CallerError) as caught:
        parse(raw, qualifier, *others)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "qualifier", "name", "meant"),
    [
        ("my-fn", None, "my-fn", None),
        ("my-fn", "", "my-fn", None),
        ("my-fn:live", None, "my-fn", "live"),
        ("my-fn", "7", "my-fn", "7"),
        ("my-fn:$LATEST", "$LATEST", "my-fn", "$LATEST"),
        ("my-fn:$LATEST.PUBLISHED", None, "my-fn", "$LATEST.PUBLISHED"),
        ("function:my-fn", None, "my-fn", None),
        (f"{ACCOUNT}:function:my-fn", None, "my-fn", None),
        (f"{ACCOUNT}:my-fn", None, "my-fn", None),
        (f"{REGION}:{ACCOUNT}:function:my-fn:1", None, "my-fn", "1"),
        (ARN, None, "my-fn", None),
        (f"{ARN}:live", "live", "my-fn", "live"),
        ("a.b_c-D9", None, "a.b_c-D9", None),
        ("x" * 256, None, "x" * 256, None),
    ],
)
def test_forms(raw: str, qualifier: str | None, name: str, meant: str | None) -> None:
    ref = parse(raw, qualifier)
    assert (ref.name, ref.qualifier) == (name, meant)


def test_invoked_arn_has_a_qualifier_only_if_the_caller_gave_one() -> None:
    assert parse("my-fn").invoked_arn == ARN
    assert parse("my-fn:$LATEST").invoked_arn == f"{ARN}:$LATEST"


def test_not_found_names_latest() -> None:
    assert parse("my-fn").not_found().message == f"Function not found: {ARN}:$LATEST"
    assert parse("my-fn:3").not_found().message == f"Function not found: {ARN}:3"


@pytest.mark.parametrize("raw", ["", "a b", "a/b", "ä", "a:b:c", "a:$OTHER", "my-fn\n", "a:"])
def test_names_that_are_none(raw: str) -> None:
    error = refusal(raw)
    assert (error.status, error.code) == (400, "ValidationException")
    assert violation(
        raw, "functionName", f"satisfy regular expression pattern: {NAME_PATTERN}"
    ) in (error.message)


def test_one_violation_as_aws_prints_it() -> None:
    assert refusal("a", "b.c").message == (
        "1 validation error detected: Value 'b.c' at 'qualifier' failed to satisfy constraint: "
        f"Member must satisfy regular expression pattern: {QUALIFIER_PATTERN}"
    )


def test_several_violations_in_one_message() -> None:
    message = refusal("!", "x" * 129, "Value 'z' at 'logType'").message
    assert message.startswith("3 validation errors detected: Value '!' at 'functionName' ")
    assert "Member must have length less than or equal to 128; Value 'z'" in message


def test_too_long() -> None:
    assert refusal("x" * 257).message.endswith("Member must have length less than or equal to 256")


def test_another_region() -> None:
    error = refusal(ARN.replace(REGION, "us-gov-west-1"))
    assert (error.status, error.code) == (404, "ResourceNotFoundException")
    assert error.message == (
        "Functions from 'us-gov-west-1' are not reachable in this region ('eu-central-1')"
    )


def test_another_account() -> None:
    error = refusal(ARN.replace(ACCOUNT, "999999999999"))
    assert (error.status, error.code, error.message) == (403, "AccessDeniedException", "")


def test_qualifiers_that_disagree() -> None:
    error = refusal("my-fn:1", "2")
    assert (error.status, error.code) == (400, "InvalidParameterValueException")
    assert error.message == (
        "The derived qualifier from the function name does not match the specified qualifier."
    )


def test_order_of_checks() -> None:
    """Shape, then account and region, then the qualifiers."""
    foreign = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:my-fn:1"
    assert refusal(foreign, "!").code == "ValidationException"
    assert refusal(foreign, "2").code == "ResourceNotFoundException"
