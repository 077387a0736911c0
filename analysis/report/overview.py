"""A row for each of many phases (ranks, kinds of iterations), and which of them comes first.

In: phases in reading order. Out: a table; None where they are few, as each is read in full.
"""

from __future__ import annotations

from collections.abc import Mapping

from prunescope.analysis.report import evidence, ledger_view, numbers, titles
from prunescope.analysis.report.summary import FEW_PHASES, first_to_read
from prunescope.analysis.report.view import Column, Table, numeric, text_table
from prunescope.analysis.schema.report import LATE_RANK, Phase


def overview(phases: Mapping[str, Phase], *, rest: str = "the other {} follow") -> Table | None:
    """Ratios and ms of a step of each phase, in the order of the report. The note says which one
    stands below it, and `rest` where the others are."""
    if len(phases) <= FEW_PHASES:
        return None
    first = first_to_read(phases)
    unit = numbers.scale(phase.step_time_ns for phase in phases.values())
    columns = [
        Column("phase"),
        *numeric("realised"),
        Column("95 % interval"),
        *numeric("of the bound"),
        Column("step", unit.unit, numeric=True),
    ]
    rows = [
        [titles.heading(name, phase), *_ratios(phase), unit.text(phase.step_time_ns)]
        for name, phase in phases.items()
    ]
    late = any(finding.id == LATE_RANK for finding in phases[first].findings)
    why = "which the others wait for" if late else "the slowest"
    note = f"below: {first}, {why}; {rest.format(len(phases) - 1)}"
    title = f"{len(phases)} phases: dense ÷ pruned; {unit.unit} a step"
    unsure = any(row[1].endswith("?") for row in rows)
    return text_table("overview", title, columns, rows, [note, *["? no evidence"] * unsure])


def _ratios(phase: Phase) -> list[str]:
    """The realised ratio, its interval, and its share of the roofline bound, as in the ladder."""
    ladder = phase.ladder
    if ladder is None:
        return ["–"] * 3
    interval = numbers.ratios(ladder.realised_ci95) if ladder.realised_ci95 else "–"
    share = ledger_view.realised_shares(phase).get("roofline")
    realised = ledger_view.marked(ladder.realised, evidence.of_phase(phase))
    return [realised, interval, numbers.percent(share)]
