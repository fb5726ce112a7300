"""Training runs of rewritten artifact folders beside the same runs in PyTorch.

Both start from the folder's parameters, see the same four batches in turn and take 50 steps. The
PyTorch side uses autograd on the nets of `models/ort_artifacts/make.py`, clips by the formula as
documented, and updates as ONNX Runtime's two optimizers document it. It shares no code with the
package.

`parity_table.py` beside this file puts the results into docs/artifacts.md.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.training.api import CheckpointState, Module, Optimizer
from torch.nn import functional

from onnx_clip_pass import GradientClipByGlobalNorm, GradientClipByNorm, clip_artifacts

__all__ = [
    "CASES",
    "STEPS",
    "TASKS",
    "Case",
    "Result",
    "acting_norm_of",
    "measure",
    "train",
    "train_in_torch",
]

STEPS = 50
ROOT = Path(__file__).parent.parent.parent / "models" / "ort_artifacts"
BATCHES = 4
Tensors = dict[str, torch.Tensor]
Kind = Literal["SGD", "AdamW"]
Clip = Callable[[Tensors], Tensors]
OPTIMIZERS = {"SGD": "mlp_mse_sgd", "AdamW": "transformer_block_mse_adamw"}
RATES = {"SGD": 0.05, "AdamW": 0.01}

ort.set_default_logger_severity(3)  # warns of a shape in every optimizer model that it makes


@dataclass(frozen=True)
class Task:
    """A folder of artifacts: its net in make.py, its loss, which parameters `need_clip` picks."""

    folder: str
    net: str
    loss: Callable[..., torch.Tensor]
    pattern: str


TASKS = [
    Task("mlp_mse_sgd", "Mlp", functional.mse_loss, "fc1.*"),
    Task("frozen_mlp_ce_sgd", "Mlp", functional.cross_entropy, "fc2.*"),
    Task("embedding_layernorm_ce_adamw", "Embedding", functional.cross_entropy, "*.weight"),
    Task("transformer_block_mse_adamw", "TransformerBlock", functional.mse_loss, "feed.*"),
    Task("param_plus_param_mse_sgd", "ParamPlusParam", functional.mse_loss, "[AB]"),
    Task("tied_scalar_mse_sgd", "TiedMlp", functional.mse_loss, "tied"),
]


@dataclass(frozen=True)
class Case:
    """One run; `need_clip` is a pattern of parameters, or None for all.

    Each gradient is clipped by its own norm, or all by the one norm of all together.
    """

    task: Task
    optimizer: Kind
    micro_batches: int
    at: Literal["step", "micro-batch"]
    need_clip: str | None
    is_global: bool = False

    @property
    def optimizer_model(self) -> Path:
        """Optimizer models fit every net: they see sequences."""
        return ROOT / OPTIMIZERS[self.optimizer] / "optimizer_model.onnx"

    def __str__(self) -> str:
        words = [self.task.folder, self.optimizer, f"{self.micro_batches} a step", self.at]
        words += [self.need_clip] if self.need_clip else []
        return ", ".join([*words, "global norm"] if self.is_global else words)


@dataclass(frozen=True)
class Result:
    """Relative differences of parameters after a run.

    `clipped` is between the two systems with clipping, `unclipped` between them without,
    `by_clipping` between PyTorch with and without. `share` says how many of the gradients that
    `need_clip` picks were longer than `clip_norm`.
    """

    clip_norm: float
    share: float
    clipped: float
    unclipped: float
    by_clipping: float


def _cases() -> Iterator[Case]:
    for task in TASKS:
        for optimizer in OPTIMIZERS:
            for micro_batches in (1, BATCHES):
                yield Case(task, optimizer, micro_batches, "step", None)
                yield Case(task, optimizer, micro_batches, "step", None, is_global=True)
                yield Case(task, optimizer, micro_batches, "micro-batch", task.pattern)


CASES = list(_cases())


def measure(case: Case) -> Result:
    """Run a case in both systems, with clipping and without."""
    clip_norm = acting_norm_of(case.task)
    seen: list[bool] = []
    reference = _run_torch(case, clip_norm, seen)
    plain = _run_torch(case, math.inf, [])
    return Result(
        clip_norm,
        sum(seen) / len(seen),
        _difference(_run_ort(case, clip_norm), reference),
        _difference(_run_ort(case, math.inf), plain),
        _difference(plain, reference),
    )


def _difference(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> float:
    """The largest difference of an element, relative to the largest element of its parameter."""
    assert set(a) == set(b)
    return max(float(np.max(np.abs(a[n] - b[n])) / np.max(np.abs(b[n]))) for n in a)


# -- ONNX Runtime ------------------------------------------------------------------------------


def _run_ort(case: Case, clip_norm: float) -> dict[str, NDArray[Any]]:
    """The trained parameters; infinity does not clip."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "artifacts"
        shutil.copytree(ROOT / case.task.folder, folder)
        shutil.copy(case.optimizer_model, folder)
        if math.isfinite(clip_norm):
            make = GradientClipByGlobalNorm if case.is_global else GradientClipByNorm
            clip = make(clip_norm, case.need_clip)
            clip_artifacts(folder, Path(scratch) / "clipped", clip, at=case.at)
            folder = Path(scratch) / "clipped"
        return train(folder, case)


def train(folder: Path, case: Case) -> dict[str, NDArray[Any]]:
    """The parameters after training in a folder as the case says, clipped as the folder says."""
    state = CheckpointState.load_checkpoint(folder / "checkpoint")
    module = Module(folder / "training_model.onnx", state)
    optimizer = Optimizer(folder / "optimizer_model.onnx", module)
    optimizer.set_learning_rate(RATES[case.optimizer])
    batches = _batches(case.task)
    for step in range(STEPS):
        for number in range(case.micro_batches):
            batch = batches[(step * case.micro_batches + number) % BATCHES]
            module(*(np.array(batch[name]) for name in module.input_names()))
        optimizer.step()
        module.lazy_reset_grad()
    return {name: np.array(p.data) for name, p in state.parameters if p.requires_grad}


