"""Where a clip goes in, decided for all gradients before any of it is done.

How a clip is put in, by the laws of docs/design.md:

1. The value's maker gives it a new name, and the clip's last node bears the old one, so that
   whoever reads the gradient reads the clipped one.
2. A read through which another gradient is computed goes to the new name: the raw value. So
   does a read by name in the attributes of a Gradient node.
3. A gradient that is an input of its graph keeps its name as the raw value, and its other reads
   go to the clipped one.
4. Where two parameters share a value and only one is clipped, the value stays as it is and the
   reads on that parameter's way to its update go to the clipped one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx_clip_pass.clips import Formula, Numerics, ParameterSite, shared_norms, turns
from onnx_clip_pass.errors import OnnxClipError
from onnx_clip_pass.gradients import Gradient, Sighting, Survey, unit_axes
from onnx_clip_pass.graph import BY_NAME, OUTPUT, Editor, Index, Read, Scope, Value
from onnx_clip_pass.rewrite.levels import assign_levels
from onnx_clip_pass.rewrite.selecting import Chosen
from onnx_clip_pass.rewrite.settings import Settings
from onnx_clip_pass.rewrite.watching import Watch
from onnx_clip_pass.rules import Choice

__all__ = ["Edit", "plan"]


@dataclass(slots=True)
class Edit:
    """One clip to put in: behind `name` of `scope`, for all its reads or for some.

    `clipped` is the name of the clipped value where that is declared already.
    """

    scope: Scope
    name: str
    choice: Choice
    sightings: list[Sighting]
    raw_reads: list[Read]
    redirected: list[Read] | None = None
    site: ParameterSite | None = None
    level: int = 0
    renamed: tuple[str, str] = ("", "")
    clipped: str = ""

    @property
    def count(self) -> int:
        """Of how many parameters the value is the gradient."""
        return len({sighting.gradient.parameter.name for sighting in self.sightings})

    @property
    def position(self) -> int:
        """Before which node of the scope the gradient is there."""
        made = self.scope.producers.get(self.name)
        return 0 if made is None else made[0] + 1

    def open(self, editor: Editor) -> tuple[str, str]:
        """Make room for the clip: the names of the raw and of the clipped gradient."""
        scope, name = self.scope, self.name
        if self.redirected is None:  # rules 1 and 2
            source, target = editor.fresh(f"clip/{name}/raw"), name
            editor.rename_producer(scope, name, source)
            editor.redirect(self.raw_reads, name, source)
            editor.declare(scope, source, self.sightings[0].type)
            self.renamed = (source, name)
        else:  # rules 3 and 4
            source, target = name, self.clipped or editor.fresh(f"clip/{name}/clipped")
            editor.redirect(self.redirected, name, target)
            if target != self.clipped:
                editor.declare(scope, target, self.sightings[0].type)
            self.renamed = (target, name)
        return source, target


def plan(
    index: Index,
    seen: Survey,
    sightings: Chosen,
    settings: Settings,
) -> list[Edit]:
    """The edits that put the clips in.

    Raises:
        OnnxClipError: some gradient cannot be clipped; all reasons are named.
    """
    values = [sighting.value for sighting, _ in sightings]
    backward = _backward_reads(index, seen, values)
    groups: dict[tuple[int, str], Chosen] = {}
    for sighting, choice in sightings:
        key = (id(sighting.value.frame.scope), sighting.value.name)
        groups.setdefault(key, []).append((sighting, choice))
    edits: list[Edit] = []
    faults = settings.steering.faults(
        index, [choice for _, choice in sightings if choice is not None]
    )
    for group in groups.values():
        choices = {_meaning(choice): choice for _, choice in group}
        wanted = [choice for choice in choices.values() if choice is not None]
        if not wanted:
            continue
        first = group[0][0]
        faults += _faults(first, wanted, settings)
        if not settings.watch and all(_does_nothing(each, settings.numerics) for each in wanted):
            continue
        readers = index.readers_of(first.value.frame.scope, first.value.name)
        raw = [read for read in readers if read in backward or read.slot == BY_NAME]
        others = [read for read in readers if read not in backward and read.slot != BY_NAME]
        if not others and not settings.watch.measures_only:
            faults.append(_clips_nothing(first))
        if len(choices) == 1:
            edits.append(_edit_for_all(group, wanted[0], raw, others, settings.watch, faults))
        else:
            edits += _edits_for_some(seen, group, others, faults)
    for edit in edits:
        if edit.choice.clip.reads_parameter:
            edit.site = _parameter_site(index, seen, edit, faults)
    _check_groups(edits, faults)
    if faults:
        raise OnnxClipError("this model cannot be clipped:", dict.fromkeys(faults))
    assign_levels(index, edits)
    turns(
        [edit.choice.clip.formulas for edit in edits],
        [(id(edit.scope), edit.level) for edit in edits],
    )  # raises where groups wait for each other
    return edits


_Meaning = tuple[str, str | None] | None


def _meaning(choice: Choice | None) -> _Meaning:
    """What a choice does, whichever rule makes it."""
    return None if choice is None else (repr(choice.clip), choice.threshold_input)


def _does_nothing(choice: Choice, numerics: Numerics) -> bool:
    return (
        choice.clip.is_identity and choice.threshold_input is None and numerics.nonfinite != "zero"
    )


def _check_groups(edits: list[Edit], faults: list[str]) -> None:
    """What gradients with a norm in common must have in common besides."""
    first: dict[object, tuple[Edit, Formula]] = {}
    for edit in edits:
        formulas = edit.choice.clip.formulas
        for formula, key in zip(formulas, shared_norms(formulas, _run(edit.scope)), strict=True):
            if key is None:
                continue
            other, theirs = first.setdefault(key, (edit, formula))
            what: str | None
            if other.scope is not edit.scope:
                what = "they are values of different graphs"
            elif (theirs.settings(), other.choice.threshold_input) != (
                formula.settings(),
                edit.choice.threshold_input,
            ):
                what = f"they are clipped by {theirs.label} and by {formula.label}"
            else:
                what = formula.clash(_gradient(other), _gradient(edit))
            if what:
                faults.append(
                    f"gradients {other.name!r} and {edit.name!r} of group {formula.group!r} cannot "
                    f"have one norm: {what}; give them groups of their own"
                )


def _run(scope: Scope) -> str:
    """What a body is run with: an algorithm of `training_info` is a step of its own."""
    first = scope.path.split("/")[0]
    return first if first.startswith("training_info") else ""


def _gradient(edit: Edit) -> Gradient:
    return edit.sightings[0].gradient


def _parameter_site(
    index: Index, seen: Survey, edit: Edit, faults: list[str]
) -> ParameterSite | None:
    """Where the clip reads the parameter; why it cannot goes to `faults`."""
    sighting = edit.sightings[0]
    parameter, gradient = sighting.parameter, sighting.gradient
    where = f"gradient {gradient.name!r}"
    if parameter is None:
        faults.append(
            f"{where}: its parameter is not known, and the clip compares them; say it with a map "
            f"(--map, in Python gradients={{gradient: parameter}})"
        )
        return None
    if edit.count > 1:
        faults.append(f"{where}: it belongs to several parameters, and the clip compares with one")
        return None
    if edit.scope.lookup(parameter.name) is not parameter.frame.scope:
        faults.append(f"{where}: its parameter {parameter.name!r} is not to be had in its graph")
        return None
    shape = parameter.type.shape if parameter.type is not None else None
    seeds = int(gradient.has_seeds)
    if shape is None or gradient.shape is None or len(shape) + seeds != len(gradient.shape):
        faults.append(f"{where}: the shapes of it and of its parameter do not go together")
        return None
    axes = None
    clips = [formula for formula in edit.choice.clip.formulas if formula.reads_parameter]
    if any(getattr(formula, "axes", None) is None for formula in clips):
        found = unit_axes(index, parameter)
        if isinstance(found, str):
            faults.append(f"{where}: {found}; say the axes that a unit reaches over (axes)")
        else:
            axes = found
    return ParameterSite(parameter.name, seen.flow.dtype(parameter) or sighting.type.dtype, axes)


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


def _faults(sighting: Sighting, choices: Iterable[Choice], settings: Settings) -> list[str]:
    gradient, scope = sighting.gradient, sighting.value.frame.scope
    where = f"gradient {gradient.name!r}" + (f" in {gradient.graph}" if gradient.graph else "")
    if scope.opset is None:
        return [f"{where}: its graph imports no version of the default operator set"]
    found = [choice.clip.fault(gradient, scope.opset, settings.numerics) for choice in choices]
    found += [settings.steering.fault(scope, choice) for choice in choices]
    found += [settings.watch.fault(scope, gradient, choice.clip) for choice in choices]
    return [f"{where}: {fault}" for fault in found if fault is not None]


def _clips_nothing(sighting: Sighting) -> str:
    gradient = sighting.gradient
    return (
        f"gradient {gradient.name!r}: other gradients are computed from all that reads it, so that "
        f"its clip would change nothing; name the value of which only the update of "
        f"{gradient.parameter.name!r} is made (--gradient or --map; gradients=…)"
    )


def _edit_for_all(
    group: Chosen,
    choice: Choice,
    raw: list[Read],
    others: list[Read],
    watch: Watch,
    faults: list[str],
) -> Edit:
    sightings = [sighting for sighting, _ in group]
    scope, name = sightings[0].value.frame.scope, sightings[0].value.name
    edit = Edit(scope, name, choice, sightings, raw)
    if watch.measures_only:
        return edit
    if name not in scope.producers and name in scope.input_slots:
        edit.redirected = others
        if any(read.node == OUTPUT and read.scope is scope for read in others):
            faults.append(
                f"gradient {name!r} is an input and an output of the same graph: it can have "
                f"only one value under that name; hand it out under another one"
            )
    elif name not in scope.producers and name not in scope.initializers:
        faults.append(f"gradient {name!r} is a sparse initializer, which cannot be clipped")
    return edit


def _edits_for_some(
    seen: Survey,
    group: Chosen,
    others: list[Read],
    faults: list[str],
) -> list[Edit]:
    ways = [_way_to_sinks(seen, sighting) for sighting, _ in group]
    edits: dict[_Meaning, Edit] = {}
    for read in others:
        takers = [pair for pair, way in zip(group, ways, strict=True) if read in way] or group
        choices = {_meaning(choice): choice for _, choice in takers}
        if len(choices) > 1:
            names = " and ".join(repr(sighting.gradient.parameter.name) for sighting, _ in group)
            place = "an output" if read.node == OUTPUT else "a node"
            faults.append(
                f"gradient {group[0][0].value.name!r} belongs to the parameters {names}, which "
                f"are to be clipped differently, but {place} takes it for both; clip both or none"
            )
            continue
        ((key, choice),) = choices.items()
        if choice is not None:
            sightings = [sighting for sighting, other in group if _meaning(other) == key]
            scope, name = sightings[0].value.frame.scope, sightings[0].value.name
            edit = edits.setdefault(key, Edit(scope, name, choice, sightings, [], []))
            assert edit.redirected is not None
            edit.redirected.append(read)
    return list(edits.values())


def _way_to_sinks(seen: Survey, sighting: Sighting) -> set[Read]:
    """The reads by which a gradient gets to where its parameter's optimizer takes it up."""
    way: set[Read] = set()
    for sink in sighting.sinks:
        scope = sink.frame.scope
        way.add(Read(scope, sink.node, sink.slot))
        taken = seen.flow.resolve(sink.frame, scope.nodes[sink.node].input[sink.slot])
        if taken is not None:
            _, reads = seen.flow.ancestors(
                [taken], lambda value: value == sighting.value, watched={sighting.value}
            )
            way |= reads
    return way
