"""The clips by name, and a clip read back from its form in a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx_clip_pass.clips.adaptive import AdaptiveGradientClip
from onnx_clip_pass.clips.base import Clip, Formula
from onnx_clip_pass.clips.by_global_norm import GradientClipByGlobalNorm
from onnx_clip_pass.clips.by_norm import GradientClipByNorm
from onnx_clip_pass.clips.by_percentile import GradientClipByPercentile
from onnx_clip_pass.clips.by_rms import GradientClipByRMS
from onnx_clip_pass.clips.by_value import GradientClipByValue
from onnx_clip_pass.clips.chain import Chain
from onnx_clip_pass.errors import OnnxClipError

__all__ = ["CLIPS", "clip_from_dict", "setting_names"]

CLIPS: dict[str, type[Formula]] = {
    "norm": GradientClipByNorm,
    "value": GradientClipByValue,
    "global-norm": GradientClipByGlobalNorm,
    "rms": GradientClipByRMS,
    "adaptive": AdaptiveGradientClip,
    "autoclip": GradientClipByPercentile,
}
"""The clips by their names in rules and options; records know them by their classes' names."""


def setting_names() -> list[str]:
    """The names of all settings of all clips, each once."""
    return list(dict.fromkeys(name for clip in CLIPS.values() for name in clip.described()))


def clip_from_dict(entry: Mapping[str, Any]) -> Clip:
    """The clip of which `to_dict` gives this; other keys are ignored.

    Raises:
        OnnxClipError: there is no such clip, or these are not its settings.
    """
    try:
        if entry.get("clip") == Chain.__name__:
            return Chain(*map(clip_from_dict, entry["clips"]))
        made: Any = {clip.__name__: clip for clip in CLIPS.values()}.get(str(entry.get("clip")))
        if made is None:
            raise TypeError(f"there is no clip {entry.get('clip')!r}")
        types = {name: each.type for name, each in made.described().items()}
        given = {name: entry[name] for name in setting_names() if name in entry}
        return made(  # type: ignore[no-any-return]
            **{n: types[n].from_json(value) if n in types else value for n, value in given.items()}
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise OnnxClipError(
            f"the record holds a clip that this version does not know: {error}; use the version "
            f"that wrote it"
        ) from error
