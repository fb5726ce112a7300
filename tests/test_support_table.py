"""The table of dtypes and opsets in docs/numerics.md is what comes out when they are run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from single import NEWEST_OPSET

SCRIPT = Path(__file__).parent.parent / "docs" / "make_support_table.py"


def test_the_table_in_the_docs_is_what_running_gives():
    pytest.importorskip("onnxruntime", reason="running a graph needs ONNX Runtime")
    if NEWEST_OPSET != 28:
        pytest.skip(f"the table was made with onnx of opset 28, not {NEWEST_OPSET}")
    spec = importlib.util.spec_from_file_location("make_support_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.written() == script.table(), "run python docs/make_support_table.py --write"
