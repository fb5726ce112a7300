"""The note that a rewrite leaves in the model, and the report to its caller."""

from __future__ import annotations

from onnx import ModelProto

from onnx_clip_pass.record import ClipEntry, Measure, Record
from onnx_clip_pass.rewrite.emitting import Made
from onnx_clip_pass.rewrite.operators import compared, operators_in
from onnx_clip_pass.rewrite.planning import PlannedEdits
from onnx_clip_pass.rewrite.reporting import Report, lacking_kernels

__all__ = ["record_of", "report_of"]


def report_of(plan: PlannedEdits, made: Made, rewritten: ModelProto | None = None) -> Report:
    """The report on a plan that is carried out, in its model (`rewritten`) or in another."""
    states = {state.input: state.output for state in made.states}
    return Report(
        plan.rows,
        (*plan.warnings, *lacking_kernels(made.used)),
        plan.replaces,
        made.emitted,
        tuple(name for name in made.added.inputs if name not in states),
        plan.settings.metrics.measures_only,
        plan.found.uncovered,
        plan.settings.numerics.layout,
        tuple(sorted({used[:2] for used in made.used} - plan.operators.keys())),
        operators=compared(plan.operators, plan.operators + operators_in(made.added.nodes)),
        states=states,
        rewritten=rewritten,
    )


def record_of(plan: PlannedEdits, made: Made) -> Record:
    """The note on a plan and what was added for it."""
    settings = plan.settings
    states = {
        id(found_gradient): state.input
        for state in made.states
        for edit in state.edits
        for found_gradient in edit.found_gradients
    }
    entries = [
        ClipEntry(
            found_gradient.gradient.name,
            found_gradient.gradient.parameter.name,
            found_gradient.gradient.graph,
            choice.clip.to_dict(),
            choice.threshold_input or None,
            states.get(id(found_gradient)),
        )
        for found_gradient, choice in plan.found.selected.assignments
        if choice is not None
    ]
    added = made.added
    return Record(
        clips=entries,
        named=settings.named,
        norm_precision=settings.numerics.norm_precision,
        nonfinite=settings.numerics.nonfinite,
        layout=settings.numerics.layout,
        renamed=made.renamed,
        values=added.values,
        inputs=added.inputs,
        outputs=added.outputs,
        order=added.order,
        loss_scale=settings.thresholds.loss_scale,
        emitted=[Measure(e.output, e.quantity, list(e.gradients), e.group) for e in made.emitted],
        measures_only=settings.metrics.measures_only,
        answers=plan.found.answers,
        optimizer_ops=dict(settings.optimizer_ops),
        uncovered=list(plan.found.uncovered),
        imports=[list(importer) for importer in added.imports],
        states={state.input: state.output for state in made.states},
    )
