"""What `predict` shows: in, the plain values that `--json` writes; out, a rich renderable.

One point: what each phase is bound by, takes and would gain. A grid: a row a point. From a run: a
row a family. Every string goes in as Text, never as markup.
"""

from __future__ import annotations

from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from prunescope.analysis.report import numbers
from prunescope.analysis.report.escape import clean
from prunescope.analysis.report.predict_answers import answer, answers, gemms, ranking
from prunescope.analysis.schema.prediction import (
    Execution,
    FromRun,
    PredictedPhase,
    Prediction,
    Ranking,
    Span,
    Sums,
)

_LADDER = ("nominal", "flop", "coverage", "roofline")
_MOST_ROLES = 6
_COSTS = (
    "costs: expected over roofline time, dense/pruned; where dense pays more, the expected "
    "speedup is above the roofline's"
)
_ABOVE = "above by: what falls further than its work, with its waves, starts or gaps"
_WHY = ""  # the head of the column that says why a speedup is above the roofline's

Answer = Prediction | Ranking | FromRun


def prediction(told: dict[str, Any], *, explain: bool = False) -> RenderableType:
    """The tables of a point, of a grid, of a ranking, or of the families from a run; then the
    warnings. `told`: the plain values of --json. `explain`: also the GEMMs of a point."""
    kind: type[Answer] = (
        FromRun if "from-run" in told["tool"] else Ranking if "by" in told else Prediction
    )
    result: Answer = msgspec.convert(told, kind)
    parts: list[RenderableType]
    if isinstance(result, FromRun):
        parts = _from_run(result)
    elif isinstance(result, Ranking):
        parts = ranking(result)
    elif result.phases is None:
        parts = _grid(result)
    else:
        parts = [part for name, phase in result.phases.items() for part in _point(name, phase)]
        if explain:
            parts += [p for name, phase in result.phases.items() for p in gemms(name, phase)]
        if result.answer is not None:
            parts += answer(result.answer)
    notes = [Text(clean(f"! {text}"), "yellow") for text in result.warnings]
    ran = "only the dense side was run" if isinstance(result, FromRun) else "nothing was run"
    return Group(*parts, *notes, Text(f"speedups are dense ÷ pruned; {ran}", "dim"))


def _point(name: str, phase: PredictedPhase) -> list[RenderableType]:
    """One phase: ladder, expectation, break-even; then time and bytes of both sides."""
    where = f"batch {phase.batch}, {phase.prompt_len} tokens"
    if name == "decode":
        where = f"batch {phase.batch}, {phase.context} keys"
    parts: list[RenderableType] = [Text(f"{name}: {where}, {phase.logits} logits", "bold")]
    if phase.ladder:
        parts += _speedups(phase)
    return [*parts, _sides(phase)]


def _speedups(phase: PredictedPhase) -> list[RenderableType]:
    table = _table(*_LADDER, "expected", "range", _WHY)
    assert phase.predicted is not None
    assert phase.ladder is not None
    assert phase.baseline is not None
    expected, ladder = phase.predicted.execution, phase.ladder
    _row(
        table,
        *(numbers.ratio(getattr(ladder, bound)) for bound in _LADDER),
        numbers.ratio(expected.speedup),
        _between(expected.range),
        expected.above_roofline or "",
    )
    even = _table("faster than dense", "sparsity", "batch", "context")
    for label, gain, found in (
        ("at the roofline", ladder.roofline, phase.predicted.break_even),
        ("expected", expected.speedup, expected.break_even),
    ):
        assert found is not None
        share, same = found.sparsity, "always" if gain > 1 + 1e-6 else "never"
        _row(
            even,
            label,
            "never" if share is None else f"from {share:.3f}",
            _span(found.batch) or same,
            _span(found.context) or same,
        )
    costs = _table("cost of execution", "dense", "pruned", "because")
    unit = numbers.scale([expected.dense_ns])
    _row(
        costs,
        "roofline",
        unit.text(phase.baseline.ideal_ns),
        unit.text(phase.ideal_ns),
        f"{unit.unit} a forward",
    )
    for term in expected.terms:
        if max(term.dense_ns, term.pruned_ns) < unit.per * 10**-unit.decimals / 2:
            continue
        _row(
            costs,
            term.name,
            unit.text(term.dense_ns, signed=True),
            unit.text(term.pruned_ns, signed=True),
            term.mechanism,
        )
    _row(costs, "expected", unit.text(expected.dense_ns), unit.text(expected.pruned_ns), "")
    return [table, *(Text(clean(text)) for text in expected.notes), even, costs]


