"""A clip in two phases, for gradients of which several workers have a part each.

The clip is put in once, cut where a sum over elements has been formed (`clips/parts`): what goes
into the cut is what a worker adds, what comes out is read from the vector that all have added up.
The phase "norms" is what the first needs, the phase "scale" what the clipped gradients need.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from onnx_clip_pass.arguments import check_choice
from onnx_clip_pass.clips import Formula, Tape, Tensor
from onnx_clip_pass.clips.emitter import FIRST_BROADCASTING_MIN
from onnx_clip_pass.clips.tape import Over, Used
from onnx_clip_pass.errors import OnnxClipError, shown
from onnx_clip_pass.gradients import Gradient
from onnx_clip_pass.graph import Editor, Index, Shape
from onnx_clip_pass.graph.spec import DOUBLE, FLOAT
from onnx_clip_pass.rewrite import Edit, PlannedEdits, Reduced
from onnx_clip_pass.selection import as_patterns, select

__all__ = ["KEY", "NAMES", "Cut", "Phase", "ShardAxis", "Sharding"]

Phase = Literal["norms", "scale"]
"""norms: from the parts to what is added up over the workers. scale: from the parts and those sums
to the clipped parts."""

ShardAxis = int | Literal["flat"] | None
"""The axis of each gradient along which it is cut, "flat" for vectors of elements in a row, or None
for any: then only norms over whole gradients can be had."""

KEY = "onnx_clip_pass.sharded"
"""The metadata entry of both models: JSON with the phase, the fingerprint, and what is reduced."""

_SUMS, _MAXIMA, _REPLICAS = "clip/sums", "clip/maxima", "clip/replicas"
NAMES = (_SUMS, _MAXIMA, _REPLICAS)
"""The names of the inputs and outputs of phases besides those of gradients."""

_HIGHEST_ADDED_POWER = 8  # the powers of any float32 number up to here are float64 numbers


class _Slot(NamedTuple):
    """A place in a vector: the gradient or group, the quantity, its size, and the formula."""

    of: str
    what: str
    size: int
    clip: dict[str, Any]


@dataclass(slots=True)
class _Vector:
    """A vector that one all-reduce reduces: its places, and this worker's values in them."""

    name: str
    dtype: int
    size: int = 0
    slots: list[_Slot] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def input(self) -> ValueInfoProto:
        """The vector that comes back, as an input of its present size."""
        return helper.make_tensor_value_info(self.name, self.dtype, [self.size])


@dataclass(frozen=True, slots=True)
class Sharding:
    """The options of an extraction for sharded gradients, checked."""

    phase: Phase
    axis: ShardAxis = None
    replicated: tuple[str, ...] = ()

    @classmethod
    def of(cls, phase: object, axis: object, replicated: object) -> Sharding | None:
        """Check the options; None if no phase is asked for.

        Raises:
            OnnxClipError: one of them cannot be meant, or needs a phase.
        """
        patterns = as_patterns(replicated, "replicated")
        if phase is None:
            if patterns or axis is not None:
                what = "replicated" if patterns else "shard_axis"
                raise OnnxClipError(
                    f"{what} is for gradients in parts: say which phase of the clip you want, "
                    f"'norms' or 'scale' (phase=, on the command line --phase)"
                )
            return None
        check_choice("phase", phase, Phase)
        if axis is not None and axis != "flat" and type(axis) is not int:
            raise OnnxClipError(f"shard_axis must be an axis or 'flat', not {shown(axis)}")
        return cls(phase, axis, patterns)  # type: ignore[arg-type]

    def shape(self, gradient: Gradient) -> Shape | None:
        """The shape of a part of a gradient: a symbol where it may be cut."""
        if self.axis == "flat":
            return (f"{gradient.name}:elements",)
        if gradient.shape is None:
            return None
        rank = len(gradient.shape) - int(gradient.has_seeds)
        cut = range(rank) if self.axis is None else (self.axis % rank if rank else -1,)
        return tuple(
            f"{gradient.name}:{axis}" if axis in cut else size
            for axis, size in enumerate(gradient.shape)
        )


