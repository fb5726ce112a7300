"""The page on a rewrite, with a verification of it where there is one."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_clip_pass.clips import Clip
from onnx_clip_pass.page import (
    Column,
    Markup,
    Row,
    State,
    Table,
    count,
    figures,
    notes,
    page,
    section,
    verdict,
)
from onnx_clip_pass.reports.inserted import Inserted, inserted_in
from onnx_clip_pass.reports.rows import (
    CHECKED,
    GRADIENT,
    added_section,
    checked_cells,
    counted,
    gradient_cells,
    row_of,
    uncovered_section,
)
from onnx_clip_pass.reports.verifying import faults_section, outputs_section
from onnx_clip_pass.rewrite import Clipped, Report
from onnx_clip_pass.verification.report import GradientCheck, Verification

__all__ = ["rewrite_page"]


def rewrite_page(
    source: str,
    target: str | None,
    report: Report,
    *,
    verified: Verification | None = None,
    when: str = "",
) -> str:
    """The page on a rewrite.

    Args:
        source: the model, as the user names it.
        target: what was written; None if nothing was.
        report: what was found and done.
        verified: what a verification found; None if there was none.
        when: when gradients are clipped, where that is not each time they are computed.
    """
    inserted = inserted_in(report.rewritten)
    left = [row for row in report.rows if row.clip is None]
    return page(
        source,
        "dry run" if target is None else "rewrite",
        _verdict(target, report, verified, when),
        figures(
            {
                "gradients": count(len(report.rows)),
                "measured" if report.measured_only else "clipped": count(len(report.clipped)),
                "left alone": count(len(left)),
                "not covered": count(len(report.uncovered)),
                **_numbers_added(report, inserted),
            }
        ),
        faults_section(verified) if verified is not None else None,
        _notes(report, verified),
        uncovered_section(report.uncovered, "Trained, and not clipped"),
        added_section(inserted, report.new_operators),
        _ports(report),
        section("Gradients", _table(report, inserted, verified).html()),
        outputs_section(verified) if verified is not None else None,
    )


def _verdict(
    target: str | None, report: Report, verified: Verification | None, when: str
) -> Markup:
    verb = {
        (False, False): "Clipped",
        (False, True): "Measured",
        (True, False): "Would clip",
        (True, True): "Would measure",
    }[target is None, report.measured_only]
    done, found = len(report.clipped), len(report.rows)
    said = f"{verb} {f'{count(done)} of' if done < found else 'all'} {counted(found)}"
    if found == done == 1:
        said = f"{verb} the one gradient"
    state: State = "good"
    if report.uncovered:
        said += f"; {counted(len(report.uncovered), 'trained parameter')} not covered"
        state = "open"
    if verified is not None:
        said += ", and verified it" if verified.ok else ", and verification finds it WRONG"
        state = state if verified.ok else "bad"
    bounds = list(dict.fromkeys(row.clip.bounds for row in report.clipped if row.clip))
    more = "; ".join(bounds[:3]) + (f"; and in {len(bounds) - 3} other ways" if bounds[3:] else "")
    wrote = "Nothing was written." if target is None else f"Written to {target}."
    more = f"{more[:1].upper()}{more[1:]}{when}. {wrote}" if more else wrote
    return verdict(said, more, state=state)


def _numbers_added(report: Report, inserted: Inserted) -> Mapping[str, str]:
    found = {"nodes added": inserted.nodes, "outputs added": len(report.emitted)}
    found["threshold inputs"] = len(report.threshold_inputs)
    found["states"] = len(report.states)
    return {name: count(number) for name, number in found.items() if number}


def _notes(report: Report, verified: Verification | None) -> Markup:
    said = list(report.warnings)
    if report.replaced:
        said.append("the model was clipped already; the clips it had are replaced")
    said += [] if verified is None else verified.notes
    return section("Notes", notes(said)) if said else Markup()


def _ports(report: Report) -> Markup:
    columns = (Column("name", "name"), Column("is", "choice"), Column("of", "text", 2))
    rows = [
        Row((name, "threshold (input)", "as it is given here, unless it is fed"))
        for name in report.threshold_inputs
    ]
    rows += [
        Row((name, "state (input)", f"the output {new} is its new value"))
        for name, new in report.states.items()
    ]
    for each in report.emitted:
        of = each.group or ", ".join(each.gradients[:4])
        if not each.group and each.gradients[4:]:
            of += f" and {count(len(each.gradients) - 4)} more"
        rows.append(Row((each.output, f"{each.quantity} (output)", of)))
    if not rows:
        return Markup()
    return section("Inputs and outputs that were added", Table(columns, rows, "port").html())


def _table(report: Report, inserted: Inserted, verified: Verification | None) -> Table:
    has_rules = any(row.rule is not None for row in report.rows)
    has_graphs = any(row.gradient.graph for row in report.rows)
    columns = [*GRADIENT, Column("clip", "choice")]
    columns += [Column("rule", "choice", 2)] * has_rules
    columns += CHECKED if verified is not None else ()
    columns += [Column("known by", "text", 2 if verified is None else 3)]
    columns += [Column("bounded", "text", 3), Column("in", "text", 3)][: 1 + has_graphs]
    checks = _checks(verified)
    rows = []
    for row in report.rows:
        gradient = row.gradient
        check = checks.get((gradient.name, gradient.parameter.name, gradient.graph))
        cells = (*gradient_cells(gradient), _clip_label(row.clip))
        cells += (_rule(row),) if has_rules else ()
        cells += checked_cells(check) if verified is not None else ()
        cells += (gradient.evidence, row.clip.bounds if row.clip else "")
        cells += (gradient.graph or "the main graph",) if has_graphs else ()
        rows.append(
            row_of(
                cells,
                gradient.name,
                inserted,
                is_clipped=row.clip is not None,
                is_wrong=check is not None and bool(check.faults),
            )
        )
    return Table(columns, rows)


def _checks(verified: Verification | None) -> dict[tuple[str, str, str], GradientCheck]:
    return {
        (check.gradient, check.parameter, check.graph): check
        for check in (() if verified is None else verified.gradients)
    }


def _rule(row: Clipped) -> str:
    return "" if row.rule is None else str(row.rule)


def _clip_label(clip: Clip | None) -> str:
    return "not clipped" if clip is None else clip.label
