"""Replayed GEMMs as tables and text: in, Replays and the report of their run; out, Tables.

What `prunescope gemm` prints, and the table of a report with `--gemm`. Times that are no evidence
have a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prunescope.analysis.report.sheet import Line, Sheet
from prunescope.analysis.report.view import (
    Cell,
    Column,
    Columns,
    Table,
    number,
    numeric,
    table_of,
    text_table,
)
from prunescope.analysis.schema.replay import AlignedTime, ReplayLine
from prunescope.analysis.schema.report import Phase, Report
from prunescope.taxonomy import numbers
from prunescope.taxonomy.replays import ReplayedGemm, Replays, ReplayTimes, StepCurve

_MARK = " ?"  # behind a time that is no evidence


def replayed(replays: Replays, report: Report | None) -> Sheet:
    """Output of `gemm`: the shapes, then for each phase of a run which kernels are slow alone."""
    parts: list[Line | Table] = [Line(_taken(replays), "dim")]
    if report is None:
        parts.append(shapes_table("GEMMs alone", replays.gemms, replays.disturbed))
        parts += map(Line, _curve_lines(replays.curves, replays.disturbed))
    for name, phase in (report.phases if report is not None else {}).items():
        if phase.replay is None:
            continue
        of_phase = (one for one in replays.gemms if one.phase == name)
        shapes = [one for one in of_phase if one.reasons != ["aligned"]]
        parts.append(shapes_table(f"{name}: GEMMs alone", shapes, replays.disturbed))
        parts += filter(None, [replay_table(phase, name)])
        # The reason of those that are withheld is one for all, and in the text.
        silent = ("none", "withheld")
        parts += [Line(line.text) for line in phase.replay.lines if line.verdict not in silent]
        parts += [Line(phase.replay.text, "bold")]
        if phase.replay.alignments:
            parts.append(alignment_table(name, phase.replay.alignments, replays.disturbed))
        parts += map(Line, _curve_lines(phase.replay.curves, replays.disturbed))
    parts += [Line(f"not replayed: {why}", "yellow") for why in replays.left_out]
    if replays.disturbed:
        again = "run it again where nothing else runs"
        parts.append(Line(f"! disturbed by {', '.join(replays.disturbed)}: {again}", "yellow"))
    if not replays.peaks.flop_per_s:
        unknown = "no peaks of this device are known: `prunescope calibrate` measures them"
        parts.append(Line(unknown, "dim"))
    return Sheet(parts)


def shapes_table(title: str, gemms: Sequence[ReplayedGemm], disturbed: Sequence[str]) -> Table:
    """A row a shape; `disturbed`: by what, where times are not valid."""
    unit = numbers.scale(t.ns for one in gemms for t in (one.warm, one.cold) if t)

    def time(times: ReplayTimes | None) -> Cell:
        ns = times.ns if times else None
        return Cell(_marked(unit.text(ns), disturbed), ns)

    def interval(times: ReplayTimes | None) -> str:
        return unit.interval(times.ci95 if times else None)

    def of_bound(share: float | None) -> Cell:
        return Cell(numbers.percent(share), share)

    columns: Columns[ReplayedGemm] = [
        (Column("GEMM"), _label),
        (number("M"), lambda one: Cell(str(one.m), one.m)),
        (number("N"), lambda one: Cell(str(one.n), one.n)),
        (number("K"), lambda one: Cell(str(one.k), one.k)),
        (Column("dtype", drop=2), lambda one: one.dtype),
        (number("warm", unit.unit), lambda one: time(one.warm)),
        (number("95 % interval", unit.unit, drop=1), lambda one: interval(one.warm)),
        (number("cold", unit.unit), lambda one: time(one.cold)),
        (number("95 % interval, cold", unit.unit, drop=4), lambda one: interval(one.cold)),
        (number("% of its bound"), lambda one: of_bound(one.share_of_bound)),
        (Column("tile", drop=3), lambda one: one.tile or numbers.UNKNOWN),
    ]
    notes = ["warm: the operands were just used; cold: the last-level cache was flushed"]
    if any((one.share_of_bound or 0.0) > 1 for one in gemms):
        notes.append("above 100 % of its bound: warm operands come from a cache, not from memory")
    notes += _mark_notes(disturbed)
    return table_of("shapes-alone", f"{title}, {unit.unit} a call", gemms, columns, notes)


def replay_table(phase: Phase, name: str = "") -> Table | None:
    """One row per role: ns per call in the model and alone, the ledger's part and its value alone.
    `name`: of the phase, for its title; without it, the text of all is a note below."""
    replay = phase.replay
    if replay is None:
        return None
    calls = numbers.scale(t for one in replay.lines for t in (one.inside_ns, one.cold_ns))
    steps = numbers.scale(
        end for one in replay.lines for end in (*(one.ledger_ci95 or ()), *(one.alone_ci95 or ()))
    )
    inside, alone = [finding.text for finding in phase.invalid_times], replay.disturbed

    def time(ns: float, reasons: Sequence[str]) -> Cell:
        return Cell(_marked(calls.text(ns), reasons), ns)

    def cell(ns: float | None) -> Cell:
        return Cell(_marked(steps.text(ns, signed=True), inside), ns)

    def interval(ci95: list[float] | None) -> str:
        return _marked(steps.interval(ci95), alone)

    per_step = f"{steps.unit} a step"
    columns: Columns[ReplayLine] = [
        (Column("role"), lambda one: one.role),
        (Column("M×N×K", drop=3), lambda one: f"{one.m}×{one.n}×{one.k}"),
        (number("in the model", calls.unit), lambda one: time(one.inside_ns, inside)),
        (number("alone, warm", calls.unit, drop=1), lambda one: time(one.warm_ns, alone)),
        (number("alone, cold", calls.unit, drop=2), lambda one: time(one.cold_ns, alone)),
        (number("lost inside", per_step), lambda one: cell(one.ledger_ns)),
        (number("95 % interval", steps.unit, drop=4), lambda one: steps.interval(one.ledger_ci95)),
        (
            number("lost alone", per_step),
            lambda one: _marked(steps.interval(one.alone_ci95), alone),
        ),
        (Column("slow"), lambda one: _SLOW.get(one.verdict, "unknown")),
    ]
    title = f"{name}: the ledger's kernel row, and GEMMs alone" if name else "GEMMs alone"
    title += f", {calls.unit} a call; lost: {steps.unit} a step"
    notes = [
        "lost: time of a step beyond that of its dense GEMMs scaled by work, roofline and shape; "
        "inside: in the ledger"
    ]
    notes += [f"? in the model: {text}" for text in inside] + _mark_notes(replay.disturbed)
    notes += [] if name else [replay.text]
    return table_of("replayed", title, replay.lines, columns, notes)


_SLOW = {
    "library": "alone too",
    "inside": "only inside",
    "faster": "no, faster",
    "none": "no",
    "unpruned": "not pruned",
    "withheld": "no verdict",
}


def _marked(text: str, reasons: Sequence[str]) -> str:
    """A time, with the mark where there is a reason why it is no evidence."""
    return f"{text}{_MARK}" if reasons and text != numbers.UNKNOWN else text


def _mark_notes(disturbed: Sequence[str]) -> list[str]:
    """The meaning of the mark."""
    why = f"? timing not valid: disturbed by {', '.join(disturbed)} while the GEMMs ran alone"
    return [why] if disturbed else []


def alignment_table(phase: str, times: Sequence[AlignedTime], disturbed: Sequence[str]) -> Table:
    """A row a pruned dimension, a column an alignment: time a kept number over that of the kept
    size."""
    aligns = sorted({one.align for one in times})
    rows: dict[tuple[str, str, int], dict[int, float]] = {}
    for one in times:
        rows.setdefault((one.role, one.axis, one.now), {})[one.align] = one.relative
    body = [
        [
            f"{role} {axis} = {now}",
            *(_marked(numbers.percent(found.get(a)), disturbed) for a in aligns),
        ]
        for (role, axis, now), found in rows.items()
    ]
    columns = [Column("kept"), *numeric(*(f"align {a}" for a in aligns))]
    note = "time a kept number, over that of the kept size; the nearest size of each alignment"
    notes = [note, *_mark_notes(disturbed)]
    return text_table("alignments", f"{phase}: alignment", columns, body, notes)


def _taken(replays: Replays) -> str:
    flush = "" if replays.flush_bytes is None else f", flush {numbers.size(replays.flush_bytes)}"
    return (
        f"{replays.device.name or 'unknown device'}, {replays.device.threads} threads, torch "
        f"{replays.versions.get('torch', '?')}: {replays.repeats} samples of each shape in turns, "
        f"in {replays.placements} placements{flush}"
    )


def _curve_lines(curves: Iterable[StepCurve], disturbed: Sequence[str]) -> Iterator[str]:
    for one in curves:
        mark = _MARK if disturbed else ""
        fixed = f"K = {one.k}" if one.n is None else f"N = {one.n}"
        what = (
            f"{one.role or 'time'} over {one.axis} from {min(one.sizes)} to {max(one.sizes)} "
            f"({fixed})"
        )
        if one.width is None:
            yield f"{what}: no steps, a line describes {len(one.sizes)} sizes as well{mark}"
        else:
            yield (
                f"{what}: one more step of {numbers.time(one.step_ns)} every {one.width} "
                f"({len(one.sizes)} sizes){mark}"
            )


def _label(one: ReplayedGemm) -> str:
    reason = one.reasons[0] if one.reasons else ""
    return f"{one.role}, {reason}" if one.role else reason
