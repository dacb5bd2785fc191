"""LoggingConfig: what CreateFunction and UpdateFunctionConfiguration may say of it (SPEC 4.5)."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.errors import CallerError
from sandbox.loggingconfig import NOT_WITH_TEXT, LoggingConfig, from_api, level_of

JSON = LoggingConfig("JSON", "INFO", "INFO")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, LoggingConfig()),
        ({"LogFormat": "Text"}, LoggingConfig()),
        ({"LogFormat": "JSON"}, JSON),
        (
            {"LogFormat": "JSON", "ApplicationLogLevel": "TRACE", "SystemLogLevel": "WARN"},
            LoggingConfig("JSON", "TRACE", "WARN"),
        ),
        ({"LogGroup": "/my/group#1"}, LoggingConfig(log_group="/my/group#1")),
    ],
)
def test_what_is_not_said_is_awss_default(given: dict[str, Any], found: LoggingConfig) -> None:
    assert from_api(given) == found


def test_a_response_is_complete() -> None:
    assert LoggingConfig().response("f") == {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"}
    assert JSON.response("f") == {
        "LogFormat": "JSON",
        "ApplicationLogLevel": "INFO",
        "SystemLogLevel": "INFO",
        "LogGroup": "/aws/lambda/f",
    }


def test_an_update_keeps_what_it_does_not_name() -> None:
    before = LoggingConfig("JSON", "DEBUG", "WARN", "/group")
    assert from_api({"SystemLogLevel": "DEBUG"}, before) == LoggingConfig(
        "JSON", "DEBUG", "DEBUG", "/group"
    )
    assert from_api({"LogFormat": "Text"}, before) == LoggingConfig(log_group="/group")
    assert from_api({}, before) == before


OWN = {"LogGroup": "/aws/lambda/f"}
JSON_SHOWN = {"LogFormat": "JSON", "ApplicationLogLevel": "INFO", "SystemLogLevel": "INFO"}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([{"LogFormat": "JSON"}], {**JSON_SHOWN, **OWN}),
        (
            [{"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"}],
            {**JSON_SHOWN, **OWN, "ApplicationLogLevel": "DEBUG"},
        ),
        (
            [{"LogFormat": "JSON", "SystemLogLevel": "DEBUG"}],
            {**JSON_SHOWN, **OWN, "SystemLogLevel": "DEBUG"},
        ),
        ([{"LogGroup": "cool_lambda"}], {"LogFormat": "Text", "LogGroup": "cool_lambda"}),
        ([{"LogFormat": "JSON"}, {"LogFormat": "Text"}], {"LogFormat": "Text", **OWN}),
        (
            [{"LogFormat": "JSON"}, {"LogGroup": "cool_lambda"}],
            {**JSON_SHOWN, "LogGroup": "cool_lambda"},
        ),
    ],
)
def test_updates_are_answered_as_aws_was_recorded_to(
    given: list[dict[str, str]], shown: dict[str, str]
) -> None:
    """localstack's test_function_partial_advanced_logging_configuration_update and its neighbours."""
    config = LoggingConfig()
    for update in given:
        config = from_api(update, config)
    assert config.response("f") == shown


@pytest.mark.parametrize(
    "given",
    [{"ApplicationLogLevel": "INFO"}, {"LogFormat": "Text", "SystemLogLevel": "DEBUG"}],
)
def test_levels_are_jsons(given: dict[str, Any]) -> None:
    with pytest.raises(CallerError) as caught:
        from_api(given)
    assert (caught.value.code, caught.value.message) == (
        "InvalidParameterValueException",
        NOT_WITH_TEXT,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"LogFormat": "XML"},
            "1 validation error detected: Value 'XML' at 'loggingConfig.logFormat' failed to "
            "satisfy constraint: Member must satisfy enum value set: [JSON, Text]",
        ),
        ({"SystemLogLevel": "TRACE"}, "at 'loggingConfig.systemLogLevel' failed"),
        ({"ApplicationLogLevel": 3}, "at 'loggingConfig.applicationLogLevel' failed"),
        ({"LogGroup": ""}, "length greater than or equal to 1"),
        ({"LogGroup": "a" * 513}, "length less than or equal to 512"),
        ({"LogGroup": "a b"}, r"regular expression pattern: [\.\-_/#A-Za-z0-9]+"),
        ({"LogGroup": "a\n"}, "regular expression pattern"),
        ({"LogGroup": ["a"]}, "be a string"),
        ({"LogGroup": "", "LogFormat": "x"}, "2 validation errors detected: "),
    ],
)
def test_a_bad_value_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CallerError) as caught:
        from_api(given)
    assert caught.value.code == "ValidationException"
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("plain text", "INFO"),
        ('{"level":"DEBUG","message":"m"}', "DEBUG"),
        ('{"level":"warning"}', "WARN"),
        ('{"level":"CRITICAL"}', "FATAL"),
        ('{"log_level":"ERROR"}', "ERROR"),
        ('{"level":"LOUD"}', "INFO"),
        ('{"level":7}', "INFO"),
        ('{"level":"DEBUG"', "INFO"),
        ('{"level":"DEBUG","x":NaN}', "INFO"),
        ("[1]", "INFO"),
        ("{" * 30_000, "INFO"),
        ('{"a":' * 6000, "INFO"),
        ('{"level":"DEBUG","pad":"' + "x" * 40_000 + '"}', "INFO"),
    ],
)
def test_a_lines_own_level(line: str, level: str) -> None:
    assert level_of(line) == level
