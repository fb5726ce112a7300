"""What becomes of one backend case when its float outputs are clipped as gradients.

Every promise that a rewrite makes is an assertion here; what is left to tell is the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from backend_cases import Case, float_outputs
from backend_runs import Outputs, Runner, in_runtime, in_runtime_optimized, with_reference
from graphs import clip_exactly
from onnx import ModelProto, TensorProto, version_converter
from single import norm_of

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, strip

__all__ = ["judge"]

TOO_OLD = "refused: opset below 7"

# Without a seed every run of these draws other numbers, so that their outputs have no formula:
# they are only checked not to be too long.
DRAWS = ("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform")

# By how much an element may differ from the formula in float64, rounded once: rtol and atol.
# float64 and float32: the error that docs/numerics.md states for the norm, of which the outputs of
# the cases are well within the sizes. Half precision is computed in float32 and rounded once, so
# that it is at most one off in the last place (2**-10, 2**-7), or by the smallest number there is.
TOLERANCE = {
    TensorProto.DOUBLE: (1e-10, 0.0),
    TensorProto.FLOAT: (1e-5, 0.0),
    TensorProto.FLOAT16: (2.0**-10, 2.0**-24),
    TensorProto.BFLOAT16: (2.0**-7, 2.0**-133),
}
# docs/numerics.md, "Error and cost": beyond these the squares overflow. Above the first the cases
# are clipped in wide precision; above the second nothing serves, and zeros come out. Below the
# third the squares vanish and so does the norm. Some stored inputs are uninitialized memory.
FLOAT32_NORM, LARGEST, SMALLEST = 1e19, 1e154, 1e-154


def judge(case: Case) -> str:
    """The outcome of a case.

    Raises:
        AssertionError: a promise is broken.
    """
    gradients = float_outputs(case.model)
    if not gradients:
        return "no float output"
    before = case.model.SerializeToString(deterministic=True)
    try:
        outcome = _judge_rewritten(case)
    except OnnxClipError as error:
        outcome = _judge_refused(case, error)
    assert case.model.SerializeToString(deterministic=True) == before, "the input was changed"
    return outcome


def _judge_refused(case: Case, error: OnnxClipError) -> str:
    """A refusal names every gradient; the one for an old opset is mended as its message says."""
    assert len(error.faults) == len(float_outputs(case.model)), error
    opset = next((entry.version for entry in case.model.opset_import if not entry.domain), None)
    assert opset is not None, error
    assert opset < 7, error
    advice = "convert the model with onnx.version_converter first"
    assert all(advice in fault for fault in error.faults), error
    converted = version_converter.convert_version(case.model, 13)
    outcome = _judge_rewritten(Case(case.name, converted, case.feeds))
    return f"{TOO_OLD}; converted: {outcome}"


def _judge_rewritten(case: Case) -> str:
    rewritten = _clip(case.model, 1.0, "auto")
    assert strip(rewritten) == case.model, "strip does not give back the original"
    for runner, name in ((in_runtime, ""), (with_reference, ", by onnx's ReferenceEvaluator")):
        try:
            originals = [runner(case.model, feeds) for feeds in case.feeds]
        except Exception:  # whatever keeps an original from running has nothing to do with us
            continue
        outcomes = {
            _judge_run(case.model, runner, feeds, original)
            for feeds, original in zip(case.feeds, originals, strict=True)
        }
        assert len(outcomes) == 1, outcomes
        return outcomes.pop() + name
    return "nobody runs the original"


def _judge_run(
    model: ModelProto, runner: Runner, feeds: Mapping[str, Any], original: Outputs
) -> str:
    """Clip so that it acts on every gradient, then so that it acts on none, and compare."""
    kinds = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    wide = {name: np.asarray(original[name]).astype(np.float64) for name in float_outputs(model)}
    is_finite = {name: bool(np.isfinite(array).all()) for name, array in wide.items()}
    norms = [norm_of(array) for name, array in wide.items() if is_finite[name]]
    longest = max(norms, default=0.0)
    precision = "auto" if longest < FLOAT32_NORM or _is_all_double(model) else "wide"
    acting = 0.5 * min(filter(None, norms), default=1.0)
    clipped = _clip(model, acting, precision)
    outputs = runner(clipped, feeds)
    if 0.0 < longest < SMALLEST:
        _assert_same(list(outputs.values()), list(original.values()))
        return "norm below float64's range: unchanged"
    if runner is in_runtime:  # and as it is by default, where fusing rounds differently
        _assert_short(in_runtime_optimized(clipped, feeds), acting, kinds, wide)
    if _draws_numbers(model):
        _assert_short(outputs, acting, kinds, wide)
        return "random"
    if longest > LARGEST:
        assert not any(np.any(outputs[name]) for name in wide)
        return "norm beyond float64's range: zeros"
    for name, value in original.items():
        if name in wide:
            _assert_formula(outputs[name], value, acting, kinds[name])
        else:
            _assert_same(outputs[name], value)
    idle = runner(_clip(model, 2.0 * longest or 1.0, precision), feeds)
    for name, value in original.items():
        if is_finite.get(name, True):
            _assert_same(idle[name], value)
    if longest > 0.0:
        return "clipped" if precision == "auto" else "clipped in wide precision"
    return "zero or empty" if all(is_finite.values()) else "not finite"


def _clip(model: ModelProto, clip_norm: float, precision: Any) -> ModelProto:
    clip = GradientClipByNorm(clip_norm)
    return clip_gradients(model, clip, gradients=float_outputs(model), norm_precision=precision)


def _is_all_double(model: ModelProto) -> bool:
    """Whether every gradient is float64, whose range wide precision does not extend."""
    kinds = {o.name: o.type.tensor_type.elem_type for o in model.graph.output}
    return all(kinds[name] == TensorProto.DOUBLE for name in float_outputs(model))


def _draws_numbers(model: ModelProto) -> bool:
    return any(
        node.op_type.startswith(DRAWS) and all(attr.name != "seed" for attr in node.attribute)
        for node in model.graph.node
    )


def _assert_formula(actual: Any, original: Any, clip_norm: float, kind: int) -> None:
    actual, original = np.asarray(actual), np.asarray(original)
    assert (actual.dtype, actual.shape) == (original.dtype, original.shape)
    rtol, atol = TOLERANCE[kind]
    with np.errstate(invalid="ignore"):  # inf / inf is nan, as in the formula
        exact = clip_exactly(original, clip_norm)
    wide = (array.astype(np.float64) for array in (actual, exact))
    np.testing.assert_allclose(*wide, rtol=rtol, atol=atol)


def _assert_short(
    outputs: Outputs, clip_norm: float, kinds: Mapping[str, int], names: Iterable[str]
) -> None:
    """No gradient is longer than `clip_norm`; nan, which has no length, passes."""
    for name in names:
        rtol, atol = TOLERANCE[kinds[name]]
        array = np.asarray(outputs[name]).astype(np.float64)
        assert not norm_of(array) > clip_norm * (1 + rtol) + atol * array.size, name


def _assert_same(actual: Any, original: Any) -> None:
    """Equal to the bit; sequences element by element."""
    if original is None or isinstance(original, list):
        assert type(actual) is type(original)
        for one, other in zip(actual or [], original or [], strict=True):
            _assert_same(one, other)
        return
    actual, original = np.asarray(actual), np.asarray(original)
    assert (actual.dtype, actual.shape) == (original.dtype, original.shape)
    if actual.dtype == object:
        assert actual.tolist() == original.tolist()
    else:
        assert actual.tobytes() == original.tobytes()
