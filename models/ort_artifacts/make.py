"""Make the on-device training artifacts of ONNX Runtime for eight small nets.

Needs onnxruntime-training-cpu 1.19.2, onnx 1.16, numpy below 2 and PyTorch, in an environment
without the stock onnxruntime package (both are imported as ``onnxruntime``).

Every folder receives what ``generate_artifacts`` writes (training, eval and optimizer model and
the checkpoint) and feeds for the training and the eval model. The accumulation buffers are fed
as zeros and ``lazy_reset_grad`` as true, so that one run is the first micro-batch of a step.
"""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.training import artifacts
from torch import nn

HERE = Path(__file__).parent
Feeds = dict[str, np.ndarray]
MSE, CE = artifacts.LossType.MSELoss, artifacts.LossType.CrossEntropyLoss
SGD, ADAMW = artifacts.OptimType.SGD, artifacts.OptimType.AdamW


class Mlp(nn.Module):
    """Two linear layers with a tanh between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


class ConvNet(nn.Module):
    """Convolution, batch normalization in training mode, pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        return self.fc(torch.flatten(nn.functional.max_pool2d(x, 3), 1))


class Embedding(nn.Module):
    """Embedding, layer normalization, mean over the sequence, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(tokens)).mean(dim=1))


class TransformerBlock(nn.Module):
    """One head of self-attention and a feed-forward layer, both residual, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(8)
        self.query = nn.Linear(8, 8, bias=False)
        self.key = nn.Linear(8, 8, bias=False)
        self.value = nn.Linear(8, 8, bias=False)
        self.project = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        scores = self.query(h) @ self.key(h).transpose(1, 2) * 8**-0.5
        x = x + self.project(torch.softmax(scores, dim=-1) @ self.value(h))
        return x + self.feed(self.norm2(x))


