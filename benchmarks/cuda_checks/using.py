"""Clips as they are used: arrays that stay on the device, and a net that is trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cuda_checks.outcome import Row, TimeLimit
from cuda_checks.sessions import CPU, Provider, device_value, open_inner
from onnx_clip_pass import GradientClipByNorm, clip_gradients

__all__ = ["check_binding", "check_training"]

_DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "train.py"
_LEAST_ACCURACY = 0.9  # 40 epochs give 97 %, without clipping it is 8 %


def check_binding(provider: Provider, limit: TimeLimit) -> Iterator[Row]:
    """A row for a clip whose gradient, threshold and result are bound to memory of the device."""
    limit.check()
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> s (float[64, 512] x) => (float[64, 512] g) '
        "{ g = Identity(x) }"
    )
    clipped = clip_gradients(
        model,
        GradientClipByNorm(1.0),
        gradients=["g"],
        threshold_input="clip_norm",
        emit="norm",
        layout="cuda",
    )
    inner = open_inner(clipped, provider)
    array = np.full((64, 512), 3, np.float32)
    faults = []
    for clip_norm in (1.0, 2.0):
        binding = inner.io_binding()
        binding.bind_ortvalue_input("x", device_value(array, provider))
        threshold = device_value(np.array(clip_norm, np.float32), provider)
        binding.bind_ortvalue_input("clip_norm", threshold)
        for output in inner.get_outputs():
            binding.bind_output(output.name, provider.device)
        inner.run_with_iobinding(binding)
        found = dict(zip([o.name for o in inner.get_outputs()], binding.get_outputs(), strict=True))
        where = found["g"].device_name().lower()  # "cuda" or "gpu", by the version
        if (where == "cpu") != (provider == CPU):
            faults.append(f"the result is on {where}")
        wanted = array * np.float32(clip_norm / np.sqrt(9 * array.size))
        if not np.allclose(found["g"].numpy(), wanted, rtol=1e-5, atol=0):
            faults.append(f"clip_norm {clip_norm}: {found['g'].numpy()[0, 0]:g}")
    said = "; ".join(faults) or "gradient, threshold and result stay on the device"
    yield Row("use", "IO binding", "fault" if faults else "ok", said)


def check_training(provider: Provider, limit: TimeLimit, *, epochs: int = 40) -> Iterator[Row]:
    """A row for the example that trains on digits, here and on the CPU."""
    limit.check()
    what = f"digits, {epochs} epochs"
    try:
        digits = _digits()
    except ImportError as error:
        yield Row("use", what, "not run", f"{error.name} is not installed")
        return
    here = digits.train(True, epochs, tuple(dict.fromkeys((provider.name, CPU.name))))
    there = digits.train(True, epochs, (CPU.name,))
    first = abs(here.losses[0] - there.losses[0]) / there.losses[0]
    said = (
        f"accuracy {here.accuracy:.1%}, on the CPU {there.accuracy:.1%}; last loss "
        f"{here.losses[-1]:.3g} and {there.losses[-1]:.3g}; the first differs by {first:.0e}"
    )
    is_right = here.accuracy >= _LEAST_ACCURACY and first <= 1e-2  # TensorFloat-32 in its MatMul
    yield Row("use", what, "ok" if is_right else "fault", said)


def _digits() -> Any:
    """The example, a script, as a module."""
    spec = importlib.util.spec_from_file_location("digits_example", _DIGITS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
