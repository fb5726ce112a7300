"""Write gradients.onnx: a small net with its loss and the gradients of its parameters."""

from __future__ import annotations

import sys

import onnx

GRADIENTS = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,8] x, float[N,4] t, float[8,16] W1, float[16,4] W2)
        => (float loss, float[8,16] W1_grad, float[16,4] W2_grad) {
        z = MatMul(x, W1)
        h = Tanh(z)
        y = MatMul(h, W2)
        error = Sub(y, t)
        square = Mul(error, error)
        loss = ReduceMean <keepdims = 0> (square)

        count = Size(error)
        n = Cast <to = 1> (count)
        two = Constant <value = float {2.0}> ()
        twice = Mul(two, error)
        y_slope = Div(twice, n)
        hT = Transpose <perm = [1, 0]> (h)
        W2_grad = MatMul(hT, y_slope)
        W2T = Transpose <perm = [1, 0]> (W2)
        h_slope = MatMul(y_slope, W2T)
        hh = Mul(h, h)
        one = Constant <value = float {1.0}> ()
        tanh_slope = Sub(one, hh)
        z_slope = Mul(h_slope, tanh_slope)
        xT = Transpose <perm = [1, 0]> (x)
        W1_grad = MatMul(xT, z_slope)
    }"""

if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "gradients.onnx"
    onnx.save(onnx.parser.parse_model(GRADIENTS), path)
