"""Charts of long series: short, whole where it matters, and well-formed."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from html_pages import HOSTILE, Seen
from hypothesis import given
from hypothesis import strategies as st

from onnx_clip_pass.page import HeatMap, Histogram, Line, LineChart
from onnx_clip_pass.page.thinning import greatest, thinned

SERIES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300)


@given(SERIES, st.integers(1, 12))
def test_thinning_keeps_ends_peaks_and_whether_all_is_finite(values: list[float], buckets: int):
    kept = thinned(values, buckets)
    assert kept == sorted(set(kept))
    assert len(kept) <= 5 * buckets
    finite = [value for value in values if math.isfinite(value)]
    found = [values[at] for at in kept if math.isfinite(values[at])]
    if finite:
        assert (found[0], found[-1]) == (finite[0], finite[-1])
        assert (min(found), max(found)) == (min(finite), max(finite))
    first_bad = next((at for at, value in enumerate(values) if not math.isfinite(value)), None)
    assert first_bad is None or first_bad in kept


def test_short_series_stay_whole():
    assert thinned([3.0, math.nan, 1.0], 1) == [0, 1, 2]
    assert thinned([], 5) == []


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 15), st.integers(1, 15))
def test_a_thinned_matrix_has_the_greatest_of_each_part(rows, steps, most_rows, most_steps):
    values = np.random.default_rng(rows * 41 + steps).lognormal(size=(rows, steps))
    values[values < 0.5] = np.nan
    values[values > 4] = np.inf
    found = greatest(values, most_rows, most_steps)
    assert found.shape == (min(rows, most_rows), min(steps, most_steps))
    assert np.isinf(found).any() == np.isinf(values).any()
    if not np.isnan(values).all():
        assert np.nanmax(found) == np.nanmax(values)
    assert np.isnan(greatest(np.full((3, 9), np.nan), 1, 1)).all()


def paths(markup: str, kind: str) -> list[str]:
    return [
        attrs["d"] or ""
        for tag, attrs in Seen.of(markup).elements
        if tag == "path" and attrs.get("class") == kind
    ]


def test_a_hundred_thousand_steps_are_a_small_chart_with_their_peak():
    norms = np.ones(100_000)
    norms[70_000] = 1000.0
    chart = LineChart([Line("norm", norms), Line("limit", norms * 0 + 2, "limit")], "norms").html()
    assert len(chart) < 150_000
    (line,) = paths(chart, "line main")
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line)]
    assert min(heights) == 14.0  # the upper edge, which is 1000
    assert heights[0] == heights[-1] == 204.0  # the lower edge, which is 1
    assert "…" not in line  # not shortened as a name is


def test_what_is_not_finite_leaves_a_gap_and_a_mark():
    chart = LineChart([Line("norm", [1.0, 2.0, math.nan, math.inf, 4.0, 8.0])], "norms").html()
    (line,) = paths(chart, "line main")
    assert line.count("M") == 2
    (marks,) = paths(chart, "line bad")
    assert marks.count("M") == 1  # where it began
    assert "norm is not finite" in chart


@pytest.mark.parametrize("values", [[], [math.nan] * 3, [0.0, 0.0], [-1.0, 2.0], [1e-300, 1e300]])
def test_any_series_is_a_chart(values: list[float]):
    seen = Seen.of(LineChart([Line("loss", values)], "loss").html())
    assert seen.faults == []
    assert not any("nan" in str(value) for _, attrs in seen.elements for value in attrs.values())


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.0, 10.0], ["1", "2", "5", "10"]),
        ([0.3, 0.9], ["0.2", "0.5", "1"]),
        ([1e-3, 400], ["0.001", "0.01", "0.1", "1", "10", "100"]),
    ],
)
def test_the_axis_of_values_is_logarithmic_between_round_numbers(values, ticks):
    seen = Seen.of(LineChart([Line("norm", values)], "norms").html())
    assert seen.texts[: len(ticks)] == ticks
    heights = [
        float(str(attrs["y"]))
        for tag, attrs in seen.elements
        if tag == "text" and attrs.get("class") == "tick left"
    ]
    assert heights == sorted(heights, reverse=True)
    if len(ticks) == 6:  # each ten times the one before: all steps are as high, to a tenth
        steps = {round(a - b, 1) for a, b in itertools.pairwise(heights)}
        assert max(steps) - min(steps) < 0.11


def test_a_map_of_thousands_has_a_bounded_size_and_shows_the_one_that_broke():
    values = np.random.default_rng(0).lognormal(size=(5000, 400))
    values[1234, 200] = np.inf
    names = [f"w{at}" for at in range(5000)]
    chart = HeatMap(names, values, "norms of gradients by steps").html()
    assert len(chart) < 1_000_000
    (broken,) = paths(chart, "bad")
    assert broken == "M120 49h1v1h-1z"  # of 200 rows and 240 columns
    titles = [text for text in Seen.of(chart).texts if text.endswith("(25)")]
    assert len(titles) == 200
    assert titles[49] == "w1225 … w1249 (25)"


def test_a_map_is_darkest_where_values_are_largest():
    chart = HeatMap(["a", "b"], np.array([[1.0, 1.0, 100.0], [np.nan, 10.0, 1.0]]), "m").html()
    assert paths(chart, "v8") == ["M2 0h1v1h-1z"]
    assert paths(chart, "v0") == ["M0 0h2v1h-2zM2 1h1v1h-1z"]
    assert paths(chart, "v4") == ["M1 1h1v1h-1z"]
    assert HeatMap([], np.zeros((0, 5)), "m").html() == ""


def test_the_bars_of_a_distribution_and_its_limit():
    values = [1.0] * 9 + [100.0, math.nan, 0.0]
    svg = Histogram.of(values, 1.0, 100.0, 10.0).html()
    bars, limit = (attrs["d"] for tag, attrs in Seen.of(svg).elements if tag == "path")
    assert bars == "M0 18v-17.0h3V18zM116 18v-1.9h3V18z"
    assert limit == "M60.0 0V18"  # in the middle of two powers of ten
    assert Seen.of(Histogram.of([], 1.0, 1.0, None).html()).faults == []


def test_names_in_charts_are_text():
    lines = [Line(name, [1.0, 2.0]) for name in HOSTILE]
    for chart in (
        LineChart(lines, HOSTILE[1]).html(),
        HeatMap(HOSTILE, np.ones((len(HOSTILE), 3)), HOSTILE[1]).html(),
    ):
        seen = Seen.of(chart)
        assert seen.faults == []
        assert seen.tags() <= {"div", "svg", "g", "path", "rect", "text", "title"}
        assert HOSTILE[0] in seen.texts
