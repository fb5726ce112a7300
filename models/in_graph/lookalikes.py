"""Graphs with values that resemble gradients or updates and are neither."""

from net import DATA, PARAMETERS, UPDATED, B, W, backward, build, descend, normal


def write() -> None:
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
