"""Cases that a single line of a rewrite decides: mutants of it went unnoticed without them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import parse, run
from onnx import TensorProto, helper, parser
from steps import asking

from onnx_clip_pass import (
    AdaptiveGradientClip,
    GradientClipByGlobalNorm,
    GradientClipByNorm,
    GradientClipByPercentile,
    OnnxClipError,
    Rule,
    clip_gradients,
    initial_states,
    plan_clips,
    strip,
)
from onnx_clip_pass.record import read_record
from onnx_clip_pass.rewrite.reporting import lacking_kernels

ONE = GradientClipByNorm(1.0)


@pytest.mark.parametrize(("count", "end"), [(5, "'y4'"), (6, "'y4' and more")])
def test_five_outputs_are_named_where_nothing_is_found(count: int, end: str):
    names = [f"y{number}" for number in range(count)]
    outputs = ", ".join(f"float[2] {name}" for name in names)
    nodes = " ".join(f"{name} = Neg(x)" for name in names)
    with pytest.raises(OnnxClipError, match="no gradients found") as refused:
        clip_gradients(parse(f"s (float[2] x) => ({outputs}) {{ {nodes} }}"), ONE)
    assert str(refused.value).endswith(f"the outputs 'y0', 'y1', 'y2', 'y3', {end}")


def test_all_warnings_are_given_together():
    """Of data's gradients, of what is left open, and of operators that are not there."""
    model = asking("WT = Transpose(W)  x_grad = MatMul(dy, WT)", outputs=", float[2,4] x_grad")
    plan = plan_clips(model, ONE, partial=True, optimizer_ops={"vendor::Descend": (0, 1)})
    assert [warning.partition(" ")[0] for warning in plan.warnings] == [
        "x_grad", "not", "'W',", "optimizer",
    ]  # fmt: skip
    assert plan.warnings[1] == "not clipped, since the gradients are not known: 'W'"
    assert plan.warnings[3] == "optimizer 'vendor::Descend' is not in this model"


def test_units_need_the_shape_of_the_parameter():
    model = parse(
        "s (float[6] W, float[6] x) => (float[6] g, float[6] V) { g = Neg(x) V = Neg(W) }"
    )
    for value in (model.graph.input[0], model.graph.output[1]):
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(OnnxClipError, match="the shapes of it and of its parameter do not go"):
        clip_gradients(model, AdaptiveGradientClip(0.1, axes=(0,)), gradients={"g": "W"})


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_a_scale_of_the_loss_is_taken_out_of_the_norm_and_put_into_the_threshold(scale: float):
    """The gradient -3, -4 has the norm 5 as it is, and 5 / scale without the scale."""
    model = parse("s (float[2] x) => (float[2] g) { g = Neg(x) }")
    clipped = clip_gradients(model, ONE, gradients=["g"], loss_scale=scale, emit=("norm",))
    out = run(clipped, {"x": np.float32([3, 4])})
    assert out["g/norm"] == 5 / scale
    np.testing.assert_allclose(out["g"], np.float32([-3, -4]) * scale / 5, rtol=1e-6)  # 8 roundings
    assert ("clip/g/unscaled" in str(clipped)) == (scale != 1)


def test_an_algorithm_of_training_info_sees_no_threshold_of_the_main_graph():
    model = parse(
        "s (float[2,4] x, float[4,3] W) => (float r)"
        "{ y = MatMul(x, W) r = ReduceSum <keepdims = 0> (y) }"
    )
    graph = parser.parse_graph("""
        update (float lr) => (float[4,3] W_new) {
            g = ai.onnx.preview.training.Gradient <xs = ["W"], y = "r"> (W)
            step = Mul(lr, g)
            W_new = Sub(W, step)
        }""")
    model.training_info.append(helper.make_training_info(graph, [("W", "W_new")], None, None))
    with pytest.raises(OnnxClipError, match=r"which training_info\[0\].algorithm does not see"):
        clip_gradients(model, ONE, threshold_input="limit")


def test_a_kernel_that_cuda_alone_lacks_is_told_of():
    (warning,) = lacking_kernels([("MatMul", 11, TensorProto.INT64)])
    assert warning.startswith("ONNX Runtime's CUDA provider has no kernel for MatMul (int64, opset")


@pytest.mark.parametrize(
    "made",
    [
        "h = Mul(W_new, x)",
        """h = If (here) <
            then_branch = yes () => (float[2] a) { a = Mul(W_new, x) },
            else_branch = no () => (float[2] b) { b = Neg(W_new) }
        >""",
    ],
    ids=["a node", "a branch"],
)
def test_a_gradient_that_is_computed_from_new_weights_belongs_to_the_next_step(made: str):
    """x = 3, 4 gives g = -3, -4, clipped W_new = 0.6, 0.8, and h = 1.8, 3.2 of its own norm."""
    model = parse(f"""
        s (float[2] x, float[2] W, float[2] V, float lr, bool here)
          => (float[2] W_new, float[2] V_new, float[2] g, float[2] h) {{
            g = Neg(x)
            s = Mul(lr, g)
            W_new = Sub(W, s)
            {made}
            t = Mul(lr, h)
            V_new = Sub(V, t)
        }}""")
    clip = GradientClipByGlobalNorm(1.0)
    clipped = clip_gradients(model, clip, gradients={"g": "W", "h": "V"})
    zero = np.zeros(2, np.float32)
    given = {"x": np.float32([3, 4]), "W": zero, "V": zero, "lr": np.float32(1)}
    out = run(clipped, given | {"here": np.array(True)})
    np.testing.assert_allclose(out["g"], [-0.6, -0.8], rtol=1e-6)  # some roundings of 2 ** -24
    h = np.array([1.8, 3.2])
    np.testing.assert_allclose(out["h"], h / np.linalg.norm(h), rtol=1e-6)


