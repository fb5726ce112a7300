"""Norms over many steps of a training graph, and the thresholds that follow from them."""

from onnx_clip_pass.monitoring.adapting import AutoClip, ZClip
from onnx_clip_pass.monitoring.norms import Norms, read_norms
from onnx_clip_pass.monitoring.planning import WatchPlan
from onnx_clip_pass.monitoring.suggesting import Suggestion
from onnx_clip_pass.monitoring.watching import plan_watch, watch

__all__ = [
    "AutoClip",
    "Norms",
    "Suggestion",
    "WatchPlan",
    "ZClip",
    "plan_watch",
    "read_norms",
    "watch",
]
