"""sandbox.schedules: AWS's grammar, and the times it means."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.schedules import MONTHS, WEEKDAYS, Cron, Days, Rate, ScheduleError, parse


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(expression: str, start: str, count: int) -> list[str]:
    schedule, moment, found = parse(expression), at(start), []
    for _ in range(count):
        following = schedule.next_after(moment)
        if following is None:
            found.append("never")
            break
        moment = following
        found.append(moment.isoformat(" ", "minutes").removesuffix("+00:00"))
    return found


def days(expression: str, start: str, count: int) -> list[str]:
    return [time.removesuffix(" 00:00") for time in times(expression, start, count)]


# --- rate


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("rate(1 minute)", timedelta(minutes=1)),
        ("rate(5 minutes)", timedelta(minutes=5)),
        ("rate(1 hour)", timedelta(hours=1)),
        ("rate(12 hours)", timedelta(hours=12)),
        ("rate(1 day)", timedelta(days=1)),
        ("  rate( 7  days ) ", timedelta(days=7)),
    ],
)
def test_rates(text: str, every: timedelta) -> None:
    schedule = parse(text)
    assert isinstance(schedule, Rate)
    assert schedule.every == every
    assert parse(schedule.expression) == schedule
    assert schedule.next_after(at("2026-11-21T08:00:30")) == at("2026-11-21T08:00:30") + every


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate(5 minute)", 'must be "rate(5 minutes)"'),
        ("rate(1 minutes)", 'must be "rate(1 minute)"'),
        ("rate(1 hours)", 'must be "rate(1 hour)"'),
        ("rate(0 minutes)", "must be at least 1 minute"),
        ("rate(-1 minutes)", "must hold a whole number"),
        ("rate(1.5 hours)", "must hold a whole number"),
        ("rate(5 seconds)", "minute, minutes, hour, hours, day or days"),
        ("rate(5minutes)", "must hold a whole number"),
        ("rate(٥ minutes)", "must hold a whole number"),
        ("rate(40000 days)", "must be at most 36500 days"),
        ("rate(999999999 days)", "must be at most 36500 days"),
        ("every 5 minutes", 'must be "rate(5 minutes)" or "cron(0/15 * * * ? *)"'),
        ("Rate(5 minutes)", 'must be "rate(5 minutes)"'),
        ("rate(5 minutes", 'must be "rate(5 minutes)"'),
        ("", 'must be "rate(5 minutes)"'),
    ],
)
def test_wrong_rates_are_told_the_right_one(text: str, told: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse(text)
    assert told in str(caught.value)


def test_a_rate_ends_with_the_calendar() -> None:
    assert parse("rate(1 day)").next_after(datetime.max.replace(tzinfo=UTC)) is None
    assert parse("cron(* * * * ? *)").next_after(datetime.max.replace(tzinfo=UTC)) is None


# --- cron: what AWS's documentation has as examples, and every sign


@pytest.mark.parametrize(
    ("expression", "start", "found"),
    [
        ("cron(0 10 * * ? *)", "2026-11-21T10:00", ["2026-11-22 10:00", "2026-11-23 10:00"]),
        ("cron(15 12 * * ? *)", "2026-12-31T13:00", ["2027-01-01 12:15"]),
        ("cron(0 18 ? * MON-FRI *)", "2026-11-20T18:00", ["2026-11-23 18:00", "2026-11-24 18:00"]),
        ("cron(0 8 1 * ? *)", "2026-11-21T00:00", ["2026-12-01 08:00", "2027-01-01 08:00"]),
        ("cron(0/15 * * * ? *)", "2026-11-21T08:44:59", ["2026-11-21 08:45", "2026-11-21 09:00"]),
        ("cron(0/10 * ? * MON-FRI *)", "2026-11-20T23:51", ["2026-11-23 00:00"]),
        ("cron(0/5 8-17 ? * MON-FRI *)", "2026-11-20T17:54", ["2026-11-20 17:55", "2026-11-23 08:00"]),
        ("cron(0 9 ? * 2#1 *)", "2026-11-21T00:00", ["2026-12-07 09:00", "2027-01-04 09:00"]),
        ("cron(0/30 20-2 ? * MON-FRI *)", "2026-11-20T02:30", ["2026-11-20 20:00"]),
        ("cron(0 18 ? * 6L 2026-2027)", "2026-11-21T00:00", ["2026-11-27 18:00", "2026-12-25 18:00"]),
        ("cron(1/10 3 * * ? *)", "2026-11-21T03:01", ["2026-11-21 03:11", "2026-11-21 03:21"]),
        ("cron(5,35 14 * * ? *)", "2026-11-21T14:05", ["2026-11-21 14:35", "2026-11-22 14:05"]),
        ("cron(0 0 ? JAN,jul wed *)", "2026-11-21T00:00", ["2027-01-06 00:00"]),
        ("cron(10-20/5 0 * * ? *)", "2026-11-21T00:10", ["2026-11-21 00:15", "2026-11-21 00:20"]),
        ("cron(0 0 1 2/5 ? *)", "2026-01-01T00:00", ["2026-02-01 00:00", "2026-07-01 00:00"]),
        ("cron(0 0 1 1 ? 2026/2)", "2026-01-01T00:00", ["2028-01-01 00:00", "2030-01-01 00:00"]),
    ],
)  # fmt: skip
def test_cron(expression: str, start: str, found: list[str]) -> None:
    assert times(expression, start, len(found)) == found


def test_months_end_differently() -> None:
    month_ends = ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30"]
    assert days("cron(0 0 L * ? *)", "2027-01-01", 4) == month_ends
    only_long = ["2027-01-31", "2027-03-31", "2027-05-31"]
    assert days("cron(0 0 31 * ? *)", "2027-01-01", 3) == only_long


def test_leap_years() -> None:
    assert days("cron(0 0 29 2 ? *)", "2026-01-01", 2) == ["2028-02-29", "2032-02-29"]
    # 2100 is none.
    assert days("cron(0 0 29 2 ? *)", "2096-03-01", 1) == ["2104-02-29"]
    assert days("cron(0 0 L 2 ? *)", "2027-03-01", 2) == ["2028-02-29", "2029-02-28"]


def test_the_last_weekday_of_the_month() -> None:
    # The last of May 2026 is a Sunday, of October 2026 a Saturday, of November 2026 a Monday.
    assert days("cron(0 0 LW 5 ? *)", "2026-01-01", 1) == ["2026-05-29"]
    assert days("cron(0 0 LW 10 ? *)", "2026-01-01", 1) == ["2026-10-30"]
    assert days("cron(0 0 LW 11 ? *)", "2026-01-01", 1) == ["2026-11-30"]


def test_the_weekday_nearest_to_a_date_stays_in_its_month() -> None:
    assert days("cron(0 0 15W * ? *)", "2026-08-01", 3) == [
        "2026-08-14",
        "2026-09-15",
        "2026-10-15",
    ]
    assert days("cron(0 0 15W 11 ? *)", "2026-01-01", 1) == ["2026-11-16"]  # a Sunday: after it
    assert days("cron(0 0 1W 8 ? *)", "2026-01-01", 1) == ["2026-08-03"]  # a Saturday: not in July
    assert days("cron(0 0 1W 2 ? *)", "2026-01-01", 1) == ["2026-02-02"]
    assert days("cron(0 0 31W 5 ? *)", "2026-01-01", 1) == ["2026-05-29"]  # a Sunday: not in June
    # A month without that date has none.
    assert days("cron(0 0 31W * ? *)", "2026-06-01", 1) == ["2026-07-31"]


def test_the_nth_weekday_of_the_month() -> None:
    assert days("cron(0 0 ? * 6#3 *)", "2026-11-01", 2) == ["2026-11-20", "2026-12-18"]
    assert days("cron(0 0 ? * FRI#3 *)", "2026-11-01", 1) == ["2026-11-20"]
    # Months with a fifth Friday only.
    assert days("cron(0 0 ? * 6#5 *)", "2026-11-01", 2) == ["2027-01-29", "2027-04-30"]


def test_l_as_a_day_of_the_week() -> None:
    assert days("cron(0 0 ? * L *)", "2026-11-21", 2) == ["2026-11-28", "2026-12-05"]
    assert days("cron(0 0 ? * FRIL *)", "2026-11-01", 2) == ["2026-11-27", "2026-12-25"]


def test_ranges_may_wrap() -> None:
    weekend = ["2026-11-22", "2026-11-28", "2026-11-29"]
    assert days("cron(0 0 ? * SAT-SUN *)", "2026-11-21", 3) == weekend
    assert days("cron(0 0 1 NOV-FEB ? *)", "2026-11-21", 4) == [
        "2026-12-01", "2027-01-01", "2027-02-01", "2027-11-01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "start"),
    [
        ("cron(0 0 30 2 ? *)", "2026-01-01"),
        ("cron(0 0 31 4,6,9,11 ? *)", "2026-01-01"),
        ("cron(0 0 1 1 ? 2025)", "2026-01-01"),
        ("cron(0 0 ? 2 7#5 2026)", "2026-01-01"),
        ("cron(59 23 31 12 ? 2199)", "2199-12-31T23:59"),
        ("cron(* * * * ? *)", "2200-01-01"),
    ],
)
def test_what_never_fires_again(expression: str, start: str) -> None:
    assert times(expression, start, 1) == ["never"]


def test_years_are_bounded() -> None:
    assert times("cron(0 0 1 1 ? *)", "1000-05-05", 1) == ["1970-01-01 00:00"]
    assert times("cron(* * * * ? *)", "2199-12-31T23:58", 2) == ["2199-12-31 23:59", "never"]


def test_other_time_zones_are_understood() -> None:
    local = datetime.fromisoformat("2026-11-21T09:59:30+02:00")
    assert parse("cron(0 8 * * ? *)").next_after(local) == at("2026-11-21T08:00")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("0 8 * * ?", "has 5 fields: must be the six minutes hours day-of-month month day-of-week"),
        ("0 8 * * ?", "Hint: add * for the year"),
        ("0 0 8 * * ? *", "has 7 fields"),
        ("", "has 0 fields"),
        ("0 8 * * * *", "day-of-month '*' and day-of-week '*': one of the two must be ?"),
        ("0 8 ? * ? *", "and only one"),
        ("0 8 1 * MON *", "one of the two must be ?"),
        ("60 8 * * ? *", "minutes '60': must be 0-59, with , - * /"),
        ("x 8 * * ? *", "minutes 'x'"),
        ("? 8 * * ? *", "minutes '?'"),
        ("-5 8 * * ? *", "minutes '-5'"),
        ("5- 8 * * ? *", "minutes '5-'"),
        ("1,,2 8 * * ? *", "minutes ''"),
        ("0 24 * * ? *", "hours '24': must be 0-23"),
        ("0/0 * * * ? *", "minutes '0/0': the step must be 1 to 59"),
        ("0/60 * * * ? *", "the step must be 1 to 59"),
        ("*/ * * * ? *", "the step must be 1 to 59"),
        ("/5 * * * ? *", "minutes '/5'"),
        ("1/2/3 * * * ? *", "the step must be"),
        ("1-2-3 * * * ? *", "minutes '1-2-3'"),
        ("0 8 0 * ? *", "day-of-month '0': must be 1-31"),
        ("0 8 32W * ? *", "day-of-month '32'"),
        ("0 8 1,15W * ? *", "day-of-month '15W'"),
        ("0 8 L-3 * ? *", "day-of-month 'L-3'"),
        ("0 8 MON * ? *", "or ?, L, LW, 15W alone"),
        ("0 8 * 13 ? *", "month '13': must be 1-12 or JAN-DEC"),
        ("0 8 * MAI ? *", "month 'MAI'"),
        ("0 8 ? * 0 *", "day-of-week '0': must be 1-7 or SUN-SAT, with , - *"),
        ("0 8 ? * 8 *", "day-of-week '8'"),
        ("0 8 ? * 2/2 *", "day-of-week '2/2'"),
        ("0 8 ? * 6#6 *", "day-of-week '6#6'"),
        ("0 8 ? * 3#1,6#3 *", "day-of-week '3#1'"),
        ("0 8 ? * MON,6L *", "day-of-week '6L'"),
        ("0 8 * * ? 1969", "year '1969': must be 1970-2199"),
        ("0 8 * * ? 2200", "year '2200'"),
        ("0 8 * * ? 2030-2026", "year '2030-2026': must rise"),
        ("٣ 8 * * ? *", "minutes '٣'"),
    ],
)  # fmt: skip
def test_wrong_fields_are_told(fields: str, told: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        parse(f"cron({fields})")
    assert told in str(caught.value)


# --- properties


def plain(
    low: int, high: int, names: tuple[str, ...] = (), *, steps: bool = True
) -> st.SearchStrategy[str]:
    """A field of numbers, names, ranges and steps."""
    numbers = st.integers(low, high)
    spelt = numbers.map(lambda n: names[n - low] if names and n % 2 else str(n))
    ranges = st.tuples(numbers, numbers).map(lambda pair: f"{min(pair)}-{max(pair)}")
    forms = [spelt, ranges, st.just("*")]
    if steps:
        step = st.integers(1, max(1, high - low)).map(str)
        forms.append(st.tuples(st.one_of(spelt, ranges, st.just("*")), step).map("/".join))
    return st.lists(st.one_of(forms), min_size=1, max_size=3).map(",".join)


def day_fields() -> st.SearchStrategy[tuple[str, str]]:
    date = st.integers(1, 31)
    weekday = st.integers(1, 7)
    of_month = st.one_of(
        plain(1, 31), st.sampled_from(["L", "LW"]), date.map(lambda number: f"{number}W")
    )
    of_week = st.one_of(
        plain(1, 7, WEEKDAYS, steps=False),
        st.just("L"),
        weekday.map(lambda day: f"{day}L"),
        st.tuples(weekday, st.integers(1, 5)).map(lambda pair: f"{pair[0]}#{pair[1]}"),
    )
    return st.one_of(of_month.map(lambda f: (f, "?")), of_week.map(lambda f: ("?", f)))


@st.composite
def crons(draw: st.DrawFn) -> str:
    of_month, of_week = draw(day_fields())
    minutes, hours = draw(plain(0, 59)), draw(plain(0, 23))
    months, years = draw(plain(1, 12, MONTHS)), draw(st.one_of(st.just("*"), plain(2025, 2030)))
    return f"cron({minutes} {hours} {of_month} {months} {of_week} {years})"


moments = st.datetimes(datetime(2024, 1, 1), datetime(2032, 1, 1), timezones=st.just(UTC))


def in_numbers(text: str, low: int, high: int, names: tuple[str, ...] = ()) -> set[int]:
    """The same as _Field.values, said another way."""
    found: set[int] = set()
    for part in text.split(","):
        base, _, step = part.partition("/")
        for index, name in enumerate(names):
            base = base.replace(name, str(low + index))
        first, dash, last = base.partition("-")
        if base == "*":
            first, last = str(low), str(high)
        elif not dash:
            last = str(high) if step else first
        found |= {
            n for n in range(int(first), int(last) + 1) if (n - int(first)) % int(step or 1) == 0
        }
    return found


def falls_on(day: datetime, of_month: str, of_week: str) -> bool:
    """Whether a day matches, told from that day alone: the brute-force half of the check."""
    length = calendar.monthrange(day.year, day.month)[1]
    aws_weekday = (day.weekday() + 1) % 7 + 1
    working = [d for d in range(1, length + 1) if day.replace(day=d).weekday() < 5]
    if of_month == "L":
        return day.day == length
    if of_month == "LW":
        return day.day == working[-1]
    if of_month.endswith("W"):
        wanted = int(of_month[:-1])
        nearest = min(working, key=lambda d: abs(d - wanted))
        return wanted <= length and day.day == nearest
    if of_month != "?":
        return day.day in in_numbers(of_month, 1, 31)
    if of_week == "L":
        return aws_weekday == 7
    if of_week.endswith("L"):
        return aws_weekday == int(of_week[:-1]) and day.day + 7 > length
    if "#" in of_week:
        return aws_weekday == int(of_week[0]) and (day.day + 6) // 7 == int(of_week[2])
    return aws_weekday in in_numbers(of_week, 1, 7, WEEKDAYS)


def brute_force(expression: str, moment: datetime, most_days: int) -> datetime | None:
    minutes, hours, of_month, months, of_week, years = expression[5:-1].split()
    allowed_minutes, allowed_hours = in_numbers(minutes, 0, 59), in_numbers(hours, 0, 23)
    start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for later in range(most_days):
        day = start.replace(hour=0, minute=0) + timedelta(days=later)
        if (
            day.month not in in_numbers(months, 1, 12, MONTHS)
            or day.year not in in_numbers(years, 1970, 2199)
            or not falls_on(day, of_month, of_week)
        ):
            continue
        for hour in sorted(allowed_hours):
            for minute in sorted(allowed_minutes):
                found = day.replace(hour=hour, minute=minute)
                if found >= start:
                    return found
    return None


@settings(max_examples=300, deadline=None)
@given(crons(), moments)
def test_next_after_is_the_earliest_matching_minute(expression: str, moment: datetime) -> None:
    schedule = parse(expression)
    days_ahead = 400
    found = schedule.next_after(moment)
    expected = brute_force(expression, moment, days_ahead)
    if expected is None:
        # Further away than was looked, or never.
        assert found is None or found >= moment + timedelta(days=days_ahead - 1)
    else:
        assert found == expected
        assert found > moment


@settings(deadline=None)
@given(crons(), moments)
def test_times_rise_match_and_leave_none_out(expression: str, moment: datetime) -> None:
    schedule = parse(expression)
    assert isinstance(schedule, Cron)
    assert parse(schedule.expression) == schedule
    first = schedule.next_after(moment)
    if first is None:
        return
    assert first > moment
    assert (first.second, first.microsecond, first.tzinfo) == (0, 0, UTC)
    assert first.minute in schedule.minutes
    assert first.hour in schedule.hours
    assert first.month in schedule.months
    assert first.year in schedule.years
    assert first.day in schedule.days.of(first.year, first.month)
    between = moment + (first - moment) / 2
    assert schedule.next_after(between) == first
    second = schedule.next_after(first)
    assert second is None or second > first


@given(st.text(alphabet="0123456789*/,-?LW#MONrate(cron) ", max_size=40))
def test_any_text_is_a_schedule_or_told_to_be_none(text: str) -> None:
    for form in (text, f"cron({text})", f"rate({text})"):
        try:
            schedule = parse(form)
        except ScheduleError:
            continue
        schedule.next_after(datetime(2026, 1, 1, tzinfo=UTC))


def test_a_schedule_prints_the_same_in_every_process() -> None:
    schedule = parse("cron(0 8 ? * MON,FRI *)")
    assert isinstance(schedule, Cron)
    assert repr(schedule.days) == "Days(kind='weekdays', values=(0, 4))"
    assert schedule.days == Days("weekdays", (0, 4))
