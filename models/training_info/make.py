"""Make models with ONNX's own training operators and training information.

Needs onnx and numpy. No runtime at hand executes ``Gradient``, so none of these models runs as
a training step; the inference graph of those with ``training_info`` runs anywhere. By the ONNX
specification an algorithm is executed together with the inference graph and sees its values;
``momentum_shared_forward`` relies on that, the others repeat the forward pass.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

HERE = Path(__file__).parent
RNG = np.random.default_rng(41)
TRAINING = "ai.onnx.preview.training"
PARAMETERS = {
    "W": RNG.normal(size=(4, 3)).astype(np.float32),
    "b": RNG.normal(size=3).astype(np.float32),
}
INFERENCE = "infer (float[N,4] x) => (float[N,3] y) { z = MatMul (x, W)  y = Add (z, b) }"
DATA = "float[N,4] x_train, float[N,3] t"
FEEDS = {
    "x": RNG.normal(size=(6, 4)).astype(np.float32),
    "x_train": RNG.normal(size=(6, 4)).astype(np.float32),
    "t": RNG.normal(size=(6, 3)).astype(np.float32),
    "rate": np.array(0.1, np.float32),
    "step": np.array(1, np.int64),
}
MOMENTUM = 'alpha = 0.9, beta = 1.0, mode = "standard", norm_coefficient = 0.0'
Arrays = dict[str, np.ndarray]


def forward(x: str = "x_train", t: str = "t", loss: str = "loss", tag: str = "_train") -> str:
    """Return the forward pass and the loss of a training batch."""
    return f"""
        z{tag} = MatMul ({x}, W)
        y{tag} = Add (z{tag}, b)
        error{tag} = Sub (y{tag}, {t})
        square{tag} = Mul (error{tag}, error{tag})
        {loss} = ReduceMean <keepdims = 0> (square{tag})
    """


def gradient(outputs: str, xs: str, zs: str = "x_train, t", y: str = "loss") -> str:
    """Return a Gradient node; its attributes name the tensors it takes."""

    def quoted(names: str) -> str:
        return ", ".join(f'"{name}"' for name in names.split(", "))

    return f"""
        {outputs} = {TRAINING}.Gradient
            <xs = [{quoted(xs)}], zs = [{quoted(zs)}], y = "{y}"> ({xs}, {zs})
    """


def zeros(*suffixes: str) -> Arrays:
    """Return optimizer states of zeros, one per parameter and suffix."""
    return {f"{p}_{s}": np.zeros_like(v) for s in suffixes for p, v in PARAMETERS.items()}


def add_initializers(graph: onnx.GraphProto, values: Mapping[str, np.ndarray]) -> None:
    for name, value in values.items():
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))


def algorithm(signature: str, body: str, state: Mapping[str, np.ndarray]) -> onnx.GraphProto:
    """Parse a training algorithm and give it its state."""
    graph = onnx.parser.parse_graph(f"{signature} {{{body}}}")
    add_initializers(graph, state)
    return graph


def save(
    name: str, main: str, infos: Sequence[onnx.TrainingInfoProto], feeds: Sequence[str]
) -> None:
    """Save the model, its parameters and the feeds of its graphs."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "{TRAINING}" : 1]> {main}'
    )
    inputs = {value.name for value in model.graph.input}
    add_initializers(model.graph, {k: v for k, v in PARAMETERS.items() if k not in inputs})
    model.training_info.extend(infos)
    onnx.save(model, HERE / f"{name}.onnx")
    known = FEEDS | PARAMETERS | zeros("v", "h")
    np.savez(HERE / f"{name}.inputs.npz", **{key: known[key] for key in feeds})


def info(
    step: onnx.GraphProto,
    updates: Mapping[str, str],
    start: onnx.GraphProto | None = None,
    starts: Mapping[str, str] | None = None,
) -> onnx.TrainingInfoProto:
    """Bind a training algorithm, and perhaps an initialization, to what they write back."""
    return onnx.helper.make_training_info(
        step, list(updates.items()), start, list(starts.items()) if starts else None
    )


