"""Make training steps with the optimizer in the graph, for the stock ONNX Runtime.

Needs onnx and numpy. The net is nearly always ``tanh(x @ W + b)`` with the mean squared error
against ``t``; its backward pass is written by hand. The models differ in what lies between the
gradients and the parameters, and in how the values are called.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

HERE = Path(__file__).parent
RNG = np.random.default_rng(11)
DATA = "float[N,4] x, float[N,3] t"
PARAMETERS = "float[4,3] W, float[3] b"
UPDATED = "float loss, float[4,3] W_new, float[3] b_new"
CONSTANTS = {"one": 1.0, "seed": 1.0, "lr": 0.1}


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


X, T, W, B = normal(6, 4), normal(6, 3), normal(4, 3), normal(3)


def backward(
    grad_w: str,
    grad_b: str,
    *,
    x: str = "x",
    t: str = "t",
    w: str = "W",
    b: str = "b",
    loss: str = "loss",
    seed: str = "seed",
    tag: str = "",
) -> str:
    """Return the forward and backward pass; ``tag`` keeps the names of several passes apart."""
    return f"""
        z{tag} = Gemm ({x}, {w}, {b})
        h{tag} = Tanh (z{tag})
        error{tag} = Sub (h{tag}, {t})
        square{tag} = Mul (error{tag}, error{tag})
        {loss} = ReduceMean <keepdims = 0> (square{tag})
        size{tag} = Size (square{tag})
        count{tag} = Cast <to = 1> (size{tag})
        twice{tag} = Add (error{tag}, error{tag})
        mean{tag} = Div (twice{tag}, count{tag})
        h_grad{tag} = Mul (mean{tag}, {seed})
        hh{tag} = Mul (h{tag}, h{tag})
        slope{tag} = Sub (one, hh{tag})
        z_grad{tag} = Mul (h_grad{tag}, slope{tag})
        "{grad_w}" = Gemm <transA = 1> ({x}, z_grad{tag})
        "{grad_b}" = ReduceSum <keepdims = 0> (z_grad{tag}, rows)
    """


def descend(parameter: str, direction: str, updated: str = "", rate: str = "lr") -> str:
    """Return ``updated = parameter - rate * direction``."""
    return f"""
        "{parameter}_step" = Mul ({rate}, "{direction}")
        "{updated or parameter + "_new"}" = Sub ({parameter}, "{parameter}_step")
    """


def build(
    name: str,
    body: str,
    *,
    outputs: str = UPDATED,
    inputs: str = f"{DATA}, {PARAMETERS}",
    feeds: Mapping[str, np.ndarray] | None = None,
    initializers: Mapping[str, np.ndarray | float] | None = None,
    opset: int = 17,
) -> None:
    """Parse the model, add the constants it uses, save it and its feeds."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> {name} ({inputs}) => ({outputs}) {{{body}}}'
    )
    used = {source for node in model.graph.node for source in node.input}
    constants = CONSTANTS | {"rows": np.array([0])} | dict(initializers or {})
    for key, value in constants.items():
        if key in used:
            array = np.array(value, np.float32) if isinstance(value, float) else value
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    known = {"x": X, "t": T, "W": W, "b": B} | dict(feeds or {})
    needed = {value.name: known[value.name] for value in model.graph.input}
    onnx.save(model, HERE / f"{name}.onnx")
    np.savez(HERE / f"{name}.inputs.npz", **needed)


def descent() -> None:
    """Plain gradient descent and what is done to the gradient before it."""
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


