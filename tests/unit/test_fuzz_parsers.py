"""Whatever is written into function.toml, a name, a header or a schedule: an answer or the error that is meant."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import example, given
from hypothesis import strategies as st

from runtimeapi import arns, eventstream, intake
from sandbox import functiontoml, schedules
from sandbox.errors import CallerError
from sandbox.failures import normalise_type
from tests.machines import effort

# --- function.toml

KEYS = [key.name for key in functiontoml.KEYS]
VALUES = (
    st.sampled_from(
        [
            "1", "-1", "0x10", "1e400", "nan", "inf", "-inf", "true", '""', "''", '"x"', "[]", "{}",
            "1979-05-27T07:32:00Z", "07:32:00", "1979-05-27", "[[]]", "{a = 1}", '["a", 1]', '"\\u0000"',
            "9" * 5000, "0x" + "f" * 5000, "1." + "9" * 5000, "[" * 3000 + "]" * 3000, "{a=" * 3000 + "1" + "}" * 3000,
            '"rate(5 minutes)"', '"cron(0 0 * * ? *)"', '["rate(1 day)", "rate(1 day)"]',
        ]
    )
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text().map(json.dumps)
)  # fmt: skip
LINES = st.builds(
    "{} = {}".format, st.sampled_from([*KEYS, "memory", "Timeout", '"a b"', "a.b", '""']), VALUES
) | st.sampled_from(["[environment]", "[[environment]]", "[a.b]", "# comment", "", "\r", "\ufeff"])


@effort(200)
@given(st.lists(LINES, max_size=6).map("\n".join) | st.text() | st.lists(LINES).map("\r\n".join))
@example("timeout = " + "9" * 5000)
@example("timeout = 0x" + "f" * 5000)
@example("layers = " + "[" * 3000 + "]" * 3000)
@example("a = " + "{a=" * 3000 + "1" + "}" * 3000)
@example(".".join("a" * 3000) + " = 1")
def test_function_toml_is_read_or_its_mistakes_are_told(text: str) -> None:
    try:
        functiontoml.parse(text)
    except functiontoml.FunctionTomlError as exc:
        assert exc.problems
        for problem in exc.problems:
            assert problem.startswith("function.toml:")
            assert len(problem) < 5000


@effort(100)
@given(st.binary(max_size=200))
def test_a_file_of_any_bytes_is_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "function.toml"
    path.write_bytes(raw)
    try:
        functiontoml.read(path)
    except functiontoml.FunctionTomlError as exc:
        assert all(problem.startswith(str(path)) for problem in exc.problems)


# --- schedules

FIELD = st.sampled_from(
    [
        "*",
        "?",
        "0",
        "1-5",
        "*/5",
        "0/15",
        "L",
        "LW",
        "15W",
        "FRI-MON",
        "6#3",
        "6L",
        "JAN,MAR",
        "99",
        "1-",
        "2000-2199",
        "",
    ]
) | st.text(string.ascii_uppercase + string.digits + "*?/-,#LW", max_size=6)
CRONS = st.lists(FIELD, min_size=4, max_size=8).map(lambda row: f"cron({' '.join(row)})")
RATES = st.builds(
    "rate({} {})".format,
    st.integers().map(str) | st.text(string.digits, max_size=5000),
    st.sampled_from(["minute", "minutes", "hour", "days", "weeks", ""]),
)


@effort(200)
@given(CRONS | RATES | st.text(), st.datetimes(timezones=st.just(UTC)))
@example("rate(" + "9" * 5000 + " minutes)", datetime(2026, 1, 1, tzinfo=UTC))
@example("rate(²\u0664 minutes)", datetime(2026, 1, 1, tzinfo=UTC))
@example("cron(0 0 ² * ? *)", datetime(2026, 1, 1, tzinfo=UTC))
def test_a_schedule_is_later_or_never_or_told(text: str, moment: datetime) -> None:
    try:
        schedule = schedules.parse(text)
    except schedules.ScheduleError as exc:
        assert str(exc)
        return
    assert schedules.parse(schedule.expression) == schedule
    coming = schedule.next_after(moment)
    assert coming is None or coming > moment


# --- what callers send

NAME = st.from_regex(arns.NAME_PATTERN, fullmatch=True) | st.text(max_size=300)


@effort(200)
@given(
    NAME, st.none() | st.text(max_size=200) | st.from_regex(arns.QUALIFIER_PATTERN, fullmatch=True)
)
def test_a_name_is_understood_or_refused(raw: str, qualifier: str | None) -> None:
    region, account = "us-east-1", "123456789012"
    try:
        ref = arns.parse_function_name(raw, qualifier, region=region, account=account)
    except CallerError as exc:
        assert 400 <= exc.status < 500
        return
    # What names a function is a file's name: it leads nowhere.
    assert "/" not in ref.name
    assert "\0" not in ref.name
    again = arns.parse_function_name(ref.invoked_arn, None, region=region, account=account)
    assert again == ref


TEXT = st.text() | st.binary().map(lambda raw: raw.decode("latin-1"))


@effort(200)
@given(TEXT)
@example("Root=1-00000000-000000000000000000000000;Parent=1;Sampled=1")
def test_headers_of_callers_are_read_or_refused(value: str) -> None:
    for read in (intake.read_request_id, intake.read_client_context):
        try:
            read(value)
        except CallerError as exc:
            assert exc.status == 400
    trace = intake.read_trace_id(value)
    assert trace.isprintable()
    assert trace.startswith("Root=1-") or ";Root=1-" in trace
    assert "\n" not in normalise_type(value.replace("\n", ""))


@effort(300)
@given(st.binary() | st.text().map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@example(b"[" * 100_000)
@example(b"9" * 5000)
@example(b'"\xed\xa0\x80"')
@example(b"\xef\xbb\xbf{}")
@example(b"1\x002")
def test_payloads_are_json_or_refused_in_both_ways(payload: bytes) -> None:
    said = []
    for check in (intake.check_json, intake.check_json_aside):
        try:
            check(payload)
        except CallerError as exc:
            said.append(str(exc))
        else:
            said.append("")
    assert said[0] == said[1]
    if not said[0]:
        try:
            json.loads(payload)
        except ValueError as exc:
            # Good JSON that Python does not turn into an integer; other runtimes may.
            assert "4300 digits" in str(exc)


@effort(50)
@given(
    st.binary(max_size=3000), st.none() | st.tuples(st.text(), st.text()), st.none() | st.binary()
)
def test_botocore_reads_what_is_streamed(
    payload: bytes, error: tuple[str, str] | None, tail: bytes | None
) -> None:
    buffer = EventStreamBuffer()
    for frame in eventstream.payload_chunks(payload):
        buffer.add_data(frame)
    buffer.add_data(eventstream.invoke_complete(error, tail))
    *chunks, last = buffer
    assert b"".join(one.payload for one in chunks) == payload
    told = json.loads(last.payload)
    assert (told.get("ErrorCode"), told.get("ErrorDetails")) == (error or (None, None))


def test_a_deep_function_toml_of_the_catalogs(tmp_path: Path) -> None:
    """Told as any other mistake, with the file's name."""
    path = tmp_path / "function.toml"
    path.write_text("layers = " + "[" * 100_000)
    with pytest.raises(functiontoml.FunctionTomlError, match=r"function\.toml: not valid TOML"):
        functiontoml.read(path)
