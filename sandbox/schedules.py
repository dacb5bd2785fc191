"""Owns AWS's schedule expressions, `rate(...)` and `cron(...)`: text -> a frozen value that knows its times.

Pure: no clock. All times are UTC and aware, cron's are whole minutes. What AWS's documentation leaves
open follows Quartz, whose grammar AWS took: ranges may wrap (FRI-MON, 22-2), L alone as a day of the
week is Saturday, 15W stays in its month. Grammar:
https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-scheduled-rule-pattern.html

ScheduleError       what the expression must be instead
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
FIRST_YEAR, LAST_YEAR = 1970, 2199
MOST_DAYS = 36500
"""Of a rate, so that every time stays one that can be written down."""
UNITS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}


class ScheduleError(ValueError):
    """What a schedule expression must be instead."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`rate(5 minutes)`: again and again after this long; when it begins is up to who keeps it."""

    expression: str
    every: timedelta

    def next_after(self, moment: datetime) -> datetime | None:
        """The next time, counted from `moment`. None when that is past the end of the calendar."""
        try:
            return moment.astimezone(UTC) + self.every
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class Days:
    """Which days of a month: one of the two day fields, the other one is `?`."""

    kind: Literal[
        "dates", "last date", "last weekday", "nearest weekday", "weekdays", "nth", "last"
    ]
    """dates 1,15; L; LW; 15W; weekdays MON,FRI; 6#3; 6L"""
    values: tuple[int, ...] = ()
    """Dates; days of the week from 0 (Monday); for nth a day of the week and which one."""

    def of(self, year: int, month: int) -> Sequence[int]:
        """Ascending dates."""
        weekday, length = calendar.monthrange(year, month)

        def falling_on(wanted: int) -> range:
            return range(1 + (wanted - weekday) % 7, length + 1, 7)

        match self.kind:
            case "dates":
                return [date for date in self.values if date <= length]
            case "last date":
                return [length]
            case "last weekday":
                return [_nearest_weekday(length, weekday, length)]
            case "nearest weekday":
                (date,) = self.values
                return [_nearest_weekday(date, weekday, length)] if date <= length else []
            case "weekdays":
                return sorted(date for day in self.values for date in falling_on(day))
            case "nth":
                wanted, which = self.values
                return falling_on(wanted)[which - 1 : which]
            case "last":
                return falling_on(self.values[0])[-1:]


def _nearest_weekday(date: int, first: int, length: int) -> int:
    """Monday to Friday, in the same month. `first`: the weekday of the month's first day."""
    weekday = (first + date - 1) % 7
    if weekday == calendar.SATURDAY:
        return date - 1 if date > 1 else 3
    if weekday == calendar.SUNDAY:
        return date + 1 if date < length else date - 2
    return date


@dataclass(frozen=True, slots=True)
class Cron:
    """`cron(minutes hours day-of-month month day-of-week year)`. Tuples are ascending."""

    expression: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: Days
    months: tuple[int, ...]
    years: tuple[int, ...]

    def next_after(self, moment: datetime) -> datetime | None:
        """The first matching minute that is strictly later, or None when there is none any more."""
        try:
            start = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        except OverflowError:
            return None
        for year, month, date in self._dates_from(start):
            today = (year, month, date) == (start.year, start.month, start.day)
            for hour in self.hours[bisect_left(self.hours, start.hour) if today else 0 :]:
                now = today and hour == start.hour
                at = bisect_left(self.minutes, start.minute) if now else 0
                if at < len(self.minutes):
                    return datetime(year, month, date, hour, self.minutes[at], tzinfo=UTC)
        return None

    def _dates_from(self, start: datetime) -> Iterator[tuple[int, int, int]]:
        for year in self.years[bisect_left(self.years, start.year) :]:
            for month in self.months:
                if (year, month) < (start.year, start.month):
                    continue
                for date in self.days.of(year, month):
                    if (year, month, date) >= (start.year, start.month, start.day):
                        yield year, month, date


Schedule = Rate | Cron


def parse(text: str) -> Schedule:
    """Raises ScheduleError."""
    form = re.fullmatch(r"\s*(rate|cron)\((.*)\)\s*", text)
    if form is None:
        raise ScheduleError(
            'must be "rate(5 minutes)" or "cron(0/15 * * * ? *)", as EventBridge takes them'
        )
    inner = form[2].strip()
    return _rate(inner) if form[1] == "rate" else _cron(inner)


def _rate(inner: str) -> Rate:
    form = re.fullmatch(r"(\d{1,9})\s+(minute|hour|day)(s?)", inner, re.ASCII)
    if form is None:
        raise ScheduleError(
            "rate(...) must hold a whole number and minute, minutes, hour, hours, day or days, "
            'such as "rate(5 minutes)"'
        )
    value, unit = int(form[1]), form[2]
    right = f"rate({value} {unit if value == 1 else unit + 's'})"
    if value == 0:
        raise ScheduleError(f'must be at least 1 {unit}, such as "rate(1 {unit})"')
    if (value == 1) == bool(form[3]):
        raise ScheduleError(f'must be "{right}": AWS wants the singular after 1, else the plural')
    every = value * UNITS[unit]
    if every > timedelta(days=MOST_DAYS):
        raise ScheduleError(f"must be at most {MOST_DAYS} days")
    return Rate(right, every)


