"""What clipping means: one module for each formula, `numerics` for how exactly it is computed."""

from onnx_clip_pass.clips.base import Clip, Emitter
from onnx_clip_pass.clips.by_norm import GradientClipByNorm
from onnx_clip_pass.clips.numerics import NonFinite, NormPrecision, Numerics

__all__ = ["Clip", "Emitter", "GradientClipByNorm", "NonFinite", "NormPrecision", "Numerics"]
