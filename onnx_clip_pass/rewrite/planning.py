"""The clips of all gradients, planned before any of them is put in, and all that is at fault."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from onnx_clip_pass.clips import Formula, Numerics, ParameterSite, scheduled, shared_norms
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import FoundGradient, Survey, unit_axes
from onnx_clip_pass.graph import BY_NAME, OUTPUT, Index, Read, Scope, Value
from onnx_clip_pass.graph.dtypes import dtype_of
from onnx_clip_pass.rewrite.coverage import accepted
from onnx_clip_pass.rewrite.edits import Edit
from onnx_clip_pass.rewrite.finding import Finds
from onnx_clip_pass.rewrite.metrics import MetricOutputs
from onnx_clip_pass.rewrite.operators import Counts, operators_of
from onnx_clip_pass.rewrite.reporting import (
    Clipped,
    notes_on,
    notes_on_coverage,
)
from onnx_clip_pass.rewrite.selecting import Assignments
from onnx_clip_pass.rewrite.settings import Settings
from onnx_clip_pass.rewrite.unrolled import unrolled_steps
from onnx_clip_pass.rules import ClipChoice

__all__ = ["PlannedEdits", "plan"]


@dataclass(frozen=True, slots=True)
class PlannedEdits:
    """A rewrite that can be done: what was found, the edits, and what a user should know of both.

    `schedule` says which formulas act together, one after another: the numbers of their edits, and
    of each its number among the formulas of that edit. `replaces` says that the model was clipped.
    `operators` are those that it has already, with the opset, and how many of each.
    """

    index: Index
    settings: Settings
    found: Finds
    rows: tuple[Clipped, ...]
    edits: list[Edit]
    schedule: list[list[tuple[int, int]]]
    warnings: list[str]
    replaces: bool
    operators: Counts


def plan(index: Index, found: Finds, settings: Settings, *, replaces: bool) -> PlannedEdits:
    """Plan the edits that put the clips in.

    Raises:
        OnnxClipError: some gradient cannot be clipped; all reasons are named.
    """
    seen, assignments = found.seen, found.selected.assignments
    faults = settings.thresholds.faults(
        index, [choice for _, choice in assignments if choice is not None]
    )
    edits: list[Edit] = []
    backward = _backward_reads(
        index, seen, [found_gradient.value for found_gradient, _ in assignments]
    )
    for group in _by_value(assignments):
        own, wrong = _edits_of(index, seen, group, backward, settings)
        edits += own
        faults += wrong
    for number, edit in enumerate(edits):
        if edit.choice.clip.reads_parameter:
            site = _parameter_site(index, seen, edit)
            if isinstance(site, str):
                faults.append(site)
            else:
                edits[number] = replace(edit, site=site)
    faults += _faults_of_groups(edits)
    steps = unrolled_steps(index, edits)
    faults += _faults_of_histories(edits, steps)
    if faults:
        raise OnnxClipError("this model cannot be clipped:", dict.fromkeys(faults))
    apart = [(id(edit.scope), step) for edit, step in zip(edits, steps, strict=True)]
    schedule = scheduled([edit.choice.clip.formulas for edit in edits], apart)
    warnings = found.selected.warnings + notes_on(seen, assignments) + found.notes
    warnings += accepted(found.uncovered)
    warnings += notes_on_coverage(index, found.selected.bare, settings)
    rows = tuple(
        Clipped(found_gradient.gradient, choice.clip, choice.rule)
        if choice is not None
        else Clipped(found_gradient.gradient, None)
        for found_gradient, choice in assignments
    )
    return PlannedEdits(
        index, settings, found, rows, edits, schedule, warnings, replaces, operators_of(index)
    )


def _by_value(assignments: Assignments) -> Iterable[Assignments]:
    """The gradients of several parameters together where they are one value."""
    groups: dict[tuple[int, str], Assignments] = {}
    for found_gradient, choice in assignments:
        key = (id(found_gradient.value.frame.scope), found_gradient.value.name)
        groups.setdefault(key, []).append((found_gradient, choice))
    return groups.values()


def _edits_of(
    index: Index, seen: Survey, group: Assignments, backward: set[Read], settings: Settings
) -> tuple[list[Edit], list[str]]:
    """The edits of one value, and its faults."""
    choices = _different([choice for _, choice in group])
    wanted = [choice for choice in choices if choice is not None]
    if not wanted:
        return [], []
    value = group[0][0].value
    faults = _faults(group[0][0], wanted, settings)
    if not settings.metrics and all(_does_nothing(each, settings.numerics) for each in wanted):
        return [], faults
    readers = index.readers_of(value.frame.scope, value.name)
    raw = [read for read in readers if read in backward or read.slot == BY_NAME]
    others = [read for read in readers if read not in backward and read.slot != BY_NAME]
    if not others and not settings.metrics.measures_only:
        faults.append(_clips_nothing(group[0][0]))
    if len(choices) > 1:
        edits, wrong = _edits_for_some(seen, group, others)
    else:
        edits, wrong = _edits_for_all(group, wanted[0], raw, others, settings.metrics)
    return edits, faults + wrong


_Meaning = tuple[str, str | None] | None


def _different(choices: list[ClipChoice | None]) -> list[ClipChoice | None]:
    """The choices that differ in their effect; mostly all are the one of a rule."""
    if all(choice is choices[0] for choice in choices):
        return choices[:1]
    return list({_meaning(choice): choice for choice in choices}.values())


def _meaning(choice: ClipChoice | None) -> _Meaning:
    """The effect of a choice, whichever rule makes it."""
    if choice is None:
        return None
    return json.dumps(choice.clip.to_dict(), sort_keys=True), choice.threshold_input


def _does_nothing(choice: ClipChoice, numerics: Numerics) -> bool:
    return (
        choice.clip.is_identity and choice.threshold_input is None and numerics.nonfinite != "zero"
    )


def _faults_of_groups(edits: list[Edit]) -> list[str]:
    """The faults of groups: gradients with one norm must have more in common."""
    faults = []
    first: dict[object, tuple[Edit, Formula]] = {}
    for edit in edits:
        formulas = edit.choice.clip.formulas
        for formula, key in zip(formulas, shared_norms(formulas, _run(edit.scope)), strict=True):
            if key is None:
                continue
            other, theirs = first.setdefault(key, (edit, formula))
            if what := _clash(other, theirs, edit, formula):
                faults.append(
                    f"gradients {other.name!r} and {edit.name!r} of group {formula.group!r} cannot "
                    f"have one norm: {what}; give them groups of their own"
                )
    return faults


def _clash(other: Edit, theirs: Formula, edit: Edit, formula: Formula) -> str | None:
    """The reason that two gradients of a group cannot have one norm; None if they can."""
    if other.scope is not edit.scope:
        return "they are values of different graphs"
    inputs = (other.choice.threshold_input, edit.choice.threshold_input)
    if theirs.settings() != formula.settings():
        return f"they are clipped by {theirs.label} and by {formula.label}"
    if inputs[0] != inputs[1]:
        named = (f"the input {name!r}" if name else "a number" for name in inputs)
        return f"their threshold is {' and '.join(named)}"
    return formula.clash(other.gradient, edit.gradient)


def _faults_of_histories(edits: Sequence[Edit], steps: Sequence[int]) -> list[str]:
    """The faults of clips whose limits follow from earlier steps: a history is one of one step."""
    faults = []
    first: dict[str, tuple[Edit, int]] = {}
    for edit, step in zip(edits, steps, strict=True):
        for formula in edit.choice.clip.formulas:
            if not formula.history_size:
                continue
            group = formula.group
            owners = [f"group {group!r}"] if group is not None else [
                f"parameter {found_gradient.gradient.parameter.name!r}"
                for found_gradient in edit.found_gradients
            ]  # fmt: skip
            for owner in owners:
                other, before = first.setdefault(owner, (edit, step))
                if before != step or (group is None and other is not edit):
                    faults.append(
                        f"gradients {other.name!r} and {edit.name!r} are of different steps of the "
                        f"graph, or both of {owner}, and one history has the norms of one in each "
                        f"run: clip {owner} by a number, or export one step"
                    )
    return faults


def _run(scope: Scope) -> str:
    """The run that a graph is part of: an algorithm of `training_info` is one of its own."""
    first = scope.path.split("/")[0]
    return first if first.startswith("training_info") else ""


def _parameter_site(index: Index, seen: Survey, edit: Edit) -> ParameterSite | str:
    """The place where the clip reads the parameter, or the reason that it cannot."""
    found_gradient = edit.found_gradients[0]
    parameter, gradient = found_gradient.parameter, found_gradient.gradient
    where = f"gradient {gradient.name!r}"
    if parameter is None:
        return (
            f"{where}: its parameter is not known, and the clip compares them; say it with a map "
            f"(--map, in Python gradients={{gradient: parameter}})"
        )
    if edit.count > 1:
        return f"{where}: it belongs to several parameters, and the clip compares with one"
    if edit.scope.lookup(parameter.name) is not parameter.frame.scope:
        return f"{where}: its parameter {parameter.name!r} is not visible in its scope"
    shape = parameter.type.shape if parameter.type is not None else None
    seeds = int(gradient.has_seeds)
    if shape is None or gradient.shape is None or len(shape) + seeds != len(gradient.shape):
        return f"{where}: the shapes of it and of its parameter do not go together"
    axes = None
    clips = [formula for formula in edit.choice.clip.formulas if formula.reads_parameter]
    if any(getattr(formula, "axes", None) is None for formula in clips):
        found = unit_axes(index, parameter)
        if isinstance(found, str):
            return f"{where}: {found}; say the axes that a unit reaches over (axes)"
        axes = found
    return ParameterSite(
        parameter.name, dtype_of(seen.flow, parameter) or found_gradient.type.dtype, axes
    )


def _backward_reads(index: Index, seen: Survey, values: list[Value]) -> set[Read]:
    """The reads of gradients through which other gradients are computed."""
    watched = {
        value
        for value in values
        if value.frame.caller is not None
        or any(read.node != OUTPUT for read in index.readers_of(value.frame.scope, value.name))
    }
    if not watched:
        return set()
    _, reads = seen.flow.ancestors(values, seen.updates.__contains__, watched=watched)
    return reads


def _faults(
    found_gradient: FoundGradient, choices: Iterable[ClipChoice], settings: Settings
) -> list[str]:
    gradient, scope = found_gradient.gradient, found_gradient.value.frame.scope
    where = f"gradient {gradient.name!r}" + (f" in {gradient.graph}" if gradient.graph else "")
    if scope.opset is None:
        return [f"{where}: its graph imports no version of the default operator set"]
    found = [choice.clip.fault(gradient, scope.opset, settings.numerics) for choice in choices]
    found += [settings.thresholds.fault(scope, choice) for choice in choices]
    found += [settings.metrics.fault(scope, gradient, choice.clip) for choice in choices]
    return [f"{where}: {fault}" for fault in found if fault is not None]


def _clips_nothing(found_gradient: FoundGradient) -> str:
    gradient = found_gradient.gradient
    return (
        f"gradient {gradient.name!r}: other gradients are computed from all that reads it, so that "
        f"its clip would change nothing; name the value of which only the update of "
        f"{gradient.parameter.name!r} is made (--gradient or --map; gradients=…)"
    )


def _edits_for_all(
    group: Assignments,
    choice: ClipChoice,
    raw: list[Read],
    others: list[Read],
    metrics: MetricOutputs,
) -> tuple[list[Edit], list[str]]:
    """One edit for all that read the value, and what is at fault with it."""
    found_gradients = [found_gradient for found_gradient, _ in group]
    scope, name = found_gradients[0].value.frame.scope, found_gradients[0].value.name
    edit, faults = Edit(scope, name, choice, found_gradients, raw), []
    if metrics.measures_only:
        return [edit], []
    if name not in scope.producers and name in scope.input_slots:
        edit = replace(edit, redirected=others)
        if any(read.node == OUTPUT and read.scope is scope for read in others):
            faults.append(
                f"gradient {name!r} is an input and an output of the same graph: it can have "
                f"only one value under that name; give the output another one"
            )
    elif name not in scope.producers and name not in scope.initializers:
        faults.append(f"gradient {name!r} is a sparse initializer, which cannot be clipped")
    return [edit], faults


def _edits_for_some(
    seen: Survey, group: Assignments, others: list[Read]
) -> tuple[list[Edit], list[str]]:
    """Edits for the reads of some of the parameters, and what is at fault with them."""
    faults = []
    ways = [_way_to_sinks(seen, found_gradient) for found_gradient, _ in group]
    redirected: dict[_Meaning, list[Read]] = {}
    assignments = {_meaning(choice): choice for _, choice in group}
    for read in others:
        takers = [pair for pair, way in zip(group, ways, strict=True) if read in way] or group
        meanings = list(dict.fromkeys(_meaning(choice) for _, choice in takers))
        if len(meanings) > 1:
            names = " and ".join(
                repr(found_gradient.gradient.parameter.name) for found_gradient, _ in group
            )
            place = "an output" if read.node == OUTPUT else "a node"
            faults.append(
                f"gradient {group[0][0].value.name!r} belongs to the parameters {names}, which "
                f"are to be clipped differently, but {place} takes it for both; clip both or none"
            )
        elif meanings[0] is not None:
            redirected.setdefault(meanings[0], []).append(read)
    edits = []
    for meaning, reads in redirected.items():
        found_gradients = [
            found_gradient for found_gradient, choice in group if _meaning(choice) == meaning
        ]
        choice, value = assignments[meaning], found_gradients[0].value
        assert choice is not None
        edits.append(Edit(value.frame.scope, value.name, choice, found_gradients, [], reads))
    return edits, faults


def _way_to_sinks(seen: Survey, found_gradient: FoundGradient) -> set[Read]:
    """The reads by which a gradient gets to where its parameter's optimizer consumes it."""
    way: set[Read] = set()
    for sink in found_gradient.sinks:
        scope = sink.frame.scope
        way.add(Read(scope, sink.node, sink.slot))
        taken = seen.flow.resolve(sink.frame, scope.nodes[sink.node].input[sink.slot])
        if taken is not None:
            _, reads = seen.flow.ancestors(
                [taken], lambda value: value == found_gradient.value, watched={found_gradient.value}
            )
            way |= reads
    return way