def test_each_algorithm_of_training_info_has_a_norm_of_its_own():
    model = parse(
        "s (float[2,4] x, float[4,3] W) => (float r)"
        "{ y = MatMul(x, W) r = ReduceSum <keepdims = 0> (y) }"
    )
    for name in "gh":
        graph = parser.parse_graph(f"""
            update (float lr) => (float[4,3] W_new) {{
                {name} = ai.onnx.preview.training.Gradient <xs = ["W"], y = "r"> (W)
                step = Mul(lr, {name})
                W_new = Sub(W, step)
            }}""")
        model.training_info.append(helper.make_training_info(graph, [("W", "W_new")], None, None))
    clipped = clip_gradients(model, GradientClipByGlobalNorm(1.0))
    for info in clipped.training_info:
        assert [node.op_type for node in info.algorithm.node].count("Sqrt") == 1


def test_steps_of_one_algorithm_stay_apart_though_another_has_a_single_step():
    model = parse(
        "s (float[2] q, float[2] W, float[2] V) => (float[2] r) { y = Mul(q, W) r = Mul(y, V) }"
    )
    for name, before in (("a", "A"), ("b", "x")):
        graph = parser.parse_graph(f"""
            update (float lr, float[2] x) => (float[2] A, float[2] B) {{
                g{name} = Neg(x)
                s = Mul(lr, g{name})
                A = Sub(W, s)
                h{name} = Mul({before}, x)
                t = Mul(lr, h{name})
                B = Sub(V, t)
            }}""")
        info = helper.make_training_info(graph, [("W", "A"), ("V", "B")], None, None)
        model.training_info.append(info)
    named = {"ga": "W", "ha": "V", "gb": "W", "hb": "V"}
    clipped = clip_gradients(model, GradientClipByGlobalNorm(1.0), gradients=named)
    norms = [
        [node.op_type for node in info.algorithm.node].count("Sqrt")
        for info in clipped.training_info
    ]
    assert norms == [2, 1]


def test_the_record_tells_the_scale_of_the_loss():
    model = parse("s (float[2] x) => (float[2] g) { g = Neg(x) }")
    for scale in (1.0, 2.0):
        record = read_record(clip_gradients(model, ONE, gradients=["g"], loss_scale=scale))
        assert record is not None
        assert record.loss_scale == scale


def test_each_group_carries_a_history_of_its_own():
    model = parse("s (float[2] x) => (float[2] g, float[2] h) { g = Neg(x) h = Abs(x) }")
    rules = [
        Rule(name, GradientClipByPercentile(history=5, group_name=name)) for name in ("W", "V")
    ]
    clipped = clip_gradients(model, rules, gradients={"g": "W", "h": "V"})
    record = read_record(clipped)
    assert record is not None
    assert len(record.states) == 2
    assert record.states.keys() == initial_states(clipped).keys()


def test_of_two_parameters_with_one_gradient_each_is_told_by_the_whole_way_to_its_update():
    """x = 3, 4 gives every element of a row of g: its norm is 5 * sqrt(2)."""
    model = parse("""
        s (float[1,2] x, float[2,2] W, float[2,2] V, float lr)
          => (float loss, float[2,2] W_new, float[2,2] V_new)
        <float[1,2] ones = {1, 1}> {
            sum = Add(W, V)
            y = MatMul(x, sum)
            loss = ReduceSum <keepdims = 0> (y)
            xT = Transpose <perm = [1, 0]> (x)
            g = MatMul(xT, ones)
            a = Mul(g, lr)
            s = Mul(lr, a)
            W_new = Sub(W, s)
            b = Neg(g)
            t = Mul(lr, b)
            V_new = Add(V, t)
        }""")
    clipped = clip_gradients(model, GradientClipByNorm(1.0, need_clip="W"))
    zero, g = np.zeros((2, 2), np.float32), np.array([[3, 3], [4, 4]])
    given = {"x": np.float32([[3, 4]]), "W": zero, "V": zero, "lr": np.float32(1)}
    out = run(clipped, given)
    np.testing.assert_allclose(out["W_new"], -g / 50**0.5, rtol=1e-6)  # roundings of 2 ** -24
    np.testing.assert_array_equal(out["V_new"], -g)


def test_what_one_open_parameter_can_be_answered_with_is_said_of_one():
    with pytest.raises(OnnxClipError) as refused:
        clip_gradients(asking(), ONE)
    said = str(refused.value)
    assert said.startswith("the gradient of 1 trained parameter is not known for sure")
    assert "leave it out by name" in said
    assert "accept that it is not clipped" in said


def test_a_path_that_is_given_to_strip_is_answered_by_what_takes_one():
    with pytest.raises(OnnxClipError, match=r"onnx\.load, or the command onnx-clip strip"):
        strip("model.onnx")  # type: ignore[arg-type]
