"""Options of whatever runs a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from numpy.typing import NDArray

from onnx_clip_pass.options import Option, ProgressOption
from onnx_clip_pass.runtime.session import Provider

__all__ = ["RunOptions"]


class RunOptions(TypedDict, total=False):
    """Options of a run."""

    feeds: Annotated[
        Mapping[str, NDArray[Any]] | None,
        Option(None, "arrays by input name; the others are made up."),
    ]
    dims: Annotated[
        Mapping[str, int] | None,
        Option(None, "sizes of symbolic dimensions, by their names; those not told are 2."),
    ]
    seed: Annotated[int, Option(0, "of what is made up.")]
    provider: Annotated[
        Provider,
        Option("cpu", 'where to run: "cpu" or "cuda", never the CPU in place of CUDA.'),
    ]
    progress: ProgressOption
