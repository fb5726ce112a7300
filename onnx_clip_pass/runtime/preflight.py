"""Checks whether a model can be run, without running it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnx_clip_pass.runtime.feeds import make_feeds
from onnx_clip_pass.runtime.session import Provider, open_session
from onnx_clip_pass.storage import open_model

__all__ = ["preflight"]


def preflight(
    model: str | os.PathLike[str],
    *,
    feeds: Mapping[str, NDArray[Any]] | None = None,
    dims: Mapping[str, int] | None = None,
    provider: Provider = "cpu",
    seed: int = 0,
) -> None:
    """Refuse a model file that cannot be run here with these feeds.

    Raises:
        OnnxClipError: what `make_feeds` and `open_session` refuse.
    """
    with open_model(Path(model)) as structure:
        make_feeds(structure.model, given=feeds, dims=dims, seed=seed)
    open_session(model, provider=provider, optimize=False)
