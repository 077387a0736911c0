"""What papers print beside a speedup, dense against pruned: time, tokens a second, bytes, memory.

In: a Phase of the Report with a baseline. Out: a Table; ns and bytes as text with units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunescope.analysis.report import numbers, sentences
from prunescope.analysis.report.view import Cell, Column, Table
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import Unprofiled

# What a step of a bare trace is, by the phase that it turned out to be.
_STEPS = {
    "prefill": "a step is a forward in prefill (TTFT)",
    "decode": "a step is a token in decode (TPOT)",
    "training": "a step is one of training: forward, backward and optimizer, where they are there",
    "forward": "a step is a forward pass",
    "mixed": "a step runs prompts and single tokens beside each other",
}


def sides_table(phase: Phase) -> Table | None:
    """A row a quantity that both sides know; None without a baseline."""
    dense = phase.baseline
    if dense is None or phase.ladder is None:
        return None
    before, now = _median(dense.unprofiled_ns), _median(phase.unprofiled_ns)
    timed = before is not None and now is not None
    if not timed:
        before, now = dense.wall_ns, phase.wall_ns
    label = "time of a step, unprofiled" if timed else "time of a step, profiled"
    rows = [_row(label, before, now, numbers.time)]
    if timed:  # else tokens a second would be of another time than the row above
        rows.append(_row("tokens/s", dense.tokens_per_s, phase.tokens_per_s, numbers.rate))
    rows += [
        _row(label, getattr(dense, key), getattr(phase, key), numbers.size)
        for key, label in sentences.MEMORY
    ]
    columns = [
        Column("per step"),
        Column("dense", numeric=True),
        Column("pruned", numeric=True),
        Column("pruned ÷ dense", numeric=True),
    ]
    known = [row for row in rows if row is not None]
    kind = phase.phase_kind["kind"] if phase.phase_kind else ""
    note = _STEPS.get(kind, "a step is a forward in prefill (TTFT) and a token in decode (TPOT)")
    return Table("sides", "Dense and pruned", columns, known, [note]) if known else None


def _median(samples: Unprofiled | None) -> float | None:
    return None if samples is None else samples.median


def _row(
    label: str, dense: Any, pruned: Any, form: Callable[[float | None], str]
) -> list[Cell] | None:
    if not isinstance(dense, int | float) or not isinstance(pruned, int | float):
        return None
    share = numbers.share_of(pruned, dense)
    return [
        Cell(label),
        Cell(form(dense), float(dense)),
        Cell(form(pruned), float(pruned)),
        Cell(numbers.percent(share), share),
    ]
