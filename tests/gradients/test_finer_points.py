"""Cases that a single line of a finder decides: mutants of it went unnoticed without them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import MODELS

from onnx_clip_pass import GradientClipByNorm, clip_gradients
from onnx_clip_pass.gradients import survey
from onnx_clip_pass.graph import Index

G = [("g", "W")]
DESCENT = "s = Mul (lr, a)  W_new = Sub (W, s)"


@pytest.mark.parametrize("text", ["n = Mul (noise, loss)", "k = Mul (noise, loss)  n = Neg (k)"])
def test_noise_that_a_number_scales_is_no_part_of_the_gradient(find_after_backward, text):
    text += "  a = Add (g, n)  " + DESCENT
    assert find_after_backward(text, more_inputs=", float[4,3] noise") == G


def test_unscaling_in_two_steps_belongs_to_the_gradient(find, backward):
    """1024 is in the loss's seed, and 16 times 64 takes it out again."""
    scaled = backward.replace("(error, slope)", "(error, slope)  seed = Mul (y_slope, scale)")
    scaled = scaled.replace("MatMul (xT, y_slope)", "MatMul (xT, seed)")
    text = f"{scaled}  u = Mul (g, c)  a = Mul (u, d)  {DESCENT}"
    assert find(text, constants={"c": 1 / 16, "d": 1 / 64}) == [("a", "W")]
    assert find(text, constants={"c": 1 / 16, "d": 1 / 100}) == G


def test_a_term_of_the_loss_with_a_given_weight_leaves_the_other_terms_what_they_are(find):
    """The slope of mean((x @ W - t) ** 2) has the factor 2 / 24: it belongs to the gradient."""
    text = """
        y = MatMul (x, W)  e = Sub (y, t)  square = Mul (e, e)
        mean = ReduceMean <keepdims = 0> (square)
        W2 = Mul (W, W)  sum = ReduceSum <keepdims = 0> (W2)  penalty = Mul (w, sum)
        loss = Add (mean, penalty)
        xT = Transpose <perm = [1, 0]> (x)  c = MatMul (xT, e)  a = Mul (c, share)
    """
    found = find(
        text + DESCENT,
        inputs="float[8,4] x, float[8,3] t, float[4,3] W, float w",
        constants={"share": 2 / 24},
    )
    assert found == [("a", "W")]


def test_what_a_constant_node_adds_belongs_to_the_gradient_if_the_loss_has_it(find, backward):
    numbers = ", ".join(str(each / 8) for each in range(12))
    text = f"K = Constant <value = float[4,3] {{{numbers}}}> ()" + backward.replace(
        "loss = ReduceMean <keepdims = 0> (square)",
        """mean = ReduceMean <keepdims = 0> (square)
        KW = Mul (W, K)  sum = ReduceSum <keepdims = 0> (KW)  loss = Add (mean, sum)""",
    )
    assert find(f"{text}  a = Add (g, K)  {DESCENT}") == [("a", "W")]


def test_the_third_part_of_a_joined_gradient_is_found_by_where_it_begins(find_after_backward):
    """3 + 3 elements come before the 12 of W."""
    text = """
        h = ReduceSum <keepdims = 0> (y_slope, rows)  k = Sin (h)  r = Reshape (g, flat)
        f = Concat <axis = 0> (h, k, r)  n = ReduceL2 <keepdims = 0> (f)  m = Div (f, n)
        part = Slice (m, six, eighteen)  a = Reshape (part, shape)
    """
    constants = {"rows": [0], "flat": [-1], "six": [6], "eighteen": [18], "shape": [4, 3]}
    arrays = {name: np.array(value) for name, value in constants.items()}
    assert find_after_backward(text + DESCENT, constants=arrays) == G


@pytest.mark.parametrize("gradient", ["G", "W_grad"])
@pytest.mark.parametrize(
    "text",
    [
        "a = Mul (b1, e)  b = Mul (a1, W_new)  e_new = Add (a, b)",
        "a = Sub (e, W_new)  b = Mul (a1, a)  e_new = Sub (e, b)",
    ],
    ids=["shares", "difference"],
)
def test_in_an_optimizer_alone_an_average_of_new_weights_has_no_gradient(find, gradient, text):
    found = find(
        f"s = Mul (lr, {gradient})  W_new = Sub (W, s)  {text}",
        inputs=f"float[4,3] W, float[4,3] {gradient}, float[4,3] e",
        outputs="float[4,3] W_new, float[4,3] e_new",
    )
    assert found == [(gradient, "W")]


