"""Rules: which gradients get which clip, the first that matches; in Python or in a `clip.toml`."""

from onnx_clip_pass.rules.assigning import assign
from onnx_clip_pass.rules.loading import load_rules
from onnx_clip_pass.rules.rule import Bounds, ClipChoice, Rule, Rules

__all__ = ["Bounds", "ClipChoice", "Rule", "Rules", "assign", "load_rules"]
