"""What docs/pytorch.md says of modules and of the exporter; `test_docs` runs the page itself.

Runs where PyTorch and onnxscript are, in the session `pytorch`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch makes the graphs")
pytest.importorskip("onnxscript", reason="PyTorch's exporter needs it")
ort = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402
from torch import nn  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.nn import functional  # noqa: E402

from onnx_clip_pass import (  # noqa: E402
    GradientClipByGlobalNorm,
    OnnxClipError,
    clip_gradients,
)

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "pytorch"))
from torch_to_onnx import Exported, export_gradients, export_step  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # those of the exporter, among themselves

ROUNDINGS = 5e-6
"""Of the largest element: a few steps, in each of which sums over a batch and some tens of elements
are added up in another order, by some ten roundings of 6e-8 each."""


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def arrays(batch: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


def train_both(
    exported: Exported,
    model: Any,
    loss: Any,
    batches: list[Any],
    optimizer: Any,
    *,
    clip_norm: float,
) -> dict[str, np.ndarray]:
    """Train on ONNX Runtime and in PyTorch, clipped; return the state that the former ends in."""
    clipped = clip_gradients(exported.model, GradientClipByGlobalNorm(clip_norm))
    state = exported.state
    for batch in batches:
        new = run(clipped, state | arrays(batch))
        state = {name: new[f"{name}.new"] for name in state}
        optimizer.zero_grad()
        loss(model, **batch).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        assert norm > clip_norm
        optimizer.step()
    return state


def assert_close(values: dict[str, np.ndarray], wanted: dict[str, Any]) -> None:
    for name, tensor in wanted.items():
        expected = tensor.detach().numpy()
        atol = ROUNDINGS * max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=atol, err_msg=name)


class Images(nn.Module):
    """All that is decomposed by hand: strides, groups, padding, BatchNorm, max pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(4, 6, 3, stride=2, groups=2),
        )
        self.head = nn.Linear(24, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).flatten(1))


def cross_entropy(model: Any, x: Any, y: Any) -> Any:
    return functional.cross_entropy(model(x), y)


def images(size: int) -> dict[str, Any]:
    return {"x": torch.randn(size, 2, 10, 10), "y": torch.randint(3, (size,))}


