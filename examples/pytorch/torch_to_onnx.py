"""From a module and a loss to an ONNX graph of the gradients, or of a whole training step.

Meant to be copied: it needs PyTorch, onnx and onnxscript, and nothing of onnx-clip. docs/pytorch.md
has examples, and what of PyTorch's exporter is worked around here.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import default_decompositions
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Exported:
    """A graph, and the values that its first run is fed beside the batch.

    `state` has parameters, buffers and what the optimizer keeps, by the names of their inputs. For
    each that a run changes there is an output of that name and ".new".
    """

    model: onnx.ModelProto
    state: dict[str, np.ndarray]


def export_gradients(
    module: nn.Module, loss: Callable[..., Tensor], batch: Tensors, *, loss_scale: bool = False
) -> Exported:
    """Return the graph of a loss and its gradients, `W.grad` for each parameter `W` it trains.

    `loss(module, **batch)` is what is differentiated. The first axis of everything in the batch is
    dynamic. Frozen parameters are initializers. With `loss_scale` there is an input of that name,
    by which the gradients, but not the loss, are multiplied.
    """
    return _export(_Step(module, loss, None), batch, loss_scale)


def export_step(
    module: nn.Module,
    loss: Callable[..., Tensor],
    batch: Tensors,
    optimizer: torch.optim.Optimizer,
    *,
    loss_scale: bool = False,
) -> Exported:
    """Return the graph of a training step: the loss, and the new value of all that it changes.

    The optimizer is one that has taken a step, in which it makes its states; the graph carries on
    from there. A learning rate that is a tensor is an input, `lr` (`lr.0`, `lr.1`, … if there are
    several groups). With `loss_scale` there is an input of that name: the loss is multiplied by it
    before the backward pass, and the gradients are divided by it behind that.
    """
    return _export(_Step(module, loss, optimizer), batch, loss_scale)


class _Step:
    """Forward pass, backward pass and update as a function from named tensors to named tensors."""

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.module, self.optimizer = _Loss(module, loss), optimizer
        parameters = dict(module.named_parameters())  # of tied ones the first
        self.trained = {name: p for name, p in parameters.items() if p.requires_grad}
        self.frozen = {name: p for name, p in parameters.items() if not p.requires_grad}
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.states: Tensors = {}
        self.rates: Tensors = {}
        if optimizer is not None:
            groups = optimizer.param_groups
            if any(id(p) not in self.names for group in groups for p in group["params"]):
                raise ValueError("the optimizer has a parameter that is none of the module's")
            self.states = self._states(optimizer)
            rates = {"lr" if len(groups) == 1 else f"lr.{i}": g["lr"] for i, g in enumerate(groups)}
            self.rates = {name: r for name, r in rates.items() if isinstance(r, Tensor)}

    def changed_buffers(self, batch: Tensors) -> Tensors:
        """Return the buffers that a forward pass changes, such as the statistics of BatchNorm."""
        trial = copy.deepcopy(self.module)
        trial(batch)
        after = dict(trial.module.named_buffers())
        before = dict(self.module.module.named_buffers())
        return {name: old for name, old in before.items() if not torch.equal(old, after[name])}

    def __call__(self, values: Tensors, batch: Tensors, carried: Tensors) -> Tensors:
        """Return the loss, then gradients or new parameters and states, then new buffers."""
        leaves = {name: values[name].detach().requires_grad_() for name in self.trained}
        frozen = {name: values[name] for name in self.frozen}
        buffers = {name: values[name].clone() for name in carried}  # written into by the module
        tensors = {f"module.{name}": t for name, t in (leaves | frozen | buffers).items()}
        loss = functional_call(self.module, tensors, (batch,))
        scale = values.get("loss_scale")
        scaled = loss if scale is None else loss * scale
        gradients = torch.autograd.grad(scaled, list(leaves.values()))
        results = {"loss": loss.detach()}
        if self.optimizer is None:
            names = [f"{name}.grad" for name in leaves]
            results |= dict(zip(names, gradients, strict=True))
        else:
            unscaled = gradients if scale is None else [g / scale for g in gradients]
            new = self._updated(dict(zip(leaves, unscaled, strict=True)), values)
            results |= {f"{name}.new": value for name, value in new.items()}
        return results | {f"{name}.new": value.detach() for name, value in buffers.items()}

    def _updated(self, gradients: Tensors, values: Tensors) -> Tensors:
        """Return the new parameters and states, by a copy of the optimizer over these tensors."""
        leaves = {name: nn.Parameter(values[name].detach().clone()) for name in self.trained}
        for name, leaf in leaves.items():
            leaf.grad = gradients[name].contiguous()
        old, new = self.optimizer, copy.copy(self.optimizer)
        new.state = defaultdict(dict)
        for parameter, state in old.state.items():
            name = self.names[id(parameter)]
            new.state[leaves[name]] = {
                key: values[f"{name}.{key}"].clone() if isinstance(value, Tensor) else value
                for key, value in state.items()
            }
        new.param_groups = []
        for place, group in enumerate(old.param_groups):
            mine = [self.names[id(parameter)] for parameter in group["params"]]
            group = group | {"params": [leaves[name] for name in mine if name in leaves]}
            # In formulas for one tensor at a time that make no numbers of tensors.
            wanted = {"capturable": True, "foreach": False, "fused": False}
            group |= {key: value for key, value in wanted.items() if key in group}
            if isinstance(group["lr"], Tensor):
                rate = values["lr" if "lr" in self.rates else f"lr.{place}"]
                group["lr"] = rate.detach().requires_grad_()  # without it, SGD makes a number of it
            new.param_groups.append(group)
        with mock.patch("torch.compiler.is_compiling", return_value=True):  # on any device
            new.step()
        names = {id(leaf): name for name, leaf in leaves.items()}
        after = self._states(new, names)
        if made := sorted(after.keys() - self.states.keys()):
            where = "take that in PyTorch, then export"
            raise ValueError(f"the optimizer makes {made[0]!r} in its first step: {where}")
        return {name: leaf.detach() for name, leaf in leaves.items()} | after

    def _states(
        self, optimizer: torch.optim.Optimizer, names: dict[int, str] | None = None
    ) -> Tensors:
        names = names or self.names
        return {
            f"{names[id(parameter)]}.{key}": value.detach()
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }


class _Loss(nn.Module):
    """The loss as a module, for `functional_call` to set the parameters of the one it calls."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Tensors) -> Tensor:
        return self.loss(self.module, **batch)


