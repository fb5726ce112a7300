"""The table of dtypes and opsets in docs/numerics.md is what comes out when they are run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from single import NEWEST_OPSET

pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")
sys.path.insert(0, str(Path(__file__).parent.parent / "docs"))

import make_support_table
from marked import table_in


def test_the_table_in_the_docs_is_what_running_gives():
    if NEWEST_OPSET != 28:
        pytest.skip(f"the table was made with onnx of opset 28, not {NEWEST_OPSET}")
    page = table_in(make_support_table.PAGE, make_support_table.MARK)
    assert page == make_support_table.table(), "run python docs/make_support_table.py --write"
