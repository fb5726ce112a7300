"""The clips by name, and a clip in the types of JSON, as a record holds it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from onnx_clip_pass.clips.adaptive import AdaptiveGradientClip
from onnx_clip_pass.clips.base import Clip
from onnx_clip_pass.clips.by_global_norm import GradientClipByGlobalNorm
from onnx_clip_pass.clips.by_norm import GradientClipByNorm
from onnx_clip_pass.clips.by_rms import GradientClipByRMS
from onnx_clip_pass.clips.by_value import GradientClipByValue
from onnx_clip_pass.clips.chain import Chain
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["KINDS", "Kind", "clip_of", "facts_of"]


class Kind(NamedTuple):
    """A clip as users name it: its class, the setting that it needs, and all its settings."""

    made: type[Clip]
    needed: str
    settings: tuple[str, ...]


KINDS = {
    "norm": Kind(GradientClipByNorm, "clip_norm", ("clip_norm", "ord", "axes", "per_sample")),
    "value": Kind(GradientClipByValue, "max", ("max", "min")),
    "global-norm": Kind(
        GradientClipByGlobalNorm, "clip_norm", ("clip_norm", "ord", "group_name", "per_sample")
    ),
    "rms": Kind(GradientClipByRMS, "threshold", ("threshold",)),
    "adaptive": Kind(AdaptiveGradientClip, "clipping", ("clipping", "eps", "axes")),
}
"""What rules and the command line call the clips."""

_CLASSES: dict[str, type[Clip]] = {kind.made.__name__: kind.made for kind in KINDS.values()}
_CLASSES["Chain"] = Chain
_SETTINGS = {"clips"}.union(*(kind.settings for kind in KINDS.values()))


def facts_of(clip: Clip) -> dict[str, Any]:
    """The name of its class, and its settings."""
    return {"clip": type(clip).__name__, **clip.settings()}


def clip_of(facts: Mapping[str, Any]) -> Clip:
    """The clip of which these are the facts; what else stands there is passed over.

    Raises:
        OnnxClipError: there is no such clip, or these are not its settings.
    """
    made = _CLASSES.get(str(facts.get("clip")))
    settings: dict[str, Any] = {
        name: float(value) if name != "group_name" and value in ("inf", "-inf") else value
        for name, value in facts.items()
        if name in _SETTINGS
    }
    try:
        if made is None:
            raise TypeError(f"there is no clip {facts.get('clip')!r}")
        if made is Chain:
            return Chain(*(clip_of(each) for each in settings["clips"]))
        return made(**settings)
    except (TypeError, KeyError, AttributeError) as error:
        raise OnnxClipError(
            f"the record holds a clip that this version does not know: {error}; use the version "
            f"that wrote it"
        ) from error
