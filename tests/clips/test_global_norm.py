"""One norm over many gradients: what counts, who waits, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import MODELS, parse, run
from onnx import TensorProto, helper

from onnx_clip_pass import (
    Chain,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByValue,
    OnnxClipError,
    Rule,
    clip_gradients,
    find_gradients,
    strip,
)
from onnx_clip_pass.clips import Case
from onnx_clip_pass.verification import verify

ONE = GradientClipByGlobalNorm(1.0)
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}


def as_outputs(gradients: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph that hands its inputs x_<name> out as gradients <name>_grad."""
    inputs, outputs, nodes = [], [], []
    for name, array in gradients.items():
        kind = (KINDS[array.dtype], array.shape)
        inputs.append(helper.make_tensor_value_info(f"x_{name}", *kind))
        outputs.append(helper.make_tensor_value_info(f"{name}_grad", *kind))
        nodes.append(helper.make_node("Identity", [f"x_{name}"], [f"{name}_grad"]))
    graph = helper.make_graph(nodes, "many", inputs, outputs)
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def clipped_by_graph(model, clip, gradients, **options):
    named = {f"{name}_grad": name for name in gradients}
    clipped = clip_gradients(model, clip, gradients=named, **options)
    onnx.checker.check_model(clipped, full_check=True)
    assert strip(clipped) == model
    out = run(clipped, {f"x_{name}": array for name, array in gradients.items()})
    return {name: out[f"{name}_grad"] for name in gradients}


