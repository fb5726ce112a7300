"""The official ONNX backend cases: each float output clipped as if it were a gradient.

`nox -s onnx_backend` runs this with the versions that `expected.toml` was counted with. See
`judging.py` for what is asserted of each case, and what the outcomes mean.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

if not os.environ.get("ONNX_CLIP_BACKEND"):
    pytest.skip("2,033 models of onnx: nox -s onnx_backend", allow_module_level=True)

from backend_cases import Case, every_case
from judging import judge

EXPECTED = tomllib.loads(Path(__file__).with_name("expected.toml").read_text(encoding="utf-8"))
CASES = list(every_case())
OUTCOMES: Counter[str] = Counter()


def test_the_versions_are_those_that_the_counts_hold_for():
    assert {name: version(name) for name in EXPECTED["versions"]} == EXPECTED["versions"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_rewritten_case_keeps_every_promise(case: Case):
    OUTCOMES[judge(case)] += 1


def test_every_outcome_is_as_frequent_as_it_was():
    """A case that is lost, refused or no longer run shows here; all tests above must have run."""
    assert OUTCOMES.total() == len(CASES), "some case has failed or was not run: see above"
    assert dict(OUTCOMES) == EXPECTED["counts"]
