"""Training steps of which one parameter's gradient is a question, as several tests need them."""

from __future__ import annotations

from onnx import ModelProto, parser

__all__ = ["ASKED", "asking", "unknown_optimizer"]

ASKED = (
    "'W', whose new value is W_new = Sub(W, step): a term in it alone is decay, or the slope "
    "of a penalty in the loss; its gradient may be "
)


def asking(body: str = "", *, outputs: str = "", weight: float = 1.0) -> ModelProto:
    """A net x @ W + b whose loss has the penalty W·W / 2, updated by SGD.

    Args:
        body: nodes behind it.
        outputs: further ones.
        weight: of the penalty in the update: 1 is what the loss has.
    """
    return parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : 17]>
        s (float[2,4] x, float[2,3] t, float[4,3] W, float[3] b)
        => (float loss, float[4,3] W_new, float[3] b_new{outputs})
        <float half = {{0.5}}, float lr = {{0.1}}, float slope = {{0.33333334}},
         float weight = {{{weight}}}> {{
          z = MatMul(x, W)
          y = Add(z, b)
          error = Sub(y, t)
          square = Mul(error, error)
          mean = ReduceMean <keepdims = 0> (square)
          W2 = Mul(W, W)
          sum = ReduceSum <keepdims = 0> (W2)
          penalty = Mul(sum, half)
          loss = Add(mean, penalty)
          dy = Mul(error, slope)
          xT = Transpose <perm = [1, 0]> (x)
          g = MatMul(xT, dy)
          decay = Mul(W, weight)
          whole = Add(g, decay)
          step = Mul(whole, lr)
          W_new = Sub(W, step)
          axes = Constant <value_ints = [0]> ()
          h = ReduceSum <keepdims = 0> (dy, axes)
          b_step = Mul(h, lr)
          b_new = Sub(b, b_step)
          {body}
        }}"""
    )


def unknown_optimizer(operands: str = "W, g, m") -> ModelProto:
    """A net x @ W whose update is an operator of a vendor's, with two operands of W's shape."""
    return parser.parse_model(
        f"""
        <ir_version: 8, opset_import: ["" : 17, "vendor" : 1]>
        s (float[2,4] x, float[2,3] t, float[4,3] W)
        => (float loss, float[4,3] W_new)
        <float slope = {{0.33333334}}, float two = {{2.0}}> {{
          y = MatMul(x, W)
          error = Sub(y, t)
          square = Mul(error, error)
          loss = ReduceMean <keepdims = 0> (square)
          dy = Mul(error, slope)
          xT = Transpose <perm = [1, 0]> (x)
          g = MatMul(xT, dy)
          bent = Sign(g)
          m = Mul(bent, two)
          W_new = vendor.SGD({operands})
        }}"""
    )
