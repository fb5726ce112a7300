"""Tables: what is cut where there is no space, and how many rows become few."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from onnx_clip_pass.tables import MOST_ROWS, Table

HEADINGS = ("gradient", "parameter", "shape", "dtype", "clip", "evidence")


def shown(table: Table, width: int) -> list[str]:
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def row(name: str, shape: str = "[2]", clip: str = "norm <= 1") -> tuple[str, ...]:
    return (f"{name}_grad", name, shape, "float32", clip, f"named after {name}")


LONG = "transformer.encoder.layer.11.attention.output.dense.weight"


@pytest.mark.parametrize("width", [70, 80, 100, 120, 160])
def test_names_are_cut_in_the_middle_and_every_row_is_one_line(width):
    lines = shown(Table(HEADINGS, (row(LONG), row("b"))), width)
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    for shown_name, name in zip(lines[1].split(), (f"{LONG}_grad", LONG), strict=False):
        first, _, last = shown_name.partition("…")
        assert shown_name == name or (name.startswith(first) and name.endswith(last))
        assert abs(len(first) - len(last)) <= 1 or not last
    assert lines[2].split()[:2] == ["b_grad", "b"]


def test_evidence_gives_way_before_names():
    table = Table(HEADINGS, ((*row("layer.weight")[:-1], "optimized by SomeOptimizer"),))
    lines = shown(table, table.width - 5)
    assert "layer.weight_grad  layer.weight" in lines[1]
    assert lines[1].endswith("…")
    assert table.left_out(table.width - 5) == "… is left out"
    assert table.left_out(table.width) == ""


def test_evidence_speaks_of_it_before_it_is_cut():
    cells = ("g", "W.0", "[2]", "float32", "norm <= 1", "updates W.0 to W.0@NEW; W.0 is an input")
    table = Table(HEADINGS, (cells,))
    assert cells[-1] in shown(table, table.width)[1]
    assert shown(table, table.width - 2)[1].endswith("updates it to W.0@NEW; it is an input")
    assert table.left_out(table.width - 2) == ""
    assert cells[-1] in shown(replace(table, is_whole=True), table.width)[1]


def test_wide_characters_count_twice():
    lines = shown(Table(("gradient",), (("重み" * 20 + "_grad",),)), 21)
    assert lines[1].endswith("_grad")
    assert "…" in lines[1]
    assert len(lines) == 2


def test_rows_that_differ_in_numbers_are_one():
    names = [f"layers.{n}.{part}" for n in range(30) for part in ("fc1.weight", "fc2.bias")]
    table = Table(HEADINGS, tuple(row(name) for name in [*names, "head"]))
    lines = shown(table, 200)
    assert [line.split()[:3] for line in lines[1:]] == [
        ["30", "layers.*.fc1.weight_grad", "layers.*.fc1.weight"],
        ["30", "layers.*.fc2.bias_grad", "layers.*.fc2.bias"],
        ["1", "head_grad", "head"],
    ]
    assert table.left_out(200) == "61 rows in 3 groups"


def test_clips_and_types_keep_rows_apart():
    rows = [row(f"W{n}", clip="-" if n % 2 else "norm <= 1") for n in range(MOST_ROWS + 1)]
    lines = shown(Table(HEADINGS, tuple(rows)), 200)
    assert [line.split()[0] for line in lines[1:]] == ["21", "20"]


def test_names_that_an_exporter_has_made_up_keep_nothing_apart():
    rows = [
        (f"{chr(97 + n % 26)}{n}x{chr(97 + n // 26)}", f"W{n}", "[2]", "float32", "norm <= 1", "-")
        for n in range(200)
    ]
    lines = shown(Table(HEADINGS, tuple(rows)), 200)
    assert [line.split()[:4] for line in lines[1:]] == [["200", "200", "different", "W*"]]


def test_of_very_many_groups_the_first_are_shown():
    rows = [row("W", clip=f"norm <= {n}") for n in range(100)]
    table = Table(HEADINGS, tuple(rows))
    assert len(shown(table, 200)) == 1 + MOST_ROWS
    assert table.left_out(200) == f"100 rows in 100 groups, of which the first {MOST_ROWS}"


def test_a_group_has_the_range_of_its_norms_and_its_worst_error():
    headings = ("gradient", "clip", "raw norm", "error (ulps)", "verdict")
    rows = [
        (f"g{n}", "norm <= 1", f"{n}" if n else "-", f"{n % 7} of {13 + n}", "right")
        for n in range(41)
    ]
    lines = shown(Table(headings, tuple(rows)), 200)
    assert " ".join(lines[1].split()) == "41 g* norm <= 1 1 to 40 6 of 19 right"


def test_where_nothing_fits_each_row_is_a_block():
    lines = shown(Table(HEADINGS, (row("W"),)), 30)
    assert [line.split()[0] for line in lines] == list(HEADINGS)


def test_no_rows_are_no_table():
    assert shown(Table(HEADINGS, ()), 80) == []
    assert Table(HEADINGS, ()).left_out(10) == ""
