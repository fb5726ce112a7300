"""Norms of data made to be worst, by each way that norms are formed, and how long that takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import numpy as np
import onnx
from numpy.typing import NDArray

from cuda_checks.outcome import Row, TimeLimit
from cuda_checks.sessions import Provider, device_value, open_inner
from onnx_clip_pass import GradientClipByNorm, clip_gradients
from onnx_clip_pass.clips import Numerics

__all__ = ["check_precision"]

_BOUND = 1e-5
_BLOCK = 65536
_TURNS = 20


@dataclass(frozen=True)
class Way:
    """A way to a norm; of one that is not claimed to be exact the error is only told.

    `options` are the provider's: on CUDA a MatMul is rounded to TensorFloat-32 unless told not to.
    """

    name: str
    model: onnx.ModelProto
    bound: float | None
    options: tuple[tuple[str, str], ...] = ()


def check_precision(provider: Provider, limit: TimeLimit, *, side: int = 4096) -> Iterator[Row]:
    """A row for each way to the norm of a float32 matrix of so many rows and columns."""
    kinds = {name: _data(name, side) for name in _DATA}
    exact = {name: _norm(array) for name, array in kinds.items()}
    for way in _ways(provider, side):
        limit.check()
        try:
            errors, milliseconds = _measured(way, provider, kinds, exact)
        except Exception as error:  # ONNX Runtime raises a dozen kinds
            if way.bound is not None:
                raise
            yield Row("norms", way.name, "note", f"does not run: {str(error).splitlines()[0]}")
            continue
        worst = max(errors, key=lambda name: errors[name])
        said = f"off by {errors[worst]:.1e} ({worst}), normal data {errors['normal']:.1e}; "
        said += f"{milliseconds:.3g} ms with the product"
        if way.bound is None:
            yield Row("norms", way.name, "note", said)
        else:
            is_within = errors[worst] <= way.bound
            said = said if is_within else f"{said}; expected {way.bound:.1e} at most"
            yield Row("norms", way.name, "ok" if is_within else "fault", said)


def _measured(
    way: Way, provider: Provider, kinds: dict[str, NDArray[np.float32]], exact: dict[str, float]
) -> tuple[dict[str, float], float]:
    """The relative errors of a norm by the kind of data, and milliseconds of a run."""
    inner = open_inner(way.model, provider, **dict(way.options))
    output = next(o.name for o in inner.get_outputs() if o.name.endswith("norm"))
    errors = {}
    for name, array in kinds.items():
        (norm,) = inner.run([output], {"x": array})
        errors[name] = abs(float(norm) - exact[name]) / exact[name]
    return errors, _milliseconds(inner, provider, kinds["normal"])


def _ways(provider: Provider, side: int) -> Iterator[Way]:
    is_cuda = provider.device == "cuda"
    in_trees = _BOUND if is_cuda else Numerics(layout="cuda").bound("float32", side * side, 2.0)
    yield Way("layout cpu", _clip(side, layout="cpu"), _BOUND)
    yield Way("layout cuda: ReduceL2", _clip(side, layout="cuda"), in_trees)
    by_products = _clip(side, layout="x86-64")
    if is_cuda:
        exactly, rounded = (("use_tf32", "0"),), (("use_tf32", "1"),)
        yield Way("layout x86-64: MatMul, use_tf32=0", by_products, _BOUND, exactly)
        yield Way("layout x86-64: MatMul, use_tf32=1", by_products, None, rounded)
    else:
        yield Way("layout x86-64: MatMul", by_products, _BOUND)
    yield Way("wide", _clip(side, norm_precision="wide"), 1e-7)  # the output is float32
    yield Way(f"Scan over blocks of {_BLOCK:,}", _scan(side), None)


def _clip(side: int, **options: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> s (float[{side}, {side}] x) => '
        f"(float[{side}, {side}] g) {{ g = Identity(x) }}"
    )
    return clip_gradients(model, GradientClipByNorm(1.0), gradients=["g"], emit="norm", **options)


def _scan(side: int) -> onnx.ModelProto:
    """A clip whose norm is formed by a Scan, which nothing here emits: what would it give?"""
    block = min(_BLOCK, side * side)
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        s (float[{side}, {side}] x) => (float[{side}, {side}] g, float norm)
        <int64[2] shape = {{-1, {block}}}, float one = {{1}}> {{
          blocks = Reshape(x, shape)
          sums = Scan <num_scan_inputs = 1, body = b (float[{block}] row) => (float sum) {{
            sum = ReduceSumSquare <keepdims = 0> (row) }}> (blocks)
          total = ReduceSum <keepdims = 0> (sums)
          norm = Sqrt(total) ratio = Div(one, norm) scale = Min(ratio, one) g = Mul(x, scale)
        }}"""
    )


def _normal(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(size, np.float32)


def _constant(size: int) -> NDArray[np.float32]:
    return np.full(size, 0.1, np.float32)


def _one_large(size: int) -> NDArray[np.float32]:
    """Ones beside which the squares of all others vanish, at first and then again."""
    array = np.full(size, 2.0**-12.001, np.float32)
    array[::_BLOCK] = 1
    return array


_DATA = {"normal": _normal, "constant": _constant, "large ones first": _one_large}


def _data(name: str, side: int) -> NDArray[np.float32]:
    return _DATA[name](side * side).reshape(side, side)


def _norm(array: NDArray[np.float32]) -> float:
    return math.sqrt(sum(float(np.sum(row.astype(np.float64) ** 2)) for row in array))


def _milliseconds(inner: object, provider: Provider, array: NDArray[np.float32]) -> float:
    """The median time of one run on arrays that are on the device."""
    binding = inner.io_binding()  # type: ignore[attr-defined]
    binding.bind_ortvalue_input("x", device_value(array, provider))
    for output in inner.get_outputs():  # type: ignore[attr-defined]
        binding.bind_output(output.name, provider.device)
    times = []
    for turn in range(_TURNS + 1):
        began = perf_counter()
        inner.run_with_iobinding(binding)  # type: ignore[attr-defined]
        if turn:  # the first warms up
            times.append(perf_counter() - began)
    return 1e3 * median(times)
