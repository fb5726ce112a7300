"""Graphs whose parameters constant folding has replaced: what is updated is not what is read."""

from __future__ import annotations

import pytest
from onnx import parser

from onnx_clip_pass import GradientClipByNorm, OnnxClipError, clip_gradients, find_gradients
from onnx_clip_pass.rewrite import clip_in_place

ONE = GradientClipByNorm(1.0)
ONES = "{1.0, 1.0, 1.0, 1.0, 1.0, 1.0}"

# The forward pass reads Wt, a transposed copy of W; the backward pass reads V, and its copy Vt.
FOLDED = """
    <ir_version: 10, opset_import: ["" : 18]>
    step (float[N,2] x, float[N,2] t) => (float loss, float[3,2] W_new, float[2,3] V_new)
    <float[3,2] W = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0},
     float[2,3] Wt = {1.0, 3.0, 5.0, 2.0, 4.0, 6.0},
     float[2,3] V = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0},
     float[3,2] Vt = {1.0, 4.0, 2.0, 5.0, 3.0, 6.0},
     float lr = {0.1}, float two = {2.0}> {
        h = MatMul(x, Wt)
        y = MatMul(h, Vt)
        e = Sub(y, t)
        s = Mul(e, e)
        loss = ReduceSum <keepdims = 0> (s)
        d = Mul(e, two)
        dt = Transpose <perm = [1, 0]> (d)
        g_v = MatMul(dt, h)
        b = MatMul(d, V)
        bt = Transpose <perm = [1, 0]> (b)
        g_w = MatMul(bt, x)
        step_v = Mul(g_v, lr)
        V_new = Sub(V, step_v)
        step_w = Mul(g_w, lr)
        W_new = Sub(W, step_w)
    }"""


def test_constants_that_are_trained_and_read_are_parameters():
    """Unfolded, the same graph: its weights are initializers, as in any export of a module."""
    text = FOLDED.replace("MatMul(x, Wt)", "Gemm <transB = 1> (x, W)")
    text = text.replace("MatMul(h, Vt)", "Gemm <transB = 1> (h, V)")
    found = {g.parameter.name: g.name for g in find_gradients(parser.parse_model(text))}
    assert found == {"W": "g_w", "V": "g_v"}


def test_constants_that_are_updated_and_not_read_are_refused_with_the_options_of_the_export():
    with pytest.raises(OnnxClipError) as caught:
        clip_gradients(parser.parse_model(FOLDED), ONE)
    said = str(caught.value)
    assert "2 trained parameters" in said
    for name in ("'W'", "'V'"):
        (line,) = [line for line in said.splitlines() if line.startswith(f"  - {name}")]
        assert "the forward pass does not read this constant" in line
        for option in ("input_names", "optimize=False", "do_constant_folding=False"):
            assert option in line


@pytest.mark.parametrize(
    ("lines", "result"),
    [
        ("keep = Mul(M, two)\nM_new = Add(keep, g_w)", "M_new"),
        ("far = Sub(g_w, M)\npart = Mul(far, lr)\nM_new = Add(M, part)", "M_new"),
    ],
    ids=["a moment that its weight takes", "an average"],
)
def test_a_state_beside_a_parameter_is_not_taken_for_a_folded_one(lines: str, result: str):
    text = FOLDED.replace("MatMul(x, Wt)", "Gemm <transB = 1> (x, W)")
    text = text.replace("MatMul(h, Vt)", "Gemm <transB = 1> (h, V)")
    text = text.replace("float[2,3] V_new)", f"float[2,3] V_new, float[3,2] {result})")
    text = text.replace("<float[3,2] W =", f"<float[3,2] M = {ONES}, float[3,2] W =")
    text = text.replace("step_w = Mul(g_w, lr)", f"{lines}\nstep_w = Mul({result}, lr)")
    found = {g.parameter.name for g in find_gradients(parser.parse_model(text))}
    assert found == {"W", "V"}
    clip_gradients(parser.parse_model(text), ONE)


GRADIENTS = """
    <ir_version: 10, opset_import: ["" : 18]>
    gradients (float[N,2] x, float[N,3] t) => (float loss, float[3,2] W_grad, float[3] b_grad)
    <float[2,3] Wt = {1.0, 3.0, 5.0, 2.0, 4.0, 6.0}, float[3] c = {1.0, 2.0, 3.0},
     float two = {2.0}, int64[1] rows = {0}> {
        h = MatMul(x, Wt)
        y = Add(h, c)
        e = Sub(y, t)
        s = Mul(e, e)
        loss = ReduceSum <keepdims = 0> (s)
        d = Mul(e, two)
        dt = Transpose <perm = [1, 0]> (d)
        W_grad = MatMul(dt, x)
        b_grad = ReduceSum <keepdims = 0> (d, rows)
    }"""


def test_gradients_named_after_parameters_that_are_gone_are_refused_with_the_options():
    model = parser.parse_model(GRADIENTS)
    with pytest.raises(OnnxClipError, match="outputs are called so: 'W_grad', 'b_grad'") as caught:
        clip_gradients(model, ONE)
    for option in ("input_names", "optimize=False", "do_constant_folding=False", "gradients="):
        assert option in str(caught.value)
    assert clip_gradients(model, ONE, gradients=["W_grad", "b_grad"]) != model


@pytest.mark.parametrize("name", ["g", "E_grad"])
def test_a_gradient_that_begins_with_zeros_is_not_taken_for_a_folded_parameter(name: str):
    """That of an embedding is added up in a constant of zeros, and here to another one."""
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        step (float[3,2] E, int64[N,1] i, float[N,2] t) => (float loss, float[3,2] {name})
        <float[3,2] zeros = {{0.0, 0.0, 0.0, 0.0, 0.0, 0.0}}, float two = {{2.0}}> {{
            y = GatherND(E, i)
            e = Sub(y, t)
            s = Mul(e, e)
            loss = ReduceSum <keepdims = 0> (s)
            d = Mul(e, two)
            {name} = ScatterND <reduction = "add"> (zeros, i, d)
        }}""")
    found = {g.parameter.name: g.name for g in find_gradients(model)}
    assert found == ({"E": "E_grad"} if name == "E_grad" else {})
    if found:
        clip_gradients(model, ONE)
    else:
        with pytest.raises(OnnxClipError, match="no gradients found; if there are some"):
            clip_gradients(model, ONE)


COUNTED = """
    <ir_version: 10, opset_import: ["" : 18]>
    step (float[N,2] x, float[N,3] t) => (float loss, float[2,3] W_new, float[3,3] seen)
    <float[2,3] W = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0},
     float[3,3] counts = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0},
     float lr = {0.1}, float two = {2.0}> {
        y = MatMul(x, W)
        e = Sub(y, t)
        s = Mul(e, e)
        loss = ReduceSum <keepdims = 0> (s)
        d = Mul(e, two)
        xt = Transpose <perm = [1, 0]> (x)
        g = MatMul(xt, d)
        step_w = Mul(g, lr)
        W_new = Sub(W, step_w)
        p = Softmax(y)
        q = Transpose <perm = [1, 0]> (t)
        m = MatMul(q, p)
        seen = Add(counts, m)
    }"""


def test_a_constant_that_counts_is_no_folded_parameter():
    """The forward pass reads no other constant of its sizes that could be its copy."""
    (found,) = clip_in_place(parser.parse_model(COUNTED), ONE).clipped
    assert (found.gradient.parameter.name, found.gradient.name) == ("W", "g")
