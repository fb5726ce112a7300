"""Gradients known by an optimizer node that takes them as tensors.

Inputs by position, as their schemas define them:

- `ai.onnx.preview.training` (https://onnx.ai/onnx/operators/): `Adagrad` and `Momentum`
  (R, T, X_1…X_n, G_1…G_n, state_1…state_n), `Adam` the same with two states each.
- `com.microsoft` (ONNX Runtime's training operators): `SGDOptimizer` (rate, W, G), `AdamOptimizer`
  (rate, step, W, G, moments, …), `LambOptimizer` (five inputs, then W, G, two moments and a half
  precision copy for each parameter); `SGDOptimizerV2`, `AdamWOptimizer` take sequences of
  tensors, which can be told apart only where the graph itself constructs them.

Of other operators the caller may say which inputs are the parameter and its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from onnx import NodeProto

from onnx_clip_pass.arguments import is_text
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients.found import Found, Sink
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import TRAINING_DOMAIN, Flow, Frame, Value

__all__ = [
    "NO_OPS",
    "OPS",
    "SEQUENCE_SLOTS",
    "OptimizerOps",
    "checked_ops",
    "find",
    "is_optimizer",
]

OptimizerOps = Mapping[str, tuple[int, int]]
"""Operator, as `vendor::SGD`, to the numbers of its inputs: a parameter and its gradient."""

NO_OPS: OptimizerOps = MappingProxyType({})

_STATES = {"Adagrad": 1, "Momentum": 1, "Adam": 2}
_TENSOR_SLOTS = {"SGDOptimizer": (1, 2), "AdamOptimizer": (2, 3)}
_MOST_INPUTS = 1 << 31
_LAMB_FIRST, _LAMB_GROUP = 5, 5
SEQUENCE_SLOTS = {"SGDOptimizerV2": (1, 2), "AdamWOptimizer": (2, 3)}
_OF_ORT = {*_TENSOR_SLOTS, "LambOptimizer", *SEQUENCE_SLOTS}
OPS = {*_STATES, *_OF_ORT}


def checked_ops(given: object) -> OptimizerOps:
    """Return optimizers that the caller knows, if they are such.

    Raises:
        OnnxClipError: they are no mapping, or one has no two numbers of different inputs.
    """
    expected = (
        "expected optimizers that are known to the caller as a mapping such as "
        '{"vendor::SGD": (0, 1)}: operator to the numbers of the inputs that are the parameter '
        "and its gradient"
    )
    if not isinstance(given, Mapping):
        raise OnnxClipError(f"{expected}; not {shown(given)}")
    found: dict[str, tuple[int, int]] = {}
    for name, slots in given.items():
        pair = tuple(slots) if isinstance(slots, Sequence) and not isinstance(slots, str) else ()
        if (
            not (is_text(name) and name.rpartition("::")[2])
            or len(pair) != 2
            or not all(type(slot) is int and 0 <= slot < _MOST_INPUTS for slot in pair)
            or pair[0] == pair[1]
        ):
            raise OnnxClipError(f"{expected}; not {shown(name)}: {shown(slots)}")
        found[name] = (pair[0], pair[1])
    return found


def find(flow: Flow, updates: Updates, further: OptimizerOps = NO_OPS) -> list[Found]:
    """The gradient of each parameter that an optimizer node updates.

    Args:
        flow: the model.
        updates: its updates.
        further: operators that the caller knows.
    """
    found = []
    types = OPS | {name.rpartition("::")[2] for name in further}
    for frame in flow.frames():
        for number in frame.scope.numbers_of(*types):
            node = frame.scope.nodes[number]
            for weight, gradient, sink in _pairs(flow, frame, number, node, further):
                root = updates.behind_aliases(weight)
                raw = updates.raw(gradient, weight)
                evidence = f"optimized by {node.op_type}"
                found.append(Found(raw, root, flow.root_name(root), evidence, sink))
    return found


def is_optimizer(node: NodeProto, further: OptimizerOps = NO_OPS) -> bool:
    """Return whether this module, or the caller, knows the operator."""
    if further and _name_of(node) in further:
        return True
    return (node.domain == TRAINING_DOMAIN and node.op_type in _STATES) or (
        node.op_type in _OF_ORT and node.domain != TRAINING_DOMAIN
    )


def _name_of(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _pairs(
    flow: Flow, frame: Frame, number: int, node: NodeProto, further: OptimizerOps
) -> Iterator[tuple[Value, Value, Sink]]:
    if not is_optimizer(node, further):
        return
    known = further.get(_name_of(node))
    at = number
    if known is None and node.op_type in SEQUENCE_SLOTS:
        slots_of = SEQUENCE_SLOTS[node.op_type]
        made = [m for slot in slots_of if (m := _constructor(frame, node, slot)) is not None]
        if len(made) < len(slots_of):
            return
        weights, gradients = (list(frame.scope.nodes[m].input) for m in made)
        if len(weights) != len(gradients):
            return
        at = made[1]
        slots = list(enumerate(range(len(gradients))))
    else:
        weights = gradients = list(node.input)
        slots = _slots(node) if known is None else [known]
    for weight_slot, gradient_slot in slots:
        if max(weight_slot, gradient_slot) >= len(gradients):
            continue
        weight = flow.resolve(frame, weights[weight_slot])
        gradient = flow.resolve(frame, gradients[gradient_slot])
        if weight is not None and gradient is not None:
            sink = Sink(frame, at, gradient_slot)
            yield flow.canonical(weight), flow.canonical(gradient), sink


def _slots(node: NodeProto) -> list[tuple[int, int]]:
    """The input numbers of each parameter and its gradient."""
    if node.op_type in _TENSOR_SLOTS:
        return [_TENSOR_SLOTS[node.op_type]]
    if node.op_type == "LambOptimizer":
        return [(i, i + 1) for i in range(_LAMB_FIRST, len(node.input) - 1, _LAMB_GROUP)]
    count = (len(node.input) - 2) // (2 + _STATES[node.op_type])
    return [(2 + i, 2 + count + i) for i in range(count)]


def _constructor(frame: Frame, node: NodeProto, slot: int) -> int | None:
    """The number of the SequenceConstruct node that makes a sequence input of `node`."""
    made = frame.scope.producers.get(node.input[slot]) if slot < len(node.input) else None
    if made is None or frame.scope.nodes[made[0]].op_type != "SequenceConstruct":
        return None
    return made[0]
