"""Record `torch.nn.utils.clip_grad_norm_` on one parameter at a time.

Needs torch==2.13.0 and numpy; run anywhere. Writes `parity_torch.json` beside itself. It divides by
norm + 1e-6, so its results are not ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from parity_inputs import record


def clip(gradient: np.ndarray, clip_norm: float) -> np.ndarray:
    """clip_grad_norm_([parameter], clip_norm)"""
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape))
    parameter.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([parameter], clip_norm)
    return parameter.grad.numpy()


if __name__ == "__main__":
    recorded = record(clip, framework=f"torch {torch.__version__}", how=clip.__doc__)
    text = json.dumps(recorded, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
