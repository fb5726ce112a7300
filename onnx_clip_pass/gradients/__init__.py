"""Finding the gradients of a training graph: one module for each kind of evidence.

Structure comes first: `accumulator`, `optimizer`, `update`, `operator` (the Gradient op), in this
order; `names` serves the parameters that none of them knows. `roles` tells parameters from data.
What the caller names outright is not searched: `claimed`.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from onnx import ModelProto

from onnx_clip_pass.arguments import model_or_path
from onnx_clip_pass.gradients import accumulator, claimed, names, operator, optimizer
from onnx_clip_pass.gradients.clipped import clipped_already
from onnx_clip_pass.gradients.counters import counters
from onnx_clip_pass.gradients.found import Found, Gradient, Parameter, Sink, has_gradient_shape
from onnx_clip_pass.gradients.layout import unit_axes
from onnx_clip_pass.gradients.naming import SUFFIXES, parameter_names
from onnx_clip_pass.gradients.optimizer import NO_OPS, OptimizerOps
from onnx_clip_pass.gradients.roles import Roles
from onnx_clip_pass.gradients.updates import Carried, Question, Updates
from onnx_clip_pass.graph import OUTPUT, Flow, Frame, Index, TensorType, Value
from onnx_clip_pass.graph.dtypes import dtype_of
from onnx_clip_pass.record import strip_if_clipped
from onnx_clip_pass.storage import open_model
from onnx_clip_pass.validity import blaming

__all__ = [
    "FoundGradient",
    "Gradient",
    "OptimizerOps",
    "Parameter",
    "Question",
    "Survey",
    "find_gradients",
    "name_gradients",
    "survey",
    "unit_axes",
]


class FoundGradient(NamedTuple):
    """A gradient, with where it is in the graph and where its optimizer consumes it.

    `parameter` is where its parameter is, if that is known.
    """

    gradient: Gradient
    value: Value
    type: TensorType
    sinks: tuple[Sink, ...] = ()
    parameter: Value | None = None


class Survey(NamedTuple):
    """The finds in a model.

    `of_data` are values named like gradients of inputs that were taken for data; `updates` are the
    new values of parameters, at which the backward pass of a step ends; `accumulated` is what is
    added to sums over runs; `questions` are the trained parameters whose gradient is
    not known, `carried` the states that are not trained. Where names told of gradients and nothing
    is updated, `bare` are the weights without any. `clipped` are the gradients that the graph clips
    already, with the operators that do it. `loss` is the output that is the loss, if it is clear,
    `paired` the floating states of the main graph with their new values.
    """

    flow: Flow
    found: list[FoundGradient]
    of_data: list[FoundGradient]
    updates: set[Value]
    accumulated: set[Value]
    questions: list[Question]
    carried: tuple[Value, ...] = ()
    bare: tuple[Value, ...] = ()
    clipped: tuple[tuple[str, str], ...] = ()
    loss: str | None = None
    paired: tuple[Carried, ...] = ()

    @property
    def states(self) -> list[Carried]:
        """All that the main graph carries from step to step: parameters and counters too."""
        known = {name for each in self.paired for name in each[:2]}
        found = counters(self.flow.main.scope) if known else ()
        return [
            *self.paired,
            *(Carried(*pair, is_sure=True) for pair in found if known.isdisjoint(pair)),
        ]

    @property
    def gradients_of_nothing(self) -> list[str]:
        """The outputs of the main graph that are named after parameters which it does not have."""
        scope = self.flow.main.scope
        return [
            name
            for name in scope.outputs
            if (parameters := parameter_names(name))
            and name.endswith(SUFFIXES)
            and scope.names.isdisjoint(parameters)
        ]

    def answered(self, answers: Mapping[str, str]) -> Survey:
        """Return the same with the questions answered that have the named value as a candidate.

        Args:
            answers: parameter to the name of its gradient.
        """
        found, open_questions = [], []
        for question in self.questions:
            name = answers.get(question.name)
            value = next((each for each in question.candidates if each.name == name), None)
            if value is None:
                open_questions.append(question)
                continue
            among = " and ".join(dict.fromkeys(each.name for each in question.candidates[:4]))
            evidence = f"decided by the slopes of the loss, between {among}"
            find = Found(value, question.parameter, question.name, evidence)
            found.append(_found_gradient(self.flow, [find]))
        if not found:
            return self
        everything = _in_order(self.flow.index, [*self.found, *found])
        return self._replace(found=everything, questions=open_questions)

    def is_accumulated(self, value: Value) -> bool:
        """True if a sum over runs takes the value, so that it is one micro-batch's gradient."""
        return value in self.accumulated or bool(accumulator.slots_of(self.flow, value))


