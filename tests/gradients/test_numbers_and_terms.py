"""Which numbers and terms between a contraction and an update belong to the gradient.

Every step here is of a few nodes: `loss = mean((x @ W - y) ** 2)` with 24 elements, whose slope by
W is `2 / 24 * x.T @ (x @ W - y)`. Of the values in it the slope is the gradient, wherever the
factor stands and however it is spelt; what scales the slope further is the update's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_clip_pass import GradientClipByNorm, clip_gradients_file
from onnx_clip_pass.gradients import survey
from onnx_clip_pass.graph import Index

FORWARD = """
    p = MatMul (x, W)
    e = Sub (p, y)
    q = Mul (e, e)
    mean = ReduceMean <keepdims: int = 0> (q)
    xt = Transpose <perm: ints = [1, 0]> (x)
"""
PLAIN = FORWARD + "loss = Identity (mean)\n"
SLOPE = PLAIN + "d = Mul (e, share)\n g = MatMul (xt, d)\n"
"""The backward pass, its factor before the contraction: `g` is the gradient whatever follows."""


def step(body: str, *, given: str = "", constants: str = "", outputs: str = "") -> onnx.ModelProto:
    """A step with the weight W of 5 x 3, from its nodes."""
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[8, 5] x, float[8, 3] y, float[5, 3] W, float lr{given})
          => (float loss, float[5, 3] W_new{outputs})
        <float share = {{0.083333336}}, float two = {{2.0}}, float count = {{24.0}},
         float half = {{0.5}}, float minus = {{-0.083333336}}, float ninth = {{0.111}},
         float eighth = {{0.125}}{constants}>
        {{ {body} }}""")


def found(model: onnx.ModelProto) -> dict[str, str]:
    onnx.checker.check_model(model, full_check=True)
    seen = survey(Index(model))
    assert not seen.questions
    return {each.gradient.parameter.name: each.gradient.name for each in seen.found}


def asked(model: onnx.ModelProto) -> dict[str, list[str]]:
    onnx.checker.check_model(model, full_check=True)
    seen = survey(Index(model))
    assert not seen.found
    return {each.name: [value.name for value in each.candidates] for each in seen.questions}


DESCENT = "s = Mul (g, lr)\n W_new = Sub (W, s)"


@pytest.mark.parametrize(
    "backward",
    [
        "c = MatMul (xt, e)\n g = Mul (c, share)\n" + DESCENT,
        "c = MatMul (xt, e)\n b = Mul (c, two)\n g = Div (b, count)\n" + DESCENT,
        "c = MatMul (xt, e)\n g = Mul (c, minus)\n s = Mul (g, lr)\n W_new = Add (W, s)",
        "f = Add (e, e)\n c = MatMul (xt, f)\n g = Div (c, count)\n" + DESCENT,
    ],
    ids=["in one number", "in two", "with the sign", "in part before"],
)
def test_a_constant_that_the_loss_leaves_belongs_to_the_gradient(backward: str):
    assert found(step(PLAIN + backward)) == {"W": "g"}


@pytest.mark.parametrize(
    ("update", "given"),
    [
        ("s = Mul (g, eighth)\n t = Mul (s, lr)\n W_new = Sub (W, t)", ""),
        ("r = Mul (lr, loss)\n s = Mul (g, r)\n W_new = Sub (W, s)", ""),
        ("n = ReduceL2 <keepdims: int = 0> (W)\n s = Mul (g, n)\n t = Mul (s, lr)\n"
         "W_new = Sub (W, t)", ""),
        ("z = Shape (W)\n r = Expand (lr, z)\n s = Mul (r, g)\n W_new = Sub (W, s)", ""),
        ("s = Mul (g, lr)\n t = Mul (s, warm)\n W_new = Sub (W, t)", ", float warm"),
    ],
    ids=["a rate of one over the rows", "a rate of the loss", "a norm of the weight",
         "a rate in the weight's shape", "a schedule"],
)  # fmt: skip
def test_a_number_that_the_loss_does_not_leave_is_the_updates(update: str, given: str):
    assert found(step(SLOPE + update, given=given)) == {"W": "g"}


def test_a_weight_of_the_loss_belongs_to_the_gradient():
    body = FORWARD + "loss = Mul (w, mean)\n d = Mul (e, share)\n c = MatMul (xt, d)\n"
    assert found(step(body + "g = Mul (c, w)\n" + DESCENT, given=", float w")) == {"W": "g"}


