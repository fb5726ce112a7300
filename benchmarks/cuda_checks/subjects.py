"""Gradients of every kind in one graph, each clipped in a way of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    Report,
    Rule,
)
from onnx_clip_pass.clips import Clip
from onnx_clip_pass.rewrite import clip_in_place

__all__ = ["DTYPES", "Subject", "Subjects", "all_subjects", "clipped_model", "counting_subjects"]

DTYPES: dict[str, tuple[int, Any]] = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
    "float32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "float64": (TensorProto.DOUBLE, np.dtype(np.float64)),
}
_TOO_OLD = re.compile(r"\bneeds? opset \d")
SHAPES: dict[str, tuple[tuple[int, ...], Sequence[Any] | None]] = {
    "rank 0": ((), ()),
    "one": ((1,), (1,)),
    "one of rank 3": ((1, 1, 1), (1, 1, 1)),
    "short": ((3, 5), (3, 5)),
    "rows that are axes": ((64, 512), (64, 512)),
    "rows that are cut": ((96, 64, 3, 3), (96, 64, 3, 3)),
    "no rows": ((8209,), (8209,)),
    "axes of size 1": ((64, 512, 1), (64, 512, 1)),
    "a dimension unknown": ((5, 768), ("N", 768)),
    "one, which nobody knows": ((1,), ("N",)),
    "rank unknown": ((40, 70), None),
}


def other_clips(dtype: str) -> dict[str, Clip]:
    """Clips of other kinds; groups are of one dtype, and one of all that are float32 within."""
    return {
        "L1": GradientClipByNorm(1.0, ord=1),
        "L-infinity": GradientClipByNorm(1.0, ord=math.inf),
        "L3": GradientClipByNorm(1.0, ord=3),
        "over columns": GradientClipByNorm(0.1, axes=0),
        "per sample": GradientClipByNorm(0.1, per_sample=True),
        "global": GradientClipByGlobalNorm(1.0, group_name=f"{dtype}, global"),
        "global per sample": GradientClipByGlobalNorm(
            1.0, group_name=f"{dtype}, global, samples", per_sample=True
        ),
        "global L1": GradientClipByGlobalNorm(1.0, group_name=f"{dtype}, global, sizes", ord=1),
        "value": GradientClipByValue(1.0),
        "value, two bounds": GradientClipByValue(1.0, -0.5),
        "rms": GradientClipByRMS(0.5),
        "adaptive": AdaptiveGradientClip(0.1, axes=1),
        "chain": Chain(GradientClipByValue(2.0), GradientClipByNorm(1.0)),
    }


@dataclass(frozen=True)
class Subject:
    """A gradient, named after what it is, with the clip that it gets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    declared: Sequence[Any] | None
    clip: Clip

    @property
    def parameter(self) -> str:
        """The name of its parameter, which is an input."""
        return f"{self.name} parameter"

    def acting(self) -> NDArray[Any]:
        """Elements of which every clip has to make less."""
        return self._cast(3 * self._normal())

    def passing(self) -> NDArray[Any]:
        """Elements that every clip lets pass, a zero with a sign among them."""
        small = 1e-3 / max(1, math.prod(self.shape)) * self._normal()
        if small.size > 1:
            small.reshape(-1)[-1] = -0.0
        return self._cast(small)

    def broken(self) -> NDArray[Any]:
        """Those of which the first is nan."""
        array = 3 * self._normal()
        array.reshape(-1)[0] = math.nan
        return self._cast(array)

    def weights(self) -> NDArray[Any]:
        """Its parameter, no element of which is near 0."""
        return self._cast(np.full(self.shape, 2.0))

    def _normal(self) -> NDArray[np.float64]:
        seed = sum(map(ord, self.name))
        normal = np.random.default_rng(seed).standard_normal(self.shape)
        return np.asarray(normal + np.copysign(0.5, normal))  # one element must act, too

    def _cast(self, array: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(array).astype(DTYPES[self.dtype][1])


Subjects = tuple[Subject, ...]


def all_subjects() -> Subjects:
    """Every dtype in every kind of shape by its L2 norm, and in one of two by every other clip."""
    by_norm = [
        Subject(f"{dtype} {kind}", dtype, shape, declared, GradientClipByNorm(1.0))
        for dtype in DTYPES
        for kind, (shape, declared) in SHAPES.items()
    ]
    others = [
        Subject(f"{dtype} {kind} {number}", dtype, (24, 40), (24, 40), clip)
        for dtype in DTYPES
        for kind, clip in other_clips(dtype).items()
        for number in range(2 if "global" in kind else 1)
    ]
    mixed = GradientClipByGlobalNorm(1.0, group_name="global")
    others += [
        Subject(f"{dtype} global of several dtypes", dtype, (24, 40), (24, 40), mixed)
        for dtype in DTYPES
        if dtype != "float64"  # which that norm, in float32, does not serve
    ]
    return (*by_norm, *others)


def counting_subjects() -> Subjects:
    """Gradients whose elements the graph has to count."""
    clip = GradientClipByRMS(0.5)
    return tuple(Subject(f"{dtype} rms", dtype, (24, 40), None, clip) for dtype in DTYPES)


def clipped_model(
    subjects: Iterable[Subject], opset: int, **options: Any
) -> tuple[onnx.ModelProto, Report, Subjects]:
    """A graph of copies of its inputs, all clipped; those refused at this opset are left out."""
    kept = tuple(subjects)
    while kept:
        model = _copies(kept, opset)
        named = {subject.name: subject.parameter for subject in kept}
        rules = [Rule([subject.parameter], subject.clip) for subject in kept]
        try:
            report = clip_in_place(model, rules, gradients=named, **options)
        except OnnxClipError as error:
            too_old = "\n".join(fault for fault in error.faults if _TOO_OLD.search(fault))
            left = tuple(subject for subject in kept if repr(subject.name) not in too_old)
            if len(left) == len(kept):
                raise
            kept = left
        else:
            return model, report, kept
    return onnx.ModelProto(), Report(()), ()


def _copies(subjects: Subjects, opset: int) -> onnx.ModelProto:
    inputs, outputs, nodes = [], [], []
    for subject in subjects:
        kind = DTYPES[subject.dtype][0]
        source = f"{subject.name} in"
        inputs += [
            helper.make_tensor_value_info(source, kind, subject.declared),
            helper.make_tensor_value_info(subject.parameter, kind, subject.declared),
        ]
        outputs.append(helper.make_tensor_value_info(subject.name, kind, subject.declared))
        nodes.append(helper.make_node("Identity", [source], [subject.name]))
    graph = helper.make_graph(nodes, "subjects", inputs, outputs)
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8 if opset < 20 else 10)
