"""Gradients known because the caller says so: nothing is searched, what is surely wrong is refused.

1. A gradient is a value of one graph.
2. It is no parameter: no step in the graph updates it, and no other gradient of the same call is
   said to be its own. Where the caller names no parameter, no value is named after it, either, and
   it is not what a step with a gradient makes of one.
3. Unless the caller or its own name tells its parameter, it is no data (`roles.is_surely_data`)
   and, where the graph updates parameters, of which none has a single element, no number such as
   the loss.
4. A parameter is an input, an initializer or what a loop carries, an alias of one, or what an
   earlier step has made of one that the graph updates. It is floating and has the gradient's
   shape: as it is, with seeds, or its dimensions in another order. It may lie elsewhere, as for a
   graph that only clips; but not where the graph holds parameters: of other gradients, one that
   it updates, or one that the gradient is named after.

An initializer may be a gradient (a constant one), and so may an input (of an optimizer-only graph).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property

from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import names
from onnx_clip_pass.gradients.found import Found, has_gradient_shape
from onnx_clip_pass.gradients.naming import parameter_names
from onnx_clip_pass.gradients.roles import is_surely_data
from onnx_clip_pass.gradients.updates import Updates
from onnx_clip_pass.graph import Flow, TensorType, Value

__all__ = ["find"]


def find(flow: Flow, updates: Updates, wanted: Mapping[str, str | None]) -> list[Found]:
    """The gradients that the caller names.

    Args:
        flow: the model.
        updates: its updates.
        wanted: gradient name to parameter name; None where the caller does not say it.

    Raises:
        OnnxClipError: with everything in `wanted` that is surely wrong.
    """
    if not wanted:
        raise OnnxClipError("expected the name of a gradient, at least one, but none is given")
    claims = _Claims(flow, updates, wanted)
    found = [claims.found(name, parameter) for name, parameter in wanted.items()]
    if claims.faults:
        raise OnnxClipError("these are not the gradients of this model:", claims.faults)
    return [each for each in found if each is not None]


class _Claims:
    def __init__(self, flow: Flow, updates: Updates, wanted: Mapping[str, str | None]) -> None:
        self._flow = flow
        self._updates = updates
        self._wanted = wanted
        self._updated = updates.trained | updates.moved
        self._named: dict[str, dict[str, Value]] = defaultdict(dict)
        for frame in reversed(flow.frames()):
            for name in frame.scope.names & wanted.keys():
                self._named[name][frame.scope.path] = Value(frame, name)
        self.faults: list[str] = []

    def found(self, name: str, parameter_name: str | None) -> Found | None:
        """The gradient and its parameter; None, and a fault more, if it cannot be one."""
        value = self._value(name)
        if value is None:
            return None
        parameter = (
            self._guessed(value) if parameter_name is None else self._told(value, parameter_name)
        )
        fault = self._fault_of(value, parameter, parameter_name)
        if fault is not None:
            self.faults.append(fault)
            return None
        own_name = parameter_name or (name if parameter is None else parameter.name)
        return Found(value, parameter, own_name, "named by the caller")

    def _value(self, name: str) -> Value | None:
        """Rule 1: the value of that name, of the main graph if that has one."""
        named = self._named.get(name)
        if not named:
            self.faults.append(f"{name!r} is no value of this model" + self._nearest(name))
        elif len(named) > 1 and "" not in named:
            where = ", ".join(sorted(named))
            self.faults.append(
                f"{name!r} is a value of several graphs ({where}); rename one of them"
            )
        else:
            return named.get("") or next(iter(named.values()))
        return None

    def _guessed(self, value: Value) -> Value | None:
        """The input or initializer that the gradient is named after, if its shape allows it."""
        for name in parameter_names(value.name):
            found = self._flow.resolve(value.frame, name)
            if found is not None and found.node is None and self._fits(value, found):
                return found
        return None

    def _told(self, value: Value, name: str) -> Value | None:
        """The parameter by the caller's name for it, in the gradient's graph or the main one."""
        flow = self._flow
        found = flow.resolve(value.frame, name) or flow.resolve(flow.main, name)
        return None if found is None else self._updates.behind_aliases(found)

    def _fault_of(self, value: Value, parameter: Value | None, told: str | None) -> str | None:
        """The reason why `value` is no gradient of `parameter`, which the caller calls `told`."""
        if self._is_parameter(value, told):
            return f"{value.name!r} is a parameter, so it is no gradient" + self._hint(value, told)
        if told is None:
            return None if parameter is not None else self._fault_alone(value)
        if parameter is None:
            fault = f"{told!r} is no parameter: this model has no such value{self._nearest(told)}"
            return fault if self._has_parameters() or self._guessed(value) is not None else None
        source = parameter.node
        if (
            source is not None
            and source.op_type != "Constant"
            and self._updates.root_of(parameter) not in self._updated
        ):
            why = f"{told!r} is computed by {source.op_type}, so it is no parameter"
            return why + self._hint(value, told)
        if parameter.type is not None and not parameter.type.is_floating:
            return f"{told!r} is {parameter.type.dtype_name}, so it is no parameter"
        if not self._fits(value, parameter):
            ours, theirs = self._shape(value), self._shape(parameter)
            return f"{value.name!r} has the shape {ours}, but its parameter {told!r} has {theirs}"
        return None

    def _fault_alone(self, value: Value) -> str | None:
        """Rule 3."""
        how = (
            f"; if it is a gradient, say of what with --map (in Python: "
            f"gradients={{{value.name!r}: parameter}})"
        )
        if value.node is None and is_surely_data(self._flow, value):
            return f"{value.name!r} is data, so it is no gradient{how}"
        if (
            value.node is not None
            and self._updates.trained
            and self._updates.is_scalar_like(value)
            and not any(self._updates.is_scalar_like(each) for each in self._updates.trained)
        ):
            return f"{value.name!r} is one number, and no parameter here is one{how}"
        root = self._updates.root_of(value)
        if root is not None and root in self._updated and value in self._updates.new_values:
            return f"{value.name!r} is what {root.name!r} becomes, so it is no gradient{how}"
        return None

    @cached_property
    def _named_after(self) -> set[Value]:
        """The parameters that some value is named after as their gradient."""
        return set().union(*names.candidates(self._flow))

    def _has_parameters(self) -> bool:
        """True if parameters of this call's gradients, or updated ones, lie in the main graph."""
        names = self._flow.main.scope.names
        return bool(self._updates.trained) or any(told in names for told in self._wanted.values())

    def _is_parameter(self, value: Value, told: str | None) -> bool:
        """Rule 2."""
        if value.node is not None:
            return False
        if value in self._updates.trained or value.name in self._wanted.values():
            return True
        return told is None and value in self._named_after

    def _hint(self, value: Value, told: str | None) -> str:
        """Return whether the two look as if they were exchanged."""
        parameter = None if told is None else self._told(value, told)
        if parameter is None or value.node is not None or parameter in self._updated:
            return ""
        return f"; did you mean the other way round, {{{told!r}: {value.name!r}}}?"

    def _fits(self, value: Value, parameter: Value) -> bool:
        """Return whether the shapes allow it, as far as they are known."""
        a, b = self._type(value), self._type(parameter)
        if a is None or b is None or has_gradient_shape(a, b):
            return True
        return None not in (a.shape, b.shape) and sorted(map(str, a.shape or ())) == sorted(
            map(str, b.shape or ())
        )

    def _type(self, value: Value) -> TensorType | None:
        """Declared, or with the shape that inference finds."""
        known = value.type
        if known is None or known.shape is not None:
            return known
        return known._replace(shape=self._flow.index.inferred(value.frame.scope, value.name).shape)

    def _shape(self, value: Value) -> str:
        known = self._type(value)
        return str([] if known is None else list(known.shape or ()))

    def _nearest(self, name: str) -> str:
        known = sorted(set().union(*(scope.names for scope in self._flow.index.scopes)))
        near = get_close_matches(name, known, n=3)
        return f"; did you mean {', '.join(map(repr, near))}?" if near else ""