def test_the_constant_of_a_weights_own_function_belongs_to_its_gradient():
    body = SLOPE.replace("MatMul (x, W)", "MatMul (x, V)").replace("g = Mat", "c = Mat")
    body = "V = Mul (W, half)\n" + body + "g = Mul (c, half)\n"
    assert found(step(body + DESCENT)) == {"W": "g"}


def test_the_constants_inside_a_weights_own_function_belong_to_its_gradient():
    """V = softplus(2 W) / 2 has the slope sigmoid(2 W): the backward pass has both twos."""
    body = PLAIN.replace("MatMul (x, W)", "MatMul (x, V)")
    body = "k = Mul (W, two)\n u = Softplus (k)\n V = Div (u, two)\n" + body
    body += "d = Mul (e, share)\n c = MatMul (xt, d)\n b = Div (c, two)\n z = Sigmoid (k)\n"
    body += "a = Mul (b, z)\n g = Mul (a, two)\n"
    assert found(step(body + DESCENT)) == {"W": "g"}


def test_the_slope_of_a_softmax_is_taken_whole():
    """The slope of softmax of n numbers subtracts a number times what the forward pass computes."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[8, 5] x, float[8] y, float[5] a, float lr)
          => (float loss, float[5] a_new)
        <float quarter = {0.25}>
        {
            s = Softmax (a)
            p = MatMul (x, s)
            e = Sub (p, y)
            q = Mul (e, e)
            loss = ReduceMean <keepdims: int = 0> (q)
            d = Mul (e, quarter)
            c = MatMul (d, x)
            m = Mul (c, s)
            n = ReduceSum <keepdims: int = 0> (m)
            t = Mul (s, n)
            g = Sub (m, t)
            u = Mul (g, lr)
            a_new = Sub (a, u)
        }""")
    assert found(model) == {"a": "g"}


def test_a_choice_between_multiples_belongs_to_the_gradient_if_the_weight_decides():
    """PyTorch's softplus of one number has its slope by `where`, beyond a threshold as it is."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[8, 3] x, float[8, 3] y, float[1] a, float lr)
          => (float loss, float[1] a_new)
        <float share = {0.083333336}, float most = {20.0}, float one = {1.0}, int64[1] row = {1}>
        {
            is_large = Greater (a, most)
            soft = Softplus (a)
            w = Where (is_large, a, soft)
            p = Mul (x, w)
            e = Sub (p, y)
            q = Mul (e, e)
            loss = ReduceMean <keepdims: int = 0> (q)
            d = Mul (e, share)
            f = Mul (d, x)
            r = ReduceSum <keepdims: int = 0> (f)
            c = Reshape (r, row)
            z = Exp (a)
            k = Mul (c, z)
            n = Add (z, one)
            h = Div (k, n)
            g = Where (is_large, c, h)
            s = Mul (g, lr)
            a_new = Sub (a, s)
        }""")
    assert found(model) == {"a": "g"}


def test_a_value_of_two_gradients_is_none_of_them():
    """Exporters multiply by ones: `f` is the gradient of c, and `d` is what two are made of."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[5] x, float[5] y, float[5] a, float[5] c, float lr)
          => (float loss, float[5] a_new, float[5] c_new)
        <float two = {2.0}, float one = {1.0}>
        {
            p = Mul (a, x)
            q = Add (p, c)
            e = Sub (q, y)
            loss = ReduceSumSquare <keepdims: int = 0> (e)
            d = Mul (e, two)
            f = Mul (d, one)
            g = Mul (f, x)
            s = Mul (g, lr)
            a_new = Sub (a, s)
            t = Mul (f, lr)
            c_new = Sub (c, t)
        }""")
    assert found(model) == {"a": "g", "c": "f"}


def test_a_tensor_that_is_filled_with_a_constant_counts_as_the_constant():
    """As exporters fold the mean of a loss: `filled` is the share of each of the 24 elements."""
    body = PLAIN.replace("MatMul (x, W)", "MatMul (x, V)").replace("p =", "V = Mul (W, half)\n p =")
    body += "f = Mul (e, two)\n d = Mul (filled, f)\n c = MatMul (xt, d)\n g = Mul (c, half)\n"
    filled = ", ".join(24 * ["0.041666668"])
    constants = f", float[8, 3] filled = {{{filled}}}"
    assert found(step(body + DESCENT, constants=constants)) == {"W": "g"}