def test_500_gradients_of_mixed_sizes_and_two_dtypes():
    """float16 results round once, to 1e-3; float32 ones within the stated 1e-5 of the norm."""
    rng = np.random.default_rng(0)
    gradients = {}
    for number in range(500):
        shape = [(), (7,), (3, 5), (64, 33), (1,)][number % 5]
        dtype = np.float16 if number % 3 == 0 else np.float32
        gradients[f"w{number}"] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    out = clipped_by_graph(as_outputs(gradients), ONE, gradients)
    wide = [x.astype(np.float64).ravel() for x in gradients.values()]
    norm = np.linalg.norm(np.concatenate(wide))
    assert norm > 1
    for name, x in gradients.items():
        rtol, atol = (2.0**-10, 2.0**-24) if x.dtype == np.float16 else (2e-5, 0)
        expected = x.astype(np.float64) / norm
        np.testing.assert_allclose(out[name].astype(np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("count", "is_wide"), [(64, False), (65, True)])
def test_up_to_64_squared_norms_are_added_up_in_float32(count: int, is_wide: bool):
    gradients = {f"g{number}": np.float32([3]) for number in range(count)}
    named = {f"{name}_grad": name for name in gradients}
    clipped = clip_gradients(as_outputs(gradients), ONE, gradients=named)
    added = {tensor.data_type for tensor in clipped.graph.initializer}
    casts = [node for node in clipped.graph.node if node.op_type == "Cast"]
    assert (TensorProto.DOUBLE in added, bool(casts)) == (is_wide, is_wide)
    sums = [len(node.input) for node in clipped.graph.node if node.op_type == "Sum"]
    assert max(sums) <= 64


@pytest.mark.parametrize("ord", [1, 2, 3, np.inf])
def test_the_order_of_the_norm_is_that_of_the_whole(ord: float):
    gradients = {"a": np.float32([[1, -2], [3, 4]]), "b": np.float32(-7), "c": np.float32([5])}
    out = clipped_by_graph(as_outputs(gradients), GradientClipByGlobalNorm(1, ord=ord), gradients)
    norm = np.linalg.norm([1, -2, 3, 4, -7, 5], ord=ord)
    for name, x in gradients.items():
        np.testing.assert_allclose(out[name], x / norm, rtol=1e-6)


def test_two_groups_have_a_norm_each():
    gradients = {
        "a": np.float32([3]), "b": np.float32([4]), "c": np.float32([0.1]), "d": np.float32([0.2]),
    }  # fmt: skip
    rules = [
        Rule(["a", "b"], GradientClipByGlobalNorm(1.0, group_name="first")),
        Rule(None, GradientClipByGlobalNorm(1.0, group_name="second")),
    ]
    out = clipped_by_graph(as_outputs(gradients), rules, gradients)
    np.testing.assert_allclose([out["a"][0], out["b"][0]], [0.6, 0.8], rtol=5e-7)
    assert out["c"].tobytes() == gradients["c"].tobytes()
    assert out["d"].tobytes() == gradients["d"].tobytes()


def test_a_predicate_that_picks_nothing_leaves_the_model_alone():
    gradients = {"a": np.float32([3])}
    model = as_outputs(gradients)
    clip = GradientClipByGlobalNorm(1.0, need_clip=lambda parameter: False)
    assert clip_gradients(model, clip, gradients={"a_grad": "a"}) == model


def test_within_the_bound_all_stay_bit_for_bit():
    gradients = {"a": np.float32([0.3, -0.1]), "b": np.float16([0.7])}
    out = clipped_by_graph(as_outputs(gradients), ONE, gradients)
    assert all(out[name].tobytes() == x.tobytes() for name, x in gradients.items())


def test_nan_in_one_gradient_is_nan_in_all_or_zero_in_all_or_nothing():
    gradients = {"a": np.float32([np.nan, 1]), "b": np.float32([2])}
    model = as_outputs(gradients)
    assert np.isnan(clipped_by_graph(model, ONE, gradients)["b"]).all()
    zero = clipped_by_graph(model, ONE, gradients, nonfinite="zero")
    np.testing.assert_array_equal([*zero["a"], *zero["b"]], [0, 0, 0])
    keep = clipped_by_graph(model, ONE, gradients, nonfinite="keep")
    np.testing.assert_array_equal([*keep["a"], *keep["b"]], [np.nan, 1, 2])


# -- what counts -------------------------------------------------------------------------------

SUM_OF_PARAMETERS = MODELS / "in_graph" / "sum_of_parameters.onnx"  # C = S + T: one gradient


def test_a_value_counts_once_for_each_parameter_that_it_is_the_gradient_of():
    """As PyTorch counts it: two parameters with the gradient 3, 4 have the norm 5 * sqrt(2)."""
    case = Case(np.array([3.0, 4.0]), count=2)
    np.testing.assert_allclose(ONE.reference([case])[0], np.array([3, 4]) / 50**0.5)


def test_in_a_graph_a_shared_value_counts_twice_and_any_other_once():
    model = onnx.load(SUM_OF_PARAMETERS)
    parameters: dict[str, int] = {}
    for gradient in find_gradients(model):
        parameters[gradient.name] = parameters.get(gradient.name, 0) + 1
    assert sorted(parameters.values()) == [1, 2]
    clipped = clip_gradients(model, ONE, emit=("norm",))
    out = run(clipped, dict(np.load(SUM_OF_PARAMETERS.with_suffix(".inputs.npz"))))
    squares = [count * float(out[f"{name}/norm"]) ** 2 for name, count in parameters.items()]
    np.testing.assert_allclose(out["default_group/norm"], sum(squares) ** 0.5, rtol=1e-6)


# -- who waits ---------------------------------------------------------------------------------

EARLY_READERS = """
    step (float[2] W, float[2] V, float[2] x, float lr)
        => (float[2] W_new, float[2] V_new, float[2] aside) {
        g = Neg(x)
        step_W = Mul(lr, g)
        W_new = Sub(W, step_W)
        aside = Abs(x)
        h = Add(x, x)
        step_V = Mul(lr, h)
        V_new = Sub(V, step_V)
    }"""


def test_readers_wait_for_the_last_gradient_and_nothing_else_moves():
    model = parse(EARLY_READERS)
    clipped = clip_gradients(model, ONE, gradients={"g": "W", "h": "V"})
    onnx.checker.check_model(clipped, full_check=True)
    order = [node.output[0] for node in clipped.graph.node if not node.name.startswith("clip/")]
    assert order == [
        "clip/g/raw", "aside", "clip/h/raw", "step_W", "W_new", "step_V", "V_new",
    ]  # fmt: skip
    assert strip(clipped) == model
    assert [node.output[0] for node in strip(clipped).graph.node][:4] == [
        "g", "step_W", "W_new", "aside",
    ]  # fmt: skip


def test_where_no_reader_comes_too_early_nothing_moves():
    gradients = {"a": np.float32([3]), "b": np.float32([4])}
    clipped = clip_gradients(as_outputs(gradients), ONE, gradients=["a_grad", "b_grad"])
    old = [node for node in clipped.graph.node if not node.name.startswith("clip/")]
    assert [node.input[0] for node in old] == ["x_a", "x_b"]


def test_an_if_that_takes_a_clipped_gradient_from_outside_waits_too():
    model = parse(
        """
        step (float[2] x, bool yes) => (float[2] out, float[2] b_grad) {
            a_grad = Neg(x)
            out = If(yes) <
                then_branch = t () => (float[2] p) { p = Abs(a_grad) },
                else_branch = e () => (float[2] q) { q = Identity(a_grad) }>
            b_grad = Add(x, x)
        }"""
    )
    clipped = clip_gradients(model, ONE, gradients=["a_grad", "b_grad"])
    onnx.checker.check_model(clipped, full_check=True)
    assert [n.op_type for n in clipped.graph.node if not n.name.startswith("clip/")] == [
        "Neg", "Add", "If",
    ]  # fmt: skip
    out = run(clipped, {"x": np.float32([3, 4]), "yes": np.array(False)})
    np.testing.assert_allclose(out["out"], np.float32([-3, -4]) / 125**0.5, rtol=1e-6)
    assert strip(clipped) == model


def test_nodes_that_moved_inside_a_node_that_moved_are_put_back():
    model = parse(
        """
        step (float[2] x, bool yes) => (float[2] first, float[2] out, float[2] h) {
            g = Neg(x)
            first = If(yes) <
                then_branch = t1 () => (float[2] p1) { p1 = Abs(g) },
                else_branch = e1 () => (float[2] q1) { q1 = Identity(g) }>
            out = If(yes) <
                then_branch = t2 () => (float[2] p2) {
                    a = Neg(x) early = Abs(a) b = Exp(x) p2 = Add(early, b) },
                else_branch = e2 () => (float[2] q2) { q2 = Identity(x) }>
            h = Add(x, x)
        }"""
    )
    inside = GradientClipByGlobalNorm(1.0, group_name="inside")
    rules = [Rule(["g", "h"], ONE), Rule(["a", "b"], inside)]
    clipped = clip_gradients(model, rules, gradients=["g", "h", "a", "b"])
    assert [n.output[0] for n in clipped.graph.node if not n.name.startswith("clip/")] == [
        "clip/g/raw", "out", "clip/h/raw", "first",
    ]  # fmt: skip
    assert strip(clipped) == model


TWO_STEPS = """
    steps (float[2] W, float[2] V, float[2] x) => (float[2] W2, float[2] V2) {
        W_grad1 = Mul(W, x)
        W1 = Sub(W, W_grad1)
        V_grad1 = Mul(V, x)
        V1 = Sub(V, V_grad1)
        W_grad2 = Mul(W1, x)
        W2 = Sub(W1, W_grad2)
        V_grad2 = Mul(V1, x)
        V2 = Sub(V1, V_grad2)
    }"""


def test_each_step_of_an_unrolled_loop_has_a_norm_of_its_own():
    model = parse(TWO_STEPS)
    named = {f"{p}_grad{step}": p for p in "WV" for step in (1, 2)}
    clipped = clip_gradients(model, ONE, gradients=named)
    onnx.checker.check_model(clipped, full_check=True)
    feeds = {"W": np.float32([1, 2]), "V": np.float32([3, 4]), "x": np.float32([2, 3])}
    out = run(clipped, feeds)
    w, v, x = (feeds[name].astype(np.float64) for name in "WVx")
    for _ in range(2):
        step = ONE.apply({"w": w * x, "v": v * x})
        w, v = w - step["w"], v - step["v"]
    np.testing.assert_allclose(out["W2"], w, rtol=1e-6)
    np.testing.assert_allclose(out["V2"], v, rtol=1e-6)
    assert strip(clipped) == model


# -- what cannot be ----------------------------------------------------------------------------


def test_gradients_of_different_graphs_are_refused():
    model = parse(
        """
        step (float[2] x, bool yes) => (float[2] out, float[2] b_grad) {
            b_grad = Add(x, x)
            out = If(yes) <
                then_branch = t () => (float[2] p) { a_grad = Neg(x) p = Abs(a_grad) },
                else_branch = e () => (float[2] q) { q = Identity(x) }>
        }"""
    )
    with pytest.raises(OnnxClipError, match="values of different graphs; give them groups"):
        clip_gradients(model, ONE, gradients=["a_grad", "b_grad"])


def test_one_group_with_two_thresholds_is_refused():
    gradients = {"a": np.float32([3]), "b": np.float32([4])}
    rules = [Rule("a_grad", ONE), Rule(None, GradientClipByGlobalNorm(2.0))]
    with pytest.raises(OnnxClipError, match="cannot have one norm: they are clipped by"):
        clip_gradients(as_outputs(gradients), rules, gradients=["a_grad", "b_grad"])


def test_one_group_with_two_threshold_inputs_is_refused():
    gradients = {"a": np.float32([3]), "b": np.float32([4])}
    rules = [Rule("a", ONE, threshold_input="one"), Rule("b", ONE, threshold_input="other")]
    named = {"a_grad": "a", "b_grad": "b"}
    with pytest.raises(OnnxClipError, match=r"'a_grad' and 'b_grad' .* cannot have one norm"):
        clip_gradients(as_outputs(gradients), rules, gradients=named)
    rules = [replace(rule, threshold_input="one") for rule in rules]
    assert (
        clip_gradients(as_outputs(gradients), rules, gradients=named).graph.input[-1].name == "one"
    )


def test_rules_with_a_clip_each_and_none():
    gradients = {"a": np.float32([3]), "b": np.float32([4]), "c": np.float32([5])}
    rules = [Rule("a", None), Rule("b", GradientClipByNorm(2.0)), Rule(None, ONE)]
    out = clipped_by_graph(as_outputs(gradients), rules, gradients)
    assert [float(out[name][0]) for name in "abc"] == [3, 2, 1]


def test_a_chain_that_one_gradient_enters_later_has_one_norm_all_the_same():
    """a: 30 to 3 by its value, then with b the norm 5; b is no part of the first clip."""
    gradients = {"a": np.float32([30]), "b": np.float32([4])}
    clip = Chain(GradientClipByValue(3.0, need_clip="a"), ONE)
    out = clipped_by_graph(as_outputs(gradients), clip, gradients)
    np.testing.assert_allclose([out["a"][0], out["b"][0]], [0.6, 0.8], rtol=5e-7)
    eager = clip.apply(gradients)
    np.testing.assert_allclose([eager["a"][0], eager["b"][0]], [0.6, 0.8], rtol=5e-7)


def test_groups_that_form_a_cycle_are_refused():
    first, second = (GradientClipByGlobalNorm(1.0, group_name=name) for name in ("x", "y"))
    rules = [Rule("a", Chain(first, second)), Rule("b", Chain(second, first))]
    gradients = {"a": np.float32([3]), "b": np.float32([4])}
    with pytest.raises(OnnxClipError, match="'x' and 'y' form a cycle"):
        clip_gradients(as_outputs(gradients), rules, gradients={"a_grad": "a", "b_grad": "b"})


def test_samples_that_are_not_equally_many_are_refused():
    gradients = {"a": np.ones((3, 2), np.float32), "b": np.ones((4, 2), np.float32)}
    clip = GradientClipByGlobalNorm(1.0, per_sample=True)
    with pytest.raises(OnnxClipError, match="they have 3 and 4 samples"):
        clipped_by_graph(as_outputs(gradients), clip, gradients)
    with pytest.raises(OnnxClipError, match="cannot have one norm: they have 3 and 4 samples"):
        clip.apply(gradients)


def test_samples_of_which_one_gradient_alone_tells_the_number_have_norms_of_their_own():
    """The first axis of `a` is 1 by its type, that of `b` is N: one sample of each, norm 5."""
    model = parse(
        """s (float[1,2] x, float[N,2] y) => (float[1,2] a, float[N,2] b) {
        a = Identity(x) b = Identity(y) }"""
    )
    clip = GradientClipByGlobalNorm(1.0, per_sample=True)
    clipped = clip_gradients(model, clip, gradients=["a", "b"], nonfinite="zero")
    onnx.checker.check_model(clipped, full_check=True)
    out = run(clipped, {"x": np.float32([[3, 0]]), "y": np.float32([[4, 0]])})
    np.testing.assert_allclose(out["a"], [[0.6, 0]], rtol=1e-6)  # as Div and Mul round
    np.testing.assert_allclose(out["b"], [[0.8, 0]], rtol=1e-6)


@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
def test_a_power_that_may_overflow_tells_what_is_not_finite_in_float64(nonfinite: str):
    """With p = 1 / 32, the norm of n ones is n ** 32: 2 ** 32 of two of them."""
    gradients = {"a": np.float32([1]), "b": np.float32([1, np.inf])}
    model, clip = as_outputs(gradients), GradientClipByGlobalNorm(2.0**31, ord=1 / 32)
    out = clipped_by_graph(model, clip, gradients, nonfinite=nonfinite)
    for name, x in gradients.items():
        np.testing.assert_array_equal(out[name], np.zeros_like(x) if nonfinite == "zero" else x)
    gradients["b"] = np.float32([1, 0])
    out = clipped_by_graph(model, clip, gradients, nonfinite=nonfinite)
    np.testing.assert_allclose(out["b"], [0.5, 0], rtol=1e-5)  # Pow to the 32nd


def test_a_gradient_without_an_axis_for_samples_is_refused():
    gradients = {"a": np.array(3, np.float32)}
    clip = GradientClipByGlobalNorm(1.0, per_sample=True)
    with pytest.raises(OnnxClipError, match="first axis is that of samples"):
        clipped_by_graph(as_outputs(gradients), clip, gradients)
    with pytest.raises(OnnxClipError, match="first axis is that of samples"):
        clip.apply(gradients)


def test_a_sample_that_is_not_finite_is_zeroed_alone_where_there_is_no_bound():
    gradients = {"a": np.float32([np.nan, 1, 2]), "b": np.arange(1, 10, dtype=np.float32)}
    gradients["b"] = gradients["b"].reshape(3, 3)
    clip = GradientClipByGlobalNorm(np.inf, per_sample=True)
    out = clipped_by_graph(as_outputs(gradients), clip, gradients, nonfinite="zero")
    np.testing.assert_array_equal(out["a"], [0, 1, 2])
    np.testing.assert_array_equal(out["b"], [[0, 0, 0], [4, 5, 6], [7, 8, 9]])


@pytest.mark.parametrize("nonfinite", ["zero", "keep"])
def test_a_sample_of_one_element_is_finite_though_its_square_overflows(nonfinite: str):
    """1e20 is finite, and its square beyond float32: it is clipped to 1 as any other."""
    gradients = {"a": np.float32([1e20, 0.1]), "b": np.zeros((2, 2), np.float32)}
    clip = GradientClipByGlobalNorm(1.0, per_sample=True)
    out = clipped_by_graph(as_outputs(gradients), clip, gradients, nonfinite=nonfinite)
    np.testing.assert_allclose(out["a"], [1, 0.1], rtol=1e-6)


def test_the_second_gradient_of_a_parameter_belongs_to_the_second_step():
    """The loss is linear in b: no clipped gradient leads to b's gradient of the second step.

    Each step has the gradients 3 and 4, and a norm of 5.
    """
    model = parse(
        """
        s (float[1] a, float[1] b) => (float[1] a2, float[1] b2) <float[1] three = {3}> {
          zero = Sub(a, a) a_grad = Add(zero, three)
          one = Exp(zero) b_grad = Add(one, three)
          a1 = Sub(a, a_grad) b1 = Sub(b, b_grad)
          zero1 = Sub(a1, a1) a1_grad = Add(zero1, three)
          one1 = Exp(zero) b1_grad = Add(one1, three)
          a2 = Sub(a1, a1_grad) b2 = Sub(b1, b1_grad)
        }"""
    )
    named = {"a_grad": "a", "b_grad": "b", "a1_grad": "a", "b1_grad": "b"}
    feeds = dict.fromkeys("ab", np.float32([0]))
    clipped = clip_gradients(model, ONE, gradients=named)
    assert verify(model, clipped, feeds=feeds).ok
    out = run(clipped, feeds)
    np.testing.assert_allclose([*out["a2"], *out["b2"]], [-1.2, -1.6], rtol=1e-6)