@dataclass(frozen=True, slots=True)
class _Field:
    """One field made of numbers, names, ranges and steps."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    steps: bool = True
    wraps: bool = True
    """Whether a range may run over the end, as FRI-MON does."""
    also: str = ""
    """What else the field takes, for messages."""

    def values(self, text: str) -> tuple[int, ...]:
        """Ascending. Raises ScheduleError."""
        found: set[int] = set()
        for part in text.split(","):
            found.update(self._part(part))
        return tuple(sorted(found))

    def number(self, text: str, part: str = "") -> int:
        """`part`: what `text` is cut from, and messages quote."""
        if text.upper() in self.names:
            return self.low + self.names.index(text.upper())
        if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not self.low <= int(text) <= self.high:
            raise self.wrong(part or text)
        return int(text)

    def wrong(self, text: str) -> ScheduleError:
        names = f" or {self.names[0]}-{self.names[-1]}" if self.names else ""
        signs = ", - * /" if self.steps else ", - *"
        return ScheduleError(
            f"{self.name} {text!r}: must be {self.low}-{self.high}{names}, with {signs}{self.also}"
        )

    def _part(self, part: str) -> Sequence[int]:
        base, slash, step_text = part.partition("/")
        first, dash, last = base.partition("-")
        if (slash and not self.steps) or not base:
            raise self.wrong(part)
        if base == "*":
            run = list(range(self.low, self.high + 1))
        elif dash:
            run = self._range(self.number(first, part), self.number(last, part), part)
        elif slash:
            run = list(range(self.number(first, part), self.high + 1))
        else:
            run = [self.number(first, part)]
        return run[:: self._step(step_text, part)] if slash else run

    def _range(self, first: int, last: int, part: str) -> list[int]:
        if first <= last:
            return list(range(first, last + 1))
        if not self.wraps:
            raise ScheduleError(f"{self.name} {part!r}: must rise")
        return [*range(first, self.high + 1), *range(self.low, last + 1)]

    def _step(self, text: str, part: str) -> int:
        most = max(1, self.high - self.low)
        if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= most:
            raise ScheduleError(f"{self.name} {part!r}: the step must be 1 to {most}")
        return int(text)


_MINUTES = _Field("minutes", 0, 59)
_HOURS = _Field("hours", 0, 23)
_DATES = _Field("day-of-month", 1, 31, also="; or ?, L, LW, 15W alone")
_MONTHS = _Field("month", 1, 12, MONTHS)
_WEEKDAYS = _Field("day-of-week", 1, 7, WEEKDAYS, steps=False, also="; or ?, L, 6L, 6#3 alone")
_YEARS = _Field("year", FIRST_YEAR, LAST_YEAR, wraps=False)


def _cron(inner: str) -> Cron:
    fields = inner.split()
    if len(fields) != 6:
        raise ScheduleError(
            f"cron(...) has {len(fields)} fields: must be the six "
            "minutes hours day-of-month month day-of-week year"
            + (", such as cron(0 8 * * ? *)" if len(fields) != 5 else ". Hint: add * for the year")
        )
    minutes, hours, dates, months, weekdays, years = fields
    if (dates == "?") == (weekdays == "?"):
        raise ScheduleError(
            f"day-of-month {dates!r} and day-of-week {weekdays!r}: one of the two must be ?, "
            "and only one"
        )
    return Cron(
        expression=f"cron({' '.join(fields)})",
        minutes=_MINUTES.values(minutes),
        hours=_HOURS.values(hours),
        days=_of_month(dates.upper()) if weekdays == "?" else _of_week(weekdays.upper()),
        months=_MONTHS.values(months),
        years=_YEARS.values(years),
    )


def _of_month(text: str) -> Days:
    if text == "L":
        return Days("last date")
    if text in ("LW", "WL"):
        return Days("last weekday")
    if nearest := re.fullmatch(r"(\w+)W", text):
        return Days("nearest weekday", (_DATES.number(nearest[1]),))
    return Days("dates", _DATES.values(text))


def _of_week(text: str) -> Days:
    if text == "L":
        return Days("weekdays", (calendar.SATURDAY,))
    if last := re.fullmatch(r"(\w+)L", text):
        return Days("last", (_weekday(last[1]),))
    if nth := re.fullmatch(r"(\w+)#([1-5])", text, re.ASCII):
        return Days("nth", (_weekday(nth[1]), int(nth[2])))
    return Days("weekdays", tuple(sorted((day - 2) % 7 for day in _WEEKDAYS.values(text))))


def _weekday(text: str) -> int:
    """AWS counts from 1 (Sunday), Python from 0 (Monday)."""
    return (_WEEKDAYS.number(text) - 2) % 7
