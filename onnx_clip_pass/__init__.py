"""Gradient clipping for ONNX training graphs, as a rewrite of the graph.

>>> import onnx
>>> from onnx_clip_pass import GradientClipByNorm, clip_gradients
>>> model = onnx.load("models/seed/train_step.onnx")
>>> clipped = clip_gradients(model, GradientClipByNorm(clip_norm=1.0))
"""

from typing import TYPE_CHECKING, Any

from onnx_clip_pass._version import __version__
from onnx_clip_pass.artifacts import clip_artifacts
from onnx_clip_pass.clips import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
)
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.extract import extract_clip, extract_clip_file
from onnx_clip_pass.files import clip_gradients_file
from onnx_clip_pass.gradients import Gradient, Parameter, find_gradients
from onnx_clip_pass.record import strip
from onnx_clip_pass.rewrite import Clipped, Emitted, Report, clip_gradients
from onnx_clip_pass.rules import Rule, load_rules

if TYPE_CHECKING:
    from onnx_clip_pass.probe import probe_gradients

__all__ = [
    "AdaptiveGradientClip",
    "Chain",
    "Clipped",
    "Emitted",
    "Gradient",
    "GradientClipByGlobalNorm",
    "GradientClipByNorm",
    "GradientClipByRMS",
    "GradientClipByValue",
    "OnnxClipError",
    "Parameter",
    "Report",
    "Rule",
    "__version__",
    "clip_artifacts",
    "clip_gradients",
    "clip_gradients_file",
    "extract_clip",
    "extract_clip_file",
    "find_gradients",
    "load_rules",
    "probe_gradients",
    "strip",
]


def __getattr__(name: str) -> Any:
    """Import what runs models only when it is asked for: every command waits for the rest."""
    if name == "probe_gradients":
        from onnx_clip_pass.probe import probe_gradients

        return probe_gradients
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