# -- PyTorch -----------------------------------------------------------------------------------


def _run_torch(case: Case, clip_norm: float, seen: list[bool]) -> dict[str, NDArray[Any]]:
    """The trained parameters; `seen` collects whether each picked gradient was too long."""

    def clip(gradients: Tensors) -> Tensors:
        clipped = dict(gradients)
        names = _picked(case, list(gradients))
        norms = {name: float(gradients[name].double().norm()) for name in names}
        if case.is_global:
            norms = dict.fromkeys(names, math.hypot(*norms.values()))
        for name, norm in norms.items():
            seen.append(norm > clip_norm)
            if norm > clip_norm:
                clipped[name] = gradients[name] * (clip_norm / norm)
        return clipped

    if case.at == "step":
        return train_in_torch(case, at_step=clip)
    return train_in_torch(case, at_micro_batch=clip)


def _untouched(gradients: Tensors) -> Tensors:
    return gradients


def train_in_torch(
    case: Case, at_step: Clip = _untouched, at_micro_batch: Clip = _untouched
) -> dict[str, NDArray[Any]]:
    """The parameters after training in PyTorch as the case says, clipped as the arguments say."""
    net = _net(case.task)
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    update = _Sgd() if case.optimizer == "SGD" else _AdamW()
    batches = _batches(case.task)
    for step in range(STEPS):
        total: Tensors = {}
        for number in range(case.micro_batches):
            batch = batches[(step * case.micro_batches + number) % BATCHES]
            part = at_micro_batch(_gradients(case.task, net, parameters, batch))
            total = {name: total[name] + g if total else g for name, g in part.items()}
        total = at_step(total)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter -= RATES[case.optimizer] * update(name, total[name])
    return {name: p.detach().numpy() for name, p in parameters.items()}


def _gradients(
    task: Task, net: torch.nn.Module, parameters: dict[str, Any], batch: dict[str, NDArray[Any]]
) -> Tensors:
    target = torch.from_numpy(batch["labels" if "labels" in batch else "target"])
    loss = task.loss(net(torch.from_numpy(batch["x"])), target)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


class _Sgd:
    """SGDOptimizerV2: the gradient itself."""

    def __call__(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _AdamW:
    """AdamWOptimizer with adam_mode 1 and no weight decay.

    As in Hugging Face's AdamW, and unlike in PyTorch's, the bias correction is not applied to the
    second moment before epsilon is added.
    """

    def __init__(self) -> None:
        self._moments: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {}

    def __call__(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros_like(gradient)
        first, second, step = self._moments.get(name, (zeros, zeros, 0))
        first = 0.9 * first + (1 - 0.9) * gradient
        second = 0.999 * second + (1 - 0.999) * gradient * gradient
        self._moments[name] = (first, second, step + 1)
        correction = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        return correction * first / (second.sqrt() + 1e-6)


# -- what both start from ----------------------------------------------------------------------


@cache
def _make() -> ModuleType:
    """The script that made the folders, for its nets."""
    spec = importlib.util.spec_from_file_location("make_ort_artifacts", ROOT / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _net(task: Task) -> torch.nn.Module:
    """The net with the checkpoint's parameters, those frozen that are frozen there."""
    net: torch.nn.Module = getattr(_make(), task.net)()
    state = CheckpointState.load_checkpoint(ROOT / task.folder / "checkpoint")
    known = dict(state.parameters)
    own = dict(net.named_parameters())
    assert set(known) == set(own), "the net has other parameters than the checkpoint"
    for name, parameter in own.items():
        parameter.data = torch.from_numpy(np.array(known[name].data)).reshape(parameter.shape)
        parameter.requires_grad = known[name].requires_grad
    return net


@cache
def _batches(task: Task) -> list[dict[str, NDArray[Any]]]:
    """The folder's own data, and three more batches of the same shapes and kind."""
    path = ROOT / task.folder / "training_model"
    with np.load(path.with_suffix(".inputs.npz")) as archive:
        stored = dict(archive)
    inputs = [value.name for value in onnx.load(path.with_suffix(".onnx")).graph.input]
    first = {name: stored[name] for name in inputs if name in ("x", "target", "labels")}
    rng = np.random.default_rng(50)
    more = [{name: _like(array, rng) for name, array in first.items()} for _ in range(BATCHES - 1)]
    return [first, *more]


def _like(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if array.dtype.kind == "i":
        return rng.integers(0, array.max() + 1, array.shape)
    return rng.normal(0, array.std(), array.shape).astype(array.dtype)


def acting_norm_of(task: Task) -> float:
    """A quarter of the median norm of the first batch's gradients."""
    net = _net(task)
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    gradients = _gradients(task, net, parameters, _batches(task)[0])
    return round(float(np.median([float(g.norm()) for g in gradients.values()])) / 4, 4)


def _picked(case: Case, names: list[str]) -> set[str]:
    """What each pattern means, said without the package's own selection."""
    meaning: dict[str | None, Callable[[str], bool]] = {
        None: lambda name: True,
        "fc1.*": lambda name: name.startswith("fc1."),
        "fc2.*": lambda name: name.startswith("fc2."),
        "*.weight": lambda name: name.endswith(".weight"),
        "feed.*": lambda name: name.startswith("feed."),
        "[AB]": lambda name: name in ("A", "B"),
        "tied": lambda name: name == "tied",
    }
    return {name for name in names if meaning[case.need_clip](name)}
