"""The gradients and thresholds that `parity_*.py` hand to the frameworks, all float32."""

from __future__ import annotations

import numpy as np

CLIP_NORMS = (0.25, 1.0, 100.0)


def gradients() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "within": np.array([0.3, 0.4], np.float32) / np.float32(4),
        "at the threshold": np.array([0.6, 0.8], np.float32),
        "three, four": np.array([-3.0, 4.0], np.float32),
        "zeros": np.zeros((2, 2), np.float32),
        "one element": np.array([-5.0], np.float32),
        "vector": rng.standard_normal(9).astype(np.float32),
        "matrix": (30 * rng.standard_normal((4, 3))).astype(np.float32),
        "kernel": (1e-3 * rng.standard_normal((2, 3, 2, 2))).astype(np.float32),
        "tiny": np.array([1e-30, -1e-30], np.float32),
        "large": np.array([3e18, 4e18], np.float32),
    }


def record(clip: object, **about: str) -> dict[str, object]:
    """What `clip(gradient, clip_norm)` gives for each, in numbers that come back exactly."""
    cases = [
        {
            "gradient": name,
            "shape": list(gradient.shape),
            "values": gradient.ravel().tolist(),
            "clip_norm": clip_norm,
            "gives": np.asarray(clip(gradient, clip_norm), np.float32).ravel().tolist(),
        }
        for clip_norm in CLIP_NORMS
        for name, gradient in gradients().items()
    ]
    return {**about, "cases": cases}
