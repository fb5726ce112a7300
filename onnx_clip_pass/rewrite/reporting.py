"""The report of a rewrite to its caller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from onnx import ModelProto

from onnx_clip_pass.clips import Clip, ClipLayout
from onnx_clip_pass.clips.tape import Used
from onnx_clip_pass.errors import listed
from onnx_clip_pass.gradients import Gradient, Survey
from onnx_clip_pass.gradients.clipped import clip_nodes
from onnx_clip_pass.graph import Index, TensorType
from onnx_clip_pass.kernels import Need, Provider, missing, since
from onnx_clip_pass.record import Uncovered
from onnx_clip_pass.rewrite.metrics import Emitted
from onnx_clip_pass.rewrite.operators import OperatorCount
from onnx_clip_pass.rewrite.selecting import Assignments
from onnx_clip_pass.rewrite.settings import Settings
from onnx_clip_pass.tables import Table, counted
from onnx_clip_pass.views import View, Viewed

__all__ = [
    "Clipped",
    "Reduced",
    "Report",
    "gradient_table",
    "lacking_kernels",
    "notes_on",
    "notes_on_coverage",
]

_MOST_EMITTED = 10
_LONGEST_LIST = 60


@dataclass(frozen=True, slots=True)
class Clipped:
    """A row of a report: a `gradient`, and its `clip`, None if it was left alone.

    `rule` is the number, from 1, of the rule that took it.
    """

    gradient: Gradient
    clip: Clip | None
    rule: int | None = None

    @property
    def label(self) -> str:
        """The clip in a few words, with its rule; "-" for none."""
        if self.clip is None:
            return "-"
        return self.clip.label + (f" [rule {self.rule}]" if self.rule is not None else "")


class Reduced(NamedTuple):
    """The task of workers with parts of gradients between the two phases of a clip.

    `sums` and `maxima` are the lengths of the vectors that are reduced over them, `replicas` the
    gradients of which several have the same part; `fingerprint` is the same on all workers that go
    together.
    """

    sums: int
    maxima: int
    replicas: tuple[str, ...]
    fingerprint: str

    def lines(self) -> list[str]:
        """All of it in lines."""
        lengths = {"sums": self.sums, "maxima": self.maxima}
        return [
            *(
                f"clip/{word}: the {word} of {counted(length, 'number')} over all workers"
                for word, length in lengths.items()
                if length
            ),
            f"fingerprint, the same on all workers: {self.fingerprint}",
        ]


@dataclass(frozen=True, slots=True, repr=False)
class Report(Viewed):
    """The result of a rewrite.

    `rows` are all gradients that were found, in graph order; `warnings` are what to know of them,
    and `replaced` says that clips which the model had before were taken out. `emitted` are the
    outputs that were added, `threshold_inputs` the inputs; with `measured_only` nothing was
    clipped, and the clips of the rows are what was measured against. `uncovered` are
    trained parameters that are not clipped, since their gradients are not known. `layout` is the
    machine that the nodes were chosen for, `new_operators` those of the default domain that the
    model did not use before, with the opset, as a build of ONNX Runtime for few operators has to
    know them. `operators` has the number of nodes of each operator without clips and with them.
    `reduced` is there for one phase of a clip. `states` are the inputs that clips carry from step
    to step, each with the output that is its new value. `rewritten` is the model with what was
    added, without the large weights of a file; None where there is none.
    """

    rows: tuple[Clipped, ...]
    warnings: tuple[str, ...] = ()
    replaced: bool = False
    emitted: tuple[Emitted, ...] = ()
    threshold_inputs: tuple[str, ...] = ()
    measured_only: bool = False
    uncovered: tuple[Uncovered, ...] = ()
    layout: ClipLayout = "cpu"
    new_operators: tuple[tuple[str, int], ...] = ()
    reduced: Reduced | None = None
    operators: tuple[OperatorCount, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    rewritten: ModelProto | None = field(default=None, compare=False)

    @property
    def clipped(self) -> tuple[Clipped, ...]:
        """The gradients that are clipped, or measured."""
        return tuple(row for row in self.rows if row.clip is not None)

    def summary(self, where: str = "", *, is_done: bool = True, count: str = "") -> str:
        """All of it in a line: how many gradients, and by what they are bounded.

        There must be no doubt whether a norm is global.

        Args:
            where: the model, behind "in".
            is_done: whether the model is rewritten, or would be.
            count: how many gradients, if not so many of so many.
        """
        done = {True: ("clipped", "measured"), False: ("would clip", "would measure")}
        count = count or f"{len(self.clipped)} of {counted(len(self.rows))}"
        bounds = list(dict.fromkeys(row.clip.bounds for row in self.clipped if row.clip))
        if bounds[3:]:
            bounds[3:] = [f"and in {len(bounds) - 3} other ways"]
        place = f" in {where}" if where else ""
        by = "; ".join(bounds) or "none of them"
        return f"{done[is_done][self.measured_only]} {count}{place}, {by}"

    def view(self) -> View:
        return self.as_view(self.summary())

    def as_view(self, summary: str, what: str = "model") -> View:
        """Return its view under another summary.

        Args:
            summary: the line above the table.
            what: was rewritten: "model" or "folder".
        """
        notes = self.warnings
        if self.replaced:
            notes += (f"the {what} was clipped already; the clips it had are replaced",)
        table = gradient_table((row.gradient, row.label) for row in self.rows)
        return View(summary, table, notes, further=(*self._growth(), *self._ports()))

    def _ports(self) -> list[str]:
        """Lines on the inputs and outputs that were added."""
        lines = [
            f"input {name}: the threshold; not fed, it is as given here"
            for name in self.threshold_inputs
        ]
        lines += [
            f"state {name}: carry the output {new} to it from step to step"
            for name, new in [*self.states.items()][:_MOST_EMITTED]
        ]
        if len(self.states) > _MOST_EMITTED:
            lines.append(f"and {len(self.states) - _MOST_EMITTED} states more")
        lines += [] if self.reduced is None else self.reduced.lines()
        for emitted in self.emitted[:_MOST_EMITTED]:
            of = emitted.group or ", ".join(emitted.gradients)
            of = of if len(of) < _LONGEST_LIST else counted(len(emitted.gradients))
            lines.append(f"output {emitted.output}: {emitted.quantity} of {of}")
        if self.emitted[_MOST_EMITTED:]:
            lines.append(f"and {len(self.emitted) - _MOST_EMITTED} outputs more")
        return lines

    def _growth(self) -> list[str]:
        """A line on the nodes that were added."""
        changed = [each for each in self.operators if each.before != each.after]
        if not changed:
            return []
        before = sum(each.before for each in self.operators)
        after = sum(each.after for each in self.operators)
        each = ", ".join(f"{name} {first} -> {last}" for name, first, last in changed)
        return [f"nodes: {before:,} -> {after:,} ({each})"]


def gradient_table(gradients: Iterable[tuple[Gradient, str]]) -> Table:
    """The table of gradients, each with its clip in words, "-" for none."""
    return Table(
        ("gradient", "parameter", "shape", "dtype", "clip", "evidence"),
        tuple(
            (g.name, g.parameter.name, _shape(g), g.dtype, clip, g.evidence)
            for g, clip in gradients
        ),
    )


def _shape(gradient: Gradient) -> str:
    if gradient.shape is None:
        return "?"
    return "[" + ", ".join("?" if d is None else str(d) for d in gradient.shape) + "]"


def lacking_kernels(used: Iterable[Used]) -> list[str]:
    """A warning for each provider that has no kernel for some of the operators."""
    needs = [
        Need(op_type, opset, tuple(dict.fromkeys(TensorType(d).dtype_name for d in dtypes)))
        for op_type, opset, *dtypes in used
    ]
    warnings = []
    for provider in get_args(Provider):
        lacking = missing(provider, needs)
        if not lacking:
            continue
        names = [f"{n.op_type} ({' to '.join(n.dtypes)}, opset {n.opset})" for n in lacking]
        release = since(provider, lacking)
        warnings.append(
            f"ONNX Runtime's {provider} provider has no kernel for {', '.join(names)}"
            f"{f' before release {release}' if release else ''}: such nodes run elsewhere, or not "
            f"at all"
        )
    return warnings


def notes_on(seen: Survey, found_gradients: Assignments) -> list[str]:
    """Warnings about the gradients, clipped or left alone."""
    warnings = []
    if any(
        clip and seen.is_accumulated(found_gradient.value)
        for found_gradient, clip in found_gradients
    ):
        warnings.append(
            "accumulators follow the gradients: each micro-batch is clipped before it is added, "
            "not their sum"
        )
    assignments = {found_gradient.gradient.name for found_gradient, clip in found_gradients if clip}
    before = [f"{name!r} by {op}" for name, op in seen.clipped if name in assignments]
    before += [f"by nodes {op}" for op in clip_nodes(seen.flow.index)]
    if before:
        warnings.append(
            f"the graph clips already, {listed(before)}; the clip that is put in comes before that"
        )
    dismissed = [s for s in seen.of_data if all(s is not taken for taken, _ in found_gradients)]
    warnings += [
        f"{found_gradient.gradient.name} is left alone as the gradient of data "
        f"({found_gradient.gradient.evidence}); if that is wrong, name it in need_clip, "
        f"with '*' for all the others"
        for found_gradient in dismissed[:3]
    ]
    if len(dismissed) > 3:
        warnings.append(f"so are {len(dismissed) - 3} more")
    return warnings


def notes_on_coverage(index: Index, bare: list[str], settings: Settings) -> list[str]:
    """Warnings about weights without a gradient, and about operators that are not there.

    Args:
        index: the model.
        bare: weights that would be clipped if a gradient of theirs were known.
        settings: of the rewrite.
    """
    warnings = []
    if bare:
        warnings.append(
            f"no gradient is known for {listed([repr(name) for name in bare])}: if a loop outside "
            f"trains {'them' if bare[1:] else 'it'}, name the gradients (--gradient, --map; "
            f"gradients=…)"
        )
    there = {
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        for scope in index.scopes
        for node in scope.nodes
    } if settings.optimizer_ops else set()  # fmt: skip
    for name in settings.optimizer_ops:
        if name not in there:
            like = [repr(o) for o in sorted(there) if o.split("::")[-1] == name.split("::")[-1]]
            hint = f"; there is {listed(like)}" if like else ""
            warnings.append(f"optimizer {name!r} is not in this model{hint}")
    return warnings
