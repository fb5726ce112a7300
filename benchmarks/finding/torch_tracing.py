"""What has to be different for an optimizer to be traced: no Python numbers, no lists of tensors.

Formulas stay the library's; only what turns a tensor into a Python number is replaced.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx


def traced(function: Callable[..., Any], arguments: Sequence[Tensor]) -> torch.fx.GraphModule:
    """Return the graph of a function, with what the exporter does not know taken apart."""
    table = _on_lists() | get_decompositions(_TAKEN_APART)
    table[torch.ops.aten.convolution_backward.default] = _convolution_backward
    table[torch.ops.aten.clamp.default] = partial(_clamp, torch.ops.aten.clamp.default)
    table[torch.ops.aten.clamp_.default] = partial(_clamp, torch.ops.aten.clamp_.default)
    # The kernels of oneDNN for LSTMs are one operator, of which the exporter knows nothing.
    with torch.backends.mkldnn.flags(enabled=False):
        return make_fx(function, decomposition_table=table)(*(a.clone() for a in arguments))


_TAKEN_APART = [
    torch.ops.aten.silu_backward,
    # These write into the statistics, which the exporter overlooks.
    torch.ops.aten.native_batch_norm,
    torch.ops.aten._native_batch_norm_legit,
    torch.ops.aten.native_batch_norm_backward,
]


def _clamp(operator: Any, x: Tensor, low: Any = None, high: Any = None) -> Any:
    """Clamp between two floats, where one is an integer; the exporter fails at that."""
    if not x.is_floating_point() or int not in (type(low), type(high)):
        return NotImplemented
    return operator(x, *(float(end) if isinstance(end, int) else end for end in (low, high)))


def _convolution_backward(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a plain convolution as convolutions; the exporter has none."""
    assert groups == 1
    assert not transposed
    of_x = of_weight = of_bias = None
    convolution = torch.ops.aten.convolution.default
    if wanted[0]:
        # What the stride did not reach at the far end.
        rest = [
            size - ((o - 1) * s - 2 * p + d * (k - 1) + 1)
            for size, o, s, p, d, k in zip(
                x.shape[2:], out.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
            )
        ]
        of_x = convolution(out, weight, None, stride, padding, dilation, True, rest, 1)
    if wanted[1]:
        turned, kernel = x.transpose(0, 1), out.transpose(0, 1)
        full = convolution(turned, kernel, None, dilation, padding, stride, False, [0, 0], 1)
        of_weight = full.transpose(0, 1)[:, :, : weight.shape[2], : weight.shape[3]]
    if wanted[2]:
        of_bias = out.sum((0, 2, 3))
    return of_x, of_weight, of_bias


def _on_lists() -> dict[Any, Callable[..., Any]]:
    """Return for each `_foreach` operator the kernel that calls the plain one for each tensor."""
    table: dict[Any, Callable[..., Any]] = {}
    for name in dir(torch._C._VariableFunctions):
        if not name.startswith("_foreach"):
            continue
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            table[getattr(packet, overload)] = _one_by_one(getattr(packet, overload))
    return table


def _one_by_one(operator: Any) -> Callable[..., Any]:
    def kernel(*values: Any, **options: Any) -> Any:
        key = torch._C.DispatchKey.CompositeExplicitAutograd
        return operator._op_dk(key, *values, **options)

    return kernel


@contextmanager
def as_if_compiled() -> Iterator[None]:
    """Let torch.optim keep its numbers in tensors, as under torch.compile, and bfloat16 be float32.

    ONNX Runtime's CPU provider has no products in bfloat16, which Muon takes.
    """
    with ExitStack() as stack:
        for target, name, new in (
            (torch.compiler, "is_compiling", lambda: True),
            (Tensor, "bfloat16", lambda self: self),
            (Tensor, "to", _to_but_bfloat16),
        ):
            stack.enter_context(mock.patch.object(target, name, new))
        yield


_TO = Tensor.to


def _to_but_bfloat16(self: Tensor, *where: Any, **options: Any) -> Tensor:
    if torch.bfloat16 in (*where, options.get("dtype")):
        return self
    return _TO(self, *where, **options)


@contextmanager
def without_numbers() -> Iterator[None]:
    """Let `item()` give the tensor itself, and `max`, `min` and `math` of optimizers take tensors.

    What an author writes who wants the optimizer in a graph: the formulas stay the library's. An
    `if` on data takes the branch that the example takes, as in any trace; `branches` records it.
    """
    modules = {
        module
        for name, module in list(sys.modules.items())
        if name.startswith(("pytorch_optimizer.", "torch.optim."))
    }
    with ExitStack() as stack:
        stack.enter_context(as_if_compiled())
        stack.enter_context(mock.patch.object(Tensor, "item", _as_number))
        stack.enter_context(mock.patch.object(Tensor, "__bool__", _branch))
        for module in modules:
            stack.enter_context(mock.patch.object(module, "max", _largest, create=True))
            stack.enter_context(mock.patch.object(module, "min", _smallest, create=True))
            if getattr(module, "math", None) is math:
                stack.enter_context(mock.patch.object(module, "math", _Mathematics()))
        for name, share in _SHARES.items():
            stack.enter_context(mock.patch.object(Tensor, name, _with_share(name, share)))
        yield


branches: list[bool] = []
"""The branches that were taken since the list was cleared."""

_BOOL = Tensor.__bool__


def _as_number(self: Tensor) -> Tensor:
    return self.reshape(())


def _branch(self: Tensor) -> bool:
    with disable_proxy_modes_tracing():
        taken = _BOOL(self)
    branches.append(taken)
    return taken


_SHARES = {
    "add": "alpha",
    "add_": "alpha",
    "sub": "alpha",
    "sub_": "alpha",
    "addcmul": "value",
    "addcmul_": "value",
    "addcdiv": "value",
    "addcdiv_": "value",
}
"""Methods with a factor that has to be a number, and the factor's name."""


def _with_share(name: str, share: str) -> Callable[..., Tensor]:
    """Return a method that also takes a tensor as its factor, by multiplying with it first."""
    plain = getattr(Tensor, name)

    def method(self: Tensor, *others: Any, **options: Any) -> Tensor:
        factor = options.get(share)
        if not isinstance(factor, Tensor):
            return plain(self, *others, **options)
        del options[share]
        first, *rest = others
        return plain(self, first * factor, *rest, **options)

    return method


def _largest(*values: Any, **options: Any) -> Any:
    return _extreme(builtins.max, torch.maximum, values, options)


def _smallest(*values: Any, **options: Any) -> Any:
    return _extreme(builtins.min, torch.minimum, values, options)


def _extreme(plain: Any, of_tensors: Any, values: Any, options: Any) -> Any:
    items = values[0] if len(values) == 1 else values
    if not any(isinstance(item, Tensor) for item in items):
        return plain(*values, **options)
    result = _number(items[0])
    for item in items[1:]:
        result = of_tensors(result, _number(item))
    return result


def _number(value: Any) -> Tensor:
    """Return a tensor of one element as one of rank 0 and of floating point."""
    tensor = torch.as_tensor(value).reshape(())
    return tensor if tensor.is_floating_point() else tensor.float()


class _Mathematics:
    """The module math, whose functions take one-element tensors too."""

    def __getattr__(self, name: str) -> Any:
        plain = getattr(math, name)
        if not callable(plain):
            return plain

        def either(*values: Any) -> Any:
            if any(isinstance(value, Tensor) for value in values):
                return getattr(torch, name)(*map(_number, values))
            return plain(*values)

        return either
