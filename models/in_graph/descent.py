"""Plain gradient descent and what is done to the gradient before it."""

import numpy as np
from net import DATA, PARAMETERS, B, T, W, X, backward, build, descend


def write() -> None:
    plain = descend("W", "W_grad") + descend("b", "b_grad")
    build("sgd", backward("W_grad", "b_grad") + plain)
    build(
        "sgd_parameters_as_initializers",
        backward("W_grad", "b_grad") + plain,
        inputs=DATA,
        initializers={"W": W, "b": B},
        opset=21,
    )
    build(
        "sgd_weight_decay",
        backward("grad_W", "grad_b")
        + 'decay = Mul (weight_decay, W)  "total" = Add (grad_W, decay)'
        + descend("W", "total")
        + descend("b", "grad_b"),
        initializers={"weight_decay": 0.01},
    )
    build(
        "micro_batches",
        backward("W_grad_0", "b_grad_0", x="x_0", t="t_0", loss="loss_0", tag="_0")
        + backward("W_grad_1", "b_grad_1", x="x_1", t="t_1", loss="loss_1", tag="_1")
        + "".join(
            f"{p}_grad_sum = Add ({p}_grad_0, {p}_grad_1)  {p}_grad = Mul ({p}_grad_sum, half)"
            for p in "Wb"
        )
        + "loss_sum = Add (loss_0, loss_1)  loss = Mul (loss_sum, half)"
        + plain,
        inputs=f"float[N,4] x_0, float[N,3] t_0, float[N,4] x_1, float[N,3] t_1, {PARAMETERS}",
        feeds={"x_0": X[:3], "t_0": T[:3], "x_1": X[3:], "t_1": T[3:]},
        initializers={"half": 0.5},
    )
    build(
        "loss_scaling",
        backward("W_grad_scaled", "b_grad_scaled", seed="loss_scale")
        + "W_grad = Div (W_grad_scaled, loss_scale)  b_grad = Div (b_grad_scaled, loss_scale)"
        + plain,
        initializers={"loss_scale": 1024.0},
    )
    build(
        "global_norm_clip",
        backward("W_grad", "b_grad")
        + """
        W_squares = ReduceSumSquare <keepdims = 0> (W_grad)
        b_squares = ReduceSumSquare <keepdims = 0> (b_grad)
        squares = Add (W_squares, b_squares)
        norm = Sqrt (squares)
        ratio = Div (max_norm, norm)
        factor = Min (ratio, one)
        W_grad_clipped = Mul (W_grad, factor)
        b_grad_clipped = Mul (b_grad, factor)
        """
        + descend("W", "W_grad_clipped")
        + descend("b", "b_grad_clipped"),
        initializers={"max_norm": 0.05},
    )
    build(
        "value_clip",
        backward("W_grad", "b_grad")
        + "W_bounded = Clip (W_grad, low, high)  b_bounded = Clip (b_grad, low, high)"
        + descend("W", "W_bounded")
        + descend("b", "b_bounded"),
        initializers={"low": -0.05, "high": 0.05},
    )
    build(
        "two_steps",
        backward("W_grad_0", "b_grad_0", loss="loss_0", tag="_0")
        + """
        W_step_0 = Mul (lr, W_grad_0)
        W_1 = Sub (W, W_step_0)
        b_step_0 = Mul (lr, b_grad_0)
        b_1 = Sub (b, b_step_0)
        """
        + backward("W_grad_1", "b_grad_1", w="W_1", b="b_1", tag="_1")
        + descend("W_1", "W_grad_1", "W_new")
        + descend("b_1", "b_grad_1", "b_new"),
    )
    build(
        "mixed_precision",
        """
        x16 = Cast <to = 10> (x)
        W16 = Cast <to = 10> (W)
        h = MatMul (x16, W16)
        t16 = Cast <to = 10> (t)
        error = Sub (h, t16)
        error32 = Cast <to = 1> (error)
        square = Mul (error32, error32)
        loss = ReduceMean <keepdims = 0> (square)
        h_grad = Mul (error, scale16)
        W16_grad = Gemm <transA = 1> (x16, h_grad)
        W_grad_scaled = Cast <to = 1> (W16_grad)
        W_grad = Div (W_grad_scaled, loss_scale)
        """
        + descend("W", "W_grad"),
        inputs=f"{DATA}, float[4,3] W",
        outputs="float loss, float[4,3] W_new",
        # The loss is the mean over 18 elements and scaled by 36, so its slope is 4 * error.
        initializers={"scale16": np.array(4, np.float16), "loss_scale": 36.0},
    )