def test_the_slope_of_a_term_that_is_linear_in_the_weight_is_a_constant():
    body = FORWARD + "u = ReduceSum <keepdims: int = 0> (W)\n loss = Sub (mean, u)\n"
    body += "d = Mul (e, share)\n c = MatMul (xt, d)\n g = Sub (c, one)\n"
    assert found(step(body + DESCENT, constants=", float one = {1.0}")) == {"W": "g"}


@pytest.mark.parametrize(
    ("term", "end"),
    [
        ("", "c"),
        ("sq = Mul (W, W)\n u = ReduceSum <keepdims: int = 0> (sq)\n", "c"),
        ("k = Mul (W, slope)\n u = ReduceSum <keepdims: int = 0> (k)\n", "g"),
    ],
    ids=["no term", "of its squares", "of these constants"],
)
def test_constants_that_are_added_belong_to_the_gradient_if_the_loss_has_them(term: str, end: str):
    loss = f"{term} loss = Add (mean, u)\n" if term else "loss = Identity (mean)\n"
    body = FORWARD + loss + "d = Mul (e, share)\n c = MatMul (xt, d)\n g = Add (c, slope)\n"
    slope = ", ".join(str(number / 8) for number in range(15))
    constants = f", float[5, 3] slope = {{{slope}}}"
    assert found(step(body + DESCENT, constants=constants)) == {"W": end}


def test_a_number_that_is_added_is_the_updates_where_the_loss_has_no_such_term():
    body = PLAIN + "d = Mul (e, share)\n c = MatMul (xt, d)\n g = Add (c, two)\n"
    assert found(step(body + DESCENT)) == {"W": "c"}


def test_a_large_constant_that_stays_in_its_file_is_not_read(tmp_path: Path):
    body = FORWARD + "loss = Identity (mean)\n d = Mul (e, share)\n c = MatMul (xt, d)\n"
    model = step(body + "g = Sub (c, ones)\n" + DESCENT)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value *= 10  # 50 x 30: elements of tensors so large are left where they are
    ones = np.ones((50, 30), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ones, "ones"))
    onnx.save(model, tmp_path / "step.onnx")
    report = clip_gradients_file(
        tmp_path / "step.onnx", tmp_path / "clipped.onnx", GradientClipByNorm(1.0)
    )
    assert [row.gradient.parameter.name for row in report.rows] == ["W"]


def test_a_rate_that_divides_is_no_mean():
    body = SLOPE + "s = Div (g, count)\n W_new = Sub (W, s)"
    assert found(step(body)) == {"W": "g"}


def test_gradients_that_are_added_each_at_its_own_rate_are_a_question():
    """The sum is no gradient, still less the new weight, in which the weight itself is."""
    body = SLOPE + "f = Tanh (e)\n h = MatMul (xt, f)\n"
    body += "s = Mul (g, lr)\n t = Mul (h, ninth)\n r = Sub (W, s)\n W_new = Sub (r, t)"
    (candidates,) = asked(step(body)).values()
    assert {"g", "h"} <= set(candidates)


def test_a_value_that_the_loss_is_computed_from_is_not_clipped():
    """With one row in the batch the slope by a bias may be the error itself."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[3] x, float[3] y, float[3] b, float lr) => (float loss, float[3] b_new)
        <float half = {0.5}>
        {
            p = Add (x, b)
            e = Sub (p, y)
            q = ReduceSumSquare <keepdims: int = 0> (e)
            loss = Mul (q, half)
            s = Mul (e, lr)
            b_new = Sub (b, s)
        }""")
    assert asked(model) == {"b": []}


