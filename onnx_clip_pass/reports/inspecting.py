"""The page on what a model holds."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_clip_pass.errors import listed
from onnx_clip_pass.inspection import Inspection, words_of
from onnx_clip_pass.page import (
    Column,
    Markup,
    Row,
    Table,
    count,
    facts,
    figures,
    notes,
    page,
    section,
    verdict,
)
from onnx_clip_pass.record import Record
from onnx_clip_pass.reports.inserted import Inserted
from onnx_clip_pass.reports.rows import (
    GRADIENT,
    added_section,
    counted,
    gradient_cells,
    row_of,
    uncovered_section,
)

__all__ = ["inspection_page"]

_NOTHING = Inserted()


def inspection_page(
    model: str,
    found: Inspection,
    *,
    inserted: Inserted = _NOTHING,
    at_step: Record | None = None,
    changed: str = "",
) -> str:
    """The page on what a model holds, or a folder of training artifacts.

    Args:
        model: as the user names it.
        found: what is in it; of a folder in its training model.
        inserted: the nodes that a rewrite has put in.
        at_step: what was done to the optimizer model of a folder, which takes all gradients as one.
        changed: what is wrong with that.
    """
    clips = _clips(found, at_step)
    records = {"": found.record, " (at the step)": at_step}
    return page(
        model,
        "inspection",
        _verdict(found, clips, at_step, "\n".join(filter(None, (found.changed, changed)))),
        figures(
            {
                "gradients": count(len(found.gradients)),
                "clipped": count(len(clips)),
                "questions": count(len(found.questions)),
                "carried, not trained": count(len(found.carried)),
                **({"nodes added": count(inserted.nodes)} if inserted.nodes else {}),
            }
        ),
        section("Notes", notes(found.reason.splitlines())) if found.reason else None,
        uncovered_section(found.questions, "Trained, and the gradient is not known for sure"),
        added_section(inserted),
        _gradients(found, clips, inserted),
        *(_record(record, when) for when, record in records.items() if record is not None),
        section("Carried from step to step, and not trained", _names(found.carried))
        if found.carried
        else None,
    )


def _clips(found: Inspection, at_step: Record | None) -> dict[tuple[str, str], str]:
    """The clip in words of each gradient, by its name and its parameter's, that has one."""
    clips = {}
    if at_step is not None and at_step.clips:
        label = "; ".join(map(words_of, at_step.clips)) + " (at the step)"
        clips = {(each.name, each.parameter.name): label for each in found.gradients}
    for entry in found.record.clips if found.record else ():
        clips[entry.gradient, entry.parameter] = words_of(entry)
    return clips


def _verdict(
    found: Inspection, clips: Mapping[tuple[str, str], str], at_step: Record | None, changed: str
) -> Markup:
    if changed:
        return verdict("CHANGED since it was clipped", changed, state="bad")
    said, record = counted(len(found.gradients)), found.record or at_step
    if record is None:
        more = "Not clipped by onnx-clip."
    else:
        verb = "measured" if record.measures_only else "clipped"
        said += f", {count(len(clips)) if len(clips) < len(found.gradients) else 'all'} {verb}"
        more = f"{verb.capitalize()} by onnx-clip {record.version}."
    if found.questions:
        said += f"; of {counted(len(found.questions), 'trained parameter')} it is not known"
    is_open = bool(found.questions or not found.gradients)
    return verdict(said, more, state="open" if is_open else "good")


def _gradients(
    found: Inspection, clips: Mapping[tuple[str, str], str], inserted: Inserted
) -> Markup:
    if not found.gradients:
        return Markup()
    has_graphs = any(gradient.graph for gradient in found.gradients)
    columns = [*GRADIENT, *[Column("clip", "choice")] * bool(clips), Column("known by")]
    columns += [Column("in", "text", 3)] * has_graphs
    rows = []
    for gradient in found.gradients:
        clip = clips.get((gradient.name, gradient.parameter.name))
        cells = gradient_cells(gradient)
        cells += (clip or "not clipped",) if clips else ()
        cells += (gradient.evidence,)
        cells += (gradient.graph or "the main graph",) if has_graphs else ()
        rows.append(
            row_of(cells, gradient.name, inserted, is_clipped=clip is not None or not clips)
        )
    return section("Gradients", Table(columns, rows).html())


def _record(record: Record, when: str) -> Markup:
    return section(
        f"How it was clipped{when}",
        facts(
            {
                "version": record.version,
                "norms": record.norm_precision,
                "nan and inf": record.nonfinite,
                "loss scale": record.loss_scale if record.loss_scale != 1 else None,
                "inputs that set thresholds": ", ".join(record.threshold_inputs) or None,
                "states of clips": listed([*record.states]) if record.states else None,
                "outputs that were added": listed(record.outputs) if record.outputs else None,
                "slopes of the loss decided for": listed(list(record.answers))
                if record.answers
                else None,
                "not covered, as was accepted": listed(
                    list(dict.fromkeys(entry.parameter for entry in record.uncovered))
                )
                if record.uncovered
                else None,
            }
        ),
    )


def _names(names: tuple[str, ...]) -> Markup:
    return Table((Column("state", "name"),), [Row((name,)) for name in names], "state").html()