class Cut:
    """The cut through the clips of a plan, between this worker and all of them.

    Raises:
        OnnxClipError: clips of the plan cannot be cut; all reasons are named.
    """

    def __init__(self, sharding: Sharding, plan: PlannedEdits) -> None:
        self._sharding = sharding
        self._numerics = plan.settings.numerics
        self._loss_scale = plan.settings.thresholds.loss_scale
        parameters = list(dict.fromkeys(row.gradient.parameter for row in plan.rows))
        patterns = list(sharding.replicated)
        picked = set(select(parameters, patterns)) if patterns else set()
        replicated = [row.gradient.name for row in plan.rows if row.gradient.parameter in picked]
        self.replicated = {name: at for at, name in enumerate(dict.fromkeys(replicated))}
        """The gradients of which several workers have the same part, and their places."""
        if faults := [fault for edit in plan.edits for fault in self._faults(edit)]:
            raise OnnxClipError("these clips cannot be cut into phases:", dict.fromkeys(faults))
        self.used: set[Used] = set()
        self.dtype = self._dtype_of(plan)
        self._vectors = [_Vector(name, self.dtype) for name in (_SUMS, _MAXIMA)]
        self.edits = [self._in_parts(edit) for edit in plan.edits]
        """Those of the plan, of parts instead of whole gradients."""

    def workers(self, edit: Edit, formula: Formula) -> _Workers:
        """The workers that have parts of a gradient."""
        return _Workers(self, edit.gradient, formula.to_dict(), self._sharding.axis)

    def inputs(self) -> list[ValueInfoProto]:
        """The inputs besides gradients that nodes of either phase may read."""
        replicas = helper.make_tensor_value_info(_REPLICAS, self.dtype, [len(self.replicated)])
        return [replicas, *(vector.input() for vector in self._vectors)]

    def reduced(self, what: str, to: Tape, value: Tensor, slot: _Slot) -> Tensor:
        """The value that comes back for one that goes into the vector of this name."""
        (vector,) = (each for each in self._vectors if each.name == what)
        shape = tuple(d for d in value.shape or () if isinstance(d, int))
        if value.shape is None or len(shape) < len(value.shape):
            raise OnnxClipError(
                f"{to.label!r} has a norm for each of several units, samples or seeds, and the "
                f"model does not say how many these are: fix the sizes of the axes that are not cut"
            )
        start, size = vector.size, math.prod(shape)
        vector.size += size
        vector.slots.append(slot._replace(size=size))
        vector.values.append(value)
        back = to.part(Tensor(vector.name, vector.dtype, (None,)), start, shape)
        return to.cast(back, value.dtype, result="of all")

    def finish(self, model: ModelProto) -> Reduced:
        """Leave of the model what its phase needs, with the vectors at their sizes; these.

        Raises:
            OnnxClipError: nothing is reduced, or one thing only after another was.
        """
        vectors = [vector for vector in self._vectors if vector.slots]
        if not vectors:
            raise OnnxClipError(
                "no clip asks for anything of a whole gradient, so there is nothing to add up over "
                "the workers: extract the clip without a phase"
            )
        graph = model.graph
        own = [value.name for vector in vectors for value in vector.values]
        before = _makers(graph, own)
        names = {vector.name for vector in self._vectors}
        if not _reads_of(before).isdisjoint(names):
            raise OnnxClipError(
                "these clips need one all-reduce after another: a norm is taken of what another "
                "norm has scaled; leave one of them, or put element-wise clips first"
            )
        kept = [port for port in graph.input if port.name not in names]
        if self._sharding.phase == "norms":
            _keep(graph, kept, before)
            self._join(model, vectors)
        else:
            kept += [vector.input() for vector in vectors]
            _keep(graph, kept, _makers(graph, [port.name for port in graph.output]))
        note: dict[str, Any] = {
            "phase": self._sharding.phase,
            "fingerprint": self._fingerprint(),
            **{vector.name: [slot[:3] for slot in vector.slots] for vector in vectors},
            _REPLICAS: list(self.replicated),
        }
        model.metadata_props.add(key=KEY, value=json.dumps(note, ensure_ascii=False))
        sums, maxima = (vector.size for vector in self._vectors)
        return Reduced(sums, maxima, tuple(self.replicated), note["fingerprint"])

    def _join(self, model: ModelProto, vectors: Sequence[_Vector]) -> None:
        """Make each vector of this worker's values, as the outputs of the model."""
        del model.graph.output[:]
        editor = Editor(Index(model))
        for vector in vectors:
            label = vector.name.removeprefix("clip/")
            to = Tape(editor, editor.index.main, len(model.graph.node), label)
            values = [to.cast(each, vector.dtype, result="own") for each in vector.values]
            to.output(to.concat([to.flat(v) for v in values], result="joined"), vector.name)
            self.used |= to.used
        editor.finish()

    def _fingerprint(self) -> str:
        """A digest of all that must be the same on all workers; not of which gradients they have.

        Workers of a pipeline have other gradients in the same groups.
        """
        told = {
            "reduced": {vector.name: vector.slots for vector in self._vectors},
            "numerics": [self._numerics.norm_precision, self._numerics.nonfinite],
            "loss_scale": self._loss_scale,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def _dtype_of(self, plan: PlannedEdits) -> int:
        """The dtype of the vectors: float64, but for plain norms of nothing that needs it."""
        numerics = plan.settings.numerics
        works = {
            formula.work_dtype(edit.gradient.dtype, numerics)
            for edit in plan.edits
            for formula in edit.choice.clip.formulas
        }
        is_plain = numerics.norm_precision == "plain" and numerics.nonfinite == "propagate"
        return FLOAT if is_plain and works == {FLOAT} else DOUBLE

    def _in_parts(self, edit: Edit) -> Edit:
        """The same edit of a part of its gradient."""
        found = []
        for each in edit.found_gradients:
            shape = self._sharding.shape(each.gradient)
            gradient = replace(each.gradient, shape=shape)
            found.append(each._replace(gradient=gradient, type=each.type._replace(shape=shape)))
        return replace(edit, found_gradients=found)

    def _faults(self, edit: Edit) -> Iterable[str]:
        """The reasons that the clips of a gradient cannot be cut."""
        gradient, axis = edit.gradient, self._sharding.axis
        where = f"gradient {gradient.name!r}"
        rank = None if gradient.shape is None else len(gradient.shape) - int(gradient.has_seeds)
        if (edit.scope.opset or 0) < FIRST_BROADCASTING_MIN:
            yield f"{where}: phases need opset {FIRST_BROADCASTING_MIN} or later"
        if isinstance(axis, int) and gradient.name not in self.replicated:
            if rank is None:
                yield f"{where}: its shape is unknown, and axis {axis} of it is to be cut"
            elif not -rank <= axis < rank:
                yield (
                    f"{where}: it has rank {rank} and no axis {axis} to be cut; if every worker "
                    f"has all of it, name it (--replicated, in Python replicated=)"
                )
        if axis == "flat" and gradient.has_seeds:
            yield f"{where}: its last axis is that of seeds, which is lost where it is flat"
        for formula in edit.choice.clip.formulas:
            if _HIGHEST_ADDED_POWER < formula.order < math.inf:
                yield (
                    f"{where}: sums of powers above {_HIGHEST_ADDED_POWER} leave the range of "
                    f"float64, and this is the {formula.order:g}th; take inf, or a lower one"
                )
            if not formula.is_split:
                continue
            if not isinstance(axis, int):
                yield (
                    f"{where}: {formula.label} has norms over some of its axes, and whether they "
                    f"reach over several workers depends on the axis that is cut: say it "
                    f"(--shard-axis AXIS, in Python shard_axis=)"
                )


class _Workers(NamedTuple):
    """The workers that have parts of one gradient; see `clips.emitter.Workers`."""

    cut: Cut
    gradient: Gradient
    clip: dict[str, Any]
    axis: ShardAxis

    @property
    def dtype(self) -> int:
        return self.cut.dtype

    def share(self, over: Over) -> bool:
        shape = self.gradient.shape
        rank = None if shape is None else len(shape) - int(self.gradient.has_seeds)
        if over.axes is None or rank is None or len(over.axes) == rank:
            return True
        assert isinstance(self.axis, int)
        return self.axis % rank in over.axes

    def replicas(self, to: Tape) -> Tensor | None:
        place = self.cut.replicated.get(self.gradient.name)
        if place is None:
            return None
        return to.part(Tensor(_REPLICAS, self.dtype, (None,)), place, ())

    def total(self, to: Tape, value: Tensor, what: str) -> Tensor:
        return self.cut.reduced(_SUMS, to, value, _Slot(to.label, what, 0, self.clip))

    def largest(self, to: Tape, value: Tensor, what: str) -> Tensor:
        return self.cut.reduced(_MAXIMA, to, value, _Slot(to.label, what, 0, self.clip))


def _makers(graph: GraphProto, names: Iterable[str]) -> list[NodeProto]:
    """The nodes of which some of these values are made, in their order."""
    producers = {name: at for at, node in enumerate(graph.node) for name in node.output}
    todo, found = [*names], set[int]()
    while todo:
        at = producers.get(todo.pop())
        if at is not None and at not in found:
            found.add(at)
            todo += graph.node[at].input
    return [graph.node[at] for at in sorted(found)]


def _reads_of(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _keep(graph: GraphProto, inputs: Iterable[ValueInfoProto], nodes: Sequence[NodeProto]) -> None:
    """Leave of a graph these nodes, what they read, and these inputs, if they need not be read."""
    read = _reads_of(nodes)
    there = read | {name for node in nodes for name in node.output}
    numbers = {tensor.name for tensor in graph.initializer}
    kept = GraphProto(node=nodes, name=graph.name, output=graph.output)
    kept.input.extend(port for port in inputs if port.name in read or port.name not in numbers)
    kept.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    kept.value_info.extend(value for value in graph.value_info if value.name in there)
    graph.CopyFrom(kept)