def adaptive() -> None:
    """Optimizers with a state."""
    state = ", float[4,3] W_v, float[3] b_v"
    state_new = ", float[4,3] W_v_new, float[3] b_v_new"
    zeros = {"W_v": np.zeros_like(W), "b_v": np.zeros_like(B)}

    def momentum(p: str, gradient: str) -> str:
        return f'{p}_kept = Mul (mu, {p}_v)  {p}_v_new = Add ({p}_kept, "{gradient}")'

    build(
        "momentum",
        backward("W/grad", "b/grad")
        + "".join(momentum(p, f"{p}/grad") + descend(p, f"{p}_v_new") for p in "Wb"),
        inputs=f"{DATA}, {PARAMETERS}{state}",
        outputs=UPDATED + state_new,
        initializers={"mu": 0.9},
        feeds=zeros,
    )
    build(
        "nesterov",
        backward("W.grad", "b.grad")
        + "".join(
            momentum(p, f"{p}.grad")
            + f'{p}_far = Mul (mu, {p}_v_new)  {p}_ahead = Add ("{p}.grad", {p}_far)'
            + descend(p, f"{p}_ahead")
            for p in "Wb"
        ),
        inputs=f"{DATA}, {PARAMETERS}{state}",
        outputs=UPDATED + state_new,
        initializers={"mu": 0.9},
        feeds={"W_v": normal(4, 3), "b_v": normal(3)},
        opset=18,
    )

    def moments(p: str, gradient: str) -> str:
        return f"""
            {p}_m_kept = Mul (beta1, {p}_m)
            {p}_m_fresh = Mul (rest1, "{gradient}")
            {p}_m_new = Add ({p}_m_kept, {p}_m_fresh)
            {p}_squared = Mul ("{gradient}", "{gradient}")
            {p}_v_kept = Mul (beta2, {p}_v)
            {p}_v_fresh = Mul (rest2, {p}_squared)
            {p}_v_new = Add ({p}_v_kept, {p}_v_fresh)
            {p}_m_hat = Div ({p}_m_new, correction1)
            {p}_v_hat = Div ({p}_v_new, correction2)
            {p}_root = Sqrt ({p}_v_hat)
            {p}_guarded = Add ({p}_root, epsilon)
            {p}_direction = Div ({p}_m_hat, {p}_guarded)
        """

    correct = """
        power1 = Pow (beta1, step)  correction1 = Sub (one, power1)
        power2 = Pow (beta2, step)  correction2 = Sub (one, power2)
    """
    for name, style, decoupled, opset in (
        ("adam", "{}@GRAD", False, 17),
        ("adamw", "d_{}", True, 20),
    ):
        body = backward(style.format("W"), style.format("b")) + correct
        for p in "Wb":
            body += moments(p, style.format(p))
            if decoupled:
                body += f"""
                    {p}_decay = Mul (weight_decay, {p})
                    {p}_both = Add ({p}_direction, {p}_decay)
                """
            body += descend(p, f"{p}_both" if decoupled else f"{p}_direction")
        build(
            name,
            body,
            inputs=f"{DATA}, {PARAMETERS}, float[4,3] W_m, float[3] b_m{state}, float step",
            outputs=f"{UPDATED}, float[4,3] W_m_new, float[3] b_m_new{state_new}",
            initializers={
                "beta1": 0.9,
                "rest1": 0.1,
                "beta2": 0.999,
                "rest2": 0.001,
                "epsilon": 1e-8,
                "weight_decay": 0.01,
                "lr": 0.001,
            },
            feeds={
                "W_m": np.zeros_like(W),
                "b_m": np.zeros_like(B),
                "step": np.array(1, np.float32),
                **zeros,
            },
            opset=opset,
        )
    rms = ""
    for p, gradient in (("W", "t_17"), ("b", "t_23")):
        rms += f"""
            {p}_squared = Mul ({gradient}, {gradient})
            {p}_v_kept = Mul (rho, {p}_v)
            {p}_v_fresh = Mul (rest, {p}_squared)
            {p}_v_new = Add ({p}_v_kept, {p}_v_fresh)
            {p}_root = Sqrt ({p}_v_new)
            {p}_guarded = Add ({p}_root, epsilon)
            {p}_direction = Div ({gradient}, {p}_guarded)
        """ + descend(p, f"{p}_direction")
    build(
        "rmsprop_meaningless_names",
        backward("t_17", "t_23") + rms,
        inputs=f"{DATA}, {PARAMETERS}{state}",
        outputs=UPDATED + state_new,
        initializers={"rho": 0.9, "rest": 0.1, "epsilon": 1e-6, "lr": 0.01},
        feeds={"W_v": np.ones_like(W), "b_v": np.ones_like(B)},
    )
    build(
        "accumulation_buffer",
        backward("gradient(W)", "gradient(b)")
        + 'W_v_new = Add (W_v, "gradient(W)")  b_v_new = Add (b_v, "gradient(b)")',
        inputs=f"{DATA}, {PARAMETERS}{state}",
        outputs="float loss" + state_new,
        feeds=zeros,
    )


def lookalikes() -> None:
    """Graphs with values that resemble gradients or updates and are neither."""
    plain = descend("W", "W_grad") + descend("b", "b_grad")
    build(
        "weight_average",
        backward("W_grad", "b_grad")
        + plain
        + """
        W_kept = Mul (decay, W_ema)
        W_fresh = Mul (rest, W_new)
        W_ema_new = Add (W_kept, W_fresh)
        """,
        inputs=f"{DATA}, {PARAMETERS}, float[4,3] W_ema",
        outputs=f"{UPDATED}, float[4,3] W_ema_new",
        initializers={"decay": 0.99, "rest": 0.01},
        feeds={"W_ema": W},
    )
    build(
        "gradient_norm_output",
        backward("W_gradient", "b_gradient")
        + "W_gradient_norm = ReduceL2 <keepdims = 0> (W_gradient)"
        + descend("W", "W_gradient")
        + descend("b", "b_gradient"),
        outputs=f"{UPDATED}, float W_gradient_norm",
    )
    build(
        "running_mean",
        """
        batch_mean = ReduceMean <axes = [0], keepdims = 0> (x)
        centred = Sub (x, batch_mean)
        drift = Sub (running_mean, batch_mean)
        running_mean_step = Mul (rate, drift)
        running_mean_new = Sub (running_mean, running_mean_step)
        """
        + backward("W_grad", "b_grad", x="centred")
        + plain,
        inputs=f"{DATA}, {PARAMETERS}, float[4] running_mean",
        outputs=f"{UPDATED}, float[4] running_mean_new",
        initializers={"rate": 0.1},
        feeds={"running_mean": normal(4)},
    )
    build(
        "weight_average_only",
        "W_kept = Mul (decay, W_ema)  W_fresh = Mul (rest, W)  W_ema_new = Add (W_kept, W_fresh)",
        inputs="float[4,3] W, float[4,3] W_ema",
        outputs="float[4,3] W_ema_new",
        initializers={"decay": 0.99, "rest": 0.01},
        feeds={"W_ema": normal(4, 3)},
    )
    build(
        "inference_only",
        'z = Gemm (x, W, b)  "y_grad" = Tanh (z)',
        inputs="float[N,4] x",
        outputs="float[N,3] y_grad",
        initializers={"W": W, "b": B},
    )


def shapes() -> None:
    """Unusual ways for a gradient to enter, to leave or to come about."""
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


def main() -> None:
    descent()
    adaptive()
    lookalikes()
    shapes()


if __name__ == "__main__":
    main()