@pytest.mark.parametrize(
    "text",
    [
        "a = Clip (G, low, high)",
        """n = ReduceL2 <keepdims = 0> (G)  r = Div (max_norm, n)  m = Min (r, one)
        a = Mul (G, m)""",
    ],
    ids=["by value", "by norm"],
)
def test_before_an_optimizer_node_alone_a_clip_is_taken_for_the_gradient(find, text):
    found = find(
        text + "  W_new = com.microsoft.SGDOptimizer (lr, W, a)",
        inputs="float[4,3] W, float[4,3] G",
        outputs="float[4,3] W_new",
    )
    assert found == [("a", "W")]


def test_an_optimizer_of_the_callers_may_have_no_domain(build, backward):
    model = build(f"{backward}  W_new = Descend (W, g)")
    found = survey(Index(model), {"Descend": (0, 1)}).found
    assert [(each.gradient.name, each.gradient.parameter.name) for each in found] == G
    assert survey(Index(model)).found == []


@pytest.mark.parametrize("made", ["Identity (tensor)", "Expand (row, shape)"])
def test_a_mask_that_the_net_reads_too_is_no_part_of_the_gradient_where_it_is_added(
    find, backward, made
):
    text = f"mask = {made}  Wm = Mul (W, mask)" + backward.replace("(x, W)", "(x, Wm)")
    found = find(
        text + "gm = Mul (g, mask)  a = Add (gm, mask)  " + DESCENT,
        inputs="float[N,4] x, float[N,3] t, float[4,3] W, float[4,3] tensor, float[3] row",
        constants={"shape": np.array([4, 3])},
    )
    assert found == [("gm", "W")]


def test_a_number_that_the_loss_alone_reads_by_its_last_node_is_a_parameter(build, backward):
    """The slope of `mean * k` by k is the mean, of which the loss is made itself."""
    model = build(
        backward.replace("loss =", "mean =")
        + """gW = Mul (g, k)  sW = Mul (lr, gW)  W_new = Sub (W, sW)
        sk = Mul (lr, mean)  k_new = Sub (k, sk)  loss = Mul (mean, k)""",
        inputs="float[N,4] x, float[N,3] t, float[4,3] W, float k",
        outputs="float loss, float[4,3] W_new, float k_new",
    )
    seen = survey(Index(model))
    assert [each.gradient.name for each in seen.found] == ["gW"]
    (question,) = seen.questions
    assert question.name == "k"
    assert question.why == "the loss is computed from the same value, and would change with it"


def test_the_mean_over_a_batch_belongs_to_the_gradient_of_a_weight_that_is_used_twice(find):
    """The loss averages over 8 rows inside of one operator."""
    text = """
        p = MatMul (x, W)  q = MatMul (z, W)  y = Add (p, q)
        loss = SoftmaxCrossEntropyLoss <reduction = "mean"> (y, labels)
        shares = Softmax (y)  right = OneHot (labels, three, off_on)  e = Sub (shares, right)
        xT = Transpose <perm = [1, 0]> (x)  zT = Transpose <perm = [1, 0]> (z)
        c = MatMul (xT, e)  d = MatMul (zT, e)  both = Add (c, d)  a = Mul (both, eighth)
    """
    found = find(
        text + DESCENT,
        inputs="float[8,4] x, float[8,4] z, int64[8] labels, float[4,3] W",
        constants={"three": np.array([3]), "off_on": np.float32([0, 1]), "eighth": 1 / 8},
    )
    assert found == [("a", "W")]


def test_rows_that_are_replaced_are_asked_about():
    model = onnx.load(MODELS / "optimizers" / "embedding_rows_replaced.onnx")
    (question,) = survey(Index(model)).questions
    assert question.why == "its rows are replaced, and nothing says that none occurs twice"


def test_what_is_picked_by_its_shape_is_known_by_that_of_its_gradient(build):
    """Where the caller names a gradient and no parameter."""
    seen = []
    model = build("g = Neg (x)", inputs="float[2] x", outputs="float[2] g")
    clip = GradientClipByNorm(1.0, need_clip=lambda each: bool(seen.append(each)))
    clip_gradients(model, clip, gradients=["g"])
    assert [(each.name, each.shape, each.dtype) for each in seen] == [("g", (2,), "float32")]
