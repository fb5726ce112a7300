"""The page on what a model holds."""

from __future__ import annotations

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
from onnx_clip_pass.record import ClipEntry, Record
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


def inspection_page(model: str, found: Inspection, *, inserted: Inserted = _NOTHING) -> str:
    """The page on what a model holds.

    Args:
        model: as the user names it.
        found: what is in it.
        inserted: the nodes that a rewrite has put in.
    """
    record = found.record
    clips = {(clip.gradient, clip.parameter): clip for clip in record.clips} if record else {}
    return page(
        model,
        "inspection",
        _verdict(found, len(clips)),
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
        _record(record) if record else None,
        section("Carried from step to step, and not trained", _names(found.carried))
        if found.carried
        else None,
    )


def _verdict(found: Inspection, clipped: int) -> Markup:
    said, record = counted(len(found.gradients)), found.record
    if record is None:
        more = "Not clipped by onnx-clip."
    else:
        verb = "measured" if record.measures_only else "clipped"
        said += f", {count(clipped) if clipped < len(found.gradients) else 'all'} {verb}"
        more = f"{verb.capitalize()} by onnx-clip {record.version}."
    if found.changed:
        return verdict("CHANGED since it was clipped", found.changed, state="bad")
    if found.questions:
        said += f"; of {counted(len(found.questions), 'trained parameter')} it is not known"
    is_open = bool(found.questions or not found.gradients)
    return verdict(said, more, state="open" if is_open else "good")


def _gradients(
    found: Inspection, clips: dict[tuple[str, str], ClipEntry], inserted: Inserted
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
        cells += ("not clipped" if clip is None else words_of(clip),) if clips else ()
        cells += (gradient.evidence,)
        cells += (gradient.graph or "the main graph",) if has_graphs else ()
        rows.append(
            row_of(cells, gradient.name, inserted, is_clipped=clip is not None or not clips)
        )
    return section("Gradients", Table(columns, rows).html())


def _record(record: Record) -> Markup:
    return section(
        "How it was clipped",
        facts(
            {
                "version": record.version,
                "norms": record.norm_precision,
                "nan and inf": record.nonfinite,
                "loss scale": record.loss_scale if record.loss_scale != 1 else None,
                "inputs that set thresholds": ", ".join(record.inputs) or None,
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
