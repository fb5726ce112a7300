"""The nodes that a clip puts in: by opset, dtype and shape, their names and their constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import parse, run
from onnx import numpy_helper

from onnx_clip_pass import (
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByRMS,
    GradientClipByValue,
    OnnxClipError,
    clip_gradients,
    strip,
)
from onnx_clip_pass.clips import Clip, NonFinite

ONE = GradientClipByNorm(1.0)


def negate(dtype: str = "float", shape: str = "[2]", **versions: int) -> onnx.ModelProto:
    return parse(f"s ({dtype}{shape} x) => ({dtype}{shape} g) {{ g = Neg(x) }}", **versions)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# -- opsets and dtypes -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("opset", [7, 8, 11, 13, 18, 21])
def test_every_opset_from_7_on_clips_3_4_to_norm_1(opset: int, dtype: str):
    model = negate(dtype, opset=opset)
    if (opset, dtype) == (7, "double"):
        with pytest.raises(OnnxClipError, match="float64 needs opset 8 or later"):
            clip_gradients(model, ONE, gradients=["g"])
        return
    if opset == 7:
        with pytest.raises(OnnxClipError, match=r"norm_precision='wide' \(--norm-precision wide\)"):
            clip_gradients(model, ONE, gradients=["g"], norm_precision="wide")
    clipped = clip_gradients(model, ONE, gradients=["g"])
    onnx.checker.check_model(clipped, full_check=True)
    assert clipped.opset_import == model.opset_import
    x = np.array([3, 4], np.float32 if dtype == "float" else np.float64)
    np.testing.assert_allclose(run(clipped, {"x": x})["g"], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize(
    "made",
    [
        "rows = Constant <value_ints = [0]> () g = ReduceSum <keepdims = 0> (a, rows)",
        "size = Size(wide) n = CastLike(size, a) h = Mul(n, a) g = ReduceSum <keepdims = 0> (h)",
        "c = Greater(wide, wide) h = Where(c, a, a) g = ReduceSum <keepdims = 0> (h)",
        "c = Cast <to = 11> (a) h = CastLike(a, wide) k = Cast <to = 1> (c) g = Mul(k, a)",
    ],
    ids=["integer constant", "size", "comparison", "cast there and back"],
)
def test_an_undeclared_dtype_is_that_of_the_floating_values_it_is_computed_from(made: str):
    """The float64 value beside it, `wide`, is only measured or compared."""
    text = """
        s (float[2, 2] x, double[2, 2] y) => (float[N] f) { f = local.back(x, y) }
        <domain: "local", opset_import: ["" : 17]> back (a, wide) => (g) {"""
    clipped = clip_gradients(
        parse(f"{text} {made} }}"), ONE, gradients=["g"], norm_precision="plain"
    )
    constant = clipped.functions[0].node[0]
    assert constant.attribute[0].t.data_type == onnx.TensorProto.FLOAT


def test_opset_6_is_refused():
    with pytest.raises(OnnxClipError, match=r"opset 6 is too old: .* 7 or later"):
        clip_gradients(negate(opset=6), ONE, gradients=["g"])


def test_a_graph_without_a_default_opset_is_refused():
    model = negate()
    del model.opset_import[0]
    with pytest.raises(OnnxClipError, match="imports no version of the default operator set"):
        clip_gradients(model, ONE, gradients=["g"])


def test_a_gradient_of_rank_0_stays_of_rank_0():
    out = run(clip_gradients(negate(shape=""), ONE, gradients=["g"]), {"x": np.float32(5)})
    assert (out["g"].shape, out["g"]) == ((), -1)


# -- onnx-ad's trailing seed dimension ---------------------------------------------------------


def seeded(parameter: str, gradient: str, opset: int = 17) -> onnx.ModelProto:
    """A parameter W and its gradient adj_W, whose last dimension counts the seeds."""
    return parse(
        f"s (float{parameter} W, float{gradient} adj)"
        f" => (float{parameter} y, float{gradient} adj_W) {{ y = Neg(W) adj_W = Identity(adj) }}",
        opset=opset,
    )


def clip_seeds(model: onnx.ModelProto, adj: object) -> tuple[list[str], np.ndarray]:
    clipped = clip_gradients(model, ONE, gradients={"adj_W": "W"})
    onnx.checker.check_model(clipped, full_check=True)
    assert strip(clipped) == model
    adj = np.array(adj, np.float32)
    weight = np.zeros(adj.shape[:-1], np.float32)
    return ops(clipped)[2:], run(clipped, {"W": weight, "adj": adj})["adj_W"]


def test_one_seed_is_clipped_as_the_whole():
    nodes, out = clip_seeds(seeded("[2]", "[2, 1]"), [[3], [4]])
    assert nodes == ["ReduceL2", "Div", "Min", "Mul"]
    np.testing.assert_allclose(out, [[0.6], [0.8]], rtol=1e-6)


@pytest.mark.parametrize("opset", [8, 17, 18, 21])
@pytest.mark.parametrize("seeds", ["3", "nadj", "?"])
def test_each_of_several_seeds_has_a_norm_of_its_own(seeds: str, opset: int):
    model = seeded("[2]", f"[2, {seeds}]", opset)
    nodes, out = clip_seeds(model, [[3, 0.3, 0], [4, 0.4, 0]])  # norms 5, 0.5 and 0
    assert nodes == ["ReduceL2", "Div", "Min", "Mul"]
    np.testing.assert_allclose(out, [[0.6, 0.3, 0], [0.8, 0.4, 0]], rtol=1e-6)


def test_the_norm_of_each_seed_of_a_scalar_parameter_is_its_absolute_value():
    nodes, out = clip_seeds(seeded("", "[nadj]"), [-5, 0.5])
    assert nodes == ["Abs", "Div", "Min", "Mul"]
    np.testing.assert_array_equal(out, [-1, 0.5])


def test_several_seeds_at_opset_7_are_refused():
    with pytest.raises(OnnxClipError, match="seed dimension needs opset 8 or later"):
        clip_gradients(seeded("[2]", "[2, 3]", 7), ONE, gradients={"adj_W": "W"})


# -- names -------------------------------------------------------------------------------------


def test_names_that_are_taken_anywhere_in_the_model_are_not_taken_again():
    model = parse(
        """
        s (float[2] x, bool yes) => (float[2] g, float[2] "clip/g/norm", float[2] f) {
          g = Neg(x)
          "clip/g/norm" = If (yes) <
            then_branch = a () => (float[2] "clip/g/raw") { "clip/g/raw" = Neg(x) },
            else_branch = b () => (float[2] e) { ["clip/g/Div"] e = Abs(x) }>
          f = local.helper(x)
        }
        <domain: "local", opset_import: ["" : 17]>
        helper ("clip/1:float32") => ("clip/g/scale") {
          "clip/g/scale" = Neg("clip/1:float32")
        }"""
    )
    stale = onnx.helper.make_tensor_value_info("clip/g/ratio", onnx.TensorProto.FLOAT, [])
    model.graph.value_info.append(stale)  # declared, and borne by no value
    clipped = clip_gradients(model, ONE, gradients=["g"])
    onnx.checker.check_model(clipped)
    clip = [n for n in clipped.graph.node if n.name.startswith("clip/g/")]
    assert [(n.name, list(n.input), list(n.output)) for n in clip] == [
        ("clip/g/ReduceL2", ["clip/g/raw#2"], ["clip/g/norm#2"]),
        ("clip/g/Div#2", ["clip/1:float32#2", "clip/g/norm#2"], ["clip/g/ratio#2"]),
        ("clip/g/Min", ["clip/g/ratio#2", "clip/1:float32#2"], ["clip/g/scale#2"]),
        ("clip/g/Mul", ["clip/g/raw#2", "clip/g/scale#2"], ["g"]),
    ]
    assert strip(clipped) == model


def test_gradients_of_one_name_in_two_branches_get_names_of_their_own():
    model = parse(
        """
        s (float[2] W, float[2] x, float lr, bool yes) => (float[2] W_new) {
          W_new = If (yes) <
            then_branch = a () => (float[2] t) {
              W_grad = Tanh(x) t = com.microsoft.SGDOptimizer(lr, W, W_grad) },
            else_branch = b () => (float[2] e) {
              W_grad = Cosh(x) e = com.microsoft.SGDOptimizer(lr, W, W_grad) }>
        }"""
    )
    clipped = clip_gradients(model, ONE)
    branches = [attr.g for attr in clipped.graph.node[0].attribute]
    producers = [branch.node[0].output[0] for branch in branches]
    assert sorted(producers) == ["clip/W_grad/raw", "clip/W_grad/raw#2"]
    assert [len(branch.node) for branch in branches] == [6, 6]
    assert strip(clipped) == model


# -- constants ---------------------------------------------------------------------------------


def test_constants_are_of_rank_0_and_shared_between_gradients():
    model = parse(
        "s (float[2] x) => (float[2] g, float[3, 2] h) {"
        "  g = Neg(x) n = Constant <value = int64[2] {3, 2}> () h = Expand(g, n) }"
    )
    clipped = clip_gradients(model, GradientClipByNorm(0.5), gradients=["g", "h"])
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in clipped.graph.initializer}
    assert {name: (array.shape, float(array)) for name, array in held.items()} == {
        "clip/0.5:float32": ((), 0.5),
        "clip/1:float32": ((), 1.0),
    }


def test_gradients_of_two_dtypes_get_constants_of_their_own():
    model = parse(
        "s (float[2] x, double[2] y) => (float[2] g, double[2] h) { g = Neg(x) h = Neg(y) }"
    )
    clipped = clip_gradients(model, GradientClipByNorm(0.1), gradients=["g", "h"])
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in clipped.graph.initializer}
    assert list(held) == [
        "clip/0.1:float32",
        "clip/1:float32",
        "clip/0.1:float64",
        "clip/1:float64",
    ]
    assert held["clip/0.1:float64"] == 0.1
    assert held["clip/0.1:float32"] == np.float32(0.1)


def test_constants_are_nodes_below_ir_version_4():
    model = negate(opset=8, ir=3)
    clipped = clip_gradients(model, GradientClipByNorm(2.5), gradients=["g"])
    onnx.checker.check_model(clipped, full_check=True)
    assert not clipped.graph.initializer
    assert ops(clipped) == ["Constant", "Constant", "Neg", "ReduceL2", "Div", "Min", "Mul"]
    x = np.array([3, 4], np.float32)
    np.testing.assert_allclose(run(clipped, {"x": x})["g"], [-1.5, -2], rtol=1e-6)
    assert strip(clipped) == model


def test_integers_are_cast_from_floats_before_opset_9_where_constants_are_nodes():
    """Constant gives floating tensors only; the shape of the rows is int64."""
    model = negate(shape="[5, 8192]", opset=8, ir=3)
    clipped = clip_gradients(model, ONE, gradients=["g"])
    onnx.checker.check_model(clipped, full_check=True)
    assert {"Reshape", "Constant", "Cast"} <= set(ops(clipped))
    x = np.full((5, 8192), 3, np.float32)
    np.testing.assert_allclose(run(clipped, {"x": x})["g"], -x / (3 * 40960**0.5), rtol=1e-5)
    assert strip(clipped) == model


def test_an_input_that_is_a_gradient_below_ir_version_4_is_clipped_behind_its_constants():
    model = parse("s (float[2] g) => (float[2] y) { y = Neg(g) }", opset=8, ir=3)
    clipped = clip_gradients(model, ONE, gradients=["g"])
    onnx.checker.check_model(clipped, full_check=True)
    out = run(clipped, {"g": np.array([3, 4], np.float32)})
    np.testing.assert_allclose(out["y"], [-0.6, -0.8], rtol=1e-6)


@pytest.mark.parametrize("ir", [8, 10])
def test_constants_inside_functions_are_nodes(ir: int):
    model = parse(
        """
        s (float[2] x, float[2] z) => (float[2] a, float[2] b) {
          a = local.back(x)
          b = local.back(z)
        }
        <domain: "local", opset_import: ["" : 18]> back (x) => (g) { g = Neg(x) }""",
        ir=ir,
        opset=18,
    )
    clipped = clip_gradients(model, ONE, gradients=["g"], norm_precision="plain")
    onnx.checker.check_model(clipped)
    assert not clipped.graph.initializer
    assert [node.op_type for node in clipped.functions[0].node] == [
        "Constant", "Neg", "ReduceL2", "Abs", "Div", "Min", "Mul",
    ]  # fmt: skip
    assert bool(clipped.functions[0].value_info) == (ir >= 10)
    x, z = np.array([3, 4], np.float32), np.array([0.3, 0.4], np.float32)
    out = run(clipped, {"x": x, "z": z})
    np.testing.assert_allclose(out["a"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(out["b"], -z)
    assert strip(clipped) == model


def test_a_function_is_clipped_at_its_own_opset():
    model = parse(
        """
        s (float[2] x) => (float[2] a) { a = local.back(x) }
        <domain: "local", opset_import: ["" : 6]> back (x) => (g) { g = Neg(x) }"""
    )
    with pytest.raises(OnnxClipError, match="'g' in function local::back: opset 6 is too old"):
        clip_gradients(model, ONE, gradients=["g"])


def test_each_seed_of_a_packed_gradient_has_a_norm_of_its_own():
    """By default onnx-ad returns one column for each seed, whatever the parameter's shape."""
    clipped = clip_gradients(seeded("[1, 1, 2]", "[2, nadj]"), ONE, gradients={"adj_W": "W"})
    adj = np.array([[3, 0.3], [4, 0.4]], np.float32)
    out = run(clipped, {"W": np.zeros((1, 1, 2), np.float32), "adj": adj})["adj_W"]
    np.testing.assert_allclose(out, [[0.6, 0.3], [0.8, 0.4]], rtol=1e-6)


def test_a_gradient_named_outright_has_the_shape_that_inference_finds():
    """Its shape is declared nowhere and no parameter is known; unknown, it would be float64."""
    model = parse(
        "s (float[768, 64] x) => (float[64, 768] y) {"
        "  g = Transpose <perm = [1, 0]> (x) y = Neg(g) }"
    )
    clipped = clip_gradients(model, ONE, gradients=["g"])
    assert ops(clipped)[1:-1] == [
        "Mul", "ReduceSum", "ReduceSum", "Sqrt", "Div", "Min", "Mul",
    ]  # fmt: skip


RANKS = {
    "one reduction": ([2, 1, 1], ["ReduceL2", "Div", "Min", "Mul"]),
    "rows that are axes": (
        [64, 512, 1],
        ["Mul", "ReduceSum", "ReduceSum", "Sqrt", "Div", "Min", "Mul"],
    ),
    "rows that are cut": (
        [8192, 64, 1],
        ["Mul", "Reshape", "ReduceSum", "ReduceSum", "Unsqueeze", "Sqrt", "Div", "Min", "Mul"],
    ),
}


@pytest.mark.parametrize(("shape", "nodes"), RANKS.values(), ids=RANKS)
def test_a_gradient_with_axes_of_size_1_is_multiplied_by_a_scale_of_its_rank(
    shape: list[int], nodes: list[str]
):
    """ONNX Runtime's CPU provider takes tens of times as long with a scale of rank 0."""
    clipped = clip_gradients(negate(shape=str(shape)), ONE, gradients=["g"])
    onnx.checker.check_model(clipped, full_check=True)
    assert ops(clipped)[1:] == nodes
    declared = {v.name: len(v.type.tensor_type.shape.dim) for v in clipped.graph.value_info}
    assert declared["clip/g/scale"] == len(shape)
    x = np.full(shape, 3, np.float32)
    expected = -1 / np.sqrt(x.size)
    np.testing.assert_allclose(run(clipped, {"x": x})["g"], np.full(shape, expected), rtol=1e-5)


LIMIT = 2**0.5
EACH = {
    "value": GradientClipByValue(2),
    "mean square": GradientClipByRMS(LIMIT / 2**0.5),  # of two elements
    "together": GradientClipByGlobalNorm(LIMIT),
}


@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
@pytest.mark.parametrize("clip", EACH.values(), ids=EACH)
def test_no_clip_combines_axes_of_size_1_with_rank_0(clip: Clip, nonfinite: NonFinite):
    model = negate(shape="[1, 2, 1]")
    clipped = clip_gradients(model, clip, gradients=["g"], nonfinite=nonfinite)
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in clipped.graph.value_info
    }
    shapes |= {tensor.name: list(tensor.dims) for tensor in clipped.graph.initializer}
    for node in clipped.graph.node:
        read = [shapes[name] for name in node.input if name in shapes]
        if [1, 2, 1] in read and node.op_type in ("Mul", "Max", "Min", "Where"):
            assert {len(shape) for shape in read} == {3}, node
    x = np.float32([3, 0.6]).reshape(1, 2, 1)
    norm = np.linalg.norm(x)  # which is 3.06, above the limit
    is_value = isinstance(clip, GradientClipByValue)
    expected = np.clip(x, -2, 2) if is_value else x * LIMIT / norm
    np.testing.assert_allclose(run(clipped, {"x": x})["g"], -expected, rtol=1e-6)


