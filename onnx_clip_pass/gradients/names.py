"""Gradients known by a name made of a parameter's name and an affix.

The weakest evidence. A value counts only if

1. something depends on it: the gradient of a frozen parameter can be left over; if it is an input,
   no product or layer takes it up, as it does a weight that happens to be called so; nor does a
   matrix product if it stays inside: that is how the backward pass goes on from an activation;
2. the parameter exists as input or initializer, and is no data (see `roles`), no accumulator's
   buffer, and no slice that Scan takes of what a Loop or a Scan gave: an activation, on the way
   back through time;
3. it has the parameter's shape, as declared or else as shape inference finds it. What its graph
   returns may be of unknown shape, or have onnx-ad's seed dimension (see `has_gradient_shape`);
   the latter an inner value may have, too, if its name says adjoint.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import NamedTuple

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import accumulator
from onnx_clip_pass.gradients.found import Found, has_gradient_shape
from onnx_clip_pass.gradients.naming import SHORT, parameter_names
from onnx_clip_pass.gradients.ops import ELEMENTWISE, PRODUCTS
from onnx_clip_pass.gradients.roles import Roles
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import OUTPUT, Flow, Frame, TensorType, Value
from onnx_clip_pass.graph.control import subgraph_output_of_input

__all__ = ["Candidates", "Named", "candidates", "find"]

Candidates = dict[Value, list[Value]]
"""Parameter to the values of one graph that are named after it."""


class Named(NamedTuple):
    """Gradients by name, and those of what was taken for data."""

    gradients: list[Found]
    of_data: list[Found]


def candidates(flow: Flow) -> list[Candidates]:
    """The values that may be gradients by name and shape, for each frame of the model."""
    return [_candidates(flow, frame) for frame in flow.frames()]


def find(
    flow: Flow, updates: Updates, roles: Roles, candidates: list[Candidates], known: set[str]
) -> Named:
    """A gradient for each parameter that is not among the `known` ones.

    Graph outputs come before inner values, outer graphs before the graphs nested in them; of
    several names in one graph the last on the way counts, and of that the value before clipping.

    Raises:
        OnnxClipError: two values of one graph bear a parameter's name, and neither is computed
            from the other.
    """
    named = Named([], [])
    taken, used, passed_back = set(known), _Used(flow), _PassedBack(flow)
    for of_frame in candidates:
        for parameter, values in of_frame.items():
            name = flow.root_name(parameter)
            taken_up = [
                value
                for value in values
                if name not in taken
                and value in used
                and not (roles.is_weight(value) or value in passed_back)
            ]
            if not taken_up:
                continue
            role = roles.of(parameter)
            last = updates.raw(_last(flow, taken_up, parameter), None)
            gradient = _outermost(flow, last)
            evidence = f"named after {parameter.name}; {role.why}"
            found = Found(gradient, parameter, name, evidence)
            (named.gradients if role.is_parameter else named.of_data).append(found)
            taken.add(name)
    return named


def _candidates(flow: Flow, frame: Frame) -> Candidates:
    scope = frame.scope
    inputs = [name for name in scope.inputs if name not in scope.initializers]
    found: Candidates = defaultdict(list)
    for name in (*scope.producers, *inputs):
        for parameter_name in parameter_names(name):
            if name == parameter_name + SHORT and name not in scope.producers:
                continue
            parameter = flow.resolve(frame, parameter_name)
            if parameter is None or parameter.node is not None:
                continue
            parameter = flow.canonical(parameter)
            value = Value(frame, name)
            if parameter.node is not None or 0 in accumulator.slots_of(flow, parameter):
                continue
            if _is_kept_by_a_loop(flow, parameter):
                continue
            if _fits(flow, value, parameter):
                found[parameter].append(value)
                break
    return found


def _is_kept_by_a_loop(flow: Flow, parameter: Value) -> bool:
    """Return whether rule 2 takes an input of a subgraph for an activation."""
    frame, name = parameter
    at = frame.scope.input_slots.get(name)
    if frame.caller is None or frame.call == OUTPUT or frame.scope.is_function or at is None:
        return False
    scan = frame.caller.scope.nodes[frame.call]
    if scan.op_type != "Scan" or subgraph_output_of_input(scan, at) is not None:
        return False
    whole = flow.resolve(frame.caller, scan.input[at])
    made = None if whole is None else whole.node
    return made is not None and made.op_type in ("Loop", "Scan")


class _Used:
    """The values that go into what the model returns, or what a loop hands on in each turn."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __contains__(self, value: Value) -> bool:
        return self._is_end(value) or value in self._behind_ends

    def _is_end(self, value: Value) -> bool:
        frame, name = value
        return name in frame.scope.output_slots and self._flow.is_run_or_iteration(frame)

    @cached_property
    def _behind_ends(self) -> set[Value]:
        named = (
            self._flow.resolve(frame, name)
            for frame in self._flow.frames()
            for name in frame.scope.outputs
            if self._flow.is_run_or_iteration(frame)
        )
        return self._flow.ancestors(end for end in named if end is not None)[0]


class _PassedBack:
    """The inner values of which the gradients of other parameters are made by products."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow

    def __contains__(self, value: Value) -> bool:
        is_inner = value.node is not None and value.name not in value.frame.scope.output_slots
        return is_inner and value in self._multiplied

    @cached_property
    def _multiplied(self) -> set[Value]:
        """The operands of products, and all that these are made of by elementwise operators."""
        operands = {
            value
            for frame in self._flow.frames()
            for node in frame.scope.nodes
            if node.op_type in PRODUCTS
            for name in node.input
            if (value := self._flow.resolve(frame, name)) is not None
        }
        starts = [value for value in operands if not _is_computed_otherwise(value)]
        return operands | self._flow.ancestors(starts, _is_computed_otherwise)[0]


def _is_computed_otherwise(value: Value) -> bool:
    return value.node is not None and value.node.op_type not in ELEMENTWISE


def _fits(flow: Flow, value: Value, parameter: Value) -> bool:
    """Rule 3, and that both are floating as far as it is known."""
    gradient, known = value.type, parameter.type
    if gradient is None or known is None:
        return False
    if gradient.shape is None:
        inferred = flow.index.inferred(value.frame.scope, value.name)
        gradient = TensorType(gradient.dtype or inferred.dtype, inferred.shape)
    if not (gradient.is_floating and known.is_floating):
        return False
    if value.name in value.frame.scope.output_slots:
        return has_gradient_shape(gradient, known)
    if gradient.shape is None or known.shape is None:
        return False
    return gradient.agrees_with(known) or (
        value.name.startswith("adj") and has_gradient_shape(gradient, known)
    )


def _last(flow: Flow, values: list[Value], parameter: Value) -> Value:
    """The one that passes on all the others; outputs of the graph before inner values."""
    outputs = [value for value in values if value.name in value.frame.scope.output_slots]
    values = outputs or [value for value in values if value.node is not None] or values
    if len(values) == 1:
        return values[0]
    for value in values:
        seen, _ = flow.ancestors([value])
        if seen.issuperset(values):
            return value
    raise OnnxClipError(
        f"expected one gradient of {parameter.name!r}, but these values bear its name: "
        + ", ".join(repr(value.name) for value in values)
        + "; name the right one with --gradient (in Python: gradients=[…])"
    )


def _outermost(flow: Flow, value: Value) -> Value:
    """The output of the If or the call through which a value leaves its graph."""
    while (outer := flow.outer_output(value)) is not None:
        value = outer
    return value