def test_a_net_with_statistics_trains_in_groups_as_in_pytorch():
    torch.manual_seed(0)
    model = Images()
    vectors = [p for p in model.parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": vectors, "lr": 0.01}]
    optimizer = torch.optim.RMSprop(groups, lr=0.002, momentum=0.5, eps=1e-2)
    cross_entropy(model, **images(4)).backward()
    optimizer.step()
    exported = export_step(model, cross_entropy, images(4), optimizer)
    batches = [images(3 + place) for place in range(4)]
    state = train_both(exported, model, cross_entropy, batches, optimizer, clip_norm=0.1)
    assert_close(state, dict(model.named_parameters()))
    assert_close(state, dict(model.named_buffers()))
    assert state["body.1.num_batches_tracked"] == 5


class Tied(nn.Module):
    """A frozen base with a low-rank update, between an embedding and a head that are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.base = nn.Linear(8, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Any) -> Any:
        hidden = self.words(x)
        return self.head(torch.tanh(self.base(hidden) + self.up(self.down(hidden))))


def words(size: int) -> dict[str, Any]:
    return {"x": torch.randint(11, (size,)), "y": torch.randint(11, (size,))}


def test_a_tied_weight_has_one_gradient_and_a_frozen_one_none():
    torch.manual_seed(0)
    model = Tied()
    exported = export_gradients(model, cross_entropy, words(4), loss_scale=True)
    trained = ["words.weight", "down.weight", "up.weight"]
    assert list(exported.state) == trained
    graph = exported.model.graph
    assert [value.name for value in graph.output] == ["loss", *(f"{name}.grad" for name in trained)]
    assert {"base.weight", "base.bias"} <= {tensor.name for tensor in graph.initializer}
    batch = words(6)
    scale = np.array(8, np.float32)
    got = run(exported.model, exported.state | arrays(batch) | {"loss_scale": scale})
    loss = cross_entropy(model, **batch)
    loss.backward()
    assert_close(got, {"loss": loss})
    gradients = {
        f"{name}.grad": 8 * p.grad for name, p in model.named_parameters() if name in trained
    }
    assert_close(got, gradients)
    clipped = clip_gradients(exported.model, GradientClipByGlobalNorm(0.1), loss_scale="loss_scale")
    got = run(clipped, exported.state | arrays(batch) | {"loss_scale": scale})
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    assert norm > 0.1
    total = np.sqrt(sum(np.square(got[f"{name}.grad"]).sum() for name in trained))
    np.testing.assert_allclose(total, 0.8, rtol=1e-5)


def test_what_cannot_be_traced_is_refused_and_said():
    model = nn.Linear(3, 2)
    loss, batch = cross_entropy, {"x": torch.randn(4, 3), "y": torch.randint(2, (4,))}
    with pytest.raises(ValueError, match="'x': a batch of two or more"):
        export_gradients(model, loss, {name: value[:1] for name, value in batch.items()})
    with pytest.raises(ValueError, match=r"names of the batch clash with others: \['weight'\]"):
        export_gradients(model, lambda m, weight: m(weight).sum(), {"weight": torch.randn(4, 3)})
    with pytest.raises(ValueError, match="a parameter that is none of the module's"):
        export_step(model, loss, batch, torch.optim.SGD(nn.Linear(3, 2).parameters()))
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"makes 'bias\.exp_avg' in its first step: take that in"):
        export_step(model, loss, batch, optimizer)


class TestWhatTheExporterGetsWrong:
    """Faults that docs/pytorch.md names: a test that fails here says that one of them is gone."""

    @staticmethod
    def exported(function: Any, *arguments: Any) -> onnx.ModelProto:
        graph = make_fx(function, tracing_mode="symbolic")(*arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(graph, arguments, dynamo=True, verbose=False).model_proto

    def test_gradients_of_cross_entropy_are_too_large_by_the_batch_size(self):
        def gradient(logits: Any, labels: Any) -> Any:
            leaf = logits.detach().requires_grad_()
            loss = functional.cross_entropy(leaf, labels)
            return torch.autograd.grad(loss, leaf)

        torch.manual_seed(0)
        arguments = torch.randn(5, 3), torch.randint(3, (5,))
        model = self.exported(gradient, *arguments)
        names = [value.name for value in model.graph.input]
        (got,) = run(model, dict(zip(names, map(np.asarray, arguments), strict=True))).values()
        (wanted,) = gradient(*arguments)
        np.testing.assert_allclose(got, 5 * wanted.numpy(), rtol=1e-5, atol=1e-6)

    def test_batch_norm_in_training_takes_the_running_statistics(self):
        def normalized(x: Any, mean: Any, variance: Any) -> Any:
            return functional.batch_norm(x, mean.clone(), variance.clone(), training=True)

        torch.manual_seed(0)
        arguments = torch.randn(5, 3) + 4, torch.zeros(3), torch.ones(3)
        model = self.exported(normalized, *arguments)
        names = [value.name for value in model.graph.input]
        (got,) = run(model, dict(zip(names, map(np.asarray, arguments), strict=True))).values()
        assert abs(normalized(*arguments).numpy().mean()) < 1e-5
        np.testing.assert_allclose(got, arguments[0].numpy(), rtol=1e-4)

    def test_an_assignment_to_an_element_makes_an_invalid_model(self):
        class Shifted(nn.Linear):
            def forward(self, x: Any) -> Any:
                y = super().forward(x)
                y[:, 0] = 1.0
                return y

        def loss(module: Any, x: Any) -> Any:
            return module(x).square().mean()

        exported = export_gradients(Shifted(3, 3), loss, {"x": torch.randn(5, 3)})
        with pytest.raises(Exception, match="Unexpected axis value"):
            run(exported.model, {})

    def test_parameters_that_are_no_inputs_are_folded_and_refused(self):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

        def updated(x: Any, y: Any) -> Any:
            parameters = list(module.parameters())
            loss = functional.mse_loss(module(x), y)
            gradients = torch.autograd.grad(loss, parameters)
            new = [p.detach() - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
            return [loss.detach(), *new]

        graph = make_fx(updated)(torch.randn(4, 5), torch.randn(4, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = torch.randn(4, 5), torch.randn(4, 3)
            model = torch.onnx.export(graph, arguments, dynamo=True, verbose=False).model_proto
        with pytest.raises(OnnxClipError, match=r"constant folding has made: .*input_names"):
            clip_gradients(model, GradientClipByGlobalNorm(0.1))
