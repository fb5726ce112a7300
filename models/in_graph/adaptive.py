"""Optimizers with a state."""

import numpy as np
from net import DATA, PARAMETERS, UPDATED, B, W, backward, build, descend, normal


def write() -> None:
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
