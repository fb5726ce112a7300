"""Record `optax.clip_by_global_norm` on one tensor at a time, where it is clipping by norm.

Needs optax==0.2.8, jax==0.10.2 and numpy; run anywhere. Writes `parity_optax.json` beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import optax
from parity_inputs import record


def clip(gradient: np.ndarray, clip_norm: float) -> np.ndarray:
    """clip_by_global_norm(clip_norm).update(gradient)"""
    transform = optax.clip_by_global_norm(clip_norm)
    value = jax.numpy.asarray(gradient)
    clipped, _ = transform.update(value, transform.init(value))
    return np.asarray(clipped)


if __name__ == "__main__":
    about = f"optax {optax.__version__}, jax {jax.__version__}"
    recorded = record(clip, framework=about, how=clip.__doc__)
    text = json.dumps(recorded, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