@pytest.mark.parametrize(
    ("penalty", "slope"),
    [
        ("w2 = Mul (W, W)\n n2 = ReduceSum <keepdims: int = 0> (w2, along)\n"
         "n = Sqrt (n2)\n u = ReduceSum <keepdims: int = 0> (n)\n", "term = Div (W, n)\n"),
        ("v = Sub (W, half)\n w2 = Mul (v, v)\n u0 = ReduceSum <keepdims: int = 0> (w2)\n"
         "u = Add (zero, u0)\n", "term = Add (v, v)\n"),
        ("r = Reshape (W, row)\n k = Reshape (W, column)\n n = MatMul (r, k)\n"
         "u = Reshape (n, none)\n", "term = Mul (W, two)\n"),
    ],
    ids=["of groups", "a sum that begins with 0", "a dot product"],
)  # fmt: skip
def test_the_slope_of_a_penalty_may_be_decay(penalty: str, slope: str):
    body = penalty + FORWARD + "loss = Add (mean, u)\n d = Mul (e, share)\n c = MatMul (xt, d)\n"
    body += slope + "g = Add (c, term)\n" + DESCENT
    constants = (
        ", int64[1] along = {0}, float zero = {0.0}, int64[2] row = {1, 15},"
        " int64[2] column = {15, 1}, int64[0] none = {}"
    )
    assert set(*asked(step(body, constants=constants)).values()) == {"c", "g"}


@pytest.mark.parametrize("is_initializer", [False, True])
def test_a_bias_of_one_element_is_told_from_a_rate_of_its_shape(is_initializer: bool):
    place, value = ("", "<float[1] b = {0.3}>") if is_initializer else (", float[1] b", "")
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[8, 5] x, float[8, 1] y, float[5, 1] W, float[1] lr{place})
          => (float loss, float[5, 1] W_new, float[1] b_new)
        {value}
        {{
            axes = Constant <value = int64[1] {{0}}> ()
            p0 = MatMul (x, W)
            p = Add (p0, b)
            e = Sub (p, y)
            q = Mul (e, e)
            loss = ReduceSum <keepdims: int = 0> (q)
            d = Add (e, e)
            xt = Transpose <perm: ints = [1, 0]> (x)
            gW = MatMul (xt, d)
            gb = ReduceSum <keepdims: int = 0> (d, axes)
            sW = Mul (gW, lr)
            sb = Mul (gb, lr)
            W_new = Sub (W, sW)
            b_new = Sub (b, sb)
        }}""")
    assert found(model) == {"W": "gW", "b": "gb"}


def test_a_target_network_with_two_given_shares_is_a_copy():
    """Nothing says that `keep` and `tau` add up to 1."""
    body = SLOPE + DESCENT + "\n o = Mul (T, keep)\n u = Mul (W_new, tau)\n T_new = Add (o, u)"
    body += "\n tp = MatMul (x, T)\n td = Sub (tp, y)\n watch = ReduceSum <keepdims: int = 0> (td)"
    model = step(
        body,
        given=", float[5, 3] T, float keep, float tau",
        outputs=", float[5, 3] T_new, float watch",
    )
    assert found(model) == {"W": "g"}


def test_replaced_weights_of_one_shape_are_told_apart_by_their_gradients():
    """Averages z are stepped; the weights are made of them and of nothing of their own."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        step (float[8, 4] x, float[8, 4] y, float[4, 4] U, float[4, 4] V, float[4, 4] zU,
              float[4, 4] zV, float[4, 4] aU, float[4, 4] aV, float lr)
          => (float loss, float[4, 4] n1, float[4, 4] n2, float[4, 4] n3, float[4, 4] n4,
              float[4, 4] n5, float[4, 4] n6)
        <float half = {0.5}, float tenth = {0.1}, float rest = {0.9}>
        {
            h = MatMul (x, U)
            p = MatMul (h, V)
            e = Sub (p, y)
            q = Mul (e, e)
            loss = ReduceSum <keepdims: int = 0> (q)
            d = Add (e, e)
            ht = Transpose <perm: ints = [1, 0]> (h)
            gV = MatMul (ht, d)
            Vt = Transpose <perm: ints = [1, 0]> (V)
            dh = MatMul (d, Vt)
            xt = Transpose <perm: ints = [1, 0]> (x)
            gU = MatMul (xt, dh)
            sU = Mul (gU, lr)
            sV = Mul (gV, lr)
            n1 = Sub (zU, sU)
            n2 = Sub (zV, sV)
            mU = Mul (n1, tenth)
            oU = Mul (aU, rest)
            n3 = Add (mU, oU)
            mV = Mul (n2, tenth)
            oV = Mul (aV, rest)
            n4 = Add (mV, oV)
            iU = Mul (n1, half)
            jU = Mul (n3, half)
            n5 = Add (iU, jU)
            iV = Mul (n2, half)
            jV = Mul (n4, half)
            n6 = Add (iV, jV)
        }""")
    assert found(model) == {"U": "gU", "V": "gV"}
