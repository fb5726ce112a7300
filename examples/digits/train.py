"""Train a small net on scikit-learn's digits with stock ONNX Runtime, with and without clipping.

    python examples/digits/train.py                      # trains both, prints figures
    python examples/digits/train.py --picture digits.png # and draws them

Needs onnx-clip, onnx-ad, onnxruntime and scikit-learn; matplotlib for the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx_ad import reverse
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from onnx_clip_pass import GradientClipByGlobalNorm, clip_gradients

# Far too large for this net: without clipping the first steps throw it off for good.
LEARNING_RATE = 2.0
CLIP_NORM = 0.2
CLIP_NORM_DECAY = 0.93  # each epoch: the threshold is an input of the graph
BATCH = 64

FORWARD = """
    <ir_version: 8, opset_import: ["" : 17]>
    digits (float[N,64] x, float[N,10] t,
            float[64,32] W1, float[32] b1, float[32,10] W2, float[10] b2) => (float loss) {
        z1 = MatMul(x, W1)
        a1 = Add(z1, b1)
        h = Relu(a1)
        z2 = MatMul(h, W2)
        y = Add(z2, b2)
        log_p = LogSoftmax <axis = -1> (y)
        right = Mul(t, log_p)
        axis = Constant <value = int64[1] {1}> ()
        per_digit = ReduceSum <keepdims = 0> (right, axis)
        mean = ReduceMean <keepdims = 0> (per_digit)
        loss = Neg(mean)
    }"""
PARAMETERS = ("W1", "b1", "W2", "b2")


def training_step(clips: bool) -> onnx.ModelProto:
    """Forward, backward, clip and SGD update, all in one graph."""
    step = reverse(onnx.parser.parse_model(FORWARD), inputs=PARAMETERS, layout="onnx")
    step = clip_gradients(
        step,
        GradientClipByGlobalNorm(CLIP_NORM),
        threshold_input="clip_norm",
        emit=("norm", "scale"),
        measure_only=not clips,
    )
    lr = onnx.helper.make_tensor_value_info("lr", onnx.TensorProto.FLOAT, [])
    step.graph.input.append(lr)
    for name in PARAMETERS:  # adj_W1 has one more axis, for the seeds, of which there is one
        step.graph.node.extend(
            [
                onnx.helper.make_node("Squeeze", [f"adj_{name}", "minus_one"], [f"{name}_grad"]),
                onnx.helper.make_node("Mul", ["lr", f"{name}_grad"], [f"{name}_step"]),
                onnx.helper.make_node("Sub", [name, f"{name}_step"], [f"{name}_new"]),
            ]
        )
        step.graph.output.append(onnx.ValueInfoProto(name=f"{name}_new"))
    axis = onnx.numpy_helper.from_array(np.array([-1], np.int64), "minus_one")
    step.graph.initializer.append(axis)
    return step


@dataclass
class Run:
    """What one training run gave, step by step; `norms` are those before clipping."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def train(clips: bool, epochs: int, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Run:
    """Train from the same start on the same batches, on these providers of ONNX Runtime."""
    x, digits = load_digits(return_X_y=True)
    x = x.astype(np.float32)  # 0 to 16, as they come: one reason for the large gradients
    train_x, test_x, train_y, test_y = train_test_split(x, digits, test_size=0.25, random_state=0)
    targets = np.eye(10, dtype=np.float32)[train_y]

    rng = np.random.default_rng(0)
    shapes = {"W1": (64, 32), "b1": (32,), "W2": (32, 10), "b2": (10,)}
    parameters = {
        name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    model = training_step(clips)
    session = ort.InferenceSession(model.SerializeToString(), providers=list(providers))
    wanted = ["loss", "default_group/norm", "adj_W1/scale", *(f"{p}_new" for p in PARAMETERS)]

    run = Run()
    for epoch in range(epochs):
        clip_norm = CLIP_NORM * CLIP_NORM_DECAY**epoch
        order = rng.permutation(len(train_x))
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            feeds = {
                "x": train_x[batch],
                "t": targets[batch],
                "lr": np.array(LEARNING_RATE, np.float32),
                "clip_norm": np.array(clip_norm, np.float32),
                "adj_loss": np.ones(1, np.float32),
            }
            loss, norm, scale, *new = session.run(wanted, feeds | parameters)
            parameters = dict(zip(PARAMETERS, new, strict=True))
            run.losses.append(float(loss))
            run.norms.append(float(norm))
            run.clipped.append(float(norm * scale) if clips else float(norm))
    run.accuracy = accuracy(parameters, test_x, test_y)
    return run


def accuracy(parameters: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """The share of digits told right."""
    hidden = np.maximum(x @ parameters["W1"] + parameters["b1"], 0)
    return float(np.mean(np.argmax(hidden @ parameters["W2"] + parameters["b2"], axis=1) == y))


def draw(plain: Run, clipped: Run, path: str) -> None:
    """Losses on the left, gradient norms on the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.semilogy(plain.losses, color="tab:red", lw=1, label="without clipping")
    left.semilogy(clipped.losses, color="tab:blue", lw=1, label="with clipping")
    left.set(title="loss", xlabel="step", ylabel="cross-entropy (log scale)")
    left.legend(frameon=False)
    right.semilogy(clipped.norms, color="tab:gray", lw=1, label="before the clip")
    right.semilogy(clipped.clipped, color="tab:blue", lw=1, label="after")
    right.set(
        title="norm of all gradients, clipped run", xlabel="step", ylabel="L2 norm (log scale)"
    )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train twice, and tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--picture", metavar="FILE")
    options = parser.parse_args()
    plain, clipped = train(False, options.epochs), train(True, options.epochs)
    for name, run in (("without clipping", plain), ("with clipping", clipped)):
        print(
            f"{name:17} largest loss {max(run.losses):8.4g}   last {np.mean(run.losses[-20:]):8.4f}"
            f"   test accuracy {run.accuracy:.1%}   largest gradient norm {max(run.norms):.3g}"
        )
    if options.picture:
        draw(plain, clipped, options.picture)


if __name__ == "__main__":
    main()