def momentum() -> None:
    """Save models that hand the gradients to Momentum."""
    update = f"""
        W_new, b_new, W_v_new, b_v_new = {TRAINING}.Momentum <{MOMENTUM}>
            (rate, step, W, b, {{}}, {{}}, W_v, b_v)
    """
    outputs = "float loss, float[4,3] W_new, float[3] b_new, float[4,3] W_v_new, float[3] b_v_new"
    binding = {"W": "W_new", "b": "b_new", "W_v": "W_v_new", "b_v": "b_v_new"}
    inputs = f"{DATA}, float rate, int64 step"
    all_feeds = ["x", "x_train", "t", "rate", "step"]

    start = onnx.parser.parse_graph("""
        start () => (float[4,3] W_start, float[3] b_start) {
            W_start = RandomNormal <shape = [4, 3], seed = 5.0> ()
            b_start = Constant <value_floats = [0.0, 0.0, 0.0]> ()
        }
    """)
    body = """
        error = Sub (y, t)
        square = Mul (error, error)
        loss = ReduceMean <keepdims = 0> (square)
    """
    body += gradient("W_grad, b_grad", "W, b", "x, t") + update.format("W_grad", "b_grad")
    step = algorithm(
        f"train (float[N,3] t, float rate, int64 step) => ({outputs})", body, zeros("v")
    )
    infos = [info(step, binding, start, {"W": "W_start", "b": "b_start"})]
    save("momentum_shared_forward", INFERENCE, infos, ["x", "t", "rate", "step"])

    body = forward() + gradient("g_W, g_b", "W, b")
    body += """
        factor = Constant <value_float = 0.01> ()
        decay = Mul (factor, W)
        total = Add (g_W, decay)
    """
    step = algorithm(
        f"train ({inputs}) => ({outputs})", body + update.format("total", "g_b"), zeros("v")
    )
    save("momentum_weight_decay", INFERENCE, [info(step, binding)], all_feeds)

    body = ""
    for i in "01":
        body += forward(f"x_{i}", f"t_{i}", f"loss_{i}", f"_{i}")
        body += gradient(f"W_grad_{i}, b_grad_{i}", "W, b", f"x_{i}, t_{i}", f"loss_{i}")
    body += """
        two = Constant <value_float = 2.0> ()
        loss_sum = Add (loss_0, loss_1)
        loss = Div (loss_sum, two)
        W_sum = Add (W_grad_0, W_grad_1)
        W_mean = Div (W_sum, two)
        b_sum = Add (b_grad_0, b_grad_1)
        b_mean = Div (b_sum, two)
    """
    body = "x_0, x_1 = Split (x_train)  t_0, t_1 = Split (t)" + body
    step = algorithm(
        f"train (float[6,4] x_train, float[6,3] t, float rate, int64 step) => ({outputs})",
        body + update.format("W_mean", "b_mean"),
        zeros("v"),
    )
    save("momentum_micro_batches", INFERENCE, [info(step, binding)], all_feeds)


def others() -> None:
    """Save models with Adam, Adagrad and plain descent."""
    all_feeds = ["x", "x_train", "t", "rate", "step"]
    inputs = f"{DATA}, float rate, int64 step"
    # The order of xs differs from the optimizer's, and one gradient belongs to the data.
    body = forward() + gradient("g_0, g_1, g_2", "b, x_train, W", "t")
    body += f"""
        W_new, b_new, W_v_new, b_v_new, W_h_new, b_h_new = {TRAINING}.Adam
            <alpha = 0.9, beta = 0.999> (rate, step, W, b, g_2, g_0, W_v, b_v, W_h, b_h)
        sensitivity = ReduceL2 <keepdims = 0> (g_1)
    """
    outputs = "float loss, float sensitivity, float[4,3] W_new, float[3] b_new"
    outputs += "".join(f", float[4,3] W_{s}_new, float[3] b_{s}_new" for s in "vh")
    step = algorithm(f"train ({inputs}) => ({outputs})", body, zeros("v", "h"))
    binding = {f"{p}{s}": f"{p}{s}_new" for p in "Wb" for s in ("", "_v", "_h")}
    save("adam_data_gradient", INFERENCE, [info(step, binding)], all_feeds)

    # Two algorithms, each for one parameter; both call their gradient by the same name.
    infos = []
    for parameter, other, shape in (("W", "b", "4,3"), ("b", "W", "3")):
        body = forward() + gradient("gradient", parameter, f"{other}, x_train, t")
        body += f"""
            {parameter}_new, {parameter}_h_new = {TRAINING}.Adagrad <epsilon = 0.000001>
                (rate, step, {parameter}, gradient, {parameter}_h)
        """
        outputs = f"float loss, float[{shape}] {parameter}_new, float[{shape}] {parameter}_h_new"
        state = {f"{parameter}_h": np.zeros_like(PARAMETERS[parameter])}
        step = algorithm(f"train_{parameter} ({inputs}) => ({outputs})", body, state)
        names = (parameter, f"{parameter}_h")
        infos.append(info(step, {name: f"{name}_new" for name in names}))
    save("adagrad_two_algorithms", INFERENCE, infos, all_feeds)

    body = forward() + gradient("dW, db", "W, b")
    for p in "Wb":
        body += f"{p}_step = Mul (rate, d{p})  {p}_new = Sub ({p}, {p}_step)"
    outputs = "float loss, float[4,3] W_new, float[3] b_new"
    step = algorithm(f"train ({DATA}, float rate) => ({outputs})", body, {})
    save("sgd", INFERENCE, [info(step, {"W": "W_new", "b": "b_new"})], all_feeds[:-1])


def main_graph() -> None:
    """Save a model with Gradient and Adam in the main graph and no training_info."""
    state = ", ".join(f"float[4,3] W_{s}, float[3] b_{s}" for s in "vh")
    outputs = "float loss, float[4,3] W_new, float[3] b_new"
    body = forward() + gradient("W_grad, b_grad", "W, b")
    body += f"""
        W_new, b_new, W_v_new, b_v_new, W_h_new, b_h_new = {TRAINING}.Adam
            (rate, step, W, b, W_grad, b_grad, W_v, b_v, W_h, b_h)
    """
    inputs = f"{DATA}, float[4,3] W, float[3] b, {state}, float rate, int64 step"
    outputs += "".join(f", float[4,3] W_{s}_new, float[3] b_{s}_new" for s in "vh")
    feeds = ["x_train", "t", "rate", "step", "W", "b", *zeros("v", "h")]
    save("main_graph_adam", f"step ({inputs}) => ({outputs}) {{{body}}}", [], feeds)


def main() -> None:
    momentum()
    others()
    main_graph()


if __name__ == "__main__":
    main()
