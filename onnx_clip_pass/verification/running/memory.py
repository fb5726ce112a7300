"""The memory that a verification needs, asked for before it is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from onnx import helper

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.graph import Index, TensorType
from onnx_clip_pass.verification.static.targets import Target

__all__ = ["check_memory", "free_memory"]

_OF_GRADIENTS = 7
"""Times their bytes: those of the original, what is fed, those of the rewritten model before and
after clipping, what the runtime holds of both meanwhile, and those that are scaled later."""
_OF_OUTPUTS = 3
_MEMINFO = Path("/proc/meminfo")


def check_memory(before: Index, targets: Sequence[Target]) -> None:
    """Refuse to run models whose arrays are more than memory takes.

    Sizes that are not declared count as 1, so that what is refused does not fit for certain. Where
    nobody says how much there is, nothing is refused.

    Raises:
        OnnxClipError: there is not enough.
    """
    available = free_memory()
    if available is None:
        return
    kinds = {
        (target.scope, target.name): TensorType(target.dtype, target.gradient.shape)
        for target in targets
    }
    gradients = sum(map(_bytes, kinds.values()))
    outputs = sum(_bytes(before.main.type_of(name)) for name in before.main.outputs)
    needed = _OF_GRADIENTS * gradients + _OF_OUTPUTS * outputs
    if needed > available:
        raise OnnxClipError(
            f"expected {needed / 1e9:.1f} GB of free memory ({_OF_GRADIENTS} times the gradients "
            f"and {_OF_OUTPUTS} times the outputs of the model), but there are "
            f"{available / 1e9:.1f} GB; verify on a larger machine, or verify a smaller model that "
            f"is made the same way"
        )


def _bytes(kind: TensorType | None) -> int:
    if kind is None or kind.shape is None or not kind.dtype:
        return 0
    sizes = [size for size in kind.shape if isinstance(size, int)]
    return math.prod(sizes) * int(helper.tensor_dtype_to_np_dtype(kind.dtype).itemsize)


def free_memory() -> int | None:
    """Bytes of memory that can be taken; None where nobody says."""
    try:
        lines = _MEMINFO.read_text().splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, StopIteration, IndexError, ValueError):
        return None
