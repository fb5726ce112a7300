"""A clip in the types of JSON, as the record of a rewrite holds it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_clip_pass.clips.adaptive import AdaptiveGradientClip
from onnx_clip_pass.clips.base import Clip
from onnx_clip_pass.clips.by_global_norm import GradientClipByGlobalNorm
from onnx_clip_pass.clips.by_norm import GradientClipByNorm
from onnx_clip_pass.clips.by_rms import GradientClipByRMS
from onnx_clip_pass.clips.by_value import GradientClipByValue
from onnx_clip_pass.clips.chain import Chain
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["clip_of", "facts_of"]

_KINDS: dict[str, type[Clip]] = {
    kind.__name__: kind
    for kind in (
        AdaptiveGradientClip,
        Chain,
        GradientClipByGlobalNorm,
        GradientClipByNorm,
        GradientClipByRMS,
        GradientClipByValue,
    )
}


def facts_of(clip: Clip) -> dict[str, Any]:
    """The name of its class, and its settings."""
    return {"clip": type(clip).__name__, **clip.settings()}


def clip_of(facts: Mapping[str, Any]) -> Clip:
    """The clip of which these are the facts; what else stands there is passed over.

    Raises:
        OnnxClipError: there is no such clip, or these are not its settings.
    """
    kind = _KINDS.get(str(facts.get("clip")))
    settings: dict[str, Any] = {
        name: float(value) if name != "group_name" and value in ("inf", "-inf") else value
        for name, value in facts.items()
        if name in _SETTINGS
    }
    try:
        if kind is None:
            raise TypeError(f"there is no clip {facts.get('clip')!r}")
        if kind is Chain:
            return Chain(*(clip_of(each) for each in settings["clips"]))
        return kind(**settings)
    except (TypeError, KeyError, AttributeError) as error:
        raise OnnxClipError(
            f"the record holds a clip that this version does not know: {error}; use the version "
            f"that wrote it"
        ) from error


_SETTINGS = {
    "axes",
    "clip_norm",
    "clipping",
    "clips",
    "eps",
    "group_name",
    "max",
    "min",
    "ord",
    "per_sample",
    "threshold",
}
