"""The example of data-parallel training: any number of workers ends where one does.

Runs where PyTorch is, in the session `ort_training`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnx_clip_pass.cli import main

pytest.importorskip("torch", reason="torch.distributed averages the gradients")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "data_parallel"


def trained(folder: Path, workers: int, clip: str) -> dict[str, np.ndarray]:
    result = folder / f"{workers}-{clip}.npz"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc-per-node", str(workers), EXAMPLE / "train.py",
         folder / "gradients.onnx", folder / f"{clip}.onnx", result],
        check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return dict(np.load(result))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    subprocess.run(
        [sys.executable, EXAMPLE / "make_model.py", folder / "gradients.onnx"], check=True
    )
    for name, clip_norm in (("clip", "0.1"), ("loose", "1e6")):
        arguments = ["--clip", "global-norm", "--clip-norm", clip_norm]
        target = str(folder / f"{name}.onnx")
        assert main(["extract", str(folder / "gradients.onnx"), "-o", target, *arguments]) == 0
    return folder


def test_two_and_four_workers_end_where_one_does(folder: Path):
    """20 steps, each of which adds up the batch in another order: some tens of float32 roundings
    of parameters of size 1."""
    one = trained(folder, 1, "clip")
    for workers in (2, 4):
        several = trained(folder, workers, "clip")
        for name, parameter in one.items():
            np.testing.assert_allclose(several[name], parameter, rtol=0, atol=64 * 2.0**-24)
    loose = trained(folder, 1, "loose")
    assert max(np.abs(loose[name] - one[name]).max() for name in one) > 0.01