def _export(step: _Step, batch: Tensors, loss_scale: bool) -> Exported:
    carried = step.changed_buffers(batch)
    state = step.trained | carried | step.states
    extra = step.rates | ({"loss_scale": torch.tensor(1.0)} if loss_scale else {})
    inputs = {
        name: value.detach()
        for part in (state, step.frozen, extra, batch)
        for name, value in part.items()
    }
    count = len(state) + len(step.frozen) + len(extra) + len(batch)
    if len(inputs) < count or "loss" in inputs:
        raise ValueError(f"names of the batch clash with others: {sorted(batch)}")
    outputs: list[str] = []

    def function(*tensors: Tensor) -> list[Tensor]:
        values = dict(zip(inputs, tensors, strict=True))
        results = step(values, {name: values[name] for name in batch}, carried)
        outputs[:] = results
        return list(results.values())

    # Traced with sizes, not with data: that of the batch is a symbol, all others are numbers.
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)
    is_dynamic = {name: name in batch and value.ndim > 0 for name, value in inputs.items()}
    traced = []
    for name, value in inputs.items():
        sizes = [DimDynamic.STATIC] * value.ndim
        if is_dynamic[name]:
            if value.shape[0] < 2:
                raise ValueError(f"{name!r}: a batch of two or more is needed to trace any size")
            sizes[0] = DimDynamic.DYNAMIC
        context = StatelessSymbolicContext(sizes)
        traced.append(mode.from_tensor(value, symbolic_context=context))
    with ExitStack() as stack:
        # Kernels that are one operator, for which there is no ONNX: an LSTM's and attention's.
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        graph = make_fx(function, decompositions(), tracing_mode="symbolic")(*traced)
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({0: "batch"} if is_dynamic[name] else None for name in inputs),
        )
    model = program.model_proto
    fixed = {name: value.cpu().numpy() for name, value in inputs.items() if name in step.frozen}
    left = [value for value in model.graph.input if value.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(left)
    for name, value in fixed.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return Exported(
        model, {name: value.detach().cpu().numpy().copy() for name, value in state.items()}
    )


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what the exporter does not know, or gets wrong, in terms of what it knows."""
    aten = torch.ops.aten
    normalized = [aten.native_batch_norm, aten._native_batch_norm_legit]
    return (
        dict(default_decompositions())
        | get_decompositions(normalized)
        | {
            aten.convolution_backward.default: _convolution_backward,
            aten.max_pool2d_with_indices_backward.default: _max_pool2d_backward,
            aten.native_layer_norm.default: _layer_norm,
        }
    )


def _convolution_backward(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input, weight and bias, as convolutions."""
    if transposed:
        return NotImplemented
    of_x = of_weight = of_bias = None
    spatial = range(2, x.ndim)
    if wanted[0]:
        # The last elements of x may be out of the stride's reach.
        reached = [
            (out.shape[i] - 1) * s - 2 * p + d * (weight.shape[i] - 1) + 1
            for i, s, p, d in zip(spatial, stride, padding, dilation, strict=True)
        ]
        rest = [x.shape[i] - r for i, r in zip(spatial, reached, strict=True)]
        of_x = torch.ops.aten.convolution(
            out, weight, None, stride, padding, dilation, True, rest, groups
        )
    if wanted[1]:
        # The batch takes the place of the channels; each group of channels is a group again.
        n, channels, *sizes = x.shape
        images = x.reshape(n, groups, channels // groups, *sizes).transpose(0, 2)
        images = images.reshape(channels // groups, groups * n, *sizes)
        full = torch.ops.aten.convolution(
            images, out.transpose(0, 1), None, dilation, padding, stride, False,
            [0] * len(sizes), groups,
        )  # fmt: skip
        of_weight = full.transpose(0, 1)
        for i in spatial:
            of_weight = of_weight.narrow(i, 0, weight.shape[i])
    if wanted[2]:
        of_bias = out.sum((0, *spatial))
    return of_x, of_weight, of_bias


def _max_pool2d_backward(
    out: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool,
    indices: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient of the input: each element of `out` added where its maximum was."""
    zeros = torch.zeros_like(x).flatten(-2)
    return zeros.scatter_add(-1, indices.flatten(-2), out.flatten(-2)).view_as(x)


def _layer_norm(x: Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Normalize what autocast has made half in the dtype of the weight, as one operator must."""
    if weight is None or weight.dtype == x.dtype:
        return NotImplemented
    wide = x.to(weight.dtype)
    out, mean, rstd = torch.ops.aten.native_layer_norm(wide, shape, weight, bias, eps)
    return out.to(x.dtype), mean, rstd
