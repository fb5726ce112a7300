"""The page on a verification."""

from __future__ import annotations

from onnx_clip_pass.page import (
    Column,
    Markup,
    Row,
    Table,
    count,
    figures,
    lines,
    notes,
    page,
    section,
    verdict,
)
from onnx_clip_pass.reports.inserted import Inserted
from onnx_clip_pass.reports.rows import CHECKED, added_section, checked_cells, counted, row_of
from onnx_clip_pass.verification.report import Verification

__all__ = ["faults_section", "outputs_section", "verification_page"]

_NOTHING = Inserted()
_MOST_FAULTS = 20


def verification_page(
    original: str, rewritten: str, found: Verification, *, inserted: Inserted = _NOTHING
) -> str:
    """The page on a verification.

    Args:
        original: the model before, as the user names it.
        rewritten: the model after.
        found: what was found.
        inserted: the nodes that the rewrite took.
    """
    wrong = sum(bool(row.faults) for row in found.gradients)
    acted = sum(row.acted for row in found.gradients)
    return page(
        rewritten,
        "verification",
        _verdict(original, found),
        figures(
            {
                "gradients": count(len(found.gradients)),
                "right": count(len(found.gradients) - wrong),
                "wrong": count(wrong),
                "seen acting": count(acted),
                "outputs": count(len(found.outputs)),
            }
        ),
        faults_section(found),
        section("Notes", notes(found.notes)) if found.notes else None,
        added_section(inserted),
        section("Gradients", _gradients(found, inserted).html()),
        outputs_section(found),
    )


def _verdict(original: str, found: Verification) -> Markup:
    compared = f"{counted(len(found.gradients), 'clipped gradient')} and "
    compared += f"{counted(len(found.outputs), 'output')} compared with {original} and the formula"
    if found.ok:
        return verdict("Right: it is what its original and the formula say", f"{compared}.")
    return verdict(f"WRONG: {counted(len(found.wrong), 'fault')}", f"{compared}.", state="bad")


def faults_section(found: Verification) -> Markup:
    """The first of all that is wrong; the tables have the rest."""
    wrong = found.wrong
    if wrong[_MOST_FAULTS:]:
        wrong[_MOST_FAULTS:] = [f"and {count(len(wrong) - _MOST_FAULTS)} more, see below"]
    return section("Faults", notes(wrong, state="bad")) if wrong else Markup()


def _gradients(found: Verification, inserted: Inserted) -> Table:
    has_graphs = any(row.graph for row in found.gradients)
    columns = [Column("gradient", "name"), Column("parameter", "name", 2), Column("clip", "choice")]
    columns += CHECKED
    columns += [Column("seen", "choice", 2)]
    columns += [Column("in", "text", 3)] if has_graphs else []
    rows = []
    for check in found.gradients:
        seen = {"acting": check.acted, "letting pass": check.passed}
        cells = (check.gradient, check.parameter, check.clip, *checked_cells(check))
        cells += (", ".join(what for what, is_so in seen.items() if is_so) or "neither",)
        cells += (check.graph or "the main graph",) if has_graphs else ()
        rows.append(
            row_of(cells, check.gradient, inserted, is_clipped=True, is_wrong=bool(check.faults))
        )
    return Table(columns, rows)


def outputs_section(found: Verification) -> Markup:
    """The outputs that were compared."""
    columns = (
        Column("output", "name"),
        Column("verdict", "choice"),
        Column("computed from a clipped gradient", "choice", 2),
        Column("measures", "choice", 2),
        Column("faults", "text", 3),
    )
    rows = []
    for each in found.outputs:
        verdict = "wrong" if each.faults else "right" if each.is_deterministic else "varies by run"
        behind = "yes" if each.behind_clip else "no"
        cells = (each.name, verdict, behind, each.quantity, lines(each.faults))
        rows.append(Row(cells, "bad" if each.faults else ""))
    return section("Outputs", Table(columns, rows, "output").html()) if rows else Markup()