def _sides(phase: PredictedPhase) -> Table:
    """What a forward moves, where its time goes at the roofline, and what lies in memory."""
    dense = phase.baseline
    table = _table("at the roofline", *(["dense"] if dense else []), "pruned" if dense else "dense")
    both: list[Sums | PredictedPhase] = [*([dense] if dense else []), phase]
    unit = numbers.scale([side.ideal_ns for side in both])

    def row(label: str, *cells: str) -> None:
        _row(table, label, *cells)

    row("time of a forward", *(numbers.time(side.ideal_ns) for side in both))
    row("bound by memory", *(numbers.percent(s.bound["memory"] / s.ideal_ns) for s in both))
    roles = sorted(both[0].roles, key=lambda role: -both[0].roles[role])
    added = [role for role in phase.roles if role not in roles]
    for role in [*roles[:_MOST_ROLES], *added]:
        row(f"  {role}, {unit.unit}", *(unit.text(side.roles.get(role, 0.0)) for side in both))
    row("bytes moved", *(numbers.size(side.bytes) for side in both))
    row("  of them weights", *(numbers.size(side.weight_read_bytes) for side in both))
    row("weights", *(numbers.size(side.weight_bytes) for side in both))
    row("KV cache", *(numbers.size(side.kv_bytes) for side in both))
    row("memory", *(numbers.size(side.memory_bytes) for side in both))
    return table


def _grid(result: Prediction) -> list[RenderableType]:
    """A table a phase, a row a point; then where each method starts to pay."""
    parts: list[RenderableType] = []
    for name in dict.fromkeys(name for point in result.points for name in point.phases):
        table = _table("method", "s", "roofline", "expected", "range", "costs", "memory")
        even: dict[str, str] = {}
        for point in result.points:
            phase = point.phases[name]
            if phase.ladder is None or phase.predicted is None:
                continue
            expected = phase.predicted.execution
            even_at = expected.break_even
            share = None if even_at is None else even_at.sparsity
            even[str(point.label)] = "never" if share is None else f"from {share:.2f}"
            _row(
                table,
                str(point.label),
                f"{point.sparsity:g}",
                f"{phase.ladder.roofline:.2f}",
                f"{expected.speedup:.2f}",
                _between(expected.range),
                _costs(phase, expected),
                numbers.size(phase.memory_bytes),
            )
        pays = ", ".join(f"{method} {text}" for method, text in even.items())
        parts += [Text(name, "bold"), table, Text(clean(f"expected to pay at s: {pays}"))]
    more = answers(result.points) if any(point.answer for point in result.points) else []
    return [*parts, Text(_COSTS, "dim"), *more]


def _from_run(result: FromRun) -> list[RenderableType]:
    """The measured parts of each phase, and what each family would make of them."""
    parts: list[RenderableType] = []
    for name, phase in result.phases.items():
        shares = ", ".join(
            f"{part} {numbers.percent(share)}" for part, share in list(phase.shares.items())[:8]
        )
        head = f"{name}: {numbers.time(phase.wall_ns)} dense; {shares}"
        parts.append(Text(clean(f"{head}, idle {numbers.percent(phase.gap_share)}"), "bold"))
        unit = numbers.scale([phase.wall_ns])
        above = any(row.above_by for row in phase.families)
        held, per = numbers.size_scale(row.memory_bytes for row in phase.families)
        heads = ("family", "s", "roofline", "expected", "range", unit.unit, "added", held)
        table = _table(*heads, *(["above by"] if above else []))
        for row in phase.families:
            _row(
                table,
                f"{row.label} *" if row.extension else row.label,
                f"{row.sparsity:g}",
                f"{row.bound:.2f}",
                f"{row.expected:.2f}",
                _between(row.range),
                unit.text(row.wall_ns),
                unit.text(row.added_ns),
                f"{row.memory_bytes / per:,.2f}",
                *([row.above_by or ""] if above else []),
            )
        parts += [table, *(Text(clean(note), "dim") for note in phase.notes)]
    note = "bytes: weights and KV cache; * by extension: kernels that it adds are not in the model"
    if any(row.above_by for phase in result.phases.values() for row in phase.families):
        note += f"; {_ABOVE}"
    return [*parts, Text(note, "dim")]


def _costs(phase: PredictedPhase, expected: Execution) -> str:
    """Expected times over the rooflines of their sides."""
    assert phase.baseline is not None
    dense = expected.dense_ns / phase.baseline.ideal_ns
    return f"{dense:.2f}/{expected.pruned_ns / phase.ideal_ns:.2f}"


def _between(ends: list[float]) -> str:
    return f"{ends[0]:.2f}–{ends[1]:.2f}"


def _span(found: Span | None) -> str | None:
    return None if found is None else f"{found['from']} to {found['to']}"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in ("because", _WHY))
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(clean(cell)) for cell in cells))
