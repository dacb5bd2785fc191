"""sandbox.functiontoml: every mistake is told with file, line, key, value, range and mend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.eventconfig import parse_target
from sandbox.functiontoml import (
    KEYS,
    Description,
    FunctionDefaults,
    FunctionTomlError,
    parse,
    read,
)
from sandbox.functionurl import Cors, UrlConfig
from sandbox.schedules import parse as parse_schedule


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(FunctionTomlError) as caught:
        parse(text, file="f/function.toml")
    return caught.value.problems


def test_an_empty_file_is_all_defaults() -> None:
    assert parse("") == Description()
    found = parse("")
    assert (found.timeout, found.memory_size, found.ephemeral_storage) == (15, 128, 512)
    assert (found.idle_timeout, found.reserved_concurrency) == (30.0, None)
    assert (found.network, found.freeze, found.runtime) == ("none", True, None)


def test_every_key_is_taken() -> None:
    found = parse("""
        runtime = "python3.12"
        handler = "app.main"
        timeout = 900
        memory_size = 10240
        ephemeral_storage = 10240
        idle_timeout = 0.5
        reserved_concurrency = 4
        provisioned_concurrency = 3
        warm = "rate(5 minutes)"
        layers = ["../layers/a", "/srv/b.zip"]
        network = "host"
        freeze = false
        maximum_retry_attempts = 0
        maximum_event_age = 60
        on_success = "https://example.com/done"
        on_failure = "arn:aws:s3:::failures"
        dead_letter = "arn:aws:sqs:us-east-1:000000000000:dead"
        recursive_loop = "Allow"
        description = "does"
        log_format = "JSON"
        application_log_level = "TRACE"
        system_log_level = "DEBUG"
        log_group = "/mine"
        [environment]
        COLOUR = "blue"
        [url]
        auth_type = "NONE"
        invoke_mode = "RESPONSE_STREAM"
        [url.cors]
        allow_origins = ["https://a.example"]
        allow_methods = ["*"]
        allow_headers = ["x-a"]
        expose_headers = ["x-b"]
        allow_credentials = true
        max_age = 60
    """)
    assert found == Description(
        runtime="python3.12",
        handler="app.main",
        timeout=900,
        memory_size=10240,
        ephemeral_storage=10240,
        idle_timeout=0.5,
        reserved_concurrency=4,
        provisioned_concurrency=3,
        warm=(parse_schedule("rate(5 minutes)"),),
        layers=("../layers/a", "/srv/b.zip"),
        network="host",
        freeze=False,
        maximum_retry_attempts=0,
        maximum_event_age=60,
        on_success=parse_target("https://example.com/done"),
        on_failure=parse_target("arn:aws:s3:::failures"),
        dead_letter=parse_target("arn:aws:sqs:us-east-1:000000000000:dead"),
        recursive_loop="Allow",
        description="does",
        log_format="JSON",
        application_log_level="TRACE",
        system_log_level="DEBUG",
        log_group="/mine",
        environment={"COLOUR": "blue"},
        url=UrlConfig(
            "NONE",
            "RESPONSE_STREAM",
            Cors(("https://a.example",), ("*",), ("x-a",), ("x-b",), True, 60),
        ),
    )


def test_server_wide_defaults_stand_behind_the_file() -> None:
    defaults = FunctionDefaults(timeout=60, memory_size=256, environment={"AA": "1", "BB": "2"})
    found = parse('memory_size = 512\n[environment]\nBB = "3"', defaults=defaults)
    assert (found.timeout, found.memory_size) == (60, 512)
    assert dict(found.environment) == {"AA": "1", "BB": "3"}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("timeout = 0", "timeout = 0: must be a whole number of seconds from 1 to 900"),
        ("timeout = 901", "timeout = 901: must be a whole number of seconds from 1 to 900"),
        ("timeout = 1.5", "timeout = 1.5: must be a whole number"),
        ('timeout = "5"', 'timeout = "5": must be a whole number'),
        ("timeout = true", "timeout = true: must be a whole number"),
        ("memory_size = 127", "must be a whole number of MB from 128 to 10240"),
        ("ephemeral_storage = 511", "must be a whole number of MB from 512 to 10240"),
        ("idle_timeout = -1", "must be a number of seconds from 0 to 86400"),
        ("idle_timeout = nan", "must be a number of seconds"),
        ("reserved_concurrency = -1", "must be a whole number of 0 or more"),
        ("provisioned_concurrency = -1", "must be a whole number of 0 or more"),
        ("provisioned_concurrency = true", "must be a whole number of 0 or more"),
        ('warm = "rate(5 minute)"', 'warm = "rate(5 minute)": must be "rate(5 minutes)"'),
        ("warm = 5", 'warm = 5: must be text or a list of text, such as "rate(5 minutes)"'),
        ("warm = true", "must be text or a list of text"),
        ("warm = [5]", "must be text or a list of text"),
        ('warm = "cron(* * * * *)"', "has 5 fields"),
        ('warm = ["rate(1 day)", "often"]', '"often": must be "rate(5 minutes)" or "cron('),
        ('warm = ["rate(1 day)", "rate( 1 day )"]', "names rate(1 day) twice"),
        ('network = "lan"', 'network = "lan": must be one of "none", "nat", "host"'),
        ("network = []", 'must be one of "none", "nat", "host"'),
        ('freeze = "no"', "must be true or false (without quotes)"),
        ("maximum_retry_attempts = 3", "must be a whole number from 0 to 2"),
        ("maximum_event_age = 59", "must be a whole number of seconds from 60 to 21600"),
        ("on_success = 5", "must be the name or ARN of a function"),
        ('on_success = "arn:aws:s3:::b"', "must be something else: s3 takes none of these"),
        ('dead_letter = "arn:aws:s3:::b"', "must be something else: s3 takes none of these"),
        ('on_failure = "arn:aws:sqs:::q"', "must name region and account, such as arn:aws:sqs:"),
        ('on_failure = "https://"', "must be an address such as https://host:8443/path"),
        ('recursive_loop = "no"', 'must be one of "Terminate", "Allow"'),
        ('log_format = "json"', 'must be one of "Text", "JSON"'),
        ('application_log_level = "LOUD"', 'must be one of "TRACE", "DEBUG", "INFO", "WARN"'),
        ('system_log_level = "ERROR"', 'must be one of "DEBUG", "INFO", "WARN"'),
        ('log_group = "a b"', "must be text of 1 to 512 letters, digits"),
        (
            'application_log_level = "INFO"',
            'LogLevel is not supported when LogFormat is set to "Text". Remove LogLevel from your '
            'request or change the LogFormat to "JSON" and try again. Hint: write log_format',
        ),
        ('runtime = "python2.7"', 'must be "python3.x", "nodejsN.x"'),
        ('handler = "a b"', "text of 1 to 128 characters without spaces"),
        (f'description = "{"x" * 257}"', "must be text of at most 256 characters"),
        ('layers = "a"', "must be a list of folders or zip files"),
        ('layers = ["1","2","3","4","5","6"]', "Cannot reference more than 5 layers."),
        ('layers = ["a", "a"]', "names a layer twice"),
    ],
)
def test_a_wrong_value_is_told_with_line_value_and_range(line: str, told: str) -> None:
    (problem,) = problems(f"# a comment\n{line}\n")
    assert problem.startswith("f/function.toml:2: ")
    assert told in problem


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("timout", "timeout"),
        ("memory", "memory_size"),
        ("MemorySize", "memory_size"),
        ("memory-size", "memory_size"),
        ("env", "environment"),
        ("EphemeralStorage", "ephemeral_storage"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    (problem,) = problems(f"{key} = 1")
    assert f"{key} = 1: unknown key; did you mean {near}?" in problem


def test_a_key_near_to_none_lists_all() -> None:
    (problem,) = problems("zzz = 1")
    assert all(key.name in problem for key in KEYS)


def test_several_mistakes_are_told_at_once() -> None:
    found = problems('timeout = 0\nfreeze = 1\nfoo = 2\n[environment]\nA = "x"\n')
    assert [problem.split(": ")[0] for problem in found] == [
        f"f/function.toml:{line}" for line in (1, 2, 3, 5)
    ]


def test_provisioned_is_part_of_the_reservation() -> None:
    text = "reserved_concurrency = 2\nprovisioned_concurrency = {}"
    assert parse(text.format(2)).provisioned_concurrency == 2
    (problem,) = problems(text.format(3))
    assert problem == (
        "f/function.toml:2: provisioned_concurrency = 3: must not be more than "
        "reserved_concurrency, which is 2. Hint: lower the one or raise the other"
    )
    defaults = FunctionDefaults(reserved_concurrency=1)
    with pytest.raises(FunctionTomlError, match="which is 1"):
        parse("provisioned_concurrency = 2", defaults=defaults)
    assert parse("provisioned_concurrency = 0\nreserved_concurrency = 0") == Description(
        reserved_concurrency=0
    )


def test_idle_environments_wait_for_pings_unless_idle_timeout_is_given() -> None:
    ping = 'warm = ["rate(5 minutes)", "cron(0 8 ? * MON-FRI *)"]'
    found = parse(ping, defaults=FunctionDefaults(idle_timeout=60))
    assert [schedule.expression for schedule in found.warm] == [
        "rate(5 minutes)",
        "cron(0 8 ? * MON-FRI *)",
    ]
    assert (found.waits_for_ping, found.idle_timeout) == (True, 60)
    assert not parse(f"{ping}\nidle_timeout = 30").waits_for_ping
    assert not parse("warm = []").waits_for_ping
    assert not parse("").waits_for_ping


def test_invalid_toml_tells_where() -> None:
    (problem,) = problems("timeout = \n")
    assert "not valid TOML" in problem
    assert "line 1" in problem


def test_reserved_keys_are_refused_in_awss_words() -> None:
    (problem,) = problems('[environment]\nAWS_REGION = "x"\n_HANDLER = "y"\nGOOD = "z"')
    assert problem.endswith(
        "contains reserved keys that are currently not supported for modification. "
        "Reserved keys used in this request: AWS_REGION, _HANDLER"
    )
    assert problem.startswith("f/function.toml:2: ")


@pytest.mark.parametrize("key", ["_X", "1A", "A", '"A-B"'])
def test_names_of_variables_follow_awss_pattern(key: str) -> None:
    (problem,) = problems(f'[environment]\n{key} = "v"')
    assert "must be a letter and then letters, digits or _" in problem


def test_a_number_as_variable_is_told_to_be_quoted() -> None:
    (problem,) = problems("[environment]\nPORT = 80")
    assert problem == (
        'f/function.toml:2: [environment] PORT = 80: must be text. Hint: write PORT = "80"'
    )


def test_the_environment_is_at_most_4_kb() -> None:
    parse(f'[environment]\nBIG = "{"x" * 4000}"')
    (problem,) = problems(f'[environment]\nBIG = "{"x" * 4096}"')
    assert "exceeded the 4KB limit" in problem
    assert problem.startswith("f/function.toml:1: ")
    assert len(problem) < 600


def test_a_dotted_environment_is_a_table_too() -> None:
    assert dict(parse('environment.COLOUR = "blue"').environment) == {"COLOUR": "blue"}
    (problem,) = problems("environment = 3")
    assert "write [environment]" in problem


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "function.toml"
    assert read(path) == Description()
    path.write_text("timeout = 3")
    assert read(path).timeout == 3
    path.write_bytes(b"description = '\xff'")
    with pytest.raises(FunctionTomlError, match="not UTF-8"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FunctionTomlError, match="cannot be read"):
        read(path)


def test_a_pipe_in_its_place_is_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "function.toml")
    with pytest.raises(FunctionTomlError, match="is no regular file"):
        read(tmp_path / "function.toml")


@pytest.mark.parametrize("to", ["/dev/zero", "/dev/tty", "."])
def test_a_link_to_something_endless_is_told(tmp_path: Path, to: str) -> None:
    (tmp_path / "function.toml").symlink_to(to)
    with pytest.raises(FunctionTomlError, match=r"is no regular file|cannot be read"):
        read(tmp_path / "function.toml")


def test_a_huge_one_is_told(tmp_path: Path) -> None:
    with open(tmp_path / "function.toml", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FunctionTomlError, match="larger than 1048576 bytes"):
        read(tmp_path / "function.toml")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("url = true", "f/function.toml:1: url = true: must be a table. Hint: write [url]"),
        ("[url]", "f/function.toml:1: [url]: auth_type is missing. Hint: "),
        (
            '[url]\nauth_type = "none"',
            'f/function.toml:2: [url] auth_type = "none": must be one of "NONE", "AWS_IAM"',
        ),
        (
            '[url]\nauth_type = "NONE"\nstream = true',
            "f/function.toml:3: [url] stream = true: unknown key; the keys are auth_type, ",
        ),
        (
            '[url]\nauth_type = "NONE"\ncors = "*"',
            'f/function.toml:3: [url] cors = "*": must be a table. Hint: [url.cors]',
        ),
        (
            '[url]\nauth_type = "NONE"\n[url.cors]\nmax_age = 86401',
            "f/function.toml:4: [url.cors] max_age = 86401: must be a whole number of seconds from 0",
        ),
        (
            '[url]\nauth_type = "NONE"\n[url.cors]\nallow_methods = ["OPTIONS"]',
            'f/function.toml:4: [url.cors] allow_methods = ["OPTIONS"]: must be a list of text',
        ),
        (
            '[url]\nauth_type = "NONE"\n[url.cors]\nallow_headers = ["a\\r\\nb"]',
            "f/function.toml:4: [url.cors] allow_headers = ",
        ),
        (
            '[url]\nauth_type = "NONE"\n[url.cors]\nallow_origins = ["*"]\nallow_credentials = true',
            "f/function.toml:5: [url.cors] allow_credentials = true: not with allow_origins",
        ),
    ],
)
def test_mistakes_in_a_url_are_told(lines: str, told: str) -> None:
    (problem,) = problems(lines)
    assert problem.startswith(told)
