"""What clipping means: one module for each formula."""

from onnx_clip_pass.clips.base import Clip, Emitter
from onnx_clip_pass.clips.by_norm import GradientClipByNorm

__all__ = ["Clip", "Emitter", "GradientClipByNorm"]
