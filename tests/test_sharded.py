"""A clip in two phases, with parts of gradients on several workers, against the clip of the whole.

The workers are runs in this process; what torch.distributed reduces is added up by NumPy.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import MODELS, Entry, each
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.numpy_helper import from_array

from onnx_clip_pass import (
    AdaptiveGradientClip,
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    extract_clip,
    extract_clip_file,
    find_gradients,
)
from onnx_clip_pass.cli import main

Array = NDArray[Any]
SUMS, MAXIMA, REPLICAS = "clip/sums", "clip/maxima", "clip/replicas"
SHAPES: dict[str, tuple[int, ...]] = {"a": (6, 5), "b": (7,), "c": (4, 1, 3)}
ROUNDED = 2.0**-22
"""The factor, the product and the reference are rounded once each, by 2 ** -24 of their size."""


def step(
    shapes: Mapping[str, Sequence[int | str]] = SHAPES, dtype: str = "float", opset: int = 17
) -> onnx.ModelProto:
    """A graph that makes of each input `x_w` the gradient `w_grad` of the parameter w."""
    kinds = {name: f"{dtype}[{','.join(map(str, shape))}]" for name, shape in shapes.items()}
    read = ", ".join(f"{kind} x_{name}, {kind} {name}" for name, kind in kinds.items())
    made = ", ".join(f"{kind} {name}_grad" for name, kind in kinds.items())
    nodes = " ".join(f"{name}_grad = Identity(x_{name})" for name in kinds)
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{head} step ({read}, {dtype} S) => ({made}) {{ {nodes} }}")


def named(shapes: Mapping[str, Any] = SHAPES) -> dict[str, str]:
    return {f"{name}_grad": name for name in shapes}


@cache
def opened(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, fed: Mapping[str, Array]) -> dict[str, Array]:
    """Feed what the model takes; its outputs by name."""
    session = opened(model.SerializeToString(deterministic=True))
    ports = (*session.get_inputs(), *session.get_overridable_initializers())
    taken = {port.name for port in ports}
    names = [port.name for port in session.get_outputs()]
    half = {n: x for n, x in fed.items() if n in taken}
    return dict(zip(names, session.run(names, half), strict=True))


def note(model: onnx.ModelProto) -> Any:
    return json.loads({e.key: e.value for e in model.metadata_props}["onnx_clip_pass.sharded"])


@dataclass(frozen=True)
class Phases:
    """Both models of a clip."""

    norms: onnx.ModelProto
    scale: onnx.ModelProto

    @classmethod
    def of(cls, model: onnx.ModelProto, clip: Any, **options: Any) -> Phases:
        made = [extract_clip(model, clip, phase=phase, **options) for phase in ("norms", "scale")]
        for each_phase in made:
            onnx.checker.check_model(each_phase, full_check=True)
        assert note(made[0])["fingerprint"] == note(made[1])["fingerprint"]
        return cls(*made)

    def run(
        self, workers: Sequence[Mapping[str, Array]], **more: Array
    ) -> tuple[list[dict[str, Array]], dict[str, Array]]:
        """What each worker gets, and what was reduced.

        A maximum of numbers and nan is the number: so NCCL and gloo may have it, in any order.
        """
        found = [run(self.norms, {**fed, **more}) for fed in workers]
        assert set(found[0]) <= {SUMS, MAXIMA}
        ways = {SUMS: np.sum, MAXIMA: np.fmax.reduce}
        reduced = {name: ways[name]([own[name] for own in found], axis=0) for name in found[0]}
        return [run(self.scale, {**fed, **reduced, **more}) for fed in workers], reduced


def parts(array: Array, cuts: Sequence[int], axis: int = 0) -> list[Array]:
    """The array in parts along an axis, some of them perhaps empty."""
    size = array.shape[axis]
    return np.split(array, sorted(min(cut, size) for cut in cuts), axis=axis)


def shared_out(
    whole: Mapping[str, Array], cuts: Mapping[str, Sequence[int]] | Sequence[int], axis: int = 0
) -> list[dict[str, Array]]:
    """What each worker has; arrays are cut alike, or each at its own places."""
    each_one = cuts if isinstance(cuts, Mapping) else dict.fromkeys(whole, cuts)
    pieces = {name: parts(array, each_one[name], axis) for name, array in whole.items()}
    count = len(next(iter(pieces.values())))
    return [{name: piece[at] for name, piece in pieces.items()} for at in range(count)]


def assert_is_clipped(
    clip: Any,
    whole: Mapping[str, Array],
    got: Sequence[Mapping[str, Array]],
    axis: int = 0,
    rtol: float = ROUNDED,
    **options: Any,
) -> None:
    """What the workers got, put together, is what the formula makes of the whole gradients."""
    names = {name.removesuffix("_grad"): name for name in whole if name.endswith("_grad")}
    parameters = {name: whole[name] for name in names if name in whole}
    right = clip.apply(
        {name: whole[gradient] for name, gradient in names.items()},
        parameters=parameters or None,
        **options,
    )
    for name, gradient in names.items():
        joined = np.concatenate([own[f"{gradient}.clipped"] for own in got], axis=axis)
        assert joined.dtype == whole[gradient].dtype
        np.testing.assert_allclose(
            joined.astype(np.float64), right[name].astype(np.float64), rtol=rtol, atol=0
        )


def gradients(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {f"{n}_grad": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


ORDERS = [0.5, 1.0, 2.0, 3.0, 8.0, math.inf]
CLIPS = st.one_of(
    st.builds(GradientClipByNorm, st.sampled_from([0.3, 100.0, math.inf]),
              ord=st.sampled_from(ORDERS)),
    st.builds(GradientClipByGlobalNorm, st.sampled_from([0.3, 100.0]), ord=st.sampled_from(ORDERS)),
    st.builds(GradientClipByRMS, st.sampled_from([0.1, 10.0])),
    st.builds(GradientClipByValue, st.just(0.5), min=st.sampled_from([None, -0.1])),
    st.just(Chain(GradientClipByValue(1.0), GradientClipByGlobalNorm(0.5))),
)  # fmt: skip


@given(
    clip=CLIPS,
    policy=st.sampled_from(["propagate", "zero", "keep"]),
    precision=st.sampled_from(["auto", "wide"]),
    layout=st.sampled_from(["cpu", "x86-64", "cuda"]),
    odd=st.sampled_from([None, None, np.nan, np.inf, -np.inf]),
    cuts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    emits=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_the_parts_together_are_what_the_whole_would_be(
    clip: Any,
    policy: Any,
    precision: Any,
    layout: Any,
    odd: Any,
    cuts: list[int],
    emits: bool,
    seed: int,
):
    asks = emits or policy != "propagate"
    if isinstance(clip, GradientClipByValue) and not asks:
        return  # it asks for nothing of a whole gradient, and is refused
    if isinstance(clip, Chain) and policy != "propagate":
        return  # it would ask twice, and is refused
    if clip.is_identity and policy != "zero" and not emits:
        return  # it does nothing
    options: dict[str, Any] = {
        "nonfinite": policy, "norm_precision": precision, "layout": layout,
    }  # fmt: skip
    if emits:
        options["emit"] = ("norm", "scale")
    whole = gradients(seed)
    if odd is not None:
        whole["a_grad"][4, 1] = odd
    phases = Phases.of(step(), clip, gradients=named(), **options)
    spread = {name: [cut + at for cut in cuts] for at, name in enumerate(whole)}
    got, _ = phases.run(shared_out(whole, spread))
    assert_is_clipped(clip, whole, got, nonfinite=policy)
    if emits:
        right = run(extract_clip(step(), clip, gradients=named(), **options), whole)
        for name, value in right.items():
            if not name.endswith(".clipped"):
                for own in got:
                    np.testing.assert_allclose(own[name], value, rtol=1e-5)  # of a float32 norm


DTYPES = {
    "float16": (np.dtype(np.float16), 2.0**-10),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-7),
    "double": (np.dtype(np.float64), 1e-14),  # a chain of 30 additions of squares, and a root
    "float": (np.dtype(np.float32), ROUNDED),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("policy", ["propagate", "zero"])
@pytest.mark.parametrize("clip", [GradientClipByGlobalNorm(1.0), GradientClipByNorm(0.2, ord=1)])
def test_dtypes_are_added_up_in_float64(clip: Any, policy: Any, dtype: str):
    numpy_dtype, rtol = DTYPES[dtype]
    whole = {name: x.astype(numpy_dtype) for name, x in gradients(1).items()}
    phases = Phases.of(step(dtype=dtype), clip, gradients=named(), nonfinite=policy)
    cuts = [2, 3]
    fed = shared_out(whole, cuts)
    if dtype == "bfloat16":  # NumPy has no bfloat16, so ONNX Runtime takes none from it
        for model in (phases.norms, phases.scale):
            assert {p.type.tensor_type.elem_type for p in model.graph.input} <= {16, 11}
        return
    got, reduced = phases.run(fed)
    assert reduced[SUMS].dtype == np.float64
    assert_is_clipped(clip, whole, got, rtol=rtol, nonfinite=policy)


def test_squares_that_float32_does_not_hold_are_added_up():
    """A float32 square is inf from 1.8e19 on and 0 below 1e-23."""
    for size in (1e30, 1e-30):
        whole = {name: x * np.float32(size) for name, x in gradients(2).items()}
        clip = GradientClipByGlobalNorm(size)
        got, _ = Phases.of(step(), clip, gradients=named()).run(shared_out(whole, [1, 3]))
        assert_is_clipped(clip, whole, got)


def test_plain_norms_are_added_up_in_float32():
    clip = GradientClipByGlobalNorm(1.0)
    phases = Phases.of(step(), clip, gradients=named(), norm_precision="plain")
    assert not any(n.op_type == "Cast" for n in [*phases.norms.graph.node])
    whole = gradients(3)
    got, reduced = phases.run(shared_out(whole, [2]))
    assert reduced[SUMS].dtype == np.float32
    assert_is_clipped(clip, whole, got, rtol=1e-5)  # what is said of plain norms so short


@pytest.mark.parametrize("opset", [8, 9, 10, 12, 13, 17, 18, 21, 24], ids="opset_{}".format)
@pytest.mark.parametrize("ord", [2.0, math.inf])
def test_both_phases_run_at_each_form_of_their_operators(opset: int, ord: float):
    clip = GradientClipByGlobalNorm(1.0, ord=ord)
    whole = gradients(4)
    got, _ = Phases.of(step(opset=opset), clip, gradients=named()).run(shared_out(whole, [2, 2]))
    assert_is_clipped(clip, whole, got)


def test_an_elementwise_clip_with_a_policy_asks_all_workers_for_what_is_not_finite():
    whole = gradients(5)
    whole["a_grad"][5, 0] = np.nan  # on the last worker
    clip = GradientClipByValue(0.5)
    phases = Phases.of(step(), clip, gradients=named(), nonfinite="zero")
    got, _ = phases.run(shared_out(whole, [2, 4]))
    assert not got[0]["a_grad.clipped"].any()
    assert got[0]["b_grad.clipped"].any()


@pytest.mark.parametrize("policy", ["zero", "keep"])
@pytest.mark.parametrize(
    "clip",
    [GradientClipByNorm(0.1), GradientClipByGlobalNorm(0.1), GradientClipByValue(0.1),
     GradientClipByGlobalNorm(0.1, ord=3), GradientClipByRMS(0.1)],
    ids=repr,
)  # fmt: skip
def test_float64_parts_learn_of_nan_that_another_worker_has(clip: Any, policy: Any):
    """Their norm may be inf of finite elements, so that it does not tell."""
    whole = {name: x.astype(np.float64) for name, x in gradients(17).items()}
    whole["a_grad"][5, 4] = np.nan
    phases = Phases.of(step(dtype="double"), clip, gradients=named(), nonfinite=policy)
    got, _ = phases.run(shared_out(whole, [1, 3]))
    assert_is_clipped(clip, whole, got, rtol=1e-13, nonfinite=policy)
    first = got[0]["a_grad.clipped"]
    assert not first.any() if policy == "zero" else (first == whole["a_grad"][:1]).all()


def test_groups_have_a_norm_of_their_own_and_rules_leave_gradients_alone():
    rules = [
        Rule("a", GradientClipByGlobalNorm(0.5, group_name="g")),
        Rule("b", GradientClipByGlobalNorm(0.25, group_name="h")),
        Rule("c", None),
    ]
    whole = gradients(6)
    phases = Phases.of(step(), rules, gradients=named())
    got, reduced = phases.run(shared_out(whole, [1, 2]))
    assert [slot[:2] for slot in note(phases.norms)[SUMS]] == [["g", "L2"], ["h", "L2"]]
    right = [
        float(np.sum(np.square(whole[name], dtype=np.float64))) for name in ("a_grad", "b_grad")
    ]
    np.testing.assert_allclose(reduced[SUMS], right, rtol=1e-14)
    for name, limit in (("a_grad", 0.5), ("b_grad", 0.25)):
        joined = np.concatenate([own[f"{name}.clipped"] for own in got])
        norm = np.linalg.norm(whole[name].astype(np.float64))
        np.testing.assert_allclose(joined, whole[name] * (limit / norm), rtol=ROUNDED)
    joined = np.concatenate([own["c_grad.clipped"] for own in got])
    assert joined.tobytes() == whole["c_grad"].tobytes()


def test_within_the_threshold_parts_stay_bit_for_bit():
    whole = gradients(7)
    phases = Phases.of(step(), GradientClipByGlobalNorm(1e3), gradients=named())
    got, _ = phases.run(shared_out(whole, [3]))
    for name, array in whole.items():
        joined = np.concatenate([own[f"{name}.clipped"] for own in got])
        assert joined.tobytes() == array.tobytes()


def test_a_threshold_input_and_a_loss_scale_go_into_the_second_phase():
    clip = GradientClipByGlobalNorm(1.0)
    phases = Phases.of(
        step(), clip, gradients=named(), threshold_input="limit", loss_scale="S", emit=("norm",)
    )
    assert [p.name for p in phases.norms.graph.input] == [*named()]
    assert {"limit", "S", SUMS} <= {p.name for p in phases.scale.graph.input}
    whole = gradients(8)
    scaled = {name: x * np.float32(4) for name, x in whole.items()}
    more = {"limit": np.array(0.5, np.float32), "S": np.array(4, np.float32)}
    got, _ = phases.run(shared_out(scaled, [2]), **more)
    unscaled = [{n: x / 4 for n, x in own.items() if n.endswith("clipped")} for own in got]
    assert_is_clipped(GradientClipByGlobalNorm(0.5), whole, unscaled)
    squares = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in whole.values())
    np.testing.assert_allclose(got[0]["default_group/norm"], squares**0.5, rtol=1e-12)


@given(
    clip=st.sampled_from([
        GradientClipByNorm(0.3), GradientClipByNorm(0.3, ord=1), GradientClipByNorm(0.3, ord=3),
        GradientClipByNorm(0.3, ord=math.inf), GradientClipByGlobalNorm(0.3),
        GradientClipByGlobalNorm(0.3, ord=3), GradientClipByRMS(0.1), AdaptiveGradientClip(0.1),
    ]),
    replicas=st.integers(1, 5),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_what_several_workers_have_counts_once(clip: Any, replicas: int, seed: int):
    """Tensor parallel: a is cut, b is the same on all; c is in two halves, each there twice."""
    shapes = {"a": (6, 5), "b": (7,), "c": (4, 3)}
    whole = gradients(seed, shapes)
    if clip.reads_parameter:
        clip = AdaptiveGradientClip(0.1, axes=[0]) if replicas == 5 else clip
        whole |= {n.removesuffix("_grad"): x[::-1].copy() for n, x in whole.items()}
    options: dict[str, Any] = {"replicated": ["b", "c_grad"]}
    if clip.reads_parameter:
        options["shard_axis"] = 0
        clip = AdaptiveGradientClip(0.1, axes=[0], need_clip=["a", "b"])
    phases = Phases.of(step(shapes), clip, gradients=named(shapes), **options)
    assert note(phases.norms)[REPLICAS] == ["b_grad", "c_grad"]
    workers: list[dict[str, Array]] = []
    for at in range(2 * replicas):
        fed = {}
        for name, x in whole.items():
            size = len(x)
            first, last = at * size // (2 * replicas), (at + 1) * size // (2 * replicas)
            half = at % 2 * size // 2, (at % 2 + 1) * size // 2
            cut = {"a": slice(first, last), "b": slice(None), "c": slice(*half)}
            fed[name] = x[cut[name[0]]]
        workers.append(fed)
    count = np.array([2 * replicas, replicas], np.float64)
    got, _ = phases.run(workers, **{REPLICAS: count})
    names = {"a": [own["a_grad.clipped"] for own in got],
             "b": [got[0]["b_grad.clipped"]],
             "c": [own["c_grad.clipped"] for own in got[:2]]}  # fmt: skip
    right = clip.apply(
        {name: whole[f"{name}_grad"] for name in shapes},
        parameters={name: whole[name] for name in shapes} if clip.reads_parameter else None,
    )
    for name, own in names.items():
        np.testing.assert_allclose(np.concatenate(own), right[name], rtol=ROUNDED)
    for own in got[1:]:
        assert own["b_grad.clipped"].tobytes() == got[0]["b_grad.clipped"].tobytes()


SPLIT = [
    AdaptiveGradientClip(0.1, axes=[0]),
    AdaptiveGradientClip(0.1, axes=[1]),
    AdaptiveGradientClip(0.1, axes=[0, 1]),
    GradientClipByNorm(0.5, axes=[0]),
    GradientClipByNorm(0.5, axes=[1], ord=math.inf),
    GradientClipByNorm(0.5, axes=[-1], ord=1),
    GradientClipByNorm(0.5, per_sample=True),
    GradientClipByGlobalNorm(0.5, per_sample=True),
]


@pytest.mark.parametrize("policy", ["propagate", "zero"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("clip", SPLIT, ids=repr)
def test_norms_over_some_axes_are_added_up_only_where_the_cut_goes_through_them(
    clip: Any, axis: int, policy: Any
):
    shapes = {"a": (4, 6), "b": (4, 3)}
    options = {"gradients": named(shapes), "shard_axis": axis, "nonfinite": policy}
    is_whole = clip.axes is not None and len(clip.axes) == 2 if hasattr(clip, "axes") else False
    taken = clip.axes if getattr(clip, "axes", None) is not None else (1,)
    goes_through = axis % 2 in [at % 2 for at in taken]
    if not goes_through and not is_whole:
        with pytest.raises(OnnxClipError, match="nothing to add up over the workers"):
            extract_clip(step(shapes), clip, phase="norms", **options)
        return
    phases = Phases.of(step(shapes), clip, **options)
    whole = gradients(11, shapes)
    if policy == "zero":
        whole["a_grad"][1, 2] = np.nan
    if clip.reads_parameter:
        whole |= {n.removesuffix("_grad"): x[::-1].copy() for n, x in whole.items()}
        whole["a"][2, 2] = 1.0
    cuts = [1, 1, 2]
    got, _ = phases.run(shared_out(whole, cuts, axis % 2))
    assert_is_clipped(clip, whole, got, axis % 2, nonfinite=policy)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("odd", [None, np.nan])
@pytest.mark.parametrize(
    "clip", [*SPLIT, *(each.with_threshold(1e3) for each in SPLIT[3:])], ids=repr
)
def test_what_is_emitted_of_norms_over_some_axes_is_the_same_on_all_workers(
    clip: Any, axis: int, odd: float | None
):
    shapes = {"a": (4, 6), "b": (4, 3)}
    options: dict[str, Any] = {"gradients": named(shapes), "emit": ("norm", "scale", "clipped")}
    phases = Phases.of(step(shapes), clip, shard_axis=axis, threshold_input="limit", **options)
    whole = gradients(16, shapes)
    if odd is not None:
        whole["b_grad"][3, 1] = odd
    if clip.reads_parameter:
        whole |= {n.removesuffix("_grad"): x[::-1].copy() for n, x in whole.items()}
    limit = {"limit": np.array(clip.threshold, np.float32)}
    got, _ = phases.run(shared_out(whole, [0, 1], axis), **limit)
    right = run(extract_clip(step(shapes), clip, threshold_input="limit", **options), whole | limit)
    emitted = [name for name in right if not name.endswith(".clipped") or "/" in name]
    assert len(emitted) == (7 if clip.group else 6)
    for name, own in itertools.product(emitted, got):
        np.testing.assert_allclose(own[name], right[name], rtol=1e-5)  # of float32 norms


def test_units_that_lie_whole_on_one_worker_stay_there():
    """One clip whose units are cut, and one whose are not, in one model."""
    shapes = {"a": (4, 6), "b": (4, 3)}
    rules = [
        Rule("a", GradientClipByNorm(0.5, axes=[1])),
        Rule("b", GradientClipByNorm(0.5, axes=[0])),
    ]
    phases = Phases.of(step(shapes), rules, gradients=named(shapes), shard_axis=0)
    assert note(phases.norms)[SUMS] == [["b_grad", "L2", 3]]
    whole = gradients(12, shapes)
    got, _ = phases.run(shared_out(whole, [3]))
    for name, axes in (("a_grad", 1), ("b_grad", 0)):
        joined = np.concatenate([own[f"{name}.clipped"] for own in got])
        norm = np.linalg.norm(whole[name].astype(np.float64), axis=axes, keepdims=True)
        right = whole[name] * np.minimum(1, 0.5 / norm)
        np.testing.assert_allclose(joined, right, rtol=ROUNDED)


def test_flat_parts_of_any_size_serve_whole_norms():
    """ZeRO and FSDP1 cut one flat buffer, through the middle of rows."""
    whole = gradients(13)
    clip = GradientClipByGlobalNorm(0.5)
    phases = Phases.of(step(), clip, gradients=named(), shard_axis="flat")
    flat = {name: x.ravel() for name, x in whole.items()}
    got, _ = phases.run(shared_out(flat, {"a_grad": [13], "b_grad": [0], "c_grad": [12]}))
    joined = [
        {f"{n}.clipped": np.concatenate([own[f"{n}.clipped"] for own in got]).reshape(x.shape)
         for n, x in whole.items()}
    ]  # fmt: skip
    assert_is_clipped(clip, whole, joined)


def test_a_gradient_of_two_parameters_counts_twice_in_parts_too():
    model = onnx.load(MODELS / "in_graph" / "tied_parameter.onnx")
    clip = GradientClipByGlobalNorm(1e-3)
    phases = Phases.of(model, clip)
    whole = extract_clip(model, clip)
    rng = np.random.default_rng(0)
    fed = {
        p.name: rng.normal(size=[d.dim_value for d in p.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for p in whole.graph.input
    }
    got, _ = phases.run(shared_out(fed, [1]))
    for name, right in run(whole, fed).items():
        np.testing.assert_allclose(
            np.concatenate([own[name] for own in got]), right, rtol=1e-5
        )  # the norm of the whole is a float32 one


@each(lambda e: bool(e.gradients) and e.found != "by meaning" and not e.expect and not e.graph)
def test_every_model_has_both_phases(entry: Entry, model: onnx.ModelProto):
    seeds = [g.shape and g.shape[-1] for g in find_gradients(model) if g.has_seeds]
    if any(not isinstance(size, int) for size in seeds):
        with pytest.raises(OnnxClipError, match="units, samples or seeds, and the model does not"):
            extract_clip(model, GradientClipByNorm(1.0), phase="norms")
        return
    phases = Phases.of(model, GradientClipByNorm(1.0))
    fed = [p.name for p in phases.norms.graph.input]
    assert [p.name for p in phases.scale.graph.input] == [*fed, SUMS]
    assert [p.name for p in phases.norms.graph.output] == [SUMS]
    assert len(note(phases.norms)[SUMS]) == len(fed)


# What cannot be had is refused.

REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "adaptive": (AdaptiveGradientClip(0.1, axes=[0]), {}, "say it .--shard-axis AXIS"),
    "axes": (GradientClipByNorm(1.0, axes=[0]), {}, "say it .--shard-axis AXIS"),
    "samples": (GradientClipByNorm(1.0, per_sample=True), {}, "say it .--shard-axis AXIS"),
    "samples, flat": (
        GradientClipByNorm(1.0, per_sample=True), {"shard_axis": "flat"},
        "say it .--shard-axis AXIS",
    ),
    "an axis that is not there": (
        GradientClipByGlobalNorm(1.0), {"shard_axis": 1}, "'b_grad': it has rank 1 and no axis 1",
    ),
    "a far axis": (
        GradientClipByGlobalNorm(1.0), {"shard_axis": -9}, "has rank 2 and no axis -9",
    ),
    "high powers": (GradientClipByNorm(1.0, ord=9), {}, "powers above 8 leave the range"),
    "one norm after another": (
        Chain(GradientClipByNorm(1.0), GradientClipByGlobalNorm(1.0)), {},
        "one all-reduce after another",
    ),
    "a policy after a norm": (
        Chain(GradientClipByNorm(1.0), GradientClipByValue(0.5)), {"nonfinite": "zero"},
        "one all-reduce after another",
    ),
    "nothing to add up": (GradientClipByValue(1.0), {}, "extract the clip without a phase"),
    "an unknown phase": (GradientClipByNorm(1.0), {"phase": "both"}, "phase must be one of norms"),
    "a pattern for nothing": (
        GradientClipByNorm(1.0), {"replicated": "d*"}, "matches no parameter and no gradient",
    ),
    "no pattern": (GradientClipByNorm(1.0), {"replicated": 3}, "replicated must be"),
    "no axis": (GradientClipByNorm(1.0), {"shard_axis": "rows"}, "an axis or 'flat'"),
    "half an axis": (GradientClipByNorm(1.0), {"shard_axis": True}, "an axis or 'flat'"),
    "replicated without a phase": (
        GradientClipByNorm(1.0), {"replicated": "b", "phase": None}, "replicated is for gradients",
    ),
    "an axis without a phase": (
        GradientClipByNorm(1.0), {"shard_axis": 0, "phase": None}, "shard_axis is for gradients",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("clip", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_in_phases_is_refused(clip: Any, options: dict[str, Any], message: str):
    with pytest.raises(OnnxClipError, match=message):
        extract_clip(step(), clip, gradients=named(), **{"phase": "scale", **options})


def test_an_old_opset_is_refused():
    with pytest.raises(OnnxClipError, match="phases need opset 8 or later"):
        extract_clip(step(opset=7), GradientClipByNorm(1.0), gradients=named(), phase="norms")


@pytest.mark.parametrize("name", [SUMS, MAXIMA, REPLICAS])
def test_names_that_clash_with_those_of_the_vectors_are_refused(name: str):
    model = step({"a": (3,)})
    model.graph.output[0].name = model.graph.node[0].output[0] = name
    with pytest.raises(OnnxClipError, match=f"a value '{name}' goes in"):
        extract_clip(model, GradientClipByNorm(1.0), gradients={name: "a"}, phase="norms")
    extract_clip(model, GradientClipByNorm(1.0), gradients={name: "a"})  # alone it is a name


def test_names_like_those_of_nodes_are_names():
    """Whatever the nodes of a clip are called, a gradient may be called so before."""
    names = ["clip/sums of all", "clip/sums/joined", "clip/g/part", 'a"}\x1b[31m', "ü"]
    model = step({f"p{at}": (3, 2) for at in range(len(names))})
    for port, node, name in zip(model.graph.output, model.graph.node, names, strict=True):
        port.name = node.output[0] = name
    clip = GradientClipByGlobalNorm(0.5, group_name="g")
    phases = Phases.of(model, clip, gradients=names, replicated="*")
    assert note(phases.norms)[REPLICAS] == names
    fed = {name: np.full((3, 2), at + 1, np.float32) for at, name in enumerate(names)}
    counts = {REPLICAS: np.full(len(names), 2.0)}
    got, reduced = phases.run([fed, fed], **counts)
    np.testing.assert_allclose(reduced[SUMS], [6 * (1 + 4 + 9 + 16 + 25)], rtol=1e-15)
    for name, x in fed.items():
        right = x * (0.5 / float(reduced[SUMS][0]) ** 0.5)
        np.testing.assert_allclose(got[1][f"{name}.clipped"], right, rtol=ROUNDED)


def test_units_of_unknown_number_are_refused():
    model = step({"a": (4, "N")})
    with pytest.raises(OnnxClipError, match="does not say how many these are"):
        extract_clip(
            model, GradientClipByNorm(1.0, axes=[0]), gradients={"a_grad": "a"},
            phase="norms", shard_axis=0,
        )  # fmt: skip


def test_a_part_that_does_not_fit_is_refused_where_the_axis_is_known():
    phases = Phases.of(
        step({"a": (6, 5)}), GradientClipByNorm(1.0), gradients={"a_grad": "a"}, shard_axis=0
    )
    for model in (phases.norms, phases.scale):
        with pytest.raises(Exception, match=r"(?s)a_grad.*Got: 4 Expected: 5"):
            run(model, {"a_grad": np.zeros((3, 4), np.float32), SUMS: np.zeros(1)})
        with pytest.raises(Exception, match="Invalid rank for input: a_grad"):
            run(model, {"a_grad": np.zeros(15, np.float32), SUMS: np.zeros(1)})


def test_a_reduced_vector_of_another_length_is_refused():
    phases = Phases.of(step(), GradientClipByNorm(1.0), gradients=named())
    whole = gradients(0)
    with pytest.raises(Exception, match=r"(?s)clip/sums.*Got: 2 Expected: 3"):
        run(phases.scale, {**whole, SUMS: np.zeros(2)})
    phases = Phases.of(step(), GradientClipByNorm(1.0), gradients=named(), replicated="*")
    with pytest.raises(Exception, match=r"(?s)clip/replicas.*Got: 1 Expected: 3"):
        run(phases.norms, {**whole, REPLICAS: np.ones(1)})


def test_stages_of_a_pipeline_have_one_fingerprint_and_other_groups_another():
    """A stage has gradients of its own; what is added up is the norm of the group."""
    clip = GradientClipByGlobalNorm(1.0)

    def fingerprint(shapes: Any, clip: Any, **options: Any) -> str:
        phases = Phases.of(step(shapes), clip, gradients=named(shapes), **options)
        return note(phases.norms)["fingerprint"]

    first, second = {"a": (6, 5), "b": (7,)}, {"c": (4, 1, 3)}
    ours = fingerprint(first, clip)
    assert ours == fingerprint(second, clip) == fingerprint(second, clip, replicated="c")
    others = [
        fingerprint(second, GradientClipByGlobalNorm(1.0, group_name="g")),
        fingerprint(second, GradientClipByGlobalNorm(2.0)),
        fingerprint(second, GradientClipByGlobalNorm(1.0, ord=1)),
        fingerprint(second, GradientClipByNorm(1.0)),
        fingerprint(second, clip, nonfinite="zero"),
        fingerprint(second, clip, loss_scale=2.0),
        fingerprint(second, clip, norm_precision="plain"),
    ]
    assert len({ours, *others}) == 1 + len(others)


def test_stages_of_a_pipeline_are_clipped_by_one_norm():
    clip, stages = GradientClipByGlobalNorm(0.5), ({"a": (6, 5), "b": (7,)}, {"c": (4, 1, 3)})
    whole = gradients(14)
    phases = [Phases.of(step(shapes), clip, gradients=named(shapes)) for shapes in stages]
    fed = [{f"{name}_grad": whole[f"{name}_grad"] for name in shapes} for shapes in stages]
    sums = sum(run(p.norms, own)[SUMS] for p, own in zip(phases, fed, strict=True))
    got: dict[str, Array] = {}
    for stage, own in zip(phases, fed, strict=True):
        got |= run(stage.scale, {**own, SUMS: sums})
    assert_is_clipped(clip, whole, [got])


# From the command line.


def test_both_phases_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "model.onnx"
    onnx.save(step(), path)
    common = ["extract", str(path), "--clip", "global-norm", "--clip-norm", "0.5",
              *itertools.chain(*(["--gradient", name] for name in named())),
              "--replicated", "b_grad", "--shard-axis", "0", "--emit", "norm"]  # fmt: skip
    for phase in ("norms", "scale"):
        assert main([*common, "--phase", phase]) == 0
    out = capsys.readouterr().out
    assert out.count("clip/sums: the sums of 4 numbers over all workers") == 2
    assert main([*common, "--phase", "norms", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["reduced"]
    assert {n: told[n] for n in ("sums", "maxima", "replicas")} == {
        "sums": 4, "maxima": 0, "replicas": ["b_grad"],
    }  # fmt: skip
    phases = Phases(*(onnx.load(tmp_path / f"model.{phase}.onnx") for phase in ("norms", "scale")))
    again = extract_clip(
        step(), GradientClipByGlobalNorm(0.5), phase="norms", gradients=list(named()),
        replicated=["b_grad"], shard_axis=0, emit=("norm",),
    )  # fmt: skip
    assert phases.norms == again
    assert told["fingerprint"] == note(again)["fingerprint"]
    whole = gradients(15)
    pieces = shared_out(whole, {"a_grad": [2], "b_grad": [7], "c_grad": [0]})
    fed = [{**own, "b_grad": whole["b_grad"]} for own in pieces]
    got, _ = phases.run(fed, **{REPLICAS: np.array([2.0])})
    right = run(extract_clip(step(), GradientClipByGlobalNorm(0.5), gradients=named()), whole)
    for at, own in enumerate(got):
        np.testing.assert_allclose(
            own["a_grad.clipped"], parts(right["a_grad.clipped"], [2])[at], rtol=1e-6
        )
        np.testing.assert_allclose(own["b_grad.clipped"], right["b_grad.clipped"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicated", "b"], "--phase"),
        (["--shard-axis", "0"], "--phase"),
        (["--phase", "norms", "--shard-axis", "first"], "expected an axis such as 0, or flat"),
        (["--phase", "both"], "norms"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "model.onnx"
    onnx.save(step(), path)
    assert main(["extract", str(path), "--gradient", "a_grad", *options]) == 2
    assert message in capsys.readouterr().err
    assert [each_one.name for each_one in tmp_path.iterdir()] == ["model.onnx"]


def test_from_file_to_file_with_a_report_of_the_phase_alone(tmp_path: Path):
    model = step()
    model.graph.initializer.append(from_array(np.zeros(1, np.float32), "unused"))
    onnx.save(model, tmp_path / "model.onnx")
    reports = {
        phase: extract_clip_file(
            tmp_path / "model.onnx", tmp_path / f"{phase}.onnx", GradientClipByNorm(1.0),
            phase=phase, gradients=list(named()), emit=("norm",), threshold_input="limit",
        )
        for phase in ("norms", "scale")
    }  # fmt: skip
    assert [report.warnings for report in reports.values()] == [(), ()]
    for phase, report in reports.items():
        written = onnx.load(tmp_path / f"{phase}.onnx")
        new = {node.op_type for node in written.graph.node} - {"Identity"}
        assert {operator for operator, _ in report.new_operators} == new
    assert reports["norms"].emitted == ()
    assert reports["norms"].threshold_inputs == ()
    assert len(reports["scale"].emitted) == 3
    assert reports["scale"].threshold_inputs == ("limit",)
