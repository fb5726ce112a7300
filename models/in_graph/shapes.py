"""Unusual ways for a gradient to enter, to leave or to come about."""

import numpy as np
from net import DATA, PARAMETERS, backward, build, descend, normal


def write() -> None:
    build(
        "optimizer_only",
        descend("W", "W_grad") + descend("b", "b_grad"),
        inputs=f"{PARAMETERS}, float[4,3] W_grad, float[3] b_grad",
        outputs="float[4,3] W_new, float[3] b_new",
        feeds={"W_grad": normal(4, 3), "b_grad": normal(3)},
        opset=15,
    )
    build(
        "output_listed_twice",
        backward("W_grad", "b_grad"),
        outputs="float loss, float[4,3] W_grad, float[3] b_grad, float[4,3] W_grad",
    )
    build(
        "outputs_meaningless_names",
        backward("t_17", "t_23", loss="t_6"),
        outputs="float t_6, float[4,3] t_17, float[3] t_23",
        opset=13,
    )
    build(
        "constant_gradient",
        """
        weighted = Mul (W, W_grad)
        loss = ReduceSum <keepdims = 0> (weighted)
        """
        + descend("W", "W_grad"),
        inputs="float[4,3] W",
        outputs="float loss, float[4,3] W_new",
        initializers={"W_grad": normal(4, 3)},
    )
    build(
        "tied_parameter",
        """
        z_0 = MatMul (x, S)
        h_0 = Tanh (z_0)
        y = MatMul (h_0, S)
        error = Sub (y, x)
        square = Mul (error, error)
        loss = ReduceMean <keepdims = 0> (square)
        size = Size (square)
        count = Cast <to = 1> (size)
        twice = Add (error, error)
        y_grad = Div (twice, count)
        S_grad_second = Gemm <transA = 1> (h_0, y_grad)
        h_0_grad = Gemm <transB = 1> (y_grad, S)
        hh = Mul (h_0, h_0)
        slope = Sub (one, hh)
        z_0_grad = Mul (h_0_grad, slope)
        S_grad_first = Gemm <transA = 1> (x, z_0_grad)
        S_grad = Add (S_grad_first, S_grad_second)
        """
        + descend("S", "S_grad"),
        inputs="float[N,4] x, float[4,4] S",
        outputs="float loss, float[4,4] S_new",
        feeds={"S": normal(4, 4)},
    )
    build(
        "sum_of_parameters",
        """
        S = Add (A, B)
        h = Tanh (S)
        P = Add (h, C)
        y = MatMul (x, P)
        error = Sub (y, t)
        square = Mul (error, error)
        loss = ReduceMean <keepdims = 0> (square)
        size = Size (square)
        count = Cast <to = 1> (size)
        twice = Add (error, error)
        y_grad = Div (twice, count)
        C_grad = Gemm <transA = 1> (x, y_grad)
        hh = Mul (h, h)
        slope = Sub (one, hh)
        S_grad = Mul (C_grad, slope)
        """
        + descend("A", "S_grad")
        + descend("B", "S_grad")
        + descend("C", "C_grad"),
        inputs=f"{DATA}, float[4,3] A, float[4,3] B, float[4,3] C",
        outputs="float loss, float[4,3] A_new, float[4,3] B_new, float[4,3] C_new",
        feeds={"A": normal(4, 3), "B": normal(4, 3), "C": normal(4, 3)},
    )
    build(
        "scalar_parameter",
        """
        y = Mul (x, s)
        error = Sub (y, t)
        square = Mul (error, error)
        loss = ReduceMean <keepdims = 0> (square)
        size = Size (square)
        count = Cast <to = 1> (size)
        twice = Add (error, error)
        y_grad = Div (twice, count)
        products = Mul (y_grad, x)
        ds = ReduceSum <keepdims = 0> (products)
        """
        + descend("s", "ds"),
        inputs="float[N,3] x, float[N,3] t, float s",
        outputs="float loss, float s_new",
        feeds={"x": normal(6, 3), "s": np.array(0.7, np.float32)},
    )
