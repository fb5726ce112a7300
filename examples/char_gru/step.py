"""The training step of a small language model as one ONNX graph, written by hand.

A GRU of two layers reads characters and guesses the next one; the update is plain SGD. The layers
run over time in Scan, forwards and, for their gradients, backwards (backpropagation through time).
Weights, the batch and the learning rate are inputs, the loss and the new weights outputs.

    python examples/char_gru/step.py step.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx

EMBEDDING, HIDDEN, LAYERS = 32, 64, 2


def shapes(letters: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter; gates of a GRU stand side by side: reset, update, new."""
    found: dict[str, tuple[int, ...]] = {"embed.weight": (letters, EMBEDDING)}
    width = EMBEDDING
    for layer in range(LAYERS):
        found |= {
            f"gru.{layer}.input.weight": (width, 3 * HIDDEN),
            f"gru.{layer}.input.bias": (3 * HIDDEN,),
            f"gru.{layer}.hidden.weight": (HIDDEN, 3 * HIDDEN),
            f"gru.{layer}.hidden.bias": (3 * HIDDEN,),
        }
        width = HIDDEN
    return found | {"head.weight": (HIDDEN, letters), "head.bias": (letters,)}


def initial(letters: int, seed: int) -> dict[str, np.ndarray]:
    """Return random weights by the names of their inputs, distributed as PyTorch begins."""
    random = np.random.default_rng(seed)
    bound = HIDDEN**-0.5
    made = {name: random.uniform(-bound, bound, size) for name, size in shapes(letters).items()}
    made["embed.weight"] = random.normal(size=made["embed.weight"].shape)
    return {name: weight.astype(np.float32) for name, weight in made.items()}


def layer_forward(at: int, x: str) -> str:
    """Return the nodes of a layer: of all times what comes in, time by time what is kept."""
    p = f"gru.{at}"
    return f"""
        "{p}.mixed" = MatMul ({x}, "{p}.input.weight")
        "{p}.from_x" = Add ("{p}.mixed", "{p}.input.bias")
        "{p}.last", "{p}.out", "{p}.before", "{p}.r", "{p}.z", "{p}.n", "{p}.from_h" =
            Scan <num_scan_inputs = 1, body = forward_{at} (h, of_x)
                => (h_new, out, before, r, z, n, new_of_h) {{
                mixed = MatMul (h, "{p}.hidden.weight")
                of_h = Add (mixed, "{p}.hidden.bias")
                r_of_x, z_of_x, n_of_x = Split <axis = -1> (of_x, thirds)
                r_of_h, z_of_h, new_of_h = Split <axis = -1> (of_h, thirds)
                r_sum = Add (r_of_x, r_of_h)
                r = Sigmoid (r_sum)
                z_sum = Add (z_of_x, z_of_h)
                z = Sigmoid (z_sum)
                gated = Mul (r, new_of_h)
                n_sum = Add (n_of_x, gated)
                n = Tanh (n_sum)
                apart = Sub (h, n)
                kept = Mul (z, apart)
                h_new = Add (n, kept)
                out = Identity (h_new)
                before = Identity (h)
            }}> (silence, "{p}.from_x")
    """


def layer_backward(at: int, x: str, d_out: str) -> str:
    """Return the nodes of a layer's gradients, given those of what it gives."""
    p = f"gru.{at}"
    backwards = "[1, 1, 1, 1, 1, 1]"
    return f"""
        "{p}.hidden.turned" = Transpose ("{p}.hidden.weight")
        "{p}.d_first", "{p}.d_x", "{p}.d_h" =
            Scan <num_scan_inputs = 6, scan_input_directions = {backwards},
                  scan_output_directions = [1, 1], body = backward_{at}
                (d_later, d_given, before, r, z, n, new_of_h) => (d_earlier, d_of_x, d_of_h) {{
                d = Add (d_later, d_given)
                d_kept = Mul (d, z)
                d_n = Sub (d, d_kept)
                nn = Mul (n, n)
                n_slope = Sub (one, nn)
                d_n_sum = Mul (d_n, n_slope)
                apart = Sub (before, n)
                d_z = Mul (d, apart)
                not_z = Sub (one, z)
                z_slope = Mul (z, not_z)
                d_z_sum = Mul (d_z, z_slope)
                d_r = Mul (d_n_sum, new_of_h)
                not_r = Sub (one, r)
                r_slope = Mul (r, not_r)
                d_r_sum = Mul (d_r, r_slope)
                d_new_of_h = Mul (d_n_sum, r)
                d_of_x = Concat <axis = -1> (d_r_sum, d_z_sum, d_n_sum)
                d_of_h = Concat <axis = -1> (d_r_sum, d_z_sum, d_new_of_h)
                through = MatMul (d_of_h, "{p}.hidden.turned")
                d_earlier = Add (d_kept, through)
            }}> (silence, {d_out}, "{p}.before", "{p}.r", "{p}.z", "{p}.n", "{p}.from_h")
        {linear_backward(f"{p}.hidden", f'"{p}.before"', f'"{p}.d_h"')}
        {linear_backward(f"{p}.input", x, f'"{p}.d_x"')}
        "{p}.input.turned" = Transpose ("{p}.input.weight")
        "{p}.d_in" = MatMul ("{p}.d_x", "{p}.input.turned")
    """


