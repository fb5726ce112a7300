"""The benchmarks' tables, and what comparing two of their runs says."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import compare
from harness import Sheet, cells, ratios


def sheet(ours: list[float], base: list[float] | None = None) -> Sheet:
    values = {"cp": base or [1.0, 1.0, 1.0], "onnx-clip": ours}
    return Sheet("copying", "cp", {"s": values}, compared=("s",), ours=("onnx-clip",))


def kept(folder: Path, name: str, *sheets: Sheet) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": {}, "sheets": {"files": [*map(asdict, sheets)]}}))
    return str(path)


def test_ratios_are_those_of_one_turn():
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2, 3]


def test_ratios_of_rows_with_other_turns_are_over_the_median():
    assert ratios({"a": [6.0], "b": [1.0, 2.0, 30.0]}, "a", "b") == [3]


def test_a_table_shows_median_and_spread_and_the_median_of_ratios():
    assert cells(sheet([2.0, 3.0, 2.5], [1.0, 1.0, 2.0])) == [
        ["", "s", "÷ cp"],
        ["cp", "1 (1 to 2)", "1"],
        ["onnx-clip", "2.50 (2 to 3)", "2"],
    ]


def test_a_contestant_that_failed_is_shown_with_what_it_said():
    found = sheet([2.0])
    found.failures["peer"] = "MemoryError"
    assert cells(found)[-1] == ["peer", "fails: MemoryError", ""]


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        pytest.param([2.0, 2.2, 2.1], [2.1, 2.3, 2.0], 0, id="the same"),
        pytest.param([2.0, 2.2, 2.1], [1.0, 1.1, 1.2], 0, id="faster"),
        pytest.param([2.0, 2.2, 2.1], [2.3, 2.4, 2.5], 1, id="slower beyond the spread"),
    ],
)
def test_comparing_fails_where_something_is_slower_beyond_the_spread(
    before: list[float], after: list[float], code: int, tmp_path: Path
):
    old, new = kept(tmp_path, "old", sheet(before)), kept(tmp_path, "new", sheet(after))
    assert compare.main(old, new) == code


def test_a_slower_machine_is_no_regression(tmp_path: Path):
    old = kept(tmp_path, "old", sheet([2.0, 2.1, 2.2]))
    new = kept(tmp_path, "new", sheet([6.0, 6.3, 6.6], base=[3.0, 3.0, 3.0]))
    assert compare.main(old, new) == 0


def test_runs_with_nothing_in_common_are_no_comparison(tmp_path: Path):
    old, new = kept(tmp_path, "old"), kept(tmp_path, "new", sheet([1.0]))
    assert compare.main(old, new) == 2