def find_gradients(model: ModelProto | str | os.PathLike[str]) -> list[Gradient]:
    """The gradients of a model's parameters, in the order in which the graph computes them.

    Args:
        model: a training graph, or its path; weights are not read, and need not be loaded.

    Returns:
        One `Gradient` for each pair of a gradient value and its parameter; an empty list where
        nothing is found. A model that is clipped already is searched as it was before.

    Raises:
        OnnxClipError: two values claim to be the gradient of one parameter by name alone, or the
            model is clipped and has been changed since, so that its record does not fit it; or the
            file cannot be read.
    """
    source = model_or_path("model", model)
    if isinstance(source, ModelProto):
        with blaming(lambda: source, "this"):
            return _gradients_in(source)
    with open_model(source) as structure:
        return _gradients_in(structure.model)


def _gradients_in(model: ModelProto) -> list[Gradient]:
    found = survey(Index(strip_if_clipped(model))).found
    return [found_gradient.gradient for found_gradient in found]


def survey(index: Index, optimizer_ops: OptimizerOps = NO_OPS) -> Survey:
    """Find gradients and whatever a rewrite needs to know about the way they are used.

    Args:
        index: the model.
        optimizer_ops: optimizers that the caller knows.
    """
    flow = Flow(index)
    updates = Updates(flow)
    joined: _Joined = {}
    for finds in (
        accumulator.find(flow, updates),
        optimizer.find(flow, updates, optimizer_ops),
    ):
        _join(joined, finds)
    otherwise = set(joined)
    _join(joined, updates.found)
    candidates = names.candidates(flow)
    roles = Roles(flow, updates.trained, updates.carried, set().union(*candidates))
    operators = operator.find(flow, roles)
    _join(joined, operators)
    named = names.find(flow, updates, roles, candidates, set(joined))
    _join(joined, named.gradients)
    otherwise.update(find.name for find in (*operators, *named.gradients))
    is_by_name = bool(named.gradients) and not updates.trained
    found = [
        _found_gradient(flow, group) for values in joined.values() for group in values.values()
    ]
    of_data = [_found_gradient(flow, [each]) for each in named.of_data]
    return Survey(
        flow,
        _in_order(index, found),
        of_data,
        updates.ends | _ends(flow, optimizer_ops),
        updates.accumulated,
        [question for question in updates.questions if question.name not in otherwise],
        tuple(sorted(updates.carried, key=lambda value: value.name)),
        tuple(_bare(flow, roles, joined.keys())) if is_by_name else (),
        tuple(dict.fromkeys(each for run in updates.runs for each in clipped_already(run))),
        updates.loss,
        tuple(updates.states()),
    )


def name_gradients(
    index: Index, wanted: Mapping[str, str | None], optimizer_ops: OptimizerOps = NO_OPS
) -> Survey:
    """Take the named values as gradients; nothing is searched but the names.

    Args:
        index: the model.
        wanted: gradient name to parameter name; None where the caller does not say it.
        optimizer_ops: optimizers that the caller knows.

    Raises:
        OnnxClipError: a name that no value bears, or values of several graphs; what is surely no
            gradient, or not that of its parameter (see `claimed`).
    """
    flow = Flow(index)
    updates = Updates(flow)
    found = [_found_gradient(flow, [each]) for each in claimed.find(flow, updates, wanted)]
    return Survey(
        flow, found, [], updates.moved_ends | _ends(flow, optimizer_ops), updates.accumulated, []
    )