def linear_backward(name: str, x: str, d_y: str) -> str:
    """Return the nodes of the gradients of a weight and a bias: sums over times and batch."""
    return f"""
        "{name}.rows" = Flatten <axis = 2> ({x})
        "{name}.d_rows" = Flatten <axis = 2> ({d_y})
        "{name}.weight.grad" = Gemm <transA = 1> ("{name}.rows", "{name}.d_rows")
        "{name}.bias.grad" = ReduceSum <keepdims = 0> ("{name}.d_rows", rows)
    """


def make(letters: int) -> onnx.ModelProto:
    """Return the step: `text`, one column for each sample, the rate and all weights go in."""
    weights = shapes(letters)
    inputs = ["int64[L,N] text", "float lr"]
    inputs += [f'float{list(shape)} "{name}"' for name, shape in weights.items()]
    outputs = ["float loss"]
    outputs += [f'float{list(shape)} "{name}.new"' for name, shape in weights.items()]
    outs = ["embedded", *(f'"gru.{at}.out"' for at in range(LAYERS))]
    d_outs = [*(f'"gru.{at + 1}.d_in"' for at in range(LAYERS - 1)), "d_top"]
    forward = "".join(layer_forward(at, outs[at]) for at in range(LAYERS))
    backward = "".join(layer_backward(at, outs[at], d_outs[at]) for at in reversed(range(LAYERS)))
    update = "".join(
        f"""
        "{name}.step" = Mul (lr, "{name}.grad")
        "{name}.new" = Sub ("{name}", "{name}.step")
        """
        for name in weights
    )
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        char_gru ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
            read = Slice (text, zero, minus_one, zero)
            next = Slice (text, one_step, far, zero)
            embedded = Gather ("embed.weight", read)
            samples = Shape <start = 1> (text)
            size = Concat <axis = 0> (samples, hidden)
            silence = ConstantOfShape (size)
            {forward}
            scores_of = MatMul ({outs[-1]}, "head.weight")
            scores = Add (scores_of, "head.bias")
            log_p = LogSoftmax <axis = -1> (scores)
            right = OneHot <axis = -1> (next, letters, off_on)
            log_right = Mul (log_p, right)
            per_letter = ReduceSum <keepdims = 0> (log_right, last)
            mean = ReduceMean <keepdims = 0> (per_letter)
            loss = Neg (mean)
            p = Exp (log_p)
            d_scores_sum = Sub (p, right)
            count_of = Size (next)
            count = Cast <to = 1> (count_of)
            d_scores = Div (d_scores_sum, count)
            {linear_backward("head", outs[-1], "d_scores")}
            head_turned = Transpose ("head.weight")
            d_top = MatMul (d_scores, head_turned)
            {backward}
            places = Reshape (read, column)
            d_embedded = Flatten <axis = 2> ("gru.0.d_in")
            untouched = ConstantOfShape (embed_size)
            "embed.weight.grad" = ScatterND <reduction = "add"> (untouched, places, d_embedded)
            {update}
        }}""")
    constants = {
        "zero": np.array([0]),
        "one_step": np.array([1]),
        "minus_one": np.array([-1]),
        "far": np.array([np.iinfo(np.int64).max]),
        "rows": np.array([0]),
        "last": np.array([-1]),
        "column": np.array([-1, 1]),
        "hidden": np.array([HIDDEN]),
        "thirds": np.array([HIDDEN] * 3),
        "letters": np.array(letters),
        "embed_size": np.array(weights["embed.weight"]),
        "off_on": np.array([0, 1], np.float32),
        "one": np.array(1, np.float32),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(make(96), sys.argv[1])
