"""The digits example: without clipping the net is lost, with clipping it learns.

Runs where onnx-ad and scikit-learn are, in the session `examples`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx_ad", reason="onnx-ad makes the gradients")
pytest.importorskip("sklearn", reason="scikit-learn has the digits")

SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("digits", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


def test_unclipped_it_diverges_and_clipped_it_learns(example, tmp_path: Path):
    plain, clipped = example.train(False, epochs=40), example.train(True, epochs=40)
    assert max(plain.losses) > 1000
    assert plain.accuracy < 0.2
    assert clipped.accuracy > 0.95
    limits = example.CLIP_NORM * example.CLIP_NORM_DECAY ** np.repeat(
        np.arange(40), len(clipped.norms) // 40
    )
    assert (np.array(clipped.clipped) <= limits * (1 + 1e-5)).all()
    picture = tmp_path / "digits.png"
    example.draw(plain, clipped, str(picture))
    assert picture.stat().st_size > 10_000
