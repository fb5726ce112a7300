"""The meaning of clipping: a module for each formula, `numerics` for how exactly it is computed."""

from onnx_clip_pass.clips.adaptive import AdaptiveGradientClip
from onnx_clip_pass.clips.base import Case, Clip, Formula
from onnx_clip_pass.clips.by_global_norm import GradientClipByGlobalNorm
from onnx_clip_pass.clips.by_norm import GradientClipByNorm
from onnx_clip_pass.clips.by_percentile import GradientClipByPercentile
from onnx_clip_pass.clips.by_rms import GradientClipByRMS
from onnx_clip_pass.clips.by_value import GradientClipByValue
from onnx_clip_pass.clips.chain import Chain
from onnx_clip_pass.clips.emitter import Emitter, Limits, Measured, ParameterSite
from onnx_clip_pass.clips.numerics import ClipLayout, NonFinite, NormPrecision, Numerics
from onnx_clip_pass.clips.registry import CLIPS, clip_from_dict, setting_names
from onnx_clip_pass.clips.schedule import scheduled, shared_norms
from onnx_clip_pass.clips.tape import Tape, Tensor

__all__ = [
    "CLIPS",
    "AdaptiveGradientClip",
    "Case",
    "Chain",
    "Clip",
    "ClipLayout",
    "Emitter",
    "Formula",
    "GradientClipByGlobalNorm",
    "GradientClipByNorm",
    "GradientClipByPercentile",
    "GradientClipByRMS",
    "GradientClipByValue",
    "Limits",
    "Measured",
    "NonFinite",
    "NormPrecision",
    "Numerics",
    "ParameterSite",
    "Tape",
    "Tensor",
    "clip_from_dict",
    "scheduled",
    "setting_names",
    "shared_norms",
]