@pytest.mark.parametrize("nonfinite", ["propagate", "zero", "keep"])
def test_a_norm_that_policy_and_output_both_ask_for_is_computed_once(nonfinite: NonFinite):
    clipped = clip_gradients(
        negate(), GradientClipByValue(2), gradients=["g"], nonfinite=nonfinite, emit=("norm",)
    )
    computed = [op for op in ops(clipped) if op in ("Abs", "ReduceMax", "ReduceL1")]
    assert computed == ["Abs", "ReduceMax", "ReduceL1", "ReduceMax"]  # the last for the scale
    x = np.float32([3, -4])
    np.testing.assert_array_equal(run(clipped, {"x": x})["g/norm"], 4)


# -- how many elements one reduction adds up -----------------------------------------------------

SUMMED = {
    "L2, 2048 in one go": (2, "2048", None, False),
    "L2, one more": (2, "2049", 683, False),
    "L2, any number": (2, "8192, N", 1024, True),
    "L2, rows added up in float32": (2, "1048576", 1024, False),
    "L2, rows added up in float64": (2, "2097152", 1024, True),
    "L2, rows that are axes": (2, "1000, 1000", None, False),
    "L1, half of it": (1, "1024", None, False),
    "L1, one more": (1, "1025", 205, False),
    "L1, rows half as long": (1, "8192, N", 512, True),
    "L1, rows added up in float64 too": (1, "524288", 512, True),
    "L1, axes that are too long for rows": (1, "800, 250", 500, False),
    "L1, all in float64 where no row fits": (1, "1031", None, True),
}


@pytest.mark.parametrize(("ord", "shape", "row", "is_wide"), SUMMED.values(), ids=SUMMED)
def test_an_l1_norm_adds_up_half_as_many_elements_in_float32(
    ord: float, shape: str, row: int | None, is_wide: bool
):
    """The root of a sum of squares has half the relative error of the sum."""
    clip = GradientClipByNorm(1.0, ord=ord)
    clipped = clip_gradients(negate(shape=f"[{shape}]"), clip, gradients=["g"])
    cut = [numpy_helper.to_array(tensor).tolist() for tensor in clipped.graph.initializer]
    assert [lengths[1] for lengths in cut if np.size(lengths) == 2] == ([row] if row else [])
    assert ("Cast" in ops(clipped)) is is_wide
