"""Gradient clipping for ONNX training graphs, as a rewrite of the graph.

>>> import onnx
>>> from onnx_clip_pass import GradientClipByNorm, clip_gradients
>>> model = onnx.load("models/seed/train_step.onnx")
>>> clipped = clip_gradients(model, GradientClipByNorm(clip_norm=1.0))

What is named here is imported when it is asked for. Until then nothing is, so that the command line
can catch an interrupt from the first moment on.
"""

from __future__ import annotations

from onnx_clip_pass._version import __version__

TYPE_CHECKING = False  # as typing has it, which takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from onnx_clip_pass.artifacts import (
        ArtifactsInspection,
        clip_artifacts,
        inspect_artifacts,
        strip_artifacts,
    )
    from onnx_clip_pass.clipping import clip_gradients
    from onnx_clip_pass.clips import (
        AdaptiveGradientClip,
        Chain,
        GradientClipByGlobalNorm,
        GradientClipByNorm,
        GradientClipByPercentile,
        GradientClipByRMS,
        GradientClipByValue,
    )
    from onnx_clip_pass.errors import OnnxClipError, OnnxClipWarning
    from onnx_clip_pass.extract import extract_clip, extract_clip_file
    from onnx_clip_pass.files import clip_gradients_file, strip_file
    from onnx_clip_pass.gradients import Gradient, Parameter, find_gradients
    from onnx_clip_pass.gradients.explaining import Explanation, explain_gradient
    from onnx_clip_pass.inspection import Inspection, inspect_model
    from onnx_clip_pass.monitoring import AutoClip, Norms, ZClip, read_norms, watch
    from onnx_clip_pass.plans import Plan, plan_clips
    from onnx_clip_pass.probe import probe_gradients
    from onnx_clip_pass.progress import Progress, ProgressBar
    from onnx_clip_pass.record import strip
    from onnx_clip_pass.reports import write_html
    from onnx_clip_pass.rewrite import Clipped, Emitted, Report, Uncovered
    from onnx_clip_pass.rules import Bounds, Rule, load_rules
    from onnx_clip_pass.saving import initial_states
    from onnx_clip_pass.verification import Verification, verify

__all__ = [
    "AdaptiveGradientClip",
    "ArtifactsInspection",
    "AutoClip",
    "Bounds",
    "Chain",
    "Clipped",
    "Emitted",
    "Explanation",
    "Gradient",
    "GradientClipByGlobalNorm",
    "GradientClipByNorm",
    "GradientClipByPercentile",
    "GradientClipByRMS",
    "GradientClipByValue",
    "Inspection",
    "Norms",
    "OnnxClipError",
    "OnnxClipWarning",
    "Parameter",
    "Plan",
    "Progress",
    "ProgressBar",
    "Report",
    "Rule",
    "Uncovered",
    "Verification",
    "ZClip",
    "__version__",
    "clip_artifacts",
    "clip_gradients",
    "clip_gradients_file",
    "explain_gradient",
    "extract_clip",
    "extract_clip_file",
    "find_gradients",
    "initial_states",
    "inspect_artifacts",
    "inspect_model",
    "load_rules",
    "plan_clips",
    "probe_gradients",
    "read_norms",
    "strip",
    "strip_artifacts",
    "strip_file",
    "verify",
    "watch",
    "write_html",
]

_MODULES = {
    "clip_gradients": "clipping",
    "probe_gradients": "probe",
    "initial_states": "saving",
    "strip": "record",
    "write_html": "reports",
    **dict.fromkeys(("OnnxClipError", "OnnxClipWarning"), "errors"),
    **dict.fromkeys(("Progress", "ProgressBar"), "progress"),
    **dict.fromkeys(("AutoClip", "Norms", "ZClip", "read_norms", "watch"), "monitoring"),
    **dict.fromkeys(("Plan", "plan_clips"), "plans"),
    **dict.fromkeys(("Verification", "verify"), "verification"),
    **dict.fromkeys(("Clipped", "Emitted", "Report", "Uncovered"), "rewrite"),
    **dict.fromkeys(("Gradient", "Parameter", "find_gradients"), "gradients"),
    **dict.fromkeys(("Explanation", "explain_gradient"), "gradients.explaining"),
    **dict.fromkeys(("Inspection", "inspect_model"), "inspection"),
    **dict.fromkeys(("clip_gradients_file", "strip_file"), "files"),
    **dict.fromkeys(
        ("ArtifactsInspection", "clip_artifacts", "inspect_artifacts", "strip_artifacts"),
        "artifacts",
    ),
    **dict.fromkeys(("Bounds", "Rule", "load_rules"), "rules"),
    **dict.fromkeys(("extract_clip", "extract_clip_file"), "extract"),
}
"""The module that a name comes from; the others are clips."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'clips')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
