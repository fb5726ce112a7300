"""Invariant 2: what computes another gradient reads the raw one; everything else the clipped one.

In each model here `g` is [3, 4] (norm 5, so [0.6, 0.8] when clipped at 1) and another gradient `h`
is computed from it. `h` is clipped at 1 as well; its direction, or its raw size, tells which `g`
it was computed from.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import run
from onnx import parser

from onnx_clip_pass import GradientClipByNorm, clip_gradients, strip

ONE = GradientClipByNorm(1.0)
HEADER = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
RAW, CLIPPED = "clip/g/raw", "g"


def clip(text: str, gradients: list[str] | None) -> onnx.ModelProto:
    """Parse and clip, having made sure that the result is valid and can be undone."""
    model = parser.parse_model(HEADER + text)
    onnx.checker.check_model(model)
    clipped = clip_gradients(model, ONE, gradients=gradients)
    onnx.checker.check_model(clipped)
    assert strip(clipped) == model
    return clipped


def reads(body: onnx.GraphProto | onnx.FunctionProto, output: str) -> list[str]:
    """The inputs of the node that makes `output` (or its raw value)."""
    names = (output, f"clip/{output}/raw")
    return next(list(node.input) for node in body.node if set(names) & set(node.output))


def body_of(graph: onnx.GraphProto | onnx.FunctionProto, op: str, at: int = 0) -> onnx.GraphProto:
    node = next(node for node in graph.node if node.op_type == op)
    return [attr.g for attr in node.attribute if attr.HasField("g")][at]


def test_a_reader_that_leads_to_no_gradient_gets_the_clipped_value():
    clipped = clip(
        "s (float[2] x) => (float[2] g, float[2] twice) { g = Neg(x) twice = Add(g, g) }", ["g"]
    )
    assert reads(clipped.graph, "twice") == [CLIPPED, CLIPPED]


def test_a_gradient_computed_from_another_is_computed_from_its_raw_value():
    clipped = clip(
        """
        s (float[2] x) => (float[2] g, float[2] h, float[2] sum) <float[2] s = {2, 1}> {
          g = Identity(x)
          h = Mul(g, s)
          sum = Add(g, h)
        }""",
        ["g", "h"],
    )
    assert reads(clipped.graph, "h") == [RAW, "s"]
    assert reads(clipped.graph, "sum") == ["g", "h"]
    out = run(clipped, {"x": np.array([3, 4], np.float32)})  # raw h = [6, 4]
    np.testing.assert_allclose(out["g"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(out["h"], np.array([6, 4]) / 52**0.5, rtol=1e-6)
    np.testing.assert_allclose(out["sum"], out["g"] + out["h"], rtol=1e-6)


def test_a_way_through_identity_to_another_gradient_is_raw():
    clipped = clip(
        """
        s (float[2] x) => (float[2] h, float[2] report) {
          g = Neg(x)
          same = Identity(g)
          h = Neg(same)
          report = Identity(g)
        }""",
        ["g", "h"],
    )
    assert reads(clipped.graph, "same") == [RAW]
    assert reads(clipped.graph, "report") == [CLIPPED]


def test_the_gradient_of_two_parameters_feeds_the_backward_pass_raw_and_both_updates_clipped():
    clipped = clip(
        """
        step (float[2] A, float[2] B, float[2] W, float[2] x, float lr)
             => (float[2] A_new, float[2] B_new, float[2] W_new) {
          y = Mul(x, W)
          sum = Add(A, B)
          out = Add(sum, y)
          g = Tanh(out)
          h = Mul(g, x)
          a_move = Mul(g, lr)
          b_move = Mul(g, lr)
          w_move = Mul(h, lr)
          A_new = Sub(A, a_move)
          B_new = Sub(B, b_move)
          W_new = Sub(W, w_move)
        }""",
        None,
    )
    assert reads(clipped.graph, "h") == [RAW, "x"]
    assert reads(clipped.graph, "a_move") == reads(clipped.graph, "b_move") == [CLIPPED, "lr"]
    assert reads(clipped.graph, "w_move") == ["h", "lr"]


def test_an_update_ends_the_backward_pass_of_an_unrolled_step():
    clipped = clip(
        """
        steps (float[2] W, float[2] x, float lr) => (float[2] W_2) {
          y_1 = Mul(x, W)
          g = Exp(y_1)
          move_1 = Mul(g, lr)
          W_1 = Sub(W, move_1)
          y_2 = Mul(x, W_1)
          h = Exp(y_2)
          move_2 = Mul(h, lr)
          W_2 = Sub(W_1, move_2)
        }""",
        ["g", "h"],
    )
    assert reads(clipped.graph, "move_1") == [CLIPPED, "lr"]
    assert reads(clipped.graph, "move_2") == ["h", "lr"]


def test_a_branch_that_captures_a_gradient_on_the_way_to_another_reads_it_raw():
    clipped = clip(
        """
        s (float[2] x, bool yes) => (float[2] g, float[2] h, float[2] report) {
          g = Neg(x)
          h = If (yes) <then_branch = a () => (float[2] t) { t = Neg(g) },
                        else_branch = b () => (float[2] e) { e = Exp(x) }>
          report = If (yes) <then_branch = c () => (float[2] t) { t = Neg(g) },
                             else_branch = d () => (float[2] e) { e = Exp(x) }>
        }""",
        ["g", "h"],
    )
    first, second = (node for node in clipped.graph.node if node.op_type == "If")
    branch = {attr.name: attr.g for attr in first.attribute}["then_branch"]
    assert reads(branch, "t") == [RAW]
    branch = {attr.name: attr.g for attr in second.attribute}["then_branch"]
    assert reads(branch, "t") == [CLIPPED]


def test_a_gradient_inside_a_branch_that_leads_out_to_another_gradient_leaves_raw():
    clipped = clip(
        """
        s (float[2] x, bool yes) => (float[2] h) {
          out, norm = If (yes) <
            then_branch = a () => (float[2] g, float n) {
              g = Neg(x) n = ReduceL2 <keepdims = 0> (g) },
            else_branch = b () => (float[2] e, float m) {
              e = Exp(x) m = ReduceL2 <keepdims = 0> (e) }>
          h = Neg(out)
        }""",
        ["g", "h"],
    )
    branch = body_of(clipped.graph, "If")
    assert [value.name for value in branch.output] == [RAW, "n"]
    assert reads(branch, "n") == [CLIPPED]
    out = run(clipped, {"x": np.array([3, 4], np.float32), "yes": np.array(True)})
    np.testing.assert_allclose(out["h"], [0.6, 0.8], rtol=1e-6)


def test_a_branch_nested_in_a_branch_hands_a_gradient_out_raw_to_the_one_outside():
    clipped = clip(
        """
        s (float[2] x, bool yes) => (float[2] h, float[2] copy) {
          out, copy = If (yes) <
            then_branch = a () => (float[2] i, float[2] j) {
              i, j = If (yes) <
                then_branch = c () => (float[2] g, float[2] u) { g = Neg(x) u = Identity(g) },
                else_branch = d () => (float[2] k, float[2] v) { k = Exp(x) v = Exp(x) }>
            },
            else_branch = b () => (float[2] e, float[2] f) { e = Exp(x) f = Exp(x) }>
          h = Neg(out)
        }""",
        ["g", "h"],
    )
    innermost = body_of(body_of(clipped.graph, "If"), "If")
    assert innermost.output[0].name == RAW
    assert reads(innermost, "u") == [CLIPPED]


LOOP = """
    steps (float[2] W, float[2] x, float lr, int64 n, bool go) => (float[2] W_end, float[N, 2] gs) {
      W_end, gs = Loop (n, go, W) <body = step (int64 i, bool c, float[2] w)
                                   => (bool c_out, float[2] w_new, float[2] g) {
        c_out = Identity(c)
        y = Mul(w, x)
        g = Cosh(y)
        move = Mul(g, lr)
        w_new = Sub(w, move)
      }>
    }"""


def test_a_loop_body_clips_every_step_and_collects_clipped_gradients():
    clipped = clip(LOOP, ["g"])
    body = body_of(clipped.graph, "Loop")
    assert [value.name for value in body.output] == ["c_out", "w_new", "g"]
    assert reads(body, "move") == [CLIPPED, "lr"]
    zero = np.zeros(2, np.float32)
    feeds = {"W": zero, "x": zero, "lr": np.float32(1), "n": np.int64(2), "go": np.array(True)}
    out = run(clipped, feeds)  # g = cosh(0) = [1, 1], norm sqrt(2)
    np.testing.assert_allclose(out["gs"], np.full((2, 2), 0.5**0.5), rtol=1e-6)
    np.testing.assert_allclose(out["W_end"], np.full(2, -2 * 0.5**0.5), rtol=1e-6)


def test_a_gradient_carried_through_a_loop_into_the_next_ones_is_carried_raw():
    clipped = clip(
        """
        s (float[2] x, int64 n, bool go) => (float[2] end, float[N, 2] reported) {
          end, reported = Loop (n, go, x) <body = back (int64 i, bool c, float[2] d)
                                => (bool c_out, float[2] g, float[2] copy) {
            c_out = Identity(c)
            g = Add(d, d)
            copy = Identity(g)
          }>
        }""",
        ["g"],
    )
    body = body_of(clipped.graph, "Loop")
    assert [value.name for value in body.output] == ["c_out", RAW, "copy"]
    assert reads(body, "copy") == [CLIPPED]


def test_a_scan_body_hands_its_gradients_on_raw_only_to_the_next_gradient():
    clipped = clip(
        """
        s (float[2] start, float[3, 2] xs) => (float[2] h, float[3, 2] gs) {
          last, gs = Scan <num_scan_inputs = 1, body = back (float[2] d, float[2] x)
                           => (float[2] d_new, float[2] g) {
            g = Neg(x)
            d_new = Add(d, g)
          }> (start, xs)
          h = Neg(last)
        }""",
        ["g", "h"],
    )
    body = body_of(clipped.graph, "Scan")
    assert reads(body, "d_new") == ["d", RAW]
    assert body.output[1].name == CLIPPED


def test_a_function_that_computes_another_gradient_is_called_with_the_raw_value():
    clipped = clip(
        """
        s (float[2] x) => (float[2] h, float[2] report) {
          g = Neg(x)
          h = local.twice(g)
          report = local.twice(g)
        }
        <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }""",
        ["g", "h"],
    )
    assert reads(clipped.graph, "h") == [RAW]
    assert reads(clipped.graph, "report") == [CLIPPED]
    assert reads(clipped.functions[0], "b") == ["a", "a"]


def test_a_function_hands_out_the_raw_value_where_its_caller_computes_another_gradient():
    clipped = clip(
        """
        s (float[2] x) => (float[2] h, float norm) { out, norm = local.back(x) h = Neg(out) }
        <domain: "local", opset_import: ["" : 17]>
        back (a) => (g, n) { g = Neg(a) n = ReduceL2 <keepdims = 0> (g) }""",
        ["g", "h"],
    )
    function = clipped.functions[0]
    assert list(function.output) == [RAW, "n"]
    assert reads(function, "n") == [CLIPPED]


@pytest.mark.parametrize(
    "attributes",
    [{"xs": ["W"], "y": "g"}, {"xs": ["g"], "y": "loss"}, {"xs": ["W"], "zs": ["g"], "y": "loss"}],
    ids=["y", "xs", "zs"],
)
@pytest.mark.parametrize("gradients", [["g"], ["g", "h"]], ids=["h is none", "h is one too"])
def test_a_gradient_node_that_names_a_gradient_names_its_raw_value(
    attributes: dict[str, object], gradients: list[str]
):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.preview.training" : 1]>'
        "s (float[2] W) => (float[2] h, float[2] g) { g = Exp(W) loss = ReduceSum(g) }"
    )
    model.graph.node.append(
        onnx.helper.make_node(
            "Gradient", [], ["h"], domain="ai.onnx.preview.training", **attributes
        )
    )
    clipped = clip_gradients(model, ONE, gradients=gradients)
    node = next(node for node in clipped.graph.node if node.op_type == "Gradient")
    told = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    expected = onnx.NodeProto()
    expected.CopyFrom(model.graph.node[2])
    for attr in expected.attribute:
        if attr.s == b"g":
            attr.s = RAW.encode()
        attr.strings[:] = [RAW.encode() if text == b"g" else text for text in attr.strings]
    assert told == {a.name: onnx.helper.get_attribute_value(a) for a in expected.attribute}
    assert strip(clipped) == model
