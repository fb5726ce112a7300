"""A case on disk: an exported step, its inputs and outputs, and the framework's own results.

A folder for each case holds

- ``model.onnx``: the graph as the exporter wrote it; no name in it was chosen to help;
- ``truth.json``: for each input its role (parameter, state, data, number) and what it is; for each
  output its role (loss, parameter, state, gradient, metric) and the input whose new value it is;
  the clip norm; the versions of what made it;
- ``arrays.npz``, all by the framework: ``input_I``, ``plain_O`` (outputs of the step),
  ``clipped_O`` (outputs of the same step where the gradient of each parameter was clipped by its
  norm between backward pass and optimizer) and ``gradient_I`` (of the parameter that is input I).

Needs NumPy alone, so that both exporters and the table can import it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 2e-5
"""How far an output may be from the framework's, relative to the largest element of the array.

Float32 has 6e-8; a step sums some hundred products and takes a root or two of differences, so that
two right runtimes differ by up to 1e-5. A clip to half of the smallest norm moves a state by tenths
and, with the learning rates here (1e-2 and more), a parameter by 1e-3 and more of its size.
"""

TELLING = 10.0
"""An output tells of clipping if clipping changes it by so many tolerances."""


@dataclass
class Truth:
    """What is known of a case beside its arrays."""

    name: str
    source: str
    optimizer: str
    options: str
    architecture: str
    kind: str
    """"step", where the update is in the graph; "gradients", where gradients are outputs."""
    clip_norm: float
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    versions: dict[str, str]
    notes: list[str] = field(default_factory=list)
    tolerance: float = TOLERANCE

    @property
    def telling(self) -> list[int]:
        """The outputs that clipping changes by far more than the tolerance."""
        return [place for place, output in enumerate(self.outputs) if output["telling"]]


def distance(got: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference, relative to the largest element that is wanted."""
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.size == 0:
        return 0.0
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    if not (np.isfinite(got) == np.isfinite(wanted)).all():
        return float("inf")
    finite = np.isfinite(wanted)
    if not finite.any():
        return 0.0
    largest = np.abs(wanted[finite]).max()
    return float(np.abs(got - wanted)[finite].max() / (largest or 1.0))


def save(
    folder: Path,
    truth: Truth,
    inputs: Sequence[np.ndarray],
    plain: Sequence[np.ndarray],
    clipped: Sequence[np.ndarray],
    gradients: dict[int, np.ndarray],
) -> None:
    """Write what belongs to a case beside its model, which the exporter has written."""
    for output, before, after in zip(truth.outputs, plain, clipped, strict=True):
        output["telling"] = distance(after, before) > TELLING * truth.tolerance
    arrays: dict[str, np.ndarray] = {}
    for kind, values in (("input", inputs), ("plain", plain), ("clipped", clipped)):
        arrays |= {f"{kind}_{place}": value for place, value in enumerate(values)}
    arrays |= {f"gradient_{place}": value for place, value in gradients.items()}
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    (folder / "truth.json").write_text(json.dumps(asdict(truth), indent=1) + "\n")


def load(folder: Path) -> tuple[Truth, dict[str, np.ndarray]]:
    """Return the truth and the arrays of a case."""
    truth = Truth(**json.loads((folder / "truth.json").read_text()))
    with np.load(folder / "arrays.npz") as arrays:
        return truth, dict(arrays)
