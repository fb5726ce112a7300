"""Our clip beside the originals: what Paddle, PyTorch and optax made of the same gradients.

The records come from real runs, by the scripts beside them. float32 throughout; a framework's norm,
its quotient and its product each round, at most 9 elements are added up, and our graph does the
same in another order: a few units in the last place, 4 eps = 4.8e-7, is all they may differ by.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from single import by_apply, by_graph, norm_of

from onnx_clip_pass import GradientClipByNorm

RECORDED = Path(__file__).parent / "recorded"
EPS = float(np.finfo(np.float32).eps)
EXACT = ["parity_paddle", "parity_paddle_static", "parity_optax"]


def cases(*names: str) -> list[Any]:
    return [
        pytest.param(
            case, id=f"{name.removeprefix('parity_')}, {case['gradient']}, {case['clip_norm']}"
        )
        for name in names
        for case in json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    ]


def arrays(case: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    x = np.array(case["values"], np.float32).reshape(case["shape"])
    return x, np.array(case["gives"], np.float32).reshape(case["shape"])


both_ways = pytest.mark.parametrize("way", [by_graph, by_apply])


@both_ways
@pytest.mark.parametrize("case", cases(*EXACT))
def test_ours_is_that_of_paddle_and_optax(case: dict[str, Any], way: Any):
    x, given = arrays(case)
    out = way(GradientClipByNorm(case["clip_norm"]), x)
    np.testing.assert_allclose(out, given, rtol=4 * EPS)


@both_ways
@pytest.mark.parametrize("case", cases("parity_torch"))
def test_pytorch_adds_a_millionth_to_the_norm_and_is_ours_but_for_that(
    case: dict[str, Any], way: Any
):
    """PyTorch: x * min(1, c / (norm + 1e-6)). So theirs is ours times norm / (norm + 1e-6)."""
    x, given = arrays(case)
    norm, clip_norm = norm_of(x), case["clip_norm"]
    out = way(GradientClipByNorm(clip_norm), x)
    if norm > clip_norm:
        np.testing.assert_allclose(out * (norm / (norm + 1e-6)), given, rtol=6 * EPS)
    else:
        assert out.tobytes() == x.tobytes()
        np.testing.assert_allclose(given, x * min(1, clip_norm / (norm + 1e-6)), rtol=6 * EPS)


def test_at_the_threshold_pytorch_shortens_what_we_leave_alone():
    recorded = [case.values[0] for case in cases("parity_torch")]
    (case,) = [c for c in recorded if (c["gradient"], c["clip_norm"]) == ("at the threshold", 1.0)]
    x, given = arrays(case)
    assert (given < x).all()
    assert by_graph(GradientClipByNorm(1.0), x).tobytes() == x.tobytes()
