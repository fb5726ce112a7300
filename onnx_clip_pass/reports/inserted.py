"""The nodes that a rewrite has added, as drawings: one for all gradients that have the same."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto

from onnx_clip_pass.graph import graphs_and_functions, graphs_in
from onnx_clip_pass.page import Box, Drawing
from onnx_clip_pass.record import OURS, read_record
from onnx_clip_pass.reports.around import Around, Neighbourhood, constants_of
from onnx_clip_pass.storage import open_model

__all__ = ["Inserted", "inserted_in", "inserted_in_file"]

_MOST_BOXES = 60
_MOST_DRAWINGS = 8
_MOST_BODIES = 4
_HOLE = "\N{MIDDLE DOT}"


@dataclass(frozen=True, slots=True)
class Inserted:
    """The additions: how much, drawings of it, and which of them shows a gradient's.

    `drawings` has each drawing with the number of gradients that it is for, `drawing_of` its number
    from 1 by the name of a gradient; gradients whose nodes are like no drawn ones are in none.
    `bodies` has the graphs of those nodes that have some.
    """

    nodes: int = 0
    constants: int = 0
    ops: tuple[tuple[str, int], ...] = ()
    drawings: tuple[tuple[Drawing, int], ...] = ()
    drawing_of: dict[str, int] = field(default_factory=dict)
    bodies: tuple[Drawing, ...] = ()


def inserted_in(model: ModelProto | None) -> Inserted:
    """Return what a rewrite has added to a model, by its record; nothing where it has none."""
    record = None if model is None else read_record(model)
    if model is None or record is None:
        return Inserted()
    names = set(record.nodes)
    ops: dict[str, int] = defaultdict(int)
    kinds: dict[object, list[Around]] = defaultdict(list)
    bodies: list[Drawing | None] = []
    for graph in graphs_and_functions(model, but_in=names):
        nodes = [node for node in graph.node if node.name in names]
        if not nodes:
            continue
        for node in nodes:
            ops[node.op_type] += 1
            bodies += [
                _body(node, body) for _, body in graphs_in(node)[: _MOST_BODIES - len(bodies)]
            ]
        for around in Neighbourhood(graph, nodes, record).each():
            kinds[around.kind].append(around)
    drawings: list[tuple[Drawing, int]] = []
    drawing_of: dict[str, int] = {}
    for alike in sorted(kinds.values(), key=len, reverse=True):
        if len(drawings) == _MOST_DRAWINGS:
            break
        if (drawing := _drawing(alike)) is not None:
            drawings.append((drawing, len(alike)))
            drawing_of.update({around.gradient: len(drawings) for around in alike})
    by_count = sorted(ops.items(), key=lambda entry: (-entry[1], entry[0]))
    return Inserted(
        sum(ops.values()),
        len(record.initializers),
        tuple(by_count),
        tuple(drawings),
        drawing_of,
        tuple(filter(None, bodies)),
    )


def inserted_in_file(path: Path) -> Inserted:
    """Return what a rewrite has added to the model in a file; nothing where there is no record."""
    with open_model(path) as structure:
        return inserted_in(structure.model)


def _drawing(alike: list[Around]) -> Drawing | None:
    """One drawing of gradients that look the same, after the first; None if it is too large."""
    first = alike[0]
    whole = first.whole
    shown = [*first.own, *whole.shared_by(first.own, 2 * _MOST_BOXES)]
    if not first.own or len(shown) > _MOST_BOXES:
        return None
    canvas = _Canvas(first, alike, shown)
    for at in sorted(shown):
        canvas.add_node(at)
    canvas.add_results()
    if len(canvas.boxes) > _MOST_BOXES or canvas.has_cycle:
        return None
    return canvas.drawn()


class _Canvas:
    """Boxes and arrows in the making."""

    def __init__(self, first: Around, alike: list[Around], shown: list[int]) -> None:
        self.first, self.alike, self.whole = first, alike, first.whole
        self.shown = set(shown)
        self.boxes: dict[object, Box] = {"raw": Box("gradient", "raw", "value")}
        self.arrows: dict[tuple[object, object], None] = {}
        self.own = {node: number for number, node in enumerate(first.own)}

    def add_node(self, at: int) -> None:
        """Add a node with what it takes."""
        node, whole = self.whole.nodes[at], self.whole
        self.boxes[at] = Box(self._title(at), _result(node.output[0]))
        others: set[int] = set()
        for name in whole.reads[at]:
            before = whole.producer.get(name)
            if name == self.first.raw:
                self.arrows["raw", at] = None
            elif name in whole.constants:
                continue
            elif before in self.shown:
                self.arrows[before, at] = None
            elif before is not None or name in whole.number:
                others |= {whole.number[name]} if before is None else whole.gradients_in(before)
            elif name in whole.inputs:
                self.boxes["input", name] = Box("input", name, "value")
                self.arrows[("input", name), at] = None
            else:
                self.boxes["parameter"] = Box("parameter", "as it is read", "value")
                self.arrows["parameter", at] = None
        if others:
            self.boxes["others", at] = _others(len(others), "the same of each")
            self.arrows[("others", at), at] = None

    def add_results(self) -> None:
        """Add what comes out: the clipped gradient, measures, and what others make of it."""
        whole, first = self.whole, self.first
        for at in sorted(self.shown):
            for name in whole.nodes[at].output:
                if name == first.clipped:
                    self.boxes["clipped"] = Box("gradient", "clipped", "result")
                    self.arrows[at, "clipped"] = None
                elif name in whole.outputs:
                    quantity, gradients = whole.outputs[name]
                    note = "output" if len(gradients) == 1 else "output, of all"
                    self.boxes["output", name] = Box(quantity, note, "result")
                    self.arrows[at, ("output", name)] = None
            others = {
                whole.targets[after] for after in whole.readers[at] if after not in self.shown
            }
            if others and at not in self.own:
                self.boxes["to others", at] = _others(len(others), "in the same way")
                self.arrows[at, ("to others", at)] = None
        reading = sum(around.raw in around.whole.read_raw for around in self.alike)
        if reading and first.clipped is not None:
            note = "reads it raw"
            if reading < len(self.alike):
                note += f", of {reading:,}"
            self.boxes["backward"] = Box("backward pass", note, "value")
            self.arrows["raw", "backward"] = None

    @property
    def has_cycle(self) -> bool:
        """True where a node reads what comes after it, as in no graph of ours."""
        return any(isinstance(a, int) and isinstance(b, int) and a >= b for a, b in self.arrows)

    def drawn(self) -> Drawing:
        """Return the whole."""
        number = {key: at for at, key in enumerate(self.boxes)}
        ops = [self.whole.nodes[at].op_type for at in sorted(self.shown)]
        return Drawing(
            list(self.boxes.values()),
            [(number[a], number[b]) for a, b in self.arrows],
            f"The nodes between a raw and a clipped gradient: {', '.join(ops)}",
        )

    def _title(self, at: int) -> str:
        """The operator, with the numbers that it takes: Div(1, ·)."""
        op, names = self.whole.nodes[at].op_type, self.whole.reads[at]
        numbers = [self._number(at, slot) for slot in range(min(len(names), 4))]
        if not any(numbers):
            return op
        return f"{op}({', '.join(said or _HOLE for said in numbers)})"

    def _number(self, at: int, slot: int) -> str | None:
        """The constant in a slot, from least to greatest of all that are drawn here."""
        if self.whole.constants.get(self.whole.reads[at][slot]) is None:
            return None
        values = set()
        if at in self.own:
            place = self.own[at]
            for around in self.alike:
                name = around.whole.reads[around.own[place]][slot]
                values.add(around.whole.constants[name])
        else:
            values.add(self.whole.constants[self.whole.reads[at][slot]])
        known = sorted(value for value in values if value is not None)
        ends = f"{known[0]:.4g}"
        return ends if known[0] == known[-1] else f"{ends}\N{HORIZONTAL ELLIPSIS}{known[-1]:.4g}"


def _body(node: NodeProto, body: GraphProto) -> Drawing | None:
    """The graph of a node: what comes in, its nodes, what goes out; None if it is too large."""
    if len(body.node) > _MOST_BOXES:
        return None
    names = {tensor.name for tensor in body.initializer}
    constants = constants_of(body, list(body.node), names)
    boxes: list[Box] = []
    arrows: dict[tuple[int, int], None] = {}
    made: dict[str, int] = {}
    for inner in body.node:
        sources = []
        for name in filter(None, inner.input):
            if name not in made and name not in constants:
                made[name] = len(boxes)
                boxes.append(Box(_result(name) or name, "", "value"))
            sources += [made[name]] if name in made else []
        numbers = [constants.get(name) for name in inner.input]
        said = ", ".join(_HOLE if number is None else f"{number:.4g}" for number in numbers)
        is_plain = all(number is None for number in numbers)
        arrows.update(((source, len(boxes)), None) for source in sources)
        made.update((name, len(boxes)) for name in inner.output)
        note = _result(inner.output[0]) if inner.output else ""
        boxes.append(Box(inner.op_type if is_plain else f"{inner.op_type}({said})", note))
    for value in body.output:
        if value.name in made:
            arrows[made[value.name], len(boxes)] = None
            boxes.append(Box(_result(value.name) or value.name, "", "result"))
    if len(boxes) > 2 * _MOST_BOXES or any(source >= target for source, target in arrows):
        return None
    return Drawing(boxes, list(arrows), f"inside {node.op_type}")


def _others(number: int, note: str) -> Box:
    return Box(f"{number:,} other gradient{'s' * (number > 1)}", note, "many")


def _result(name: str) -> str:
    """The word of ours at the end of a value's name: norm, ratio, scale."""
    return name.rpartition("/")[2].partition("#")[0] if name.startswith(OURS) else ""