_Joined = dict[str, dict[tuple[int, str], list[Found]]]
"""Parameter name to the finds of each of its gradients, a value being a scope and a name."""


def _join(joined: _Joined, finds: Iterable[Found]) -> None:
    """Add finds; where stronger evidence knows the parameter, they only confirm its values.

    The algorithms of `training_info` are apart: each has gradients of its own.
    """
    known = {
        (name, id(_run(find))) for name, values in joined.items() for (find, *_) in values.values()
    }
    for find in finds:
        values = joined.setdefault(find.name, {})
        key = (id(find.gradient.frame.scope), find.gradient.name)
        if key in values or (find.name, id(_run(find))) not in known:
            values.setdefault(key, []).append(find)


def _run(find: Found) -> Frame:
    """The frame of the graph that is run when the gradient is computed."""
    frame = find.gradient.frame
    while frame.caller is not None and frame.call != OUTPUT:
        frame = frame.caller
    return frame


def _found_gradient(flow: Flow, finds: list[Found]) -> FoundGradient:
    first = finds[0]
    value = first.gradient
    declared = value.type
    parameter_type = first.parameter.type if first.parameter is not None else None
    parameter_type = parameter_type or TensorType()
    tensor = TensorType() if declared is None else declared
    if declared is not None and not tensor.dtype:
        tensor = TensorType(dtype_of(flow, value) or parameter_type.dtype, tensor.shape)
    if declared is not None and tensor.shape is None and first.parameter is not None:
        tensor = tensor._replace(shape=parameter_type.shape)
    if declared is not None and (not tensor.dtype or tensor.shape is None):
        inferred = flow.index.inferred(value.frame.scope, value.name)
        shape = inferred.shape if tensor.shape is None else tensor.shape
        tensor = TensorType(tensor.dtype or inferred.dtype, shape)
    dtype = "not a tensor" if declared is None else tensor.dtype_name
    return FoundGradient(
        Gradient(
            name=value.name,
            parameter=Parameter(
                name=first.name,
                shape=parameter_type.shape if first.parameter is not None else tensor.shape,
                dtype=parameter_type.dtype_name if first.parameter is not None else dtype,
                gradient=value.name,
            ),
            shape=tensor.shape,
            dtype=dtype,
            evidence="; ".join(dict.fromkeys(find.evidence for find in finds)),
            graph=value.frame.scope.path,
            has_seeds=not tensor.agrees_with(parameter_type)
            and has_gradient_shape(tensor, parameter_type),
        ),
        value,
        tensor,
        tuple(find.sink for find in finds if find.sink is not None),
        first.parameter,
    )


def _in_order(index: Index, found: list[FoundGradient]) -> list[FoundGradient]:
    scopes = {id(scope): number for number, scope in enumerate(index.scopes)}

    def sort_key(found_gradient: FoundGradient) -> tuple[int, int, int]:
        scope = found_gradient.value.frame.scope
        return (scopes[id(scope)], *scope.producers.get(found_gradient.value.name, (-1, 0)))

    return sorted(found, key=sort_key)


def _bare(flow: Flow, roles: Roles, known: Container[str]) -> Iterator[Value]:
    """The weights of the main graph that have no gradient."""
    scope = flow.main.scope
    for name in dict.fromkeys((*scope.inputs, *scope.initializers)):
        value = Value(flow.main, name)
        if name not in known and roles.is_weight(value) and roles.of(value).is_parameter:
            yield value


def _ends(flow: Flow, optimizer_ops: OptimizerOps) -> set[Value]:
    """The results of optimizers and accumulators, at which the backward pass of a step ends."""
    types = {name.rpartition("::")[2] for name in optimizer_ops}
    return {
        Value(frame, name)
        for frame in flow.frames()
        for number in frame.scope.numbers_of(*accumulator.OPS, *optimizer.OPS, *types)
        if (node := frame.scope.nodes[number]).op_type in accumulator.OPS
        or optimizer.is_optimizer(node, optimizer_ops)
        for name in node.output
        if name
    }
