"""Telling parameters from data where both are inputs of a graph.

A moment of an optimizer is no parameter; any other initializer is. Of an input, in this order:

1. data, if its dtype is not a floating one;
2. a parameter, if a step in the graph updates it;
3. data, if a dimension is symbolic (a batch) or its first one unknown;
4. data, if values are named like gradients of initializers: there the parameters are no inputs;
5. by its place in the first node that takes it, looking through transposes and the like: the
   first operand of Gemm, Conv, a normalization or a recurrent layer is data, the others are
   weights, and so are the table of Gather and the slope of PRelu; in MatMul and Einsum the
   operand beside known data is a weight, beside an initializer data, unless it is the second one
   beside an activation, too (an RNN begins with a constant state); if neither is known, nor
   computed otherwise than by elementwise ops, the one alone that has a value named like its
   gradient is the weight, or else the second;
6. data, if it has the size of a known batch first and the first node that takes it compares it
   with a prediction: Sub, a loss, or a product with a log-probability;
7. else a parameter.

A wrong guess is overruled by naming the parameter in `need_clip` patterns or `skip`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from onnx import NodeProto

from onnx_clip_pass.graph import Flow, Frame, TensorType, Use, Value, uses
from onnx_clip_pass.graph.spec import ALIASES

__all__ = ["Role", "Roles", "is_surely_data"]

_RESHAPERS = ALIASES | {"Dropout", "Expand"}
_ACTIVATIONS = {"Elu", "Erf", "Gelu", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh"}
_COMBINATIONS = {"Add", "Div", "Mul", "Sub", "Sum"}
_DATA_FIRST = {
    "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "GRU", "Gemm",
    "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization",
    "RMSNormalization", "RNN",
}  # fmt: skip
_WEIGHT_FIRST = {"Gather", "GatherElements", "GatherND"}
_PRODUCTS = {"MatMul", "Einsum"}
_LOSSES = {
    "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLossInternal",
}  # fmt: skip
_LOG_PROBABILITIES = {"LogSoftmax", "Log"}


class Role(NamedTuple):
    """The role of an input or initializer, parameter or not, and the evidence for it."""

    is_parameter: bool
    why: str


class Roles:
    """The roles of the inputs of every graph that runs on its own."""

    def __init__(
        self,
        flow: Flow,
        updated: set[Value],
        moments: set[Value],
        differentiated: Collection[Value] = frozenset(),
    ) -> None:
        """`differentiated` are the inputs and initializers after which values are named."""
        self._flow = flow
        self._differentiated = differentiated
        self._are_parameters_inputs = not any(
            value.name in value.frame.scope.initializers for value in differentiated
        )
        self._updated = updated
        self._moments = moments
        self._roles: dict[Value, Role] = {}
        self._inputs = dict.fromkeys(
            Value(frame, name)
            for frame in flow.roots()
            for name in frame.scope.inputs
            if name not in frame.scope.initializers
        )
        self._decide_all()

    def of(self, value: Value) -> Role:
        """The role of an input or initializer."""
        if value in self._roles:
            return self._roles[value]
        if value in self._moments:
            return Role(False, f"{value.name} is a moment of an optimizer")
        if value.name in value.frame.scope.initializers:
            known = value.type
            if known is not None and not known.is_floating:
                return Role(False, f"{value.name} is an initializer of {known.dtype_name}")
            return Role(True, f"{value.name} is an initializer")
        return Role(True, f"{value.name} is an input")

    def is_weight(self, value: Value) -> bool:
        """True if an input goes into a product, a convolution or a layer first."""
        use = None if value.node is not None else _first_use(self._flow, value)
        ops = _PRODUCTS | _DATA_FIRST | _WEIGHT_FIRST
        return use is not None and use.node.op_type in ops

    # -- deciding ------------------------------------------------------------------------------

    def _decide_all(self) -> None:
        undecided = []
        for value in self._inputs:
            role = self._by_declaration(value)
            if role is None:
                undecided.append(value)
            else:
                self._roles[value] = role
        uses = {value: _first_use(self._flow, value) for value in undecided}
        for value, use in uses.items():
            role = None if use is None else self._by_use(value, *use)
            if role is not None:
                self._roles[value] = role
        batches = {
            value.type.shape[0]
            for value, role in self._roles.items()
            if not (role.is_parameter or value in self._moments) and value.type and value.type.shape
        }
        for value, use in uses.items():
            if value not in self._roles:
                self._roles[value] = self._by_comparison(value, use, batches) or Role(
                    True, f"{value.name} is an input that nothing shows to be data"
                )

    def _by_declaration(self, value: Value) -> Role | None:
        name, known = value.name, value.type
        if known is None or not known.is_floating:
            dtype = "no tensor" if known is None else known.dtype_name
            return Role(False, f"{name} is data: it is {dtype}")
        if value in self._moments:
            return Role(False, f"{name} is a moment of an optimizer")
        if value in self._updated:
            return Role(True, f"{name} is updated in the graph")
        if (symbol := _batch_symbol(known)) is not None:
            return Role(False, f"{name} is data: it has a dimension {symbol}")
        if not self._are_parameters_inputs:
            return Role(False, f"{name} is data: the parameters are initializers")
        return None

    def _by_use(self, value: Value, frame: Frame, node: NodeProto, slot: int) -> Role | None:
        where = f"input {slot} of {node.op_type}"
        if node.op_type in _DATA_FIRST:
            if slot == 0:
                return Role(False, f"{value.name} is data: {where}")
            return Role(True, f"{value.name} is a weight: {where}")
        if node.op_type in _WEIGHT_FIRST or node.op_type == "PRelu":
            is_weight = (slot == 0) == (node.op_type != "PRelu")
            return Role(
                is_weight, f"{value.name} is {'a weight' if is_weight else 'data'}: {where}"
            )
        if node.op_type in _LOSSES:
            return Role(False, f"{value.name} is data: {where}")
        if node.op_type in _PRODUCTS and len(node.input) == 2:
            other = self._flow.resolve(frame, node.input[1 - slot])
            is_weight = self._is_weight_beside(value, slot, other)
            return Role(
                is_weight, f"{value.name} is {'a weight' if is_weight else 'data'}: {where}"
            )
        return None

    def _is_weight_beside(self, value: Value, slot: int, other: Value | None) -> bool:
        leaves = None if other is None else _leaves(self._flow, other)
        if leaves is None:
            return True  # beside an activation
        roles = [self._roles[leaf] for leaf in leaves if leaf in self._roles]
        if not all(role.is_parameter for role in roles):
            return True  # beside data
        if roles:
            return False  # beside weights
        if leaves.isdisjoint(self._inputs):  # beside a constant: a weight, or a first state
            return slot == 1 and self._is_applied_to_activations(value)
        is_differentiated = value in self._differentiated
        if is_differentiated == leaves.isdisjoint(self._differentiated):
            return is_differentiated  # one of the two is
        return slot == 1

    def _is_applied_to_activations(self, value: Value) -> bool:
        for frame, node, slot in uses(self._flow, value, _RESHAPERS):
            if node.op_type in _PRODUCTS and len(node.input) == 2 and slot == 1:
                other = self._flow.resolve(frame, node.input[0])
                if other is not None and _leaves(self._flow, other) is None:
                    return True
        return False

    def _by_comparison(
        self, value: Value, use: Use | None, batches: set[int | str | None]
    ) -> Role | None:
        shape = value.type.shape if value.type else None
        if use is None or not shape or shape[0] not in batches:
            return None
        frame, node, slot = use
        other = self._flow.resolve(frame, node.input[1 - slot]) if len(node.input) == 2 else None
        against = None if other is None else other.node
        if node.op_type == "Sub" or (
            node.op_type == "Mul" and against is not None and against.op_type in _LOG_PROBABILITIES
        ):
            why = f"it has the batch size and is compared in {node.op_type}"
            return Role(False, f"{value.name} is data: {why}")
        return None


def is_surely_data(flow: Flow, value: Value) -> bool:
    """True if an input is data even if the graph adds something to it: a state, a latent, a sample.

    So it is if a dimension is symbolic or its first one unknown, and if it is the first operand of
    any product, convolution or layer whose second one is an initializer, behind an activation or
    not.
    """
    known = value.type
    if value.name in value.frame.scope.initializers or known is None:
        return False
    if _batch_symbol(known) is not None:
        return True
    for frame, node, slot in uses(flow, value, _RESHAPERS | _ACTIVATIONS):
        if slot == 0 and len(node.input) > 1 and node.op_type in _DATA_FIRST | {"MatMul"}:
            other = flow.resolve(frame, node.input[1])
            source = None if other is None else _behind_reshapers(flow, other)
            if source is not None and source.name in source.frame.scope.initializers:
                return True
    return False


def _batch_symbol(known: TensorType) -> str | None:
    """The name of a symbolic dimension, `?` for a first one of which nothing is said."""
    for number, size in enumerate(known.shape or ()):
        if isinstance(size, str) or (size is None and number == 0):
            return size or "?"
    return None


def _leaves(flow: Flow, value: Value) -> set[Value] | None:
    """The inputs and initializers that elementwise ops compute it from; None if others do."""
    leaves: set[Value] = set()
    todo = [value]
    seen = {value}
    for at in todo:  # grows while it is read
        at = _behind_reshapers(flow, at)
        node = at.node
        if node is None:
            leaves.add(at)
        elif node.op_type in _COMBINATIONS:
            new = [x for x in flow.operands(at) if x not in seen]
            seen.update(new)
            todo += new
        elif node.op_type != "Constant":
            return None
    return leaves


def _first_use(flow: Flow, value: Value) -> Use | None:
    return next(uses(flow, value, _RESHAPERS), None)


def _behind_reshapers(flow: Flow, value: Value) -> Value:
    while (node := value.node) is not None and node.op_type in _RESHAPERS:
        inner = flow.operand(value, 0)
        if inner is None:
            return value
        value = inner
    return flow.canonical(value)
