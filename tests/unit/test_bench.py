"""The benchmark's arithmetic: percentiles, targets, the picture."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from bench import chart, reach, report
from bench.figures import Record, percentile
from bench.measures import MEASURES, cold, floors, kill, memory, throughput, warm
from bench.reach import Target

LAMBOX = "lambox"


def record_of(
    *rounds: list[float], measure: str = "m", who: str = LAMBOX, errors: int = 0
) -> Record:
    record = Record()
    for number, samples in enumerate(rounds):
        record.add(measure, who, samples, round_=number, errors=errors)
    return record


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (1, 1), (50, 50), (90, 90), (99, 99), (99.5, 100), (100, 100)]
)
def test_percentile_is_a_value_that_was_measured(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value


def test_percentile_of_one_sample_is_that_sample() -> None:
    assert [percentile([7.0], percent) for percent in (0, 50, 99)] == [7.0, 7.0, 7.0]


def test_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


def test_figure_is_over_all_samples_and_its_spread_over_rounds() -> None:
    record = Record()
    for number, samples in enumerate(([1.0, 2.0, 3.0], [11.0, 12.0, 13.0], [5.0])):
        record.add("m", LAMBOX, samples, round_=number, stats=("p50", "p99"))
    figure = record.figure("m", LAMBOX, "p50")
    assert figure is not None
    assert (figure.value, figure.samples) == (5.0, 7)
    assert (figure.min, figure.median, figure.max) == (2.0, 5.0, 12.0)
    assert [one.stat for one in record.figures()] == ["p50", "p99"]


def test_measure_in_which_everything_failed_has_no_figure_but_its_errors_are_kept() -> None:
    record = record_of([], errors=3)
    assert record.figure("m", LAMBOX) is None
    assert [series.errors for series in record.failures()] == [3]


@pytest.mark.parametrize(
    ("value", "at_least", "verdict"),
    [
        (10.1, False, reach.MISSED),
        (10.0, False, reach.MET),
        (5.0, False, reach.BEYOND),
        (9.9, True, reach.MISSED),
        (10.0, True, reach.MET),
        (20.0, True, reach.BEYOND),
    ],
)
def test_verdict(value: float, at_least: bool, verdict: str) -> None:
    target = Target("t", 10, 20 if at_least else 5, ("m", LAMBOX, "median"), at_least=at_least)
    assert reach.evaluate(target, record_of([value])).verdict == verdict


def test_target_with_errors_is_missed_however_fast() -> None:
    target = Target("t", 10, 5, ("m", LAMBOX, "median"))
    assert reach.evaluate(target, record_of([1.0], errors=1)).verdict == reach.MISSED


def test_ratio_is_taken_round_by_round() -> None:
    record = record_of([10.0], [40.0], [90.0])
    for number, value in enumerate((5.0, 10.0, 30.0)):
        record.add("floor", "host", [value], round_=number)
    target = Target("t", 3, 2, ("m", LAMBOX, "median"), ("floor", "host", "median"))
    result = reach.evaluate(target, record)
    assert (result.value, result.low, result.high) == (3.0, 2.0, 4.0)
    assert result.verdict == reach.MET


def test_target_without_its_other_half_is_not_measured() -> None:
    target = Target("t", 3, 2, ("m", LAMBOX, "median"), ("m", "emulator", "median"))
    assert reach.evaluate(target, record_of([1.0])).verdict == reach.UNKNOWN


def test_targets_ask_for_what_measures_give() -> None:
    names = {target.of[0] for target in reach.targets()}
    assert {cold.START, warm.WARM, memory.PSS, throughput.measure_of(64)} <= names
    assert kill.measure_of("caller answered", "under load") in names
    assert (floors.BWRAP_PYTHON, floors.HOST, "p50") in {target.over for target in reach.targets()}
    assert set(MEASURES) >= {"cold", "warm", "throughput", "burst", "kill", "memory"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.012"),
        (0.1234, "0.123"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (1234, "1234"),
        (56_789, "56.8k"),
    ],
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert report.number(value) == text


def test_chart_is_xml_with_a_bar_for_every_figure_there_is() -> None:
    record = Record()
    for who, value in ((LAMBOX, 6.0), ("emulator", 48.0)):
        for number in range(2):
            stats = ("p50",)
            record.add(cold.measure_of("python"), who, [value], round_=number, stats=stats)
            record.add(warm.WARM, who, [value / 10], round_=number, stats=stats)
    record.add(throughput.measure_of(16), LAMBOX, [5000], round_=0, unit="/s")
    shown = chart.panels(record, [LAMBOX])
    assert [len(panel.bars) for panel in shown] == [2, 2, 1]
    root = ET.fromstring(chart.svg(shown, "a <caption> & more"))
    bars = root.findall(".//{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["ours", "theirs", "ours", "theirs", "ours"]
    width, height = (float(root.get(side, "0")) for side in ("width", "height"))
    for bar in bars:
        assert float(bar.get("x", "0")) + float(bar.get("width", "0")) < width
        assert float(bar.get("y", "0")) + float(bar.get("height", "0")) < height


def test_chart_leaves_out_what_was_not_measured() -> None:
    assert chart.panels(Record(), [LAMBOX]) == []