class ParamPlusParam(nn.Module):
    """``x @ (A + B + tanh(C)) + (b1 + b2)``: the gradients of A and B are one value."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in {"A": (4, 3), "B": (4, 3), "C": (4, 3), "b1": (3,), "b2": (3,)}.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ ((self.A + self.B) + torch.tanh(self.C)) + (self.b1 + self.b2)


class TiedMlp(nn.Module):
    """One square weight used twice, so that its gradient is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Parameter(torch.randn(5, 5) * 0.5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * (torch.tanh(x @ self.tied) @ self.tied)


def export(net: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    """Export the forward pass as it is in training, with a symbolic batch."""
    buffer = io.BytesIO()
    torch.onnx.export(
        net,
        (x,),
        buffer,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        training=torch.onnx.TrainingMode.TRAINING,
        do_constant_folding=False,
        opset_version=15,
        dynamo=False,
    )
    return onnx.load_from_string(buffer.getvalue())


def odd_names() -> onnx.ModelProto:
    """Build a chain of small layers whose parameters carry names few programs expect."""
    weights = ["params['w']", "couche n°1/poids", "*", "[0].weight", "w_grad", "/fc/w:0"]
    biases = ["权重", "b;c,d", "a b", "..", "out_grad", "b_grad.accumulation.buffer"]
    rng = np.random.default_rng(6)
    nodes, constants, last = [], [], "x"
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        end = "y" if i == len(weights) - 1 else f"h{i}"
        nodes += [
            onnx.helper.make_node("Gemm", [last, weight, bias], [f"z{i}"]),
            onnx.helper.make_node("Tanh", [f"z{i}"], [end]),
        ]
        for name, shape in ((weight, (4, 4)), (bias, (4,))):
            value = rng.normal(0, 0.7, shape).astype(np.float32)
            constants.append(onnx.numpy_helper.from_array(value, name))
        last = end
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4])
        for name in "xy"
    )
    graph = onnx.helper.make_graph(nodes, "odd_names", [x], [y], constants)
    opsets = [onnx.helper.make_opsetid("", 15)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feeds_for(model: onnx.ModelProto, forward: onnx.ModelProto, data: Feeds) -> Feeds:
    """Return feeds for a training or eval model: data, parameters, zero buffers, reset flag."""
    known = {t.name: onnx.numpy_helper.to_array(t) for t in forward.graph.initializer} | data
    feeds = {}
    for value in model.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if value.name in known:
            feeds[value.name] = known[value.name]
        elif value.name == "lazy_reset_grad":
            feeds[value.name] = np.array([True])
        else:
            feeds[value.name] = np.zeros(shape, np.float32)
    return feeds


def generate(
    name: str,
    forward: onnx.ModelProto,
    data: Feeds,
    loss: artifacts.LossType,
    optimizer: artifacts.OptimType,
    frozen: Sequence[str] = (),
) -> None:
    """Write the artifacts of ``forward`` and their feeds into the folder ``name``."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    buffers = [t.name for t in forward.graph.initializer if "running_" in t.name]
    parameters = [
        t.name
        for t in forward.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and t.name not in {*buffers, *frozen}
    ]
    artifacts.generate_artifacts(
        forward,
        requires_grad=parameters,
        frozen_params=[*frozen, *buffers],
        loss=loss,
        optimizer=optimizer,
        artifact_directory=str(folder),
    )
    for kind in ("training_model", "eval_model"):
        feeds = feeds_for(onnx.load(folder / f"{kind}.onnx"), forward, data)
        np.savez(folder / f"{kind}.inputs.npz", **feeds)


def optimize(name: str) -> None:
    """Keep the training model as ONNX Runtime's basic graph optimizations leave it."""
    folder = HERE / name
    target = folder / "training_model.optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / target.name)
        ort.InferenceSession(
            str(folder / "training_model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        target.write_bytes(Path(options.optimized_model_filepath).read_bytes())
    feeds = np.load(folder / "training_model.inputs.npz")
    np.savez(folder / "training_model.optimized.inputs.npz", **feeds)


def main() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def classes(count: int, *shape: int) -> np.ndarray:
        return rng.integers(0, count, shape)

    def net(build: Callable[[], nn.Module], x: np.ndarray, seed: int) -> onnx.ModelProto:
        torch.manual_seed(seed)
        return export(build(), torch.from_numpy(x))

    x = normal(6, 5)
    mlp = net(Mlp, x, 1)
    generate("mlp_mse_sgd", mlp, {"x": x, "target": 2 * normal(6, 3)}, MSE, SGD)
    labels = {"x": x, "labels": classes(3, 6)}
    generate("frozen_mlp_ce_sgd", mlp, labels, CE, SGD, frozen=["fc1.weight", "fc2.bias"])
    x = normal(4, 2, 6, 6)
    data = {"x": x, "labels": classes(3, 4)}
    generate("convnet_batchnorm_ce_adamw", net(ConvNet, x, 2), data, CE, ADAMW)
    tokens = classes(11, 5, 4)
    data = {"x": tokens, "labels": classes(4, 5)}
    generate("embedding_layernorm_ce_adamw", net(Embedding, tokens, 3), data, CE, ADAMW)
    x = normal(2, 3, 8)
    data = {"x": x, "target": normal(2, 3, 8)}
    frozen = ["norm1.weight", "norm1.bias", "feed.2.bias"]
    block = net(TransformerBlock, x, 4)
    generate("transformer_block_mse_adamw", block, data, MSE, ADAMW, frozen)
    optimize("transformer_block_mse_adamw")
    x = normal(6, 4)
    data = {"x": x, "target": normal(6, 3)}
    generate("param_plus_param_mse_sgd", net(ParamPlusParam, x, 5), data, MSE, SGD)
    optimize("param_plus_param_mse_sgd")
    x = normal(6, 5)
    data = {"x": x, "target": normal(6, 5)}
    generate("tied_scalar_mse_sgd", net(TiedMlp, x, 7), data, MSE, SGD)
    data = {"x": normal(6, 4), "labels": classes(4, 6)}
    generate("odd_names_ce_sgd", odd_names(), data, CE, SGD)


if __name__ == "__main__":
    main()
